"""What methods read beside pairs: real latents with captions, and prompts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from nitrodistill.checks import check_kind
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.text import hash_texts
from nitrodistill.models.pipeline import as_texts
from nitrodistill.types import Condition, Latents, Part


class LatentStore:
    """Real latents with captions, as `encode` writes them. The latents of pairs serve as well.

    Args:
        store: the files, which are those of a pair store; their noise is not read.

    Example:
        >>> nd.LatentStore.open("pairs").read([0, 1]).x0.shape
        torch.Size([2, 4, 8, 8])
    """

    part: ClassVar[Part] = "real"

    def __init__(self, store: PairStore) -> None:
        check_kind("store", store, PairStore, ": PairStore.open(path)")
        self.store: PairStore = store

    def __repr__(self) -> str:
        return f"LatentStore({self.store!r})"

    @classmethod
    def open(cls, path: str | Path) -> LatentStore:
        """Opens a store: see `PairStore.open`."""
        return cls(PairStore.open(path))

    def __len__(self) -> int:
        """How many latents it holds."""
        return len(self.store)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The different captions."""
        return self.store.prompts

    @property
    def bounds(self) -> tuple[int, ...]:
        """The first row of each file, and the number of all rows."""
        return self.store.bounds

    def read(self, rows: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Latents:
        """Reads latents `(B, C, H, W)` with their captions' conditioning; see `PairStore.read`."""
        return self.store.read_latents(rows, dtype)

    def identity(self) -> str:
        """Hex digest of what decides its bytes."""
        return self.store.identity()


class Prompts:
    """Prompts alone, encoded when they are read or before.

    Args:
        texts: the prompts; sample i of what is read has its prompt's place here as its id.
        encode: places of prompts -> their Condition.

    Raises:
        ValueError: if there are no prompts, or they are no texts.

    Example:
        >>> nd.Prompts.encoded_by(teacher.encode_prompt, prompts).read([1])
        Condition(tensors={encoder_hidden_states: float32 (1, 12, 64)}, prompt_ids=int64 (1,))
    """

    part: ClassVar[Part] = "prompts"

    def __init__(self, texts: Sequence[str], encode: Callable[[Sequence[int]], Condition]) -> None:
        self.prompts: tuple[str, ...] = tuple(as_texts(texts))
        self._encode = encode

    @classmethod
    def encoded_by(
        cls, encode: Callable[[Sequence[str]], Condition], texts: Sequence[str]
    ) -> Prompts:
        """Encodes each batch when it is read.

        Args:
            encode: prompts -> Condition, `Pipeline.encode_prompt` for example.
            texts: the prompts.
        """
        return cls(texts, lambda rows: encode([texts[row] for row in rows]))

    @classmethod
    def of(cls, store: PairStore) -> Prompts:
        """The prompts of a store, as they were encoded when it was made."""
        return cls(store.prompts, store.condition)

    def __repr__(self) -> str:
        return f"Prompts({len(self)} prompts, {self.prompts[0]!r:.40}...)"

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    def read(self, rows: Sequence[int]) -> Condition:
        """The conditioning of prompts, of batch size B."""
        return Condition(self._encode(rows).tensors, torch.tensor(rows))

    def identity(self) -> str:
        """Hex digest of the texts."""
        return hash_texts(self.prompts)
