"""Denoisers: diffusers networks behind `(x_t, t, condition) -> prediction`.

An `if` on a model family lives in this file and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.types import Condition, NoiseSchedule, PredictionType, check_prediction_type

__all__ = ["DiffusersDenoiser", "Guided"]


class DiffusersDenoiser:
    """A diffusers network as a Denoiser.

    Families: `UNet2DConditionModel` conditioned on text alone (Stable Diffusion 1.x, 2.x). The condition
    holds `encoder_hidden_states` `(B, L, D)`.

    Args:
        module: the network. A trainer may later replace it by a prepared one.
        schedule: the schedule of its timesteps.
        prediction_type: what it predicts.

    Raises:
        TypeError: if the network's class is not one of the families.
        ValueError: if it wants conditioning that the family's adapter does not pass.
    """

    module: nn.Module

    def __init__(
        self, module: nn.Module, schedule: NoiseSchedule, prediction_type: PredictionType
    ) -> None:
        _check_family(module)
        self.module = module
        self._schedule: NoiseSchedule = schedule
        self._prediction_type: PredictionType = check_prediction_type(prediction_type)
        self._config: Any = module.config

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the network's timesteps."""
        return self._schedule

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts."""
        return self._prediction_type

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicts from `x_t` `(B, C, H, W)` at `t` `(B,)` or zero-dimensional, in `x_t`'s dtype.

        Inputs are cast to the network's own dtype.
        """
        dtype = next(self.module.parameters()).dtype
        text = condition["encoder_hidden_states"]
        out = self.module(x_t.to(dtype), t, encoder_hidden_states=text.to(dtype), return_dict=False)
        return out[0].to(x_t.dtype)

    def copy(self) -> DiffusersDenoiser:
        """A denoiser with a deep, trainable copy of the network: a student that starts as this."""
        module = copy.deepcopy(self.module).requires_grad_(True)
        return DiffusersDenoiser(module, self._schedule, self._prediction_type)

    def with_schedule(self, schedule: NoiseSchedule) -> DiffusersDenoiser:
        """The same network (not a copy) on another schedule."""
        return DiffusersDenoiser(self.module, schedule, self._prediction_type)

    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the latents that the network was made for."""
        height, width = _pair(self._config.sample_size)
        return self._config.in_channels, height, width

    def example(self) -> tuple[Tensor, Tensor, Condition]:
        """The smallest input `(x_t, t, condition)` of batch size one that runs every block."""
        parameter = next(self.module.parameters())
        channels, height, width = self.latent_shape()
        side = 2 ** len(self._config.block_out_channels)
        x_t = parameter.new_zeros(1, channels, min(height, side), min(width, side))
        t = self._schedule.timesteps(1).to(parameter.device)
        text = parameter.new_zeros(1, 2, self._config.cross_attention_dim)
        return x_t, t, Condition({"encoder_hidden_states": text})

    def image_part(self, output: object) -> Tensor:
        """The image's feature map in what a block of this family returns.

        UNet blocks return a map or a tuple whose first element is one.
        """
        return first_tensor(output)


class Guided:
    """Classifier-free guidance around a denoiser: `null + scale (conditional - null)`.

    Ho & Salimans 2022 in diffusers' convention, where scale 1 is no guidance. Both predictions are
    made in one batch.

    Args:
        denoiser: the network.
        scale: guidance scale, at least 1.
        null: the unconditional Condition, of batch size one.

    Raises:
        ValueError: if the scale is below 1, or `null` holds more than one sample.
    """

    def __init__(self, denoiser: DiffusersDenoiser, scale: float, null: Condition) -> None:
        if scale < 1:
            raise ValueError(f"guidance scale is {scale}; it must be at least 1 (1: no guidance).")
        if len(null) != 1:
            raise ValueError(
                f"the null condition holds {len(null)} samples; it must hold one, "
                "the encoding of the empty prompt."
            )
        self.denoiser: DiffusersDenoiser = denoiser
        self.scale: float = scale
        self.null: Condition = null

    @property
    def module(self) -> nn.Module:
        """The guided network."""
        return self.denoiser.module

    @property
    def schedule(self) -> NoiseSchedule:
        """The network's schedule."""
        return self.denoiser.schedule

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts, and so what this does."""
        return self.denoiser.prediction_type

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided prediction; see `DiffusersDenoiser.__call__`."""
        if self.scale == 1:
            return self.denoiser(x_t, t, condition)
        both = Condition.cat([condition.null(self.null), condition])
        t = t.expand(len(x_t)).repeat(2)
        null, conditional = self.denoiser(x_t.repeat(2, 1, 1, 1), t, both).chunk(2)
        return null + self.scale * (conditional - null)


def first_tensor(output: object) -> Tensor:
    """`output` if it is a tensor, else the first tensor of a tuple or list."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        for element in output:
            if isinstance(element, Tensor):
                return element
    raise TypeError(
        f"a tapped module returned {type(output).__name__} without a tensor in it; tap a module that "
        "returns a feature map."
    )


def _check_family(module: nn.Module) -> None:
    name = type(module).__name__
    if name != "UNet2DConditionModel":
        raise TypeError(
            f"{name} is not a known family (UNet2DConditionModel is). Write an adapter: any object "
            "with module, schedule, prediction_type and __call__(x_t, t, condition) -> prediction "
            "is a Denoiser."
        )
    config: Any = module.config
    for key in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim"):
        if config.get(key) is not None:
            raise ValueError(
                f"this UNet2DConditionModel has {key}={config[key]!r}, conditioning that this adapter "
                "does not pass yet; only text-conditioned UNets (Stable Diffusion 1.x and 2.x) are "
                "supported."
            )


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def frozen(module: nn.Module) -> nn.Module:
    """Switches off gradients and train mode of a module, and returns it."""
    return module.requires_grad_(False).eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside of the block; the mode from before comes back after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter."""
    return next(module.parameters()).device
