"""Comparisons: who is on the front and who is best, what may be compared, and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.evaluation import Evaluation, Metric, Pictures
from nitrodistill.evaluation.report import compare, comparison_html, write_comparison

# name -> (distance with its interval, milliseconds)
PLACES = {
    "fast": (Metric(30.0, 28.0, 32.0), 2.0),
    "good": (Metric(5.0, 4.5, 5.5), 8.0),
    "also good": (Metric(5.4, 5.0, 5.9), 9.0),
    "slow": (Metric(20.0, 19.0, 21.0), 10.0),
}


@pytest.fixture
def students(evaluation: Callable[..., Evaluation]) -> dict[str, Evaluation]:
    found = evaluation(("a red ring", "a blue circle", "a green cross"))

    def make(distance: Metric, cost: float) -> Evaluation:
        student = {**found.student, "fd_teacher": distance, "denoise_ms": Metric(cost)}
        return replace(found, models={**found.models, "student": student})

    return {name: make(*place) for name, place in PLACES.items()}


def test_the_front_and_the_best(students: dict[str, Evaluation]) -> None:
    compared = compare(students)
    assert (compared.quality, compared.cost) == ("fd_teacher", "denoise_ms")
    assert compared.share("fast") == 2.0 / 50.0
    assert compared.front() == {"fast", "good"}
    assert compared.best("fd_teacher") == {"good", "also good"}
    assert compared.best("denoise_ms") == {"fast"}
    assert compared.best("beauty") == frozenset()


def test_high_is_good_for_alignment(students: dict[str, Evaluation]) -> None:
    found = students["slow"]
    better = {**found.student, "alignment": Metric(0.99, 0.985, 0.995)}
    students["slow"] = replace(found, models={**found.models, "student": better})
    compared = compare(students, quality="alignment")
    assert compared.best("alignment") == {"slow"}
    assert compared.front() == {"fast", "slow"}


def test_of_ratios_the_nearest_to_1_or_the_highest_is_best(students: dict[str, Evaluation]) -> None:
    ratios = {"fast": 0.7, "good": 1.1, "also good": 0.98, "slow": 1.5}
    for name, value in ratios.items():
        more = {"edge_ratio": Metric(value), "nearest_ratio": Metric(value)}
        found = students[name]
        models = {**found.models, "student": {**found.student, **more}}
        students[name] = replace(found, models=models)
    assert compare(students).best("edge_ratio") == {"also good"}
    assert compare(students).best("nearest_ratio") == {"slow"}
    assert compare(students, quality="edge_ratio").front() == {"fast", "good", "also good"}


def test_equals_are_all_on_the_front(students: dict[str, Evaluation]) -> None:
    compared = compare({"a": students["good"], "b": students["good"]})
    assert compared.front() == compared.best("fd_teacher") == {"a", "b"}
    assert "the students cannot be distinguished" in comparison_html(compared)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: replace(f, settings={**f.settings, "seed": 7}),
            "with seed 7 and 'fast' with None",
        ),
        (lambda f: replace(f, settings={**f.settings, "num_samples": 8}), "num_samples 8"),
        (lambda f: replace(f, settings={**f.settings, "other_vae": "1f"}), "other_vae '1f' and"),
        (lambda f: replace(f, samples=f.samples[::-1]), "on other prompts"),
        (lambda f: replace(f, models={**f.models, "student": {}}), "share no quality"),
        (lambda f: replace(f, models={"student": f.student}), "cost_repeats of 1 or more"),
    ],
)
def test_what_was_not_made_alike_is_refused(
    students: dict[str, Evaluation], change: Callable[[Evaluation], Evaluation], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compare({"fast": students["fast"], "other": change(students["good"])})


def test_mistakes_in_what_is_asked(students: dict[str, Evaluation]) -> None:
    with pytest.raises(ValueError, match="needs at least two"):
        compare({"fast": students["fast"]})
    with pytest.raises(
        ValueError, match=r"quality is 'fd_moon', which is no quality that all .* nearest is 'fd_"
    ):
        compare(students, quality="fd_moon")
    none = {**students["good"].student, "fd_teacher": Metric(0.0)}
    students["good"] = replace(
        students["good"], models={**students["good"].models, "student": none}
    )
    with pytest.raises(ValueError, match=r"fd_teacher of the student of 'good' is 0\.0"):
        compare(students)


def pictures(found: Evaluation, indices: tuple[int, ...]) -> Pictures:
    prompts = tuple(found.samples[i].prompt for i in indices)
    images = torch.zeros(len(indices), 3, 8, 8)
    return Pictures(prompts, {"teacher": images, "naive": images, "student": images + 0.5}, indices)


def test_the_page(
    students: dict[str, Evaluation], read_page: Callable[[str], Any], tmp_path: Path
) -> None:
    kept = {name: pictures(found, (0, 2)) for name, found in students.items()}
    kept["slow"] = pictures(students["slow"], (2, 1))
    path = write_comparison(compare(students), tmp_path / "new" / "page.html", kept)
    page = read_page(path.read_text(encoding="utf-8"))
    assert page.all("h1")[0].text == (
        "good and also good are best in FD to teacher, and cannot be distinguished."
    )
    (card,) = page.all("li", "data-index")
    assert card.attributes["data-prompt"] == "a green cross", "the sample that all have"
    texts = [image.attributes["alt"].split(":")[0] for image in page.all("img")]
    assert texts == ["teacher", "fast", "good", "also good", "slow"]
    (plot,) = [e for e in page.all("svg") if e.attributes["aria-label"].startswith("FD to teacher")]
    assert "fast at 4.00 and 30.0; good at 16.0 and 5.00" in plot.attributes["aria-label"]
    assert "floor" in {e.text for e in page.all("text")}
    assert {"5.00", "5.40"} <= {e.text for e in page.all("b")}, "the best are set off"
    assert not {"30.0", "20.0"} & {e.text for e in page.all("b")}
    assert "://" not in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_without_pictures_there_are_only_numbers(
    students: dict[str, Evaluation], read_page: Callable[[str], Any]
) -> None:
    some = {"fast": pictures(students["fast"], (0,))}
    page = read_page(comparison_html(compare(students), some))
    assert not page.all("img")
    assert len(page.all("table")) == 1


def test_hostile_names_stay_text(
    students: dict[str, Evaluation], read_page: Callable[[str], Any], hostile: str
) -> None:
    named = {hostile: students["fast"], "good": students["good"]}
    kept = {name: pictures(found, (0,)) for name, found in named.items()}
    page = read_page(comparison_html(compare(named), kept, title=hostile))
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for e in page.elements for name in e.attributes)
    assert hostile in {e.text for e in page.all("th")}
