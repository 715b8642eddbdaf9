"""The gallery of a page: each sample's pictures side by side, as data in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.picture import to_pil
from nitrodistill.evaluation.report.numbers import number
from nitrodistill.evaluation.result import Evaluation, Pictures, Sample

LOSSLESS_UP_TO = 128  # pixels a side; larger pictures are compressed
QUALITY = 92
FIRST = 12  # cards that are shown before "show all"


@dataclass(frozen=True)
class Gallery:
    """What the template shows.

    Attributes:
        cards: one a sample: index, prompt, fair, images (model, title, uri), distances, shown.
        distances: what can be sorted by: name, label, and which direction is worst and best first.
        lead: how the samples were chosen, in words.
        width: of a picture, in pixels.
        height: of a picture.
        pixelated: whether the pictures are so small that they are enlarged without smoothing.
        has_naive: whether there is a model that can be hidden.
        has_fair: whether some cards are a fair sample and others not.
        always_all: whether all models are shown at once.
        wide: least width of a card, as CSS, or empty.
        first: cards before "show all".
    """

    cards: Sequence[Mapping[str, Any]]
    distances: Sequence[Mapping[str, str]]
    lead: str
    width: int
    height: int
    pixelated: bool
    has_naive: bool = False
    has_fair: bool = False
    always_all: bool = False
    wide: str = ""
    first: int = FIRST

    @property
    def shape(self) -> str:
        """The pictures' width and height, as CSS wants them."""
        return f"{self.width} / {self.height}"


def data_uri(image: Tensor) -> str:
    """A picture `(3, H, W)` in [-1, 1] as a data address: PNG up to 128 pixels a side, else WebP."""
    (picture,) = to_pil(image[None])
    buffer = io.BytesIO()
    small = max(picture.size) <= LOSSLESS_UP_TO
    kind = "png" if small else "webp"
    picture.save(buffer, kind, **({"optimize": True} if small else {"quality": QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def gallery(found: Evaluation, titles: Mapping[str, str]) -> Gallery | None:
    """The pictures of an evaluation, the farthest from the teacher first; None without pictures.

    Args:
        found: the evaluation, with `examples`, `worst` or both.
        titles: model -> title.
    """
    sets = [p for p in (found.worst, found.examples) if p is not None and len(p.prompts)]
    if not sets:
        return None
    known = {sample.index: sample.distances for sample in found.samples}
    fair = set() if found.examples is None else set(_indices(found.examples))
    rows: dict[int, tuple[str, Mapping[str, Tensor]]] = {}
    for pictures in sets:
        for i, index in enumerate(_indices(pictures)):
            images = {model: batch[i] for model, batch in pictures.images.items()}
            rows.setdefault(index, (pictures.prompts[i], images))
    cards = [
        _card(index, prompt, images, titles, known.get(index, {}), index in fair)
        for index, (prompt, images) in rows.items()
    ]
    both = found.worst is not None and found.examples is not None
    names = [n for n in cards[0]["distances"] if all(n in card["distances"] for card in cards)]
    images = next(iter(rows.values()))[1]
    return _gallery(
        cards,
        images,
        _lead(found, names),
        [_choice(name) for name in names],
        has_fair=both,
        has_naive="naive" in images,
    )


def compared_gallery(
    pictures: Mapping[str, Pictures], samples: Mapping[str, Sequence[Sample]]
) -> Gallery | None:
    """The teacher's picture and every student's, of the samples that all have; None if there are none.

    Args:
        pictures: student's name -> its pictures.
        samples: student's name -> its samples, for their distances.
    """
    names = list(pictures)
    shared = [
        i for i in _indices(pictures[names[0]]) if all(i in _indices(p) for p in pictures.values())
    ]
    if not shared:
        return None
    known = {name: {s.index: s.distances for s in samples[name]} for name in names}
    first = next((list(s.distances) for s in samples[names[0]] if s.distances), [""])[0]
    cards, images = [], {}
    for index in shared:
        rows = {name: list(_indices(p)).index(index) for name, p in pictures.items()}
        images = {"teacher": pictures[names[0]].images["teacher"][rows[names[0]]]}
        images |= {name: pictures[name].images["student"][rows[name]] for name in names}
        far = [known[name].get(index, {}).get(first) for name in names]
        distances = {f"s{i}": value for i, value in enumerate(far) if value is not None}
        prompt = pictures[names[0]].prompts[rows[names[0]]]
        cards.append(_card(index, prompt, images, {}, distances, fair=True))
    choices = [
        {**_choice(first), "name": f"s{i}", "label": f"{info(first).label} of {name}"}
        for i, name in enumerate(names)
        if first
    ]
    lead = (
        f"The first {len(cards)} samples, drawn by all from the same noise and prompt. A student may draw "
        "another picture that is just as good: look for what is wrong, not for what differs."
    )
    wide = f"{6 * (1 + len(names))}rem"
    return _gallery(cards, images, lead, choices, always_all=True, wide=wide)


def _gallery(
    cards: list[dict[str, Any]],
    images: Mapping[str, Tensor],
    lead: str,
    choices: Sequence[Mapping[str, str]],
    **more: Any,
) -> Gallery:
    """A gallery of cards, sorted by the first choice that all of them have, worst first."""
    choices = [c for c in choices if all(c["name"] in card["distances"] for card in cards)]
    if choices:
        name, down = choices[0]["name"], choices[0]["worst"] == "down"
        cards.sort(key=lambda card: card["distances"][name], reverse=down)
        for card in cards:
            value = card["distances"][name]
            card["shown"] = {"label": choices[0]["label"], "value": value, "text": number(value)}
    height, width = next(iter(images.values())).shape[-2:]
    pixelated = max(height, width) <= LOSSLESS_UP_TO
    return Gallery(cards, choices, lead, width, height, pixelated, **more)


def _card(
    index: int,
    prompt: str,
    images: Mapping[str, Tensor],
    titles: Mapping[str, str],
    distances: Mapping[str, float],
    fair: bool,
) -> dict[str, Any]:
    shown = [
        {"model": model, "title": titles.get(model, model), "uri": data_uri(image)}
        for model, image in images.items()
    ]
    return {
        "index": index,
        "prompt": prompt,
        "images": shown,
        "fair": fair,
        "shown": None,
        "distances": {name: float(f"{value:.6g}") for name, value in distances.items()},
    }


def _choice(name: str) -> dict[str, str]:
    worst, best = ("up", "down") if info(name).best == "high" else ("down", "up")
    return {"name": name, "label": info(name).label, "worst": worst, "best": best}


def _indices(pictures: Pictures) -> Sequence[int]:
    return pictures.indices or range(len(pictures.prompts))


def _lead(found: Evaluation, distances: Sequence[str]) -> str:
    worst = 0 if found.worst is None else len(found.worst.prompts)
    first = 0 if found.examples is None else len(found.examples.prompts)
    total = len(found.samples)
    of_all = f" of {number(float(total), 0)}" if total else ""
    parts = []
    if worst:
        parts.append(
            f"the {worst} samples{of_all} that are farthest from the teacher"
            if worst > 1
            else f"the one sample{of_all} that is farthest from the teacher"
        )
    if first:
        parts.append(f"the first {first}, a fair sample" if first > 1 else "the first")
    chosen = " and ".join(parts)
    measure = f" The number is the {info(distances[0]).label}." if distances else ""
    return (
        f"Every pair starts from the same noise and prompt. Shown are {chosen}. A student may draw "
        f"another picture that is just as good: look for what is wrong, not for what differs.{measure}"
    )
