"""What losses over windows share: the window, the size rule, the data range, the weights of a mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.checks import (
    check_choice,
    check_finite,
    check_numbers,
    check_positive,
    check_whole,
)
from nitrodistill.kernels.ssim.reference import SSIMPadding, window_mean

DataRange = float | Sequence[float]
"""One number for all channels, or one per channel."""

SignMode = Literal["plain", "shift", "structure"]
"""How data that may be negative are treated; see `nitrodistill.losses.ssim`."""


@lru_cache(maxsize=32)
def gaussian_taps(window_size: int, sigma: float) -> tuple[float, ...]:
    """The normalised Gaussian window of `window_size` taps, an odd number."""
    taps = [math.exp(-((k - window_size // 2) ** 2) / (2 * sigma**2)) for k in range(window_size)]
    total = sum(taps)
    return tuple(tap / total for tap in taps)


@dataclass(frozen=True)
class SSIMOptions:
    """How similarity under a window is measured: what functions and modules of SSIM share, checked once.

    Args:
        data_range: L > 0, one number or one per channel.
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "valid" or "reflect".
        mode: "plain", "shift" or "structure".
        offset: what mode "shift" adds to both; None is L / 2.

    Raises:
        ValueError: for an option out of its range, or an offset that the mode does not use.
        TypeError: for an option that is no number.
    """

    data_range: DataRange
    window_size: int
    sigma: float
    k1: float
    k2: float
    padding: SSIMPadding
    mode: SignMode
    offset: DataRange | None = None

    def __post_init__(self) -> None:
        if check_whole("window_size", self.window_size) % 2 == 0:
            raise ValueError(f"window_size is {self.window_size}; it must be odd.")
        check_positive("sigma", self.sigma)
        object.__setattr__(self, "data_range", checked_range("data_range", self.data_range))
        check_positive("k1", self.k1)
        check_positive("k2", self.k2)
        check_choice("padding", self.padding, get_args(SSIMPadding))
        check_choice("mode", self.mode, get_args(SignMode))
        if self.offset is not None:
            for value in self.offset if isinstance(self.offset, Sequence) else (self.offset,):
                check_finite("offset", value)
            if self.mode != "shift":
                raise ValueError(
                    f"offset is {self.offset} but mode is {self.mode!r}; only 'shift' uses it."
                )

    @property
    def taps(self) -> tuple[float, ...]:
        """The window."""
        return gaussian_taps(self.window_size, self.sigma)

    def __str__(self) -> str:
        """As the modules show it: what was chosen, without what is None."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in fields.items() if value is not None)


def check_size(x: Tensor, window_size: int, padding: SSIMPadding, scales: int = 1) -> None:
    smallest = min(x.shape[-2:])
    for _ in range(scales - 1):
        smallest = -(-smallest // 2)
    needed = window_size if padding == "valid" else window_size // 2 + 1
    if smallest >= needed:
        return
    where = f"{x.shape[-2]}x{x.shape[-1]}"
    if scales > 1:
        where += f" ({smallest} on the short side at scale {scales} of {scales})"
    way_out = "a smaller odd window_size" + (" or fewer weights" if scales > 1 else "")
    if padding == "valid":
        way_out += f", or padding='reflect' (sides of {window_size // 2 + 1} or more)"
    raise ValueError(
        f"the images are {where}; a {window_size}-tap window with padding={padding!r} needs sides "
        f"of {needed} or more. Use {way_out}."
    )


def window_weights(
    mask: Tensor, taps: tuple[float, ...], padding: SSIMPadding, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """The mask's mean under every window, scaled so that a sample's weights sum to one (or to 0)."""
    mask = mask.detach().to(dtype).expand(-1, -1, *like.shape[-2:])
    mean = window_mean(mask, taps, padding)
    total = mean.sum((1, 2, 3), keepdim=True) * (like.shape[1] // mean.shape[1])
    return (mean / (total + (total == 0))).expand(like.shape[0], -1, -1, -1)


def checked_range(name: str, value: DataRange) -> float | tuple[float, ...]:
    if isinstance(value, Sequence):
        return check_numbers(name, value)
    return check_positive(name, value)


def per_channel(name: str, value: DataRange, channels: int) -> tuple[float, ...]:
    """One number per channel, or a single one for all."""
    values = tuple(value) if isinstance(value, Sequence) else (float(value),)
    if len(values) not in (1, channels):
        raise ValueError(
            f"{name} has {len(values)} values but the data {channels} channels; give one number, or "
            "one per channel."
        )
    return values


def channel_constant(
    values: tuple[float, ...], frames: int, dtype: torch.dtype, device: torch.device
) -> float | Tensor:
    """One number, or a `(C * frames,)` tensor that is made once per device."""
    if len(values) == 1:
        return values[0]
    if torch.compiler.is_compiling():  # a graph keeps its constants itself
        return torch.tensor(values, dtype=dtype, device=device).repeat_interleave(frames)
    return _kept_constant(values, frames, dtype, device)


@lru_cache(maxsize=64)
def _kept_constant(
    values: tuple[float, ...], frames: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).repeat_interleave(frames)
