"""A chart of the report's as a file of its own."""

from __future__ import annotations

from pathlib import Path

STYLE = (
    "<style>text{font:12px sans-serif;fill:#333}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".grid,.frame{stroke:#ddd}.student.dot{fill:#4c78a8}.teacher.dot{fill:#e45756}.front{stroke:#4c78a8}"
    ".whisker{stroke:#aaa}.floor{stroke:#999;stroke-dasharray:4}</style>"
)


def save_svg(drawn: object, file: Path) -> None:
    """Writes an `<svg>` element with the style that a page would give it."""
    text = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text.replace(">", f">{STYLE}", 1))
