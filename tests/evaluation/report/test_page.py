"""The page: one whole file, no network address, a text for every picture, nothing that a prompt can break."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nitrodistill as nd
from nitrodistill.evaluation import Evaluation
from nitrodistill.evaluation.report import report_html, write_report

LOGS = [
    {"stage": 0, "step": step, "student/total": 1 / step, "student/learning_rate": 1e-3}
    for step in range(1, 6)
]


@pytest.fixture
def page(evaluation: Callable[..., Evaluation]) -> str:
    environment = {"python": "3.11", "versions": {"torch": "2.9"}, "git": None}
    return report_html(
        evaluation(), title="A run", logs=LOGS, recipe="teacher: toy", environment=environment
    )


def test_the_page_is_well_formed(page: str, read_page: Callable[[str], Any]) -> None:
    found = read_page(page)
    assert page.startswith("<!doctype html>")
    assert [e.attributes["lang"] for e in found.all("html")] == ["en"]
    assert "width=device-width" in found.all("meta", "name")[0].attributes["content"]
    ids = [e.attributes["id"] for e in found.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = {e.attributes["href"] for e in found.all("a")}
    assert links <= {f"#{name}" for name in ids}, "links lead into the page"
    for labelled in (e.attributes.get("aria-labelledby") for e in found.elements):
        assert labelled is None or labelled in ids


def test_nothing_is_loaded_from_elsewhere(page: str, read_page: Callable[[str], Any]) -> None:
    found = read_page(page)
    assert "://" not in page
    assert not found.all("link")
    assert not found.all("script", "src")
    for element in found.elements:
        for name in ("src", "srcset", "poster", "action", "data", "xlink:href"):
            assert element.attributes.get(name, "data:image/").startswith("data:image/")
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    (policy,) = found.all("meta", "http-equiv")
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:;")


def test_paper_gets_the_light_page(page: str) -> None:
    """A dark preference or a narrow sheet would print white on white, or the phone's blocks."""
    queries = re.findall(r"@media ([^{]*(?:dark|max-width)[^{]*)", page)
    assert len(queries) == 2
    assert all(query.startswith("screen and ") for query in queries)


def test_every_picture_has_a_text(page: str, read_page: Callable[[str], Any]) -> None:
    found = read_page(page)
    images = found.all("img")
    assert len(images) == 2 * 3
    assert {e.attributes["alt"] for e in images} >= {
        "teacher: a red ring",
        "student: a blue circle",
    }
    for drawing in found.all("svg"):
        told = drawing.attributes.get("aria-label") if "role" in drawing.attributes else None
        assert told or drawing.attributes.get("aria-hidden") == "true" or _in_legend(page, drawing)
    for button in found.all("button"):
        assert (
            button.attributes.get("aria-label")
            or button.text.strip()
            or "data-more" in button.attributes
        )


def _in_legend(page: str, drawing: Any) -> bool:
    return (
        drawing.attributes["viewbox"] == "0 0 16 16" and 'class="legend" aria-hidden="true"' in page
    )


def test_pictures_come_through_unchanged(
    page: str, read_page: Callable[[str], Any], evaluation: Callable[..., Evaluation]
) -> None:
    (image,) = [
        e for e in read_page(page).all("img") if e.attributes["alt"] == "student: a blue circle"
    ]
    kind, data = image.attributes["src"].split(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    worst = evaluation().worst
    assert worst is not None
    expected = (worst.images["student"][0].permute(1, 2, 0) + 1) * 127.5
    assert np.array_equal(pixels, expected.round().numpy().astype(np.uint8))


def test_hostile_text_stays_text(
    evaluation: Callable[..., Evaluation], read_page: Callable[[str], Any], hostile: str
) -> None:
    calm = report_html(evaluation(), title="x", recipe="y", environment={"git": "z"}, logs=LOGS)
    logs = [{**line, hostile: 1.0} for line in LOGS]
    page = report_html(
        evaluation((hostile, "a blue circle")),
        title=hostile,
        recipe=hostile,
        environment={"git": hostile, hostile: {"inner": hostile}},
        logs=logs,
    )
    found = read_page(page)
    assert len(found.all("script")) == len(read_page(calm).all("script")) == 1
    assert not any(name.startswith("on") for e in found.elements for name in e.attributes)
    assert all(e.attributes["src"].startswith("data:") for e in found.all("img"))
    prompts = [e.attributes["data-prompt"] for e in found.all("li", "data-prompt")]
    assert prompts == ["a blue circle", hostile], "and it reads as it was written"
    assert {e.text for e in found.all("q")} == {hostile, "a blue circle"}


def test_the_farthest_comes_first_without_a_script(
    page: str, read_page: Callable[[str], Any]
) -> None:
    found = read_page(page)
    cards = found.all("li", "data-index")
    assert [card.attributes["data-pixel_distance"] for card in cards] == ["0.2", "0.1"]
    assert ["data-fair" in card.attributes for card in cards] == [False, True]
    (tools,) = [e for e in found.all("form") if e.attributes["class"] == "tools"]
    assert "hidden" in tools.attributes, "controls appear where they work"
    options = [e.attributes["value"] for e in found.all("option")]
    assert options[:4] == ["pixel_distance:down", "pixel_distance:up", "ssim:up", "ssim:down"]


def test_what_the_page_says(page: str) -> None:
    assert "<h1>The student matches its teacher in variety, but not in" in page
    assert "1 step instead of 25 · 64 samples" in page
    assert "25×" in page, "50 ms against 2"
    assert "0.900<small>0.882 to 0.918</small>" in page
    assert 'aria-label="student/total over step 1 to 5: from 1.00 to 0.200' in page
    for text in ("teacher: toy", "3.11", "Versions", "torch", "| alignment |"):
        assert text in page


def test_what_is_missing_and_what_floors_are(
    evaluation: Callable[..., Evaluation], read_page: Callable[[str], Any], hostile: str
) -> None:
    page = report_html(replace(evaluation(), notes=("SSIM is left out: why.", hostile)))
    assert len(read_page(page).all("script")) == 1
    assert "<li>SSIM is left out: why.</li>" in page
    assert hostile not in page
    assert "What could not be measured" not in report_html(evaluation())
    assert "<dt>FD to real</dt><dd>real pictures against other real pictures" in page
    assert "<dt>denoising, ms/image</dt><dd>none: its interval is the fastest" in page


def test_an_evaluation_without_extras_is_a_page_too(read_page: Callable[[str], Any]) -> None:
    from nitrodistill.evaluation import Metric

    found = read_page(report_html(Evaluation({"student": {"fd_teacher": Metric(3.0)}})))
    assert found.all("h1")[0].text == "This evaluation cannot tell."
    assert not found.all("img")
    with pytest.raises(KeyError):
        report_html(Evaluation({"teacher": {"fd_real": Metric(3.0)}}))


def test_the_file_is_whole_or_not_there(
    tmp_path: Path, evaluation: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(evaluation(), tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    before = path.read_text(encoding="utf-8")

    def fail(self: Path, text: str, **options: object) -> int:
        self.write_bytes(text[:50].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(evaluation(), path, title="another")
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_control_characters_are_written_out(evaluation: Callable[..., Evaluation]) -> None:
    page = report_html(evaluation(), title="a\x1b[31m\u202eb")
    assert "a\\x1b[31m\\u202eb" in page
    assert not {"\x1b", "\u202e"} & set(page)


def test_a_discriminators_curve_comes_with_what_a_healthy_one_looks_like(
    evaluation: Callable[..., Evaluation],
) -> None:
    chances = [
        loss.chance
        for loss in (
            nd.HingeGANLoss,
            nd.NonSaturatingGANLoss,
            nd.LeastSquaresGANLoss,
            nd.RelativisticGANLoss,
        )
    ]
    logs = [{**line, "discriminator/total": 1.9 - 0.1 * i} for i, line in enumerate(LOGS)]
    page = report_html(evaluation(), logs=logs)
    stated = re.search(r"has a loss of (.*?)\. A healthy one", page)
    assert stated is not None
    assert [float(n) for n in re.findall(r"[\d.]+", stated[1])] == pytest.approx(chances, abs=5e-3)
    assert "A healthy one" not in report_html(evaluation(), logs=LOGS)


def test_every_strip_says_its_scale(page: str) -> None:
    strips = page.count('<svg class="strip"')
    assert strips > 3
    assert len(re.findall(r"</svg><small>(?:log|linear)</small>", page)) == strips
