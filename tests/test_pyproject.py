"""What pyproject.toml declares is used, and the wheel that it makes is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from nitrodistill.training.recipe import shipped_recipes

ROOT = Path(__file__).parent.parent
MODULES = {"docstring-parser": "docstring_parser", "pillow": "PIL", "pyyaml": "yaml"}
BY_USERS = {"datasets"}
"""Extras that open what the package writes."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _name(requirement: str) -> str:
    return re.split(r"[<>=!\[; ]", requirement)[0]


def test_what_is_required_is_imported_and_has_a_lower_bound(project):
    extras = [
        one
        for name, all_of in project["optional-dependencies"].items()
        if name != "all"
        for one in all_of
    ]
    source = "\n".join(
        file.read_text(encoding="utf-8")
        for place in ("nitrodistill", "examples")
        for file in (ROOT / place).rglob("*.py")
    )
    for requirement in [*project["dependencies"], *extras]:
        assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*", requirement)
        module = MODULES.get(_name(requirement), _name(requirement).replace("-", "_"))
        used = re.search(
            rf'^\s*(import|from) {module}\b|find_spec\("{module}"', source, re.MULTILINE
        )
        assert used or module in BY_USERS, requirement


def test_all_holds_every_extra(project):
    extras = project["optional-dependencies"]
    assert extras["all"] == [f"nitrodistill[{','.join(sorted(set(extras) - {'all'}))}]"]


def test_versions_of_python_are_those_that_are_tested(project):
    listed = [c.rpartition(" ")[2] for c in project["classifiers"] if "Python :: 3." in c]
    assert project["requires-python"] == f">={listed[0]}"
    workflow = (ROOT / ".github/workflows/tests.yaml").read_text(encoding="utf-8")
    assert all(f'"{version}"' in workflow for version in listed)
    assert f"{listed[0]} lowest-direct" in (ROOT / "tools/bounds.sh").read_text(encoding="utf-8")
    assert f"{listed[-1]} highest" in (ROOT / "tools/bounds.sh").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version(project):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["title"], cited["version"]) == (project["name"], project["version"])
    assert cited["license"] == project["license"]
    assert cited["keywords"] == project["keywords"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github").rglob("*.y*ml")), ids=lambda file: file.stem
)
def test_files_for_the_host_are_yaml(file):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


@pytest.mark.soak
def test_the_wheel_works_without_the_clone_and_has_the_recipes(tmp_path):
    """By the README's commands. What it depends on is this environment's."""
    wheel, install = "pip wheel --no-deps --wheel-dir dist .", "pip install dist/nitrodistill-*.whl"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{wheel}\n{install}\n" in readme
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    words = wheel.replace("dist", str(tmp_path / "dist")).split()[1:]
    subprocess.run([*pip, *words], cwd=ROOT, check=True)
    (made,) = (tmp_path / "dist").glob("nitrodistill-*.whl")
    inside = set(zipfile.ZipFile(made).namelist())
    assert {f"nitrodistill/recipes/{name}.yaml" for name in shipped_recipes()} <= inside
    assert not any(name.startswith(("examples", "tests", "tools")) for name in inside)
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", made], check=True)
    script = "import sys, nitrodistill.cli.main as at; print(at.__file__); sys.exit(at.main(['recipes']))"
    command, place = [sys.executable, "-c", script], {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | place, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert all(f"  {name} " in done.stdout for name in shipped_recipes())
