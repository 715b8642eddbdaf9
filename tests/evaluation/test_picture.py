"""Pictures: the right cell in the right place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nitrodistill.evaluation import Pictures, draw_grid

COLOURS = {"teacher": (-1.0, 1.0, -1.0), "naive": (1.0, -1.0, -1.0), "student": (-1.0, -1.0, 1.0)}


def pictures(size: int, prompts: tuple[str, ...]) -> Pictures:
    images = {
        name: torch.tensor(colour)[None, :, None, None].expand(len(prompts), 3, size, size)
        for name, colour in COLOURS.items()
    }
    return Pictures(prompts, images)


@pytest.mark.parametrize("size", [32, 256])
def test_columns_are_models_and_rows_prompts(tmp_path: Path, size: int) -> None:
    long = "a prompt that is much longer than the grid is wide, " * 20
    path = draw_grid(pictures(size, ("a ring", long)), tmp_path / "new" / "grid.png")
    samples = np.asarray(Image.open(path).convert("RGB"))
    side = 160 if size == 32 else 256
    assert samples.shape[1] == 8 + 3 * (side + 8)
    for column, colour in enumerate(COLOURS.values()):
        levels = [round(127.5 * (c + 1)) for c in colour]
        cells = (samples == levels).all(-1)
        assert cells.sum() == 2 * side * side
        left = 8 + column * (side + 8)
        assert cells[:, left : left + side].sum() == 2 * side * side
    assert (samples < 128).all(-1).any(), "there is text"


def test_an_empty_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        draw_grid(Pictures((), {}), tmp_path / "grid.png")


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half a pict")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        draw_grid(pictures(32, ("a ring",)), tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
