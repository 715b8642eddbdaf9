from __future__ import annotations

import json
import re
from typing import Any

from tools.docs.notebook import run
from tools.docs.pages import NOTEBOOK


def test_cells_share_names_and_keep_what_they_print_and_draw():
    def code(source: str) -> dict[str, Any]:
        return {"cell_type": "code", "source": source}

    picture = 'from PIL import Image\nprint(a)\nImage.new("RGB", (2, 2))'
    cells = [code("a = 1"), {"cell_type": "markdown", "source": "Text."}, code(picture), code("a")]
    made = run({"cells": cells})["cells"]
    assert made[0]["outputs"] == made[3]["outputs"] == []
    assert made[1] == cells[1]
    printed, drawn = made[2]["outputs"]
    assert printed["text"] == ["1\n"]
    assert drawn["data"]["image/png"].startswith("iVBOR")


def test_the_toys_notebook_runs_and_its_student_learns():
    """Its cells' text is what the repository has, but for the last digits of another CPU."""
    data = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    made = run(data, names)
    printed, before = ([_text(c) for c in d["cells"] if _text(c)] for d in (made, data))
    assert len(printed) == len(before) == 4
    assert printed[1] == before[1]
    teacher, student = (float(share) for share in re.findall(r"(\d+)%", printed[-1]))
    assert student > teacher + 20
    assert names["rebuild"](names["fake"], names["real"]).item() < 0.06


def _text(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", ())) for output in cell.get("outputs", ()))
