"""Every python block of the README and the docs runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARKED = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def test_there_are_blocks_to_run():
    assert ROOT / "README.md" in MARKED


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)


def test_python_blocks_pass_pyright(tmp_path):
    """As a user's editor shows them; those that call diffusers as its annotations do not allow aside."""
    settings = {"reportOptionalMemberAccess": False, "reportOptionalSubscript": False}
    settings["reportPossiblyUnbound"] = False
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    for page in MARKED:
        if page.stem not in ("concepts", "export"):
            blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
            (tmp_path / f"{page.stem}.py").write_text("\n".join(blocks))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
