"""The Laplacian-pyramid loss: differences band by band (Burt & Adelson 1983; Bojanowski et al. 2018).

    G_0 = pred - target,  G_{j+1} = down(G_j),  L_j = G_j - up(G_{j+1}),  L_{levels-1} = G_{levels-1}
    loss = sum_j w_j mean |L_j|

The conventions of `down` and `up` are those of `nitrodistill.kernels.laplacian.reference`.
"burt_adelson" takes any size (a side n becomes ceil(n / 2)); "kornia" equals the bands of `kornia`'s
pyramid, which mirrors most sizes that are no powers of two up to the next one, so that mirrored pixels
count too. A mask weights a band by its mean over the band's pixels. Videos are compared frame by frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import check_choice, check_mask, check_numbers, check_pair, check_whole
from nitrodistill.kernels import laplacian as kernel
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.laplacian.reference import PyramidConvention, pyramid_shapes
from nitrodistill.losses.base import Loss, Reduction, expand_frames, to_frames


def laplacian_pyramid_loss(
    pred: Tensor,
    target: Tensor,
    *,
    levels: int,
    weights: Sequence[float] | None = None,
    convention: PyramidConvention = "burt_adelson",
    lowpass: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """The weighted mean absolute differences of two pyramids, for every sample.

    Args:
        pred: `(B, C, H, W)` or `(B, C, T, H, W)`.
        target: the same shape.
        levels: bands of the pyramid, the low-pass being the last; both sides need 2^(levels - 1)
            pixels or more.
        weights: one factor per term, the finest first; None is 1 for each.
        convention: "burt_adelson" or "kornia".
        lowpass: whether the low-pass is a term: `levels` terms with it, `levels - 1` without.
        mask: broadcasts to `pred`; a band is weighted by its mean over the band's pixels.

    Returns:
        `(B,)`.

    Raises:
        ValueError: for unequal or too small shapes, a wrong mask, or an option out of its range.
        TypeError: for tensors that are not floating point.

    Example:
        >>> nd.functional.laplacian_pyramid_loss(torch.ones(2, 4, 8, 8), torch.ones(2, 4, 8, 8), levels=2)
        tensor([0., 0.])
    """
    check_pair(pred, target)
    factors = _check_weights(levels, weights, lowpass)
    check_choice("convention", convention, get_args(PyramidConvention))
    x, y = to_frames(pred), to_frames(target, "target")
    if min(x.shape[-2:]) < 2 ** (levels - 1):
        raise ValueError(
            f"the images are {x.shape[-2]}x{x.shape[-1]}; a pyramid of {levels} levels needs sides of "
            f"{2 ** (levels - 1)} or more. Use fewer levels."
        )
    weight_maps = None
    if mask is not None:
        check_mask(mask, pred)
        mask = expand_frames(mask, pred).detach().to(math_dtype(x, y))
        weight_maps = _level_weights(mask, x, levels, convention)
    return kernel.laplacian_loss(
        x, y, weights=factors, convention=convention, weight_maps=weight_maps
    )


class LaplacianPyramidLoss(Loss):
    """Mean absolute differences of Laplacian pyramids; see `laplacian_pyramid_loss`.

    Args:
        levels: bands of the pyramid, the low-pass being the last.
        weights: one factor per term, the finest first; None is 1 for each.
        convention: "burt_adelson" or "kornia".
        lowpass: whether the low-pass is a term: `levels` terms with it, `levels - 1` without.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> nd.LaplacianPyramidLoss(levels=2)(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
        tensor(0.)
    """

    levels: int
    weights: tuple[float, ...] | None
    convention: PyramidConvention
    lowpass: bool

    def __init__(
        self,
        levels: int = 5,
        weights: Sequence[float] | None = None,
        convention: PyramidConvention = "burt_adelson",
        lowpass: bool = True,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        _check_weights(levels, weights, lowpass)
        self.levels = levels
        self.weights = None if weights is None else tuple(weights)
        self.convention = check_choice("convention", convention, get_args(PyramidConvention))
        self.lowpass = lowpass

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return laplacian_pyramid_loss(
            pred,
            target,
            levels=self.levels,
            weights=self.weights,
            convention=self.convention,
            lowpass=self.lowpass,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"levels={self.levels}, weights={self.weights}, convention={self.convention!r}, "
            f"lowpass={self.lowpass}, {super().extra_repr()}"
        )


def _check_weights(
    levels: int, weights: Sequence[float] | None, lowpass: bool
) -> tuple[float, ...]:
    """One factor per band; 0 for a low-pass that is left out."""
    terms = check_whole("levels", levels) if lowpass else check_whole("levels", levels) - 1
    if terms < 1:
        raise ValueError(
            f"levels is {levels} with lowpass={lowpass}; at least one band must be left to compare."
        )
    if weights is None:
        weights = (1.0,) * terms
    factors = check_numbers("weights", weights, zero=True)
    if len(factors) != terms:
        raise ValueError(
            f"weights has {len(factors)} entries; {levels} levels with lowpass={lowpass} have {terms} "
            "terms, give one factor for each."
        )
    return factors if lowpass else (*factors, 0.0)


def _level_weights(
    mask: Tensor, x: Tensor, levels: int, convention: PyramidConvention
) -> tuple[Tensor, ...]:
    """The mask's mean over every band's pixels, scaled so that a sample's weights sum to one (or 0)."""
    shapes = pyramid_shapes(x.shape[-2], x.shape[-1], levels, convention)
    bottom, right = shapes[0][0] - x.shape[-2], shapes[0][1] - x.shape[-1]
    if bottom or right:
        mask = F.pad(mask, (0, right, 0, bottom), mode="reflect")
    maps = []
    for shape in shapes:
        if shape != tuple(mask.shape[-2:]):
            mask = F.avg_pool2d(mask, 2, ceil_mode=True, count_include_pad=False)
        total = mask.sum((1, 2, 3), keepdim=True) * (x.shape[1] // mask.shape[1])
        maps.append(mask / (total + torch.eq(total, 0)))
    return tuple(maps)
