"""LPIPS, the learned perceptual distance (Zhang et al. 2018), v0.1.

    d = sum_l mean_{h,w} sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

over features f_l of a frozen network (VGG-16, AlexNet or SqueezeNet trained on ImageNet) with non-negative
calibrated weights w_l. Trunks and heads are those of the `lpips` package, and so is the value. What differs:

* nothing is trainable and nothing is random: no head can drift below zero, and `train()` switches no
  dropout on;
* where a feature vector is zero its gradient is zero, not NaN;
* the target's features can be computed once and passed (`target_features`);
* latents go in if a `decoder` is given; with `chunk_size` they are decoded that many at a time, and each
  chunk is computed again in the backward pass, so that memory does not grow with the batch;
* nothing is downloaded.

A mask is resized to every layer by area. The frames of a video are averaged. The trunk computes in its
parameters' dtype (float32; `.double()` for float64, autocast or `.bfloat16()` for speed), the heads in
float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nitrodistill.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_mask,
    check_pair,
    check_tensor,
    check_whole,
)
from nitrodistill.losses.base import Loss, Reduction, reduce, refuse_trainable
from nitrodistill.losses.perceptual_head import perceptual_distance
from nitrodistill.losses.trunks import Trunk, TrunkName, load_heads, load_trunk

__all__ = ["FeatureTrunk", "LPIPSLoss", "TargetFeatures", "lpips_distance"]

FeatureTrunk = Callable[[Tensor], Sequence[Tensor]]
"""Images `(B, C, H, W)` to feature maps `(B, C_l, h_l, w_l)`."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class TargetFeatures(NamedTuple):
    """What `LPIPSLoss.target_features` computed, to be passed as a target.

    Attributes:
        maps: one feature map per tap, `(B, C_l, h_l, w_l)`, or `(B * T, ...)` for videos.
        shape: the shape of the target.
    """

    maps: tuple[Tensor, ...]
    shape: torch.Size


def lpips_distance(
    features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    heads: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The perceptual distance of two sets of feature maps, one value per sample.

    Args:
        features: one map per layer, `(B, C_l, h_l, w_l)`.
        target_features: the same shapes.
        heads: `(C_l,)` non-negative channel weights per layer.
        mask: `(B, 1, H, W)` of any size; resized to every layer by area.

    Returns:
        `(B,)`.

    Raises:
        ValueError: for unequal numbers of layers or unequal shapes.
        TypeError: for tensors that are not floating point.
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
        distances.append(perceptual_distance(fx, fy, weight, layer_mask))
    return torch.stack(distances).sum(0)


class LPIPSLoss(Loss):
    """LPIPS of images, or of latents through a decoder; see the module.

    Args:
        network: "vgg", "alex" or "squeeze", or any callable from images to feature maps (its parameters
            must be frozen; it is not registered as a part of this module).
        weights: the trunk's ImageNet weights: a torchvision state dict or a file of one; None looks
            in torch's hub cache. Not used with a callable `network`.
        heads: channel weights, one `(C_l,)` per feature map; None is the calibrated v0.1 heads of
            the `lpips` package, and 1 for every channel with a callable `network`.
        value_range: (low, high) of the images; (0, 1) is what `lpips` calls normalize=True.
        decoder: latents -> images; with it `pred` and `target` are latents.
        chunk_size: samples that are decoded and compared at a time, each chunk computed again in
            the backward pass; None is all at once.
        reduction: "mean", "sum" or "none".

    Raises:
        FileNotFoundError: if weights or heads are not on this machine; says how to fetch them.
        ValueError: for an unknown network, or one with parameters that require gradients.
    """

    value_range: tuple[float, float]
    decoder: Callable[[Tensor], Tensor] | None
    chunk_size: int | None

    def __init__(
        self,
        network: TrunkName | FeatureTrunk = "vgg",
        *,
        weights: str | Path | Mapping[str, Tensor] | None = None,
        heads: Sequence[Tensor] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        decoder: Callable[[Tensor], Tensor] | None = None,
        chunk_size: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        low, high = (check_finite("an end of value_range", end) for end in value_range)
        if not low < high:
            raise ValueError(f"value_range is {value_range}; it must be (low, high), low < high.")
        self.value_range = (low, high)
        self.chunk_size = None if chunk_size is None else check_whole("chunk_size", chunk_size)
        self.trunk: Trunk | None = None
        if isinstance(network, str):
            name = check_choice("network", network, get_args(TrunkName))
            self.trunk = load_trunk(name, weights)
            heads = load_heads(name) if heads is None else heads
        elif weights is not None:
            raise ValueError(
                "weights are given with a callable network; load them into it instead."
            )
        for role, value in (("network", network), ("decoder", decoder)):
            refuse_trainable(role, value)
        # Held in a tuple, so that a network of the caller is no submodule of its loss.
        self._callables = (None if isinstance(network, str) else network, decoder)
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
            images = _frames(target)
            size = self.chunk_size or images.shape[0]
            chunks = [self._features(chunk) for chunk in images.split(size)]
        return TargetFeatures(
            tuple(torch.cat(maps) for maps in zip(*chunks, strict=True)), target.shape
        )

    def per_sample(
        self, pred: Tensor, target: Tensor | TargetFeatures, mask: Tensor | None = None
    ) -> Tensor:
        """The distance of every sample.

        Args:
            pred: `(B, C, H, W)` or `(B, C, T, H, W)`: images with 3 channels in `value_range`, or
                latents if there is a decoder.
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
            other: tuple[Tensor, ...] = target.maps
        else:
            check_pair(pred, target)
            other = (_frames(target),)
        if mask is not None:
            check_mask(mask, pred)
            if mask.shape[1] != 1:
                raise ValueError(
                    f"mask has {mask.shape[1]} channels; LPIPS mixes channels, give it one."
                )
            mask = _frames(mask.expand(pred.shape[0], 1, *pred.shape[2:]))
        images = _frames(pred)
        size = self.chunk_size or images.shape[0]
        values = []
        for start in range(0, images.shape[0], size):
            part = slice(start, start + size)
            arguments = (
                images[part],
                isinstance(target, TargetFeatures),
                None if mask is None else mask[part],
                *(tensor[part] for tensor in other),
            )
            if self.chunk_size is None or not torch.is_grad_enabled():
                values.append(self._compare(*arguments))
            else:
                values.append(
                    checkpoint(
                        self._compare, *arguments, use_reentrant=False, preserve_rng_state=False
                    )
                )
        return torch.cat(values).view(pred.shape[0], -1).mean(1)

    def forward(
        self,
        pred: Tensor,
        target: Tensor | TargetFeatures,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The reduced distance; arguments as in `per_sample`, `weight` is `(B,)`."""
        return reduce(self.per_sample(pred, target, mask), weight, self.reduction)

    def extra_repr(self) -> str:
        return (
            f"value_range={self.value_range}, chunk_size={self.chunk_size}, {super().extra_repr()}"
        )

    def _compare(
        self, images: Tensor, precomputed: bool, mask: Tensor | None, *other: Tensor
    ) -> Tensor:
        features = self._features(images)
        if precomputed:
            target: Sequence[Tensor] = other
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and other[0].requires_grad):
                target = self._features(other[0])
        return lpips_distance(features, target, self._heads(features), mask=mask)

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        network, decoder = self._callables
        if decoder is not None:
            images = decoder(images)
        if network is not None:
            return network(images)
        trunk = self.trunk
        assert trunk is not None
        if images.shape[1] != 3 or min(images.shape[-2:]) < trunk.smallest:
            raise ValueError(
                f"the images are {tuple(images.shape)}; this trunk needs 3 channels and sides of "
                f"{trunk.smallest} or more (latents need a decoder, or their own trunk as network=)."
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
