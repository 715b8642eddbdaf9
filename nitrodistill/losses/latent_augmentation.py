"""Augmentations of latents for a perceptual loss, differentiable, the same for both sides (E-LatentLPIPS, Kang et
al. 2024, arXiv 2405.05967, section 3.3; the groups are those of ADA, Karras et al. 2020).

    b   flip, quarter turns, shift by whole pixels, up to 1/8 of a side
    g   scale 2^N(0, 0.2^2), any rotation, unequal scale 2^N(0, 0.2^2), shift N(0, 1/8) of a side
    c   brightness + U(-1/2, 1/2), contrast x U(1/2, 3/2) about the mean, saturation x U(0, 2) about the
        channels' mean
    o   half of both sides set to zero, anywhere

b and g are one affine map, by which a pixel of the result looks its value up in the latent; beyond the latent's
edges lies its mirror image. With b alone every value is one of the latent's, with g it is bilinear; ADA's doubling
of the resolution around that is left out. Computed in float32 or wider, whatever autocast says.

Not kornia's: those draw from the global generator, not from given rows, which a resumed run needs; they
compute their warps in bfloat16 under autocast, and their colours are those of three channels in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import check_floating, check_tensor
from nitrodistill.kernels.arithmetic import math_dtype

GROUPS = "bgco"
NUM_DRAWS = 14


def check_groups(groups: str, name: str = "groups") -> str:
    """Returns `groups` if each is known, and there once; `name` is what they are called, for the message.

    Raises:
        ValueError: if not.
    """
    if not isinstance(groups, str) or set(groups) - set(GROUPS) or len(set(groups)) < len(groups):
        raise ValueError(
            f"{name} is {groups!r}; give letters of {GROUPS!r}, each once at most, such as 'bg'."
        )
    return groups


def augment_latents(latents: Tensor, r: Tensor, groups: str = "bg") -> Tensor:
    """The augmented latents, in their shape and dtype; gradients flow.

    Args:
        latents: `(B, C, H, W)`, or `(B, C, T, H, W)`, whose frames are treated alike.
        r: `(B, 14)` uniform draws in [0, 1), one row for a sample.
        groups: which augmentations, see the module; "" is none.

    Raises:
        ValueError: for wrong shapes or an unknown group.
        TypeError: for tensors that are not floating point.

    Example:
        >>> nd.losses.augment_latents(torch.ones(2, 4, 8, 8), torch.rand(2, 14), "b").shape
        torch.Size([2, 4, 8, 8])
    """
    check_tensor("latents", latents)
    check_floating("r", r)
    check_groups(groups)
    if latents.ndim not in (4, 5) or tuple(r.shape) != (len(latents), NUM_DRAWS):
        raise ValueError(
            f"latents have shape {tuple(latents.shape)} and r {tuple(r.shape)}; they must be (B, C, [T,] H, W) "
            f"and (B, {NUM_DRAWS})."
        )
    if latents.ndim == 5:
        frames = latents.transpose(1, 2)
        each = r.repeat_interleave(frames.shape[1], 0)
        moved = augment_latents(frames.flatten(0, 1), each, groups)
        return moved.view(frames.shape).transpose(1, 2)
    dtype = math_dtype(latents)
    z, r = latents.to(dtype), r.to(latents.device, dtype)
    if "b" in groups or "g" in groups:
        z = warp(z, *_map(r, groups, z), "bilinear" if "g" in groups else "nearest")
    if "c" in groups:
        brightness, contrast, saturation = (r[:, k].view(-1, 1, 1, 1) for k in (9, 10, 11))
        z = z + (brightness - 0.5)
        mean = z.mean((1, 2, 3), keepdim=True)
        z = mean + (contrast + 0.5) * (z - mean)
        grey = z.mean(1, keepdim=True)
        z = grey + 2 * saturation * (z - grey)
    if "o" in groups:
        x, y = _positions(z)
        far_x, far_y = ((p - r[:, k].view(-1, 1, 1)).abs() >= 0.25 for p, k in ((x, 12), (y, 13)))
        z = z * (far_x | far_y).unsqueeze(1)
    return z.to(latents.dtype)


def warp(latents: Tensor, matrix: Tensor, shift: Tensor, mode: str = "bilinear") -> Tensor:
    """The pixel at p, counted from the centre, becomes the latent's value at `matrix p + shift`.

    Args:
        latents: `(B, C, H, W)`, float32 or float64.
        matrix: `(B, 2, 2)`, of (x, y).
        shift: `(B, 2)`, in pixels.
        mode: "bilinear" or "nearest".
    """
    sides = latents.new_tensor(latents.shape[:-3:-1])  # (W, H)
    at = [(p - 0.5) * side for p, side in zip(_positions(latents), sides, strict=True)]
    # written out: as a matrix product it would be rounded to bfloat16 or TF32 where those are on
    there = [
        matrix[:, i, 0].view(-1, 1, 1) * at[0]
        + matrix[:, i, 1].view(-1, 1, 1) * at[1]
        + shift[:, i].view(-1, 1, 1)
        for i in range(2)
    ]
    grid = torch.stack(there, -1) * (2 / sides)
    return F.grid_sample(latents, grid, mode, padding_mode="reflection", align_corners=False)


def _positions(z: Tensor) -> tuple[Tensor, Tensor]:
    """x `(1, W)` and y `(H, 1)` of the pixels' centres, in shares of the sides."""
    height, width = z.shape[-2:]
    x, y = (torch.arange(n, dtype=z.dtype, device=z.device) + 0.5 for n in (width, height))
    return (x / width)[None], (y / height)[:, None]


def _map(r: Tensor, groups: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix `(B, 2, 2)` and shift `(B, 2)` of `warp`."""
    sides = r.new_tensor(z.shape[:-3:-1])
    a, b = torch.ones_like(r[:, 0]), torch.zeros_like(r[:, 0])
    c, d, shift = b, a, torch.zeros_like(r[:, :2])
    if "b" in groups:
        quarter = (r[:, 1] * 4).floor() * (math.pi / 2)
        cos, sin = quarter.cos().round(), quarter.sin().round()
        sign = torch.where(r[:, 0] < 0.5, -1.0, 1.0).to(r.dtype)
        a, b, c, d = sign * cos, -sign * sin, sin, cos
        shift = shift + ((2 * r[:, 2:4] - 1) * sides / 8).round()
    if "g" in groups:
        normal = torch.special.ndtri(r[:, 4:8].clamp(1e-6, 1 - 1e-6))
        scale, unequal = torch.exp2(0.2 * normal[:, 0]), torch.exp2(0.2 * normal[:, 1])
        angle = 2 * math.pi * r[:, 8]
        cos, sin = scale * angle.cos(), scale * angle.sin()
        a, b, c, d = (
            (a * cos + b * sin) * unequal,
            (b * cos - a * sin) / unequal,
            (c * cos + d * sin) * unequal,
            (d * cos - c * sin) / unequal,
        )
        shift = shift + normal[:, 2:4] * sides / 8
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2), shift
