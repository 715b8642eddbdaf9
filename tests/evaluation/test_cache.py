"""The cache: read instead of made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nitrodistill.evaluation.cache import LatentCache


def test_latents_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tensor:
        made.append(1)
        return torch.full((2, 4, 1, 1), float(len(made)))

    cache = LatentCache(tmp_path / "student")
    for _ in range(2):
        assert torch.equal(cache.get(0, make), torch.full((2, 4, 1, 1), 1.0))
    assert len(made) == 1
    cache.get(1, make)
    LatentCache(tmp_path / "other").get(0, make)
    assert len(made) == 3
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}

    assert LatentCache(None).get(0, make)[0, 0, 0, 0] == 4


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-4], lambda data: b"", lambda data: b"{" * 9]
)
def test_damaged_latents_are_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = LatentCache(tmp_path)
    expected = cache.get(0, lambda: torch.ones(2, 4, 1, 1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(cache.get(0, lambda: torch.ones(2, 4, 1, 1)), expected)
    assert torch.equal(cache.get(0, lambda: torch.zeros(2, 4, 1, 1)), expected)
