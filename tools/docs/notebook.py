"""Runs the notebook of the docs and keeps what its cells print and draw: `python -m tools.docs.notebook`.

As Jupyter does, in one namespace, but in this process; a cell's last expression is shown if it is a picture.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from typing import Any

from PIL import Image

from tools.docs.pages import NOTEBOOK


def run(data: dict[str, Any], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The notebook with its outputs made anew.

    Args:
        data: as its file holds it.
        names: the namespace that the cells run in, by default an empty one.
    """
    names = {"__name__": "__main__"} if names is None else names
    cells, count = [], 0
    for cell in data["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = _run(_joined(cell["source"]), f"cell {count}", names, count)
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**data, "cells": cells}


def _run(source: str, title: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source, title)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, title, "exec"), names)
        expression = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
        shown = None if expression is None else eval(compile(expression, title, "eval"), names)
    text = printed.getvalue()
    outputs: list[dict[str, Any]] = []
    if text:
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(True)})
    if isinstance(shown, Image.Image):
        file = io.BytesIO()
        shown.save(file, "png", optimize=True)
        picture = {"image/png": base64.b64encode(file.getvalue()).decode("ascii")}
        kind = {"output_type": "execute_result", "execution_count": count, "metadata": {}}
        outputs.append({**kind, "data": {**picture, "text/plain": ["<picture>"]}})
    return outputs


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


if __name__ == "__main__":
    made = run(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
