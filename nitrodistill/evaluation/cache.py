"""Latents on disk, batch by batch: memory stays flat, and an interrupted evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nitrodistill.data.files import atomic

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
        path = self.folder / f"{batch:05d}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["latents"]
            except (SafetensorError, KeyError):
                path.unlink()
        latents = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            save_file({"latents": latents.contiguous().cpu()}, temporary)
        return latents
