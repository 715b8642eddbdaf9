"""The cache: read instead of made."""

from __future__ import annotations

import subprocess
import sys
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


def test_workers_share_the_batches(tmp_path: Path) -> None:
    """A worker begins with its own, takes over what is free, and makes nothing twice."""
    made: list[int] = []

    def make(batch: int) -> Tensor:
        made.append(batch)
        if (
            batch == 4
        ):  # the other worker comes while this one is at work, and finds one batch claimed
            made.append(-1)
            other = subprocess.run(
                [sys.executable, "-c", OTHER, str(cache.folder)], check=True, capture_output=True
            )
            assert other.stdout.decode().split() == ["1", "3", "0"]
        return torch.full((1,), float(batch))

    cache = LatentCache(tmp_path / "student")
    cache.get(2, lambda: torch.full((1,), 2.0))
    cache.fill(5, make, 4, 5)
    assert made == [4, -1], "first its own; the other one has made the rest"
    cache.fill(5, make)
    assert made == [4, -1], "all there"
    for batch in range(5):
        assert cache.get(batch, lambda: torch.zeros(0)).item() == batch
    LatentCache(None).fill(5, make)


OTHER = """
import sys, pathlib, torch
from nitrodistill.evaluation import cache
def make(batch):
    print(batch)
    return torch.full((1,), float(batch))
kept = cache.LatentCache(pathlib.Path(sys.argv[1]))
class Impatient(cache.Claims):
    def claimed(self, number, wait=False):
        if wait and number == 4:
            sys.exit()  # the first worker waits for this process
        return super().claimed(number, wait)
cache.Claims = Impatient
kept.fill(5, make, 1, 2)
"""


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
