"""Runs tests/models/test_families.py and writes what passed as the table of docs/families.md.

    python tests/models/write_table.py

A cell is "yes" where the family's test of the feature passed, "-" where it does not apply (skipped), else "no".
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- table: python tests/models/write_table.py -->\n", "<!-- end of table -->"
FEATURES = {
    "test_equals_diffusers": "equals diffusers",
    "test_x0_is_the_schedulers": "one-step x0",
    "test_guidance": "guidance",
    "test_taps": "taps",
    "test_early_exit": "early exit",
    "test_gradients_through_the_frozen_backbone": "gradients",
    "test_checkpointing": "checkpointing",
    "test_a_copy_trains_all_that_the_prediction_depends_on_and_nothing_else": "whole students",
    "test_lora_roles": "LoRA roles",
    "test_sdpa": "SDPA",
    "test_pruning": "pruning",
    "test_bad_input": "bad input",
}
WORDS = {"passed": "yes", "skipped": "-", "failed": "no"}


class Results:
    """Collects what each test of each family came to; the worst of its phases counts."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = re.fullmatch(r"(\w+)\[(.+)\]", report.nodeid.rsplit("::", 1)[-1])
        if found and found[1] in FEATURES and (report.when == "call" or not report.passed):
            self.cells[found[2], found[1]] = WORDS[report.outcome]


def table(cells: dict[tuple[str, str], str]) -> str:
    """The results as Markdown, a row a family."""
    rows = [["family", *FEATURES.values()], ["---"] * (1 + len(FEATURES))]
    for family in dict.fromkeys(family for family, _ in cells):
        rows.append([family, *(cells.get((family, test), "no") for test in FEATURES)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    """Runs the tests, writes the page; returns pytest's exit code."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    results = Results()
    code = pytest.main(["-q", "-p", "no:randomly", str(HERE / "test_families.py")], [results])
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(results.cells) + END + after, encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
