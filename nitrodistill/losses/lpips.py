"""LPIPS, the learned perceptual distance (Zhang et al. 2018), v0.1.

    d = sum_l mean_{h,w} sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

over features f_l of a frozen network (VGG-16, AlexNet or SqueezeNet trained on ImageNet) with non-negative
calibrated weights w_l. Trunks and heads are those of the `lpips` package, and so is the value. What differs:

* nothing is trainable and nothing is random: no head can drift below zero, and `train()` switches no
  dropout on;
* where a feature vector is zero its gradient is zero, not NaN;
* the target's features can be computed once and passed (`target_features`);
* nothing is downloaded.

For latents, some at a time, there is `DecodedLoss`. A mask is resized to every layer by area. The frames of a
video are averaged. The trunk computes in its parameters' dtype (float32; `.double()` for float64, autocast or
`.bfloat16()` for speed), the heads in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_mask,
    check_pair,
    check_positive,
    check_tensor,
)
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.losses.base import Loss, Reduction, refuse_trainable
from nitrodistill.losses.trunks import Trunk, TrunkName, load_heads, load_trunk

FeatureTrunk = Callable[[Tensor], Sequence[Tensor]]
"""Images `(B, C, H, W)` to feature maps `(B, C_l, h_l, w_l)`."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-20
"""Under the root: far below any feature, so that the value is that of `lpips` (1e-10 beside the root)."""


class TargetFeatures(NamedTuple):
    """What `LPIPSLoss.target_features` computed, to be passed as a target.

    Attributes:
        maps: one feature map per tap, `(B, C_l, h_l, w_l)`, or `(B * T, ...)` for videos.
        shape: the shape of the target.

    Example:
        >>> loss = nd.LPIPSLoss(lambda x: [x, x[..., ::2]], value_range=(-1, 1))
        >>> features = loss.target_features(torch.zeros(2, 3, 8, 8))  # once, for many predictions
        >>> [tuple(map.shape) for map in features.maps]
        [(2, 3, 8, 8), (2, 3, 8, 4)]
    """

    maps: tuple[Tensor, ...]
    shape: torch.Size


def lpips_distance(
    features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    heads: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    eps: float = _EPS,
) -> Tensor:
    """The perceptual distance of two sets of feature maps, one value per sample.

    Args:
        features: one map per layer, `(B, C_l, h_l, w_l)`.
        target_features: the same shapes.
        heads: `(C_l,)` non-negative channel weights per layer.
        mask: `(B, 1, H, W)` of any size; resized to every layer by area.
        eps: added to the squared length of a feature vector.

    Returns:
        `(B,)`.

    Raises:
        ValueError: for unequal numbers of layers or unequal shapes.
        TypeError: for tensors that are not floating point.

    Example:
        >>> maps = [torch.rand(2, 8, 4, 4)]
        >>> nd.functional.lpips_distance(maps, maps, [torch.ones(8)])
        tensor([0., 0.])
    """
    if not len(features) == len(target_features) == len(heads) > 0:
        raise ValueError(
            f"got {len(features)} feature maps, {len(target_features)} of the target and "
            f"{len(heads)} heads; the numbers must be equal and positive."
        )
    distances = []
    for fx, fy, weight in zip(features, target_features, heads, strict=True):
        check_pair(fx, fy)
        check_floating("a head", weight)
        if fx.ndim != 4 or tuple(weight.shape) != (fx.shape[1],):
            raise ValueError(
                f"a feature map has shape {tuple(fx.shape)} and its head {tuple(weight.shape)}; "
                "they must be (B, C, h, w) and (C,)."
            )
        layer_mask = None if mask is None else _resized(mask, fx)
        distances.append(lpips_head(fx, fy, weight, eps=eps, mask=layer_mask))
    return torch.stack(distances).sum(0)


class LPIPSLoss(Loss):
    """LPIPS of images; see the module.

    Args:
        network: "vgg", "alex" or "squeeze", or any callable from images to feature maps (its parameters
            must be frozen; it is not registered as a part of this module).
        weights: the trunk's ImageNet weights: a torchvision state dict or a file of one; None looks
            in torch's hub cache. Not used with a callable `network`.
        heads: channel weights, one `(C_l,)` per feature map; None is the calibrated v0.1 heads of
            the `lpips` package, and 1 for every channel with a callable `network`.
        value_range: (low, high) of the images; (0, 1) is what `lpips` calls normalize=True.
        eps: added to the squared length of a feature vector.
        reduction: "mean", "sum" or "none".

    Raises:
        FileNotFoundError: if weights or heads are not on this machine; says how to fetch them.
        ValueError: for an unknown network, or one with parameters that require gradients.

    Example:
        >>> trunk = torch.nn.Conv2d(3, 8, 3).requires_grad_(False)  # "vgg" wants its weights on this machine
        >>> images = torch.rand(2, 3, 32, 32)
        >>> nd.LPIPSLoss(lambda x: [trunk(x)], value_range=(0, 1))(images, images).item()
        0.0
    """

    value_range: tuple[float, float]

    def __init__(
        self,
        network: TrunkName | FeatureTrunk = "vgg",
        *,
        weights: str | Path | Mapping[str, Tensor] | None = None,
        heads: Sequence[Tensor] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        eps: float = _EPS,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.eps: float = check_positive("eps", eps)
        low, high = (check_finite("an end of value_range", end) for end in value_range)
        if not low < high:
            raise ValueError(f"value_range is {value_range}; it must be (low, high), low < high.")
        self.value_range = (low, high)
        self.trunk: Trunk | None = None
        if isinstance(network, str):
            name = check_choice("network", network, get_args(TrunkName))
            self.trunk = load_trunk(name, weights)
            heads = load_heads(name) if heads is None else heads
        elif weights is not None:
            raise ValueError(
                "weights are given with a callable network; load them into it instead."
            )
        if heads is not None and len(heads) == 0:
            raise ValueError("heads is empty; give one for each feature map, or leave heads out.")
        refuse_trainable("network", network)
        # Held in a tuple, so that a network of the caller is no submodule of its loss.
        self._network = (None if isinstance(network, str) else network,)
        self.num_heads: int = 0 if heads is None else len(heads)
        for index, head in enumerate(heads or ()):
            self.register_buffer(f"head{index}", head.detach().flatten().clone(), persistent=False)

    def target_features(self, target: Tensor) -> TargetFeatures:
        """The features of a target, without gradients, to be passed instead of it.

        Args:
            target: `(B, C, H, W)` or `(B, C, T, H, W)`.
        """
        check_tensor("target", target)
        with torch.no_grad():
            return TargetFeatures(tuple(self._features(_frames(target))), target.shape)

    def per_sample(
        self, pred: Tensor, target: Tensor | TargetFeatures, mask: Tensor | None = None
    ) -> Tensor:
        """The distance of every sample.

        Args:
            pred: `(B, C, H, W)` or `(B, C, T, H, W)`: images with 3 channels in `value_range`.
            target: the same shape, or its features.
            mask: `(B, 1, H, W)`, `(B, 1, T, H, W)`, or with dimensions of size 1.

        Returns:
            `(B,)`, float64 if the features are, else float32.

        Raises:
            ValueError: for unequal, too small or otherwise wrong shapes.
            TypeError: for tensors that are not floating point.
        """
        check_tensor("pred", pred)
        if isinstance(target, TargetFeatures):
            if target.shape != pred.shape:
                raise ValueError(
                    f"pred has shape {tuple(pred.shape)} and the target's features are of "
                    f"{tuple(target.shape)}; they must be equal."
                )
        else:
            check_pair(pred, target)
        if mask is not None:
            check_mask(mask, pred)
            if mask.shape[1] != 1:
                raise ValueError(
                    f"mask has {mask.shape[1]} channels; LPIPS mixes channels, give it one."
                )
            mask = _frames(mask.expand(pred.shape[0], 1, *pred.shape[2:]))
        features = self._features(_frames(pred))
        if isinstance(target, TargetFeatures):
            other: Sequence[Tensor] = target.maps
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
                other = self._features(_frames(target))
        values = lpips_distance(features, other, self._heads(features), mask=mask, eps=self.eps)
        return values.view(pred.shape[0], -1).mean(1)

    def extra_repr(self) -> str:
        return f"value_range={self.value_range}, {super().extra_repr()}"

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        (network,) = self._network
        if network is not None:
            return network(images)
        trunk = self.trunk
        assert trunk is not None
        if images.shape[1] != 3 or min(images.shape[-2:]) < trunk.smallest:
            raise ValueError(
                f"the images are {tuple(images.shape)}; this trunk needs 3 channels and sides of "
                f"{trunk.smallest} or more (latents need a DecodedLoss, or their own trunk as network=)."
            )
        return trunk(self._standardised(images))

    def _standardised(self, images: Tensor) -> Tensor:
        """The images as the ImageNet networks want them, in the trunk's dtype and its fastest layout."""
        low, high = self.value_range
        to_unit = 2 / (high - low)
        factor = [to_unit / scale for scale in _SCALE]
        offset = [
            (-to_unit * low - 1 - shift) / scale
            for shift, scale in zip(_SHIFT, _SCALE, strict=True)
        ]
        dtype = (
            next(iter(self.trunk.parameters())).dtype if self.trunk is not None else images.dtype
        )
        wide = torch.promote_types(images.dtype, torch.float32)
        channels = [(images[:, c].to(wide) * factor[c] + offset[c]).to(dtype) for c in range(3)]
        layout = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
        return torch.stack(channels, dim=1).contiguous(memory_format=layout)

    def _heads(self, features: Sequence[Tensor]) -> list[Tensor]:
        if self.num_heads == 0:
            return [f.new_ones(f.shape[1]) for f in features]
        if len(features) != self.num_heads:
            raise ValueError(
                f"the network gives {len(features)} feature maps, and there are {self.num_heads} heads; give one "
                "for each map, or leave heads out."
            )
        return [self.get_buffer(f"head{index}") for index in range(self.num_heads)]


def _frames(data: Tensor) -> Tensor:
    """`(B, C, H, W)` as it is, `(B, C, T, H, W)` as `(B * T, C, H, W)`."""
    if data.ndim not in (4, 5):
        raise ValueError(
            f"got shape {tuple(data.shape)}; LPIPS wants images (B, C, H, W) or videos (B, C, T, H, W)."
        )
    return data if data.ndim == 4 else data.transpose(1, 2).flatten(0, 1)


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise TypeError(f"mask is {mask!r:.60}; it must be a tensor of real numbers or bool.")
    if mask.ndim != 4 or mask.shape[0] not in (1, like.shape[0]) or mask.shape[1] != 1:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; it must be ({like.shape[0]}, 1, H, W), of any size."
        )
    dtype = torch.promote_types(like.dtype, torch.float32)
    return F.adaptive_avg_pool2d(mask.detach().to(dtype), (like.shape[-2], like.shape[-1]))
