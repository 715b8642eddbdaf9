"""An evaluation with every kind of number, hostile prompts, and a reader of pages that is strict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
import torch

from nitrodistill.evaluation import Evaluation, Metric, Pictures, Sample

VOID = {"meta", "img", "br", "hr", "input", "link", "source", "col", "wbr", "base", "embed", "area"}
DRAWN = {"line", "circle", "polyline", "rect", "path"}  # SVG's, that may close themselves

HOSTILE = '</script><script>alert("x")</script> \'" onerror=alert(1) & <img src=https://evil.example/a.png>'


@dataclass
class Element:
    """A tag with its attributes; `text` is all text directly inside."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Reads a page and fails on what is not closed, not opened, or opened twice."""

    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []

    @classmethod
    def read(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        page.close()
        assert not page._open, f"<{page._open[-1].tag}> is never closed"
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID | DRAWN, f"<{tag}/> must be closed"
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].text += data

    def all(self, tag: str, name: str | None = None) -> list[Element]:
        """Elements of a tag, of those that have an attribute."""
        return [e for e in self.elements if e.tag == tag and (name is None or name in e.attributes)]


def metric(value: float, width: float = 0.1, floor: float | None = None) -> Metric:
    """A metric with an interval of `width` times its value on both sides."""
    return Metric(value, value * (1 - width), value * (1 + width), floor, 64, "oracle")


def make_evaluation(prompts: tuple[str, ...] = ("a red ring", "a blue circle")) -> Evaluation:
    """Teacher, naive, student and real; K pictures of 8x8 pixels, the last one in `worst` alone."""
    models: Mapping[str, Mapping[str, Metric]] = {
        "teacher": {
            "alignment": metric(0.99, 0.005),
            "fd_real": metric(4.0, floor=2.5),
            "edge_ratio": Metric(1.0, 1.0, 1.0, 1.01, 64),
            "diversity": Metric(1.0, 1.0, 1.0, 0.99, 64),
            "denoise_ms": Metric(50.0, 48.0, 55.0),
        },
        "naive": {"fd_real": metric(700.0, floor=2.5), "fd_teacher": metric(710.0, floor=3.0)},
        "student": {
            "alignment": metric(0.9, 0.02),
            "alignment@colour": metric(0.95, 0.02),
            "fd_real": metric(12.0, floor=2.5),
            "fd_teacher": metric(9.0, floor=3.0),
            "edge_ratio": metric(0.9, 0.05, 1.01),
            "diversity": metric(1.02, 0.05, 0.99),
            "pixel_distance": metric(0.2, floor=0.9),
            "denoise_ms": Metric(2.0, 1.9, 2.2),
        },
        "real": {"alignment": Metric(1.0, 1.0, 1.0)},
    }
    samples = tuple(
        Sample(i, text, {"pixel_distance": 0.1 * (i + 1), "ssim": 0.9 - 0.1 * i})
        for i, text in enumerate(prompts)
    )
    levels = torch.linspace(-1, 1, len(prompts))[:, None, None, None].expand(-1, 3, 8, 8)
    images = {"teacher": levels, "naive": levels * 0.5, "student": levels * 0.9}
    last = len(prompts) - 1
    return Evaluation(
        models,
        {"num_samples": 64, "num_inference_steps": 25, "student_timesteps": [999], "device": "cpu"},
        samples,
        Pictures(prompts[:last], {n: x[:last] for n, x in images.items()}, tuple(range(last))),
        Pictures(prompts[last:], {n: x[last:] for n, x in images.items()}, (last,)),
    )


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    return make_evaluation


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    return Page.read


@pytest.fixture
def hostile() -> str:
    return HOSTILE
