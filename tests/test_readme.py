"""Every python block of the README and the docs runs, every command is understood, every link leads somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nitrodistill.training.recipe as recipes
from nitrodistill.cli import arguments
from nitrodistill.cli.main import VERBS, main
from tools.docs import pages

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if "generated" not in p.relative_to(DOCS).parts),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARKED = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
COMMAND = re.compile(r"^\s*(?:\$ )?(?:[\w -]*-m )?nitrodistill ((?:.*\\\n)*.*)$", re.MULTILINE)
LISTINGS = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(text: str) -> Iterator[list[str]]:
    """What follows `nitrodistill` in the listings of a page, but for commands shown with their mistake."""
    for kind, listing in LISTINGS.findall(text):
        if kind not in ("", "bash", "console"):
            continue
        for found in COMMAND.finditer(listing):
            if not listing[found.end() :].lstrip("\n").startswith("nitrodistill: "):
                words = shlex.split(found[1].replace("\\\n", " "), comments=True)
                yield (
                    words[: words.index(">")] if ">" in words else words
                )  # the shell takes the rest


class Understood(Exception):
    """Nothing is wrong with a command; it is not run."""


@pytest.fixture
def only_parse(monkeypatch):
    """Verbs stop when they have read their options, `train` when it has read its recipe."""
    load = recipes.load_recipe

    def parse(*args: Any, **options: Any) -> Any:
        arguments.parse(*args, **options)
        raise Understood

    def load_recipe(path: str | None, *args: Any) -> Any:
        known = (ROOT / str(path)).exists() or any(ROOT.glob(f"*/recipes/{path}.yaml"))
        load(path if known else next(ROOT.glob("*/recipes/toy.yaml")), *args)
        raise Understood

    for verb in VERBS:
        module = importlib.import_module(f"nitrodistill.cli.{verb.replace('-', '_')}")
        if verb != "train":
            monkeypatch.setattr(module, "parse", parse)
    monkeypatch.setattr(recipes, "load_recipe", load_recipe)
    monkeypatch.chdir(ROOT)


def test_the_readme_is_short_and_every_page_is_in_the_site():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
    index = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    listed = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES[1:]} - {"index"}
    assert listed <= set(index)


def test_there_are_blocks_and_commands():
    assert ROOT / "README.md" in MARKED
    shown = {c[0] for page in PAGES for c in commands(page.read_text(encoding="utf-8"))}
    assert shown >= {"demo", "generate", "train", "evaluate", "export", "estimate", "pairs"}


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)


def test_python_blocks_pass_pyright(tmp_path):
    """As a user's editor shows them; those that call diffusers as its annotations do not allow aside."""
    settings = {"reportOptionalMemberAccess": False, "reportOptionalSubscript": False}
    settings |= {"reportPossiblyUnboundVariable": False, "reportPrivateImportUsage": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    for page in MARKED:
        if page.stem not in ("concepts", "export"):
            blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
            (tmp_path / f"{page.stem}.py").write_text("\n".join(blocks))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        made = (page.parent / link).resolve()
        if DOCS / "generated" not in made.parents:  # sphinx checks those
            assert made.exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", [*PAGES, None], ids=lambda p: name(p) if p else "recipes")
def test_commands_are_understood(page, only_parse, capsys):
    text = pages.recipes() if page is None else page.read_text(encoding="utf-8")
    for command in commands(text):
        assert command[0] in VERBS, command
        try:
            code = main(command)
        except Understood:
            continue
        pytest.fail(f"{' '.join(command)}: exit {code}, {capsys.readouterr().err}")


@pytest.mark.parametrize("wrong", ["train --config recipe.yaml --no_such 1", "demo --stepz 3"])
def test_a_wrong_command_would_not_be(wrong, only_parse, capsys):
    assert main(shlex.split(wrong)) == 2
