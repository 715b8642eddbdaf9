"""Latents on disk, batch by batch: memory stays flat, and an interrupted evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nitrodistill.data.claims import Claims, own_first
from nitrodistill.files import atomic

__all__ = ["LatentCache"]


@dataclass(frozen=True)
class LatentCache:
    """Latents in `<folder>/<batch>.safetensors`.

    Attributes:
        folder: named after a hash of all that the latents depend on; None keeps nothing.
    """

    folder: Path | None

    def get(self, batch: int, make: Callable[[], Tensor]) -> Tensor:
        """The latents of number `batch`: read, or made and kept.

        A file that cannot be read is made again.
        """
        if self.folder is None:
            return make()
        path = self._path(self.folder, batch)
        if path.is_file():
            try:
                return load_file(path)["latents"]
            except (SafetensorError, KeyError):
                path.unlink(missing_ok=True)
        latents = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            save_file({"latents": latents.contiguous().cpu()}, temporary)
        return latents

    def count(self) -> int:
        """How many batches are there."""
        return 0 if self.folder is None else len(list(self.folder.glob("*.safetensors")))

    def fill(
        self, batches: int, make: Callable[[int], Tensor], rank: int = 0, world_size: int = 1
    ) -> None:
        """Makes what is missing of a number of batches, beside other workers; returns when all are there.

        A worker begins with the batches k with `k % world_size == rank`, then takes what nobody is working on.
        Does nothing without a folder.

        Args:
            batches: how many.
            make: the latents of a batch.
            rank: number of this worker.
            world_size: how many there are.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        order = own_first(batches, rank, world_size)
        claims = Claims(self.folder / ".lock")
        claims.open()
        try:
            for wait in (False, True):  # first what is free, then what others were making
                for batch in order:
                    if self._path(self.folder, batch).is_file():
                        continue
                    with claims.claimed(batch, wait) as free:
                        if free:
                            self.get(batch, lambda batch=batch: make(batch))
        finally:
            claims.close()

    @staticmethod
    def _path(folder: Path, batch: int) -> Path:
        return folder / f"{batch:05d}.safetensors"
