"""Pictures for people: the grid of teacher and student at the same noise."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nitrodistill.evaluation.result import Pictures
from nitrodistill.files import atomic

CELL = 160  # pixels: small pictures are enlarged to about this
GAP = 8
TITLE, CAPTION = 18, 14  # font sizes
PAPER, INK = (255, 255, 255), (20, 20, 20)


def draw_grid(
    pictures: Pictures, path: str | Path, titles: Mapping[str, str] | None = None
) -> Path:
    """Writes a PNG with a row for each prompt, its text above, and a column for each model.

    Pictures below 160 pixels are enlarged by a whole factor without smoothing, so that blur seen is blur drawn.

    Args:
        pictures: what `evaluate` hands back.
        path: the file.
        titles: model -> column title; by default the model's name.

    Raises:
        ValueError: if there are no pictures.

    Example:
        >>> shown = nd.evaluation.Pictures(("a",), {"teacher": torch.zeros(1, 3, 8, 8)})
        >>> nd.evaluation.draw_grid(shown, "grid.png").name
        'grid.png'
    """
    images = {name: to_pil(batch) for name, batch in pictures.images.items()}
    if not images or not pictures.prompts:
        raise ValueError("there are no pictures to draw; evaluate with num_pictures of 1 or more.")
    width, height = next(iter(images.values()))[0].size
    factor = max(1, round(CELL / max(width, height)))
    width, height = factor * width, factor * height
    row = CAPTION + GAP + height + 2 * GAP
    size = (GAP + len(images) * (width + GAP), TITLE + 3 * GAP + len(pictures.prompts) * row)
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, (name, batch) in enumerate(images.items()):
        left = GAP + column * (width + GAP)
        title = (titles or {}).get(name, name)
        pen.text((left + width / 2, GAP), _fit(title, _font(TITLE), width), INK, _font(TITLE), "ma")
        for i, image in enumerate(batch):
            top = TITLE + 3 * GAP + i * row + CAPTION + GAP
            canvas.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
    for i, prompt in enumerate(pictures.prompts):
        text = _fit(prompt, _font(CAPTION), size[0] - 2 * GAP)
        pen.text((GAP, TITLE + 3 * GAP + i * row), text, INK, _font(CAPTION))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        canvas.save(temporary, format="PNG")
    return target


def to_pil(images: Tensor) -> list[Image.Image]:
    """Pictures of `(K, 3, H, W)` in [-1, 1]."""
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return [Image.fromarray(level.permute(1, 2, 0).numpy()) for level in levels]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = bisect_right(range(len(text)), width, key=lambda n: font.getlength(text[:n] + "..."))
    return text[: max(0, kept - 1)].rstrip() + "..."
