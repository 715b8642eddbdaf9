"""How a critic learns what the student draws: denoising score matching, in its own prediction type.

    w_t mean (F(x_t) - target)^2,   x_t = alpha_t x0 + sigma_t eps

with the weights of `CriticConfig.weight`. What is not finite `check_critic` refuses where it is composed: "sample"
and "snr_plus_one" of an epsilon network at zero SNR, and "snr_plus_one" of an x0 network without noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.losses import denoising_loss
from nitrodistill.methods.dmd2.config import CriticConfig
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.models.wrappers import plain_name
from nitrodistill.prediction import check_convertible, prediction_target
from nitrodistill.sampling import Step
from nitrodistill.timesteps import TimestepLaw
from nitrodistill.types import Condition, Denoiser, NoiseSchedule, Scales
from nitrodistill.weighting import min_snr_weight, snr_plus_one_weight


def critic_error(
    critic: Denoiser,
    weight: str,
    step: Step,
    x0: Tensor,
    noise: Tensor,
    condition: Condition,
) -> Tensor:
    """The weighted error of every sample, `(B,)`; see `CriticConfig.weight`."""
    scales, kind = step.output, critic.prediction_type
    x_t = scales.mix(x0, noise)
    prediction = critic(x_t, step.t, condition)
    sigma_data = _sigma_data(critic)
    if weight == "sample":
        return denoising_loss(prediction, x_t, x0, scales, kind, reduction="none")
    target = prediction_target(x0, noise, scales, kind)
    error = (prediction.to(target.dtype) - target).square().flatten(1).mean(1)
    if weight == "edm" or (weight == "auto" and sigma_data is not None):
        assert sigma_data is not None
        return error * (1 / scales.sigma.square() + 1 / sigma_data**2).to(error.dtype)
    if weight == "min_snr":
        return error * min_snr_weight(scales, kind).to(error.dtype)
    if weight == "snr_plus_one":
        return error * snr_plus_one_weight(scales, kind).to(error.dtype)
    return error


def critic_signal(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """How much of what the critic says against the teacher is true; a scalar.

        <F - T, x0 - T> / |F - T|^2, both summed over the batch

    The student's own best denoiser S(x_t) is the mean of x0, so that this estimates <F - T, S - T> / |F - T|^2,
    from what matching has at hand: 1 for an exact critic; near 0 where F - T is the critic's error, as that of one
    which lags behind the student; below 0 where it leads away. It falls towards 0 as the student becomes the
    teacher, too. 0 where critic and teacher agree.

    Args:
        x0: what was noised to x_t, `(B, *)`.
        real: the teacher's x0 from x_t, without guidance.
        fake: the critic's.
    """
    gap = fake.float() - real.float()
    energy = gap.square().sum()
    return (gap * (x0.detach().float() - real.float())).sum() / (energy + (energy == 0))


def ends_of(law: TimestepLaw, schedule: NoiseSchedule) -> Scales:
    """alpha and sigma `(2,)` at the first and the last timestep that a law draws."""
    return schedule(schedule.timestep(law(torch.tensor([0.0, 1.0], dtype=torch.float64))))


def check_critic(
    critic: Denoiser, student: Denoiser, config: CriticConfig, law: TimestepLaw
) -> None:
    """Refuses a weight that the critic cannot have, and a pull between unlike networks.

    Raises:
        ValueError: naming the setting.
    """
    kind, scales = critic.prediction_type, ends_of(law, critic.schedule)
    if config.weight == "sample":
        check_convertible(scales, kind)
    if config.weight == "snr_plus_one" and not snr_plus_one_weight(scales, kind).isfinite().all():
        raise ValueError(
            "critic.weight is 'snr_plus_one', which is infinite for a network that predicts 'sample' where there "
            "is no noise; begin critic.timesteps above 0, or take 'min_snr'."
        )
    if config.weight == "edm" and _sigma_data(critic) is None:
        raise ValueError(
            "critic.weight is 'edm', but the network has no EDM preconditioning, which holds sigma_data; take "
            "'auto'."
        )
    if config.follow is not None and student.prediction_type != kind:
        raise ValueError(
            f"critic.follow averages the weights of a student that predicts {student.prediction_type!r} with "
            f"those of a critic that predicts {kind!r}; leave it out."
        )
    if config.follow is not None and _shapes(student) != _shapes(critic):
        raise ValueError(
            "critic.follow averages the weights of student and critic, but the student is another network "
            "(pruned, or with an input of its own); leave it out."
        )


def _shapes(denoiser: Denoiser) -> dict[str, torch.Size]:
    """Of all weights, by name."""
    return {plain_name(n): weight.shape for n, weight in denoiser.module.named_parameters()}


def _sigma_data(critic: Denoiser) -> float | None:
    """Of EDM's preconditioning, where it has one."""
    edm = critic.preconditioning if isinstance(critic, DiffusersDenoiser) else None
    return None if edm is None else edm.sigma_data
