"""Colour: what a cast, faded or oversaturated picture changes, and shapes do not.

    features  mean and standard deviation over pixels of each channel

They feed a Fréchet distance. Networks that read content, such as an oracle, are made blind to casts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def colour_features(images: Tensor) -> Tensor:
    """Features `(B, 2 C)` of images `(B, C, H, W)`: the channels' means, then their standard deviations."""
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be (B, C, H, W).")
    wide = images.float().flatten(2)
    return torch.cat([wide.mean(2), wide.std(2, correction=0)], dim=1)
