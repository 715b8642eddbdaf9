"""The oracle: a small classifier that reads size, colour, shape and background off a picture.

It is the ground truth of *alignment* (does the picture show what its caption says?) and the feature extractor of
the Fréchet distance on this data: its 64 penultimate activations take the place of Inception's 2048.
Its accuracy on fresh renders is at least 99.5%.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu

from nitrodistill.toy import scenes
from nitrodistill.toy.manifest import WEIGHTS, verify

NUM_FEATURES = 64
ORACLE_FILE = "oracle/oracle.safetensors"


class Oracle(nn.Module):
    """Classifier of 32x32 scenes with one head per attribute, in the order of `scenes.ATTRIBUTE_NAMES`.

    Example:
        >>> found = nd.toy.load_oracle()(torch.zeros(1, 3, 32, 32))
        >>> type(found).__name__
        'tuple'
    """

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 64, 2))
        self.convolutions: nn.ModuleList = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.GroupNorm(8, o), nn.SiLU())
            for i, o, stride in widths
        )
        self.embedding: nn.Linear = nn.Linear(64 * 4 * 4, NUM_FEATURES)
        self.heads: nn.ModuleList = nn.ModuleList(
            nn.Linear(NUM_FEATURES, len(values)) for values in scenes.ATTRIBUTE_VALUES
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Returns the feature map of each convolution for images `(B, 3, 32, 32)` in [-1, 1]."""
        if images.shape[1:] != (3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; the oracle reads (B, 3, 32, 32)"
            )
        return list(accumulate(self.convolutions, lambda x, layer: layer(x), initial=images))[1:]

    def features(self, images: Tensor) -> Tensor:
        """Returns penultimate features `(B, 64)` of images `(B, 3, 32, 32)` in [-1, 1]."""
        return silu(self.embedding(self.maps(images)[-1].flatten(1)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of the four heads: `(B, 2)`, `(B, 6)`, `(B, 5)`, `(B, 6)`."""
        features = self.features(images)
        return tuple(head(features) for head in self.heads)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Returns attribute indices `(B, 4)`, int64, of images `(B, 3, 32, 32)` in [-1, 1]."""
        return torch.stack([logits.argmax(1) for logits in self(images)], dim=1)

    def alignment(self, images: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Compares images `(B, 3, 32, 32)` in [-1, 1] with the captions they were drawn from.

        Returns:
            for each of size, colour, shape and background a bool `(B,)` on the CPU: whether it is right.

        Raises:
            ValueError: if there is not one caption per image, or one of them is not in the grammar.
        """
        if len(images) != len(captions):
            raise ValueError(
                f"{len(images)} images came with {len(captions)} captions; give one for each"
            )
        right = self.predict(images).cpu() == scenes.attribute_indices(captions)
        return dict(zip(scenes.ATTRIBUTE_NAMES, right.unbind(1), strict=True))


def load_oracle(path: str | Path | None = None) -> Oracle:
    """Loads the oracle in float32, frozen, in evaluation mode.

    Args:
        path: a folder that the repository's `python -m tools.toy.train` wrote; by default the one in the package.

    Example:
        >>> nd.toy.load_oracle().training
        False
    """
    root = WEIGHTS if path is None else Path(path)
    verify(root)
    oracle = Oracle()
    oracle.load_state_dict({k: v.float() for k, v in load_file(root / ORACLE_FILE).items()})
    return oracle.eval().requires_grad_(False)


def oracle_maps(images: Tensor) -> list[Tensor]:
    """`Oracle.maps` of the one in the package: the features of a perceptual distance on this data.

    Example:
        >>> [tuple(map.shape) for map in nd.toy.oracle_maps(torch.zeros(2, 3, 32, 32))]
        [(2, 32, 16, 16), (2, 64, 8, 8), (2, 64, 8, 8), (2, 64, 4, 4)]
    """
    return _packaged().maps(images)


_packaged = cache(load_oracle)
