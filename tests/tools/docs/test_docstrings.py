from __future__ import annotations

import pytest
from docutils.core import publish_doctree

from tools.docs.docstrings import as_rst


def shown(text: str) -> str:
    return publish_doctree(as_rst(text), settings_overrides={"halt_level": 2}).astext()


@pytest.mark.parametrize(
    "line",
    [
        "Mean |pred - target| of every sample, (B, *) and x* of y*.",
        "Names like x_ and T_ and **kwargs, a \\ and a lone ` too.",
    ],
)
def test_a_line_is_shown_as_it_stands(line):
    assert shown(line) == line


def test_code_is_literal_and_its_plural_is_not():
    (paragraph,) = publish_doctree(as_rst("`a*b`s and `c_`"))
    assert [node.tagname for node in paragraph if node.astext()] == ["literal", "#text", "literal"]
    assert paragraph.astext() == "a*bs and c_"


@pytest.mark.parametrize("indent", ["", "    "])
def test_a_formula_or_table_keeps_its_columns(indent):
    table = f"{indent}L1    |d|\n{indent}L2    d^2"
    (before, block, after) = publish_doctree(as_rst(f"Losses.\n\n{table}\n\nMore."))
    assert block.tagname == "literal_block"
    assert block.astext() == "L1    |d|\nL2    d^2"
    assert (before.astext(), after.astext()) == ("Losses.", "More.")


def test_sections_are_left_to_napoleon():
    text = "What.\n\nArgs:\n    x: `(B, *)`, not x*.\n\n        y: more."
    assert "Args:\n    x: ``(B, *)``\\ , not x\\*." in as_rst(text)
    assert "::\n" not in as_rst(text)
