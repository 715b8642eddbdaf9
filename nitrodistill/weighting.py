"""SNR weights of the denoising loss, finite at zero SNR.

A squared error in a prediction `p` is a squared error in x0 times `(D / sigma)^2` (see `prediction.py`),
so a weight `w(SNR)` on the x0 error becomes, on the network's own target,

    sample  w        epsilon  w / SNR        v_prediction  w / (SNR + 1)

with SNR = alpha^2 / sigma^2 (for flow_prediction `w sigma^2 / (alpha + sigma)^2`). Written in alpha and sigma
these are finite where SNR is 0, where the quotient of the usual code is 0/0.

    min-SNR-gamma   w = min(SNR, gamma)      Hang et al. 2023, gamma = 5
    truncated SNR   w = max(SNR, 1)          Salimans & Ho 2022, section 4
    SNR + 1         w = SNR + 1              Salimans & Ho 2022, section 4
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.checks import check_positive, check_scales
from nitrodistill.types import PredictionType, Scales, check_prediction_type


def min_snr_weight(scales: Scales, prediction_type: PredictionType, gamma: float = 5.0) -> Tensor:
    """min-SNR-gamma weights for a squared error on the network's own target.

    At zero SNR it is 1 for epsilon and 0 for the others: a student that is trained at the last
    timestep only would get no gradient from v_prediction, so do not use it there.

    Args:
        scales: alpha and sigma, `(B,)`, sigma > 0.
        prediction_type: what the network predicts.
        gamma: the ceiling of the SNR.

    Returns:
        `(B,)` in the scales' dtype.

    Raises:
        ValueError: if gamma is not positive or the type unknown.

    Example:
        >>> nd.min_snr_weight(nd.RectifiedFlow()(torch.tensor([500.0])), "flow_prediction", gamma=5.0).shape
        torch.Size([1])
    """
    check_scales(scales)
    check_positive("gamma", gamma)
    if check_prediction_type(prediction_type) == "epsilon":
        return (gamma * scales.sigma.square() / scales.alpha.square()).clamp(max=1)
    return scales.snr().clamp(max=gamma) * _jacobian(scales, prediction_type)


def truncated_snr_weight(scales: Scales, prediction_type: PredictionType) -> Tensor:
    """max(SNR, 1) weights for a squared error on the network's own target, `(B,)`.

    Where sigma is 0 it is infinite for "sample", and finite for the others.

    Raises:
        ValueError: for epsilon, whose weight 1/SNR diverges at zero SNR (and whose training
            diverged in the paper's ablation).

    Example:
        >>> nd.truncated_snr_weight(nd.RectifiedFlow()(torch.tensor([500.0])), "sample")
        tensor([1.], dtype=torch.float64)
    """
    check_scales(scales)
    _refuse_epsilon(prediction_type, "truncated SNR")
    alpha, sigma = (scale.square() for scale in scales)
    return _by_noise(torch.maximum(alpha, sigma), scales, prediction_type)


def snr_plus_one_weight(scales: Scales, prediction_type: PredictionType) -> Tensor:
    """SNR + 1 weights for a squared error on the network's own target, `(B,)`.

    It is 1 for v_prediction where alpha^2 + sigma^2 = 1. Where sigma is 0 it is infinite for "sample", and finite
    for the others.

    Raises:
        ValueError: for epsilon, whose weight diverges at zero SNR.

    Example:
        >>> nd.snr_plus_one_weight(nd.RectifiedFlow()(torch.tensor([500.0])), "sample")
        tensor([2.], dtype=torch.float64)
    """
    check_scales(scales)
    _refuse_epsilon(prediction_type, "SNR + 1")
    return _by_noise(scales.alpha.square() + scales.sigma.square(), scales, prediction_type)


def _jacobian(scales: Scales, prediction_type: PredictionType) -> Tensor:
    """(d x0 / d p)^2 for the types whose determinant does not vanish with alpha."""
    if prediction_type == "sample":
        return torch.ones_like(scales.alpha)
    if prediction_type == "v_prediction":
        return scales.sigma.square() / (scales.alpha.square() + scales.sigma.square()).square()
    return scales.sigma.square() / (scales.alpha + scales.sigma).square()


def _by_noise(weight: Tensor, scales: Scales, prediction_type: PredictionType) -> Tensor:
    """The weight `weight / sigma^2` of the x0 error, without that quotient where the type's own cancels it."""
    alpha, sigma = scales
    if prediction_type == "sample":
        return weight / sigma.square()
    if prediction_type == "v_prediction":
        return weight / (alpha.square() + sigma.square()).square()
    return weight / (alpha + sigma).square()


def _refuse_epsilon(prediction_type: PredictionType, name: str) -> None:
    if check_prediction_type(prediction_type) == "epsilon":
        raise ValueError(
            f"the {name} weight of an 'epsilon' network grows like 1/SNR and diverges at zero SNR; "
            "use min_snr_weight, or a network that predicts 'v_prediction' or 'sample'."
        )
