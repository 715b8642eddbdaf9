"""The README's badges, of what stands in this repository; `python -m tools.docs.badges` writes them.

No service draws them, so they are there before the project has an address. A test says when one is out of date.
"""

from __future__ import annotations

import re
from pathlib import Path

from nitrodistill.models.adapters import PIPELINES

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "images" / "badges"
_BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img"
 aria-label="{left}: {right}">
<title>{left}: {right}</title>
<rect width="{whole}" height="20" rx="3" fill="#2f6f9f"/>
<path d="M3 0h{flat}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="6" y="14">{left}</text><text x="{start}" y="14">{right}</text>
</g>
</svg>
"""
_LETTER = 7
"""Pixels of a letter, generously."""


def badges() -> dict[str, str]:
    """Name of a badge's file -> its SVG."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)
    version, licence = (_value(project, name) for name in ("version", "license"))
    recipes = len(list((ROOT / "nitrodistill" / "recipes").glob("*.yaml")))
    said = {
        "version": version,
        "python": f"3.{min(map(int, pythons))} to 3.{max(map(int, pythons))}",
        "licence": licence,
        "pipelines": f"{len(PIPELINES)} classes of diffusers",
        "recipes": str(recipes),
    }
    return {f"{name}.svg": badge(name, value) for name, value in said.items()}


def badge(left: str, right: str) -> str:
    """An SVG of two words."""
    split, whole = 12 + _LETTER * len(left), 24 + _LETTER * (len(left) + len(right))
    return _BADGE.format(left=left, right=right, whole=whole, flat=split - 3, start=split + 6)


def _value(project: str, name: str) -> str:
    found = re.search(rf'^{name} = "([^"]+)"', project, re.MULTILINE)
    assert found is not None
    return found[1]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in badges().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
