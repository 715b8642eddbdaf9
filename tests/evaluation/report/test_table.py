"""The table: groups in order, cells under their columns, verdicts where there are any."""

from __future__ import annotations

from nitrodistill.evaluation import Metric
from nitrodistill.evaluation.report import assess
from nitrodistill.evaluation.report.table import Column, make_table

VALUES = {
    "student": {"alignment": Metric(0.9, 0.88, 0.92), "fd_teacher": Metric(9.0, 8.0, 10.0)},
    "teacher": {"alignment": Metric(0.99, 0.98, 1.0), "denoise_ms": Metric(50.0)},
}
COLUMNS = [
    Column("student", "student", True, "1 step"),
    Column("teacher", "teacher"),
    Column("floor", "floor"),
]
NAMES = ["alignment", "fd_teacher", "denoise_ms"]


def test_rows_and_cells() -> None:
    assessed = {
        "alignment": assess(
            "alignment", VALUES["student"]["alignment"], VALUES["teacher"]["alignment"], None
        )
    }
    table = make_table(
        VALUES, NAMES, {"fd_teacher": 3.0}, COLUMNS, "caption", "lead", assessed=assessed
    )
    assert [group.title for group in table.groups] == [
        "Follows its prompt",
        "Distribution of pictures",
    ]
    (alignment,), (distance,) = (group.rows for group in table.groups)
    assert [(c.text, c.interval, c.known) for c in alignment.cells] == [
        ("0.900", "0.880 to 0.920", True),
        ("0.990", "0.980 to 1.000", True),
        ("–", "", False),
    ]
    assert alignment.cells[0].column == "student, 1 step"
    assert alignment.state is not None
    assert (alignment.state.text, alignment.state.kind) == ("differs", "off")
    assert [c.text for c in distance.cells] == ["9.00", "–", "3.00"]
    assert distance.state is None
    assert "student dot" in distance.strip
    assert "floor tick" in distance.strip
    assert (alignment.scale, distance.scale) == ("linear", "log")
    assert table.width == 6


def test_without_verdicts_there_are_no_lines() -> None:
    best = {"alignment": frozenset({"teacher"})}
    table = make_table(VALUES, NAMES, {}, COLUMNS, "caption", "lead", best=best)
    assert [c.best for c in table.groups[0].rows[0].cells] == [False, True, False]
    assert (table.assessed, table.width) == (False, 4)
    assert table.groups[0].rows[0].strip == ""


def test_a_ratio_shows_why_it_differs_from_its_teacher() -> None:
    found = Metric(1.004, 1.0004, 1.0076)
    assessed = {"edge_ratio": assess("edge_ratio", found, None, None)}
    table = make_table(
        {"student": {"edge_ratio": found}},
        ["edge_ratio"], {}, COLUMNS[:1], "caption", "lead", assessed=assessed,
    )  # fmt: skip
    (row,) = table.groups[0].rows
    assert row.state is not None
    assert row.state.text == "differs"
    assert (row.cells[0].text, row.cells[0].interval) == ("1.0040", "1.0004 to 1.0076")
