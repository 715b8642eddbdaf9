"""Badges say what stands in the repository."""

from __future__ import annotations

from xml.etree import ElementTree

from tools.docs.badges import FOLDER, ROOT, badge, badges


def test_the_badges_that_are_kept_are_up_to_date() -> None:
    """`python -m tools.docs.badges` writes them anew."""
    made = badges()
    assert {path.name for path in FOLDER.iterdir()} == set(made)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name
        assert f"docs/images/badges/{name}" in readme


def test_a_badge_is_an_svg_wide_enough_for_its_words() -> None:
    root = ElementTree.fromstring(badge("recipes", "35"))
    left, right = (text for text in root.iter() if text.tag.endswith("text"))
    assert (left.text, right.text) == ("recipes", "35")
    assert int(left.attrib["x"]) + 7 * len("recipes") <= int(right.attrib["x"])
    assert int(right.attrib["x"]) + 7 * len("35") <= int(root.attrib["width"])
