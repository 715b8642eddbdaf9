"""Docstrings as reStructuredText: they are written in plain ASCII, with formulas, and nothing in them is markup.

`code` in backquotes becomes literal, so does a block that is indented or aligned, and all other signs of markup
(`x*`, `|d|`, `name_`) are escaped. Sections such as `Args:` are left to Sphinx' napoleon.
"""

from __future__ import annotations

import inspect
import re

SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns|Yields):$")
CODE = re.compile(r"(`+)(.+?)\1|(\*\*[^*]+\*\*)")
ALIGNED = re.compile(r"^\S.*[^\s.] {2,}\S")
"""A line of a table."""

DOCTEST = (">>>", "...")
MARKUP = re.compile(r"([\\*|`]|_(?!\w))")


def as_rst(text: str) -> str:
    """A docstring as reStructuredText that shows what it says.

    Args:
        text: as `inspect.getdoc` returns it, or with the indentation of the source.
    """
    shown: list[str] = []
    section = False
    for part in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)):
        lines = part.splitlines() or [""]
        section = bool(SECTION.match(lines[0])) or (section and lines[0].startswith("    "))
        if section:
            shown += [
                line if line.lstrip().startswith(DOCTEST) else _escaped(line) for line in lines
            ]
        elif lines[0].startswith("    ") or any(ALIGNED.search(line) for line in lines):
            shown += ["::", "", *("    " + line for line in lines)]
        else:
            shown += map(_escaped, lines)
        shown.append("")
    return "\n".join(shown)


def _escaped(line: str) -> str:
    """Code spans as literals, bold as it is, the rest without any markup; a bullet at the start stays one."""
    bullet = re.match(r"\s*[*-] ", line)
    start = bullet.end() if bullet else 0
    parts, at = [line[:start]], start
    for found in CODE.finditer(line, start):
        parts.append(MARKUP.sub(r"\\\1", line[at : found.start()]))
        parts.append(found[3] or f"``{found[2]}``\\ ")
        at = found.end()
    return "".join([*parts, MARKUP.sub(r"\\\1", line[at:])])
