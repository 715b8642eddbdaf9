"""Targets of few-step students: many steps in one, and a flow map without Jacobian products.

**Many steps of DDIM in one** (Salimans & Ho 2022, Algorithm 2). A teacher that went from `x_t` to `x_s`, in two
steps or any number, is matched by one step of a student that sees, at t,

    x0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),

since one step of DDIM from there ends in `alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t = x_s`. Where s is the
data, (alpha, sigma) = (1, 0), it is x_s itself, the paper's last step. For flows the step is Euler's.

**A flow map** (Boffi et al. 2024; Geng et al. 2025, MeanFlow, eq. 6). u(x_t, t, r) is the mean velocity between
the times r < t, and v the velocity at t:

    u = v - (t - r) du/dt,  du/dt along the path dx/dt = v.

The derivative is a difference of three points on the path, exact to the second order in their distance, so that
the network is only ever evaluated: no forward-mode differentiation, which attention kernels, checkpointing and
sharded weights lack. Between equal distances it is the central difference, (u(t + h) - u(t - h)) / 2h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nitrodistill.checks import check_alike, check_per_sample, check_scales
from nitrodistill.types import Scales, expand


def ddim_target(x_t: Tensor, x_s: Tensor, now: Scales, after: Scales) -> Tensor:
    """The x0 with which one step of DDIM leads from `x_t` to `x_s`.

    Args:
        x_t: `(B, *)` where the step begins.
        x_s: `(B, *)` where it ends.
        now: scales at t, `(B,)` or zero-dimensional, sigma > 0.
        after: scales at s, nearer to the data; (1, 0) is the data.

    Returns:
        `(B, *)` in the wider of float32 and the inputs' dtype.

    Raises:
        ValueError: for unequal shapes, or scales (on a CPU) of which the second hold no more signal.

    Example:
        >>> flow = nd.RectifiedFlow(t_max=1.0)
        >>> now, after = flow(0.8), flow(0.4)
        >>> x0, eps = torch.ones(1, 2), torch.zeros(1, 2)
        >>> nd.functional.ddim_target(now.mix(x0, eps), after.mix(x0, eps), now, after)
        tensor([[1., 1.]])
    """
    check_alike(x_t=x_t, x_s=x_s)
    check_scales(now, len(x_t))
    check_scales(after, len(x_t))
    ratio = after.sigma / now.sigma
    signal = after.alpha - ratio * now.alpha
    if signal.device.type == "cpu" and not bool((signal > 0).all()):
        raise ValueError(
            "a step must lead towards the data, but the scales after it hold no more signal than those before; "
            "give the noisier ones first."
        )
    dtype = torch.promote_types(torch.promote_types(x_t.dtype, x_s.dtype), torch.float32)
    of_x_s, of_x_t = (expand(one, x_t).to(dtype) for one in (1 / signal, ratio / signal))
    return of_x_s * x_s - of_x_t * x_t


def x0_of_both(x0: Tensor, eps: Tensor, x_t: Tensor, scales: Scales) -> Tensor:
    """The x0 of a network that predicts both: `sigma^2 x0 + alpha (x_t - sigma eps)`.

    Salimans & Ho 2022, section 4, for alpha^2 + sigma^2 = 1. Finite at zero SNR, and exact in either limit. A
    denoiser that returns it has the prediction type "sample".

    Args:
        x0: `(B, *)` the prediction of x0.
        eps: `(B, *)` the prediction of the noise.
        x_t: `(B, *)` what the network was shown.
        scales: `(B,)` or zero-dimensional.

    Example:
        >>> scales = nd.Scales(torch.tensor([0.6]), torch.tensor([0.8]))
        >>> x0, eps = torch.ones(1, 2), torch.zeros(1, 2)
        >>> nd.functional.x0_of_both(x0, eps, scales.mix(x0, eps), scales)
        tensor([[1., 1.]])
    """
    check_alike(x0=x0, eps=eps, x_t=x_t)
    check_scales(scales, len(x_t))
    alpha, sigma = (expand(scale, x_t).to(x_t.dtype) for scale in scales)
    return sigma.square() * x0 + alpha * (x_t - sigma * eps)


class ThreePoints(NamedTuple):
    """Weights of the derivative at a point, from the values there and at two points near it; `(B,)` each.

    Example:
        >>> three = nd.functional.ThreePoints.of(torch.tensor([0.1]), torch.tensor([-0.1]))
        >>> x = torch.tensor([[2.0]])
        >>> three.derivative(x**2, (x + 0.1) ** 2, (x - 0.1) ** 2)  # 2 x
        tensor([[4.0000]])
    """

    here: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> ThreePoints:
        """The weights for points at the distances `first` and `second`, `(B,)`, unequal and not 0.

        They differentiate polynomials of the second degree exactly. Distances h and -h give 0, 1 / 2h and -1 / 2h.

        Raises:
            TypeError: if they are no floating-point tensors.
            ValueError: for another shape, or distances (on a CPU) that are 0 or equal.
        """
        check_per_sample("first", first)
        check_per_sample("second", second, len(first))
        scale = first * second * (first - second)
        if scale.device.type == "cpu" and bool((scale == 0).any()):
            raise ValueError(
                "two of the three points are one, so no derivative follows; give distances that are not 0 and "
                "differ."
            )
        one = -second / (first * (first - second))
        other = -first / (second * (second - first))
        return cls(-(one + other), one, other)

    def derivative(self, here: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The derivative, from the values `(B, *)` at the three points."""
        check_alike(here=here, first=first, second=second)
        weights = (expand(weight, here).to(here.dtype) for weight in self)
        return sum(
            (weight * value for weight, value in zip(weights, (here, first, second), strict=True)),
            start=torch.zeros_like(here),
        )


def flow_map_target(velocity: Tensor, derivative: Tensor, distance: Tensor) -> Tensor:
    """What the mean velocity should be: `v - (t - r) du/dt`; at r = t it is `v`, bit for bit.

    Args:
        velocity: `(B, *)` v at t.
        derivative: `(B, *)` of the mean velocity along the path.
        distance: `(B,)` t - r in flow time, at least 0.

    Raises:
        TypeError: for anything but floating-point tensors.
        ValueError: for unequal shapes, or a distance (on a CPU) below 0: r must not lie behind t.

    Example:
        >>> ones = torch.ones(1, 2)
        >>> nd.functional.flow_map_target(3 * ones, ones, torch.tensor([0.5]))
        tensor([[2.5000, 2.5000]])
    """
    check_alike(velocity=velocity, derivative=derivative)
    check_per_sample("distance", distance, len(velocity))
    if distance.device.type == "cpu" and not bool((distance >= 0).all()):
        raise ValueError(
            f"r - t is up to {-distance.min().item():.6g}; a flow map leads towards the data, so r must be "
            "at most t."
        )
    return velocity - expand(distance, velocity).to(velocity.dtype) * derivative
