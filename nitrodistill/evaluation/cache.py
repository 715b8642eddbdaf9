"""The teacher's latents on disk, batch by batch, under a hash of what they depend on.

A demo evaluates once; a benchmark evaluates many students against one teacher, whose sampling is most of the cost.
One file a batch keeps memory flat and lets an interrupted evaluation go on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nitrodistill.data.files import atomic

__all__ = ["LatentCache"]


@dataclass(frozen=True)
class LatentCache:
    """Latents in `<root>/<hash of depends_on>/<batch>.safetensors`.

    Attributes:
        root: a folder, or None to keep nothing.
        depends_on: everything that the latents are a function of, as JSON values.
    """

    root: Path | None
    depends_on: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The hash, 16 hexadecimal digits."""
        text = json.dumps(self.depends_on, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def get(self, name: str, batch: int, make: Callable[[], Tensor]) -> Tensor:
        """The latents of stream `name` and number `batch`: read, or made and kept.

        A file that cannot be read is made again.
        """
        if self.root is None:
            return make()
        path = self.root / f"teacher-{self.key}" / f"{name}-{batch:05d}.safetensors"
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
