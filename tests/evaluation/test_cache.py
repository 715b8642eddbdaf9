"""The cache: read instead of made."""

from __future__ import annotations

import multiprocessing
import time
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
    """A worker begins with its own, takes over what is free, waits for the rest; nothing is made twice."""
    cache, log = LatentCache(tmp_path / "student"), tmp_path / "log"
    cache.get(2, lambda: torch.full((1,), 2.0))

    def make(batch: int, worker: str) -> Tensor:
        with log.open("a") as opened:
            opened.write(f"{worker}{batch} ")
        if batch == 4:  # the other worker comes while this one is at work
            other.start()
            while len(list(tmp_path.rglob("*.safetensors"))) < 4 and other.is_alive():
                time.sleep(0.01)
        return torch.full((1,), float(batch))

    other = multiprocessing.get_context("fork").Process(
        target=lambda: cache.fill(5, lambda batch: make(batch, "other"), 1, 2)
    )
    cache.fill(5, lambda batch: make(batch, "first"), 4, 5)
    other.join(30)
    assert other.exitcode == 0
    assert log.read_text() == "first4 other1 other3 other0 "
    assert cache.count() == 5
    for batch in range(5):
        assert cache.get(batch, lambda: torch.zeros(0)).item() == batch
    LatentCache(None).fill(5, lambda batch: make(batch, "none"))
    assert "none" not in log.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: b"",
        lambda data: b"{" * 9,
        *(
            lambda data, i=i: data[:-i] + bytes([data[-i] ^ 1]) + data[-i + 1 :]
            for i in range(2, 40)
        ),
        lambda data: data.replace(b"F32", b"I32"),
        lambda data: data.replace(b"[2,4,1,1]", b"[4,2,1,1]"),
    ],
)
def test_damaged_latents_are_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = LatentCache(tmp_path)
    expected = cache.get(0, lambda: torch.ones(2, 4, 1, 1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(cache.get(0, lambda: torch.ones(2, 4, 1, 1)), expected)
    assert torch.equal(cache.get(0, lambda: torch.zeros(2, 4, 1, 1)), expected)
