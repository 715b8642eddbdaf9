"""Methods are found by name; what is none is refused with one sentence, before anything is read or written."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import nitrodistill
from nitrodistill.method import DistillationMethod
from nitrodistill.methods import LADD, find_method, known_methods

OWN = """
from dataclasses import dataclass
from nitrodistill.method import DistillationMethod

@dataclass(frozen=True)
class Settings:
    weight: float = 1.0

class Mine(DistillationMethod):
    Config = Settings

    @classmethod
    def build(cls, config, cast):
        return cls()

    def trainable(self):
        return {}

    def losses(self, batch, active, draws):
        yield from ()

class NoLosses(Mine):
    losses = DistillationMethod.losses
    __abstractmethods__ = frozenset({"losses"})

class NoConfig(DistillationMethod):
    build = trainable = losses = None

class Bare:
    pass

class Alike:
    Config = build = trainable = losses = 1

value = 3
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that only the working directory has."""
    name = f"outside_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return name


def test_every_file_of_the_package_is_a_method_of_its_name() -> None:
    assert "ladd" in known_methods()
    assert find_method("ladd") is LADD
    for name in known_methods():
        found = find_method(name)
        assert issubclass(found, DistillationMethod)
        assert not inspect.isabstract(found)


def test_one_from_outside_is_looked_for_in_the_working_directory(outside: str) -> None:
    found = find_method(f"{outside}:Mine")
    assert found.__name__ == "Mine"
    assert find_method(f"{outside}:Mine") is found


def test_one_that_is_unknown_is_told_with_those_that_are_known() -> None:
    for name, words in [
        ("lad", r"'lad'; did you mean 'ladd'\?"),
        ("unheard", r"'unheard'; known are consistency, dmd2, .*ladd"),
    ]:
        with pytest.raises(ValueError, match=f"there is no method {words}.*package.module:Class"):
            find_method(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Absent", r"is no class; outside_\w+ has no class 'Absent'\."),
        ("value", r"is no class"),
        ("Bare", r"is no distillation method: it lacks Config, build, losses, trainable\."),
        ("NoConfig", r"is no distillation method: it lacks Config\."),
        ("NoLosses", r"is no distillation method: it lacks losses\."),
        ("Alike", r"is no distillation method; derive it from nitrodistill\.DistillationMethod\."),
    ],
)
def test_what_is_no_method_is_told_what_it_lacks(outside: str, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        find_method(f"{outside}:{name}")
    assert f"{outside}:{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported(tmp_path: Path, outside: str) -> None:
    with pytest.raises(
        ValueError, match=r"the method 'no_such_module:X' cannot be imported: No module"
    ):
        find_method("no_such_module:X")
    (tmp_path / f"{outside}_needs.py").write_text("import no_such_thing")
    with pytest.raises(ValueError, match=r"cannot be imported: No module named 'no_such_thing'"):
        find_method(f"{outside}_needs:X")


def test_nothing_but_the_demo_knows_one_method() -> None:
    """The trainer, recipes, estimate and loading meet LADD nowhere."""
    package = Path(nitrodistill.__file__).parent
    free = {
        package / "__init__.py",
        package / "cli" / "demo.py",
        *(package / "methods").rglob("*"),
        *(package / "demo").rglob("*"),
    }
    naming = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in sorted(package.rglob("*.py"))
        if file not in free
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"LADD", line)
    ]
    assert naming == []
