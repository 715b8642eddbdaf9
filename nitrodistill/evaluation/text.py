"""Text: how well a picture agrees with its prompt, by a network that reads both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

TextScore = Callable[[Tensor, Sequence[str]], Tensor]
"""`(images (B, 3, H, W) in [-1, 1], B prompts) -> (B,)`, higher is better; `clip.ClipScore` is one."""
