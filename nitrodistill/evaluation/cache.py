"""Latents on disk, batch by batch: memory stays flat, and an interrupted evaluation goes on where it was.

Every file carries a hash of its tensors: one that differs is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nitrodistill.data.claims import Claims, own_first
from nitrodistill.files import atomic, blake2

HASH = "blake2b"


def keep(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes tensors, and texts about them, with a hash of both."""
    texts = about or {}
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        save_file(
            plain, temporary, metadata={**texts, HASH: digest(plain, "".join(texts.values()))}
        )


def kept(path: Path) -> dict[str, Tensor] | None:
    """What `keep` wrote; None, and the file is gone, if it is not that to the last bit."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get(HASH) == digest(tensors)
    except (SafetensorError, ValueError, KeyError):
        tensors, whole = {}, False
    if not whole:
        path.unlink(missing_ok=True)
    return tensors if whole else None


def digest(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """A hash of contiguous tensors on the CPU, with their names, dtypes and shapes, and of a text about them."""
    parts = [about.encode()]
    for name, tensor in sorted(tensors.items()):
        parts.append(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return blake2(parts).hex()


@dataclass(frozen=True)
class LatentCache:
    """Latents in `<folder>/<batch>.safetensors`.

    Attributes:
        folder: named after a hash of all that the latents depend on; None keeps nothing.
    """

    folder: Path | None

    def get(self, batch: int, make: Callable[[], Tensor]) -> Tensor:
        """The latents of number `batch`: read, or made and kept.

        A file that is damaged is made again.
        """
        if self.folder is None:
            return make()
        path = self._path(self.folder, batch)
        known = kept(path)
        if known is not None:
            return known["latents"]
        latents = make()
        keep(path, {"latents": latents})
        return latents

    def count(self) -> int:
        """How many batches are there."""
        return 0 if self.folder is None else len(list(self.folder.glob("*.safetensors")))

    def fill(
        self, batches: int, make: Callable[[int], Tensor], rank: int = 0, world_size: int = 1
    ) -> None:
        """Makes what is missing of a number of batches, together with other workers; returns when all are there.

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
