"""What `conformance.py` calls, of this library and of modelopt's fastgen, each by what it exports.

The peers that know flow predictions alone are in `_flow_codes.py`.
"""

from __future__ import annotations

from typing import Any

import approximate_r1
import torch
from torch import Tensor, nn

import nitrodistill as nd
from nitrodistill.methods.dmd2.critic import critic_error
from nitrodistill.sampling import Step, StepPlan

FLOW = nd.RectifiedFlow(t_max=1)
KINDS: dict[str, nd.PredictionType] = {
    "x0": "sample",
    "eps": "epsilon",
    "flow": "flow_prediction",
    "v": "v_prediction",
}


class Code:
    """What an identity may call; t is `(B,)` in [0, 1], kinds are the keys of `KINDS`.

    A peer overrides what it offers; the rest raises NotImplementedError, and its row shows "-".
    """

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The distribution-matching loss, its mean over the batch."""
        raise NotImplementedError

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        """The guided prediction."""
        raise NotImplementedError

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        raise NotImplementedError

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0 from an epsilon or flow prediction."""
        raise NotImplementedError

    def from_x0(self, kind: str, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The epsilon or flow prediction that x0 stands for."""
        raise NotImplementedError

    def denoising(self, kind: str, said: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The denoising loss in the prediction's own space."""
        raise NotImplementedError

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        """The critic's loss on x0 for a network `(x_t, t)` of this kind, in its own space or in x0."""
        raise NotImplementedError

    def adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of discriminator and generator for logits `(B, 1)`, the non-saturating ones."""
        raise NotImplementedError

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noise, and what a one-step student is shown where the last timestep is 1.

        A peer that draws its own noise takes only the shape.
        """
        raise NotImplementedError

    def shifted(self, count: int, shift: float) -> Tensor:
        """Timesteps of the shifted uniform law on [0.001, 0.999]."""
        raise NotImplementedError

    def r1(self, scale: float, samples: int) -> float:
        """The mean approximate R1 penalty of `approximate_r1.py`'s linear discriminator."""
        raise NotImplementedError


class Ours(Code):
    """This library."""

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        return nd.functional.distribution_matching(x0, real, fake).mean()

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        class Denoiser:
            schedule, prediction_type, module = FLOW, "sample", nn.Identity()

            def __call__(self, x_t: Tensor, t: Tensor, condition: nd.Condition) -> Tensor:
                return x_t

        empty = nd.Condition({}, torch.tensor([-1]))
        guided = nd.Guided(Denoiser(), scale, empty)  # pyright: ignore
        return guided.combine(null, conditional, torch.zeros(len(null)))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return FLOW(t).mix(x0, eps)

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return nd.to_x0(said, x_t, FLOW(t), KINDS[kind])

    def from_x0(self, kind: str, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return nd.convert_prediction(x0, x_t, FLOW(t), "sample", KINDS[kind])

    def denoising(self, kind: str, said: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        target = nd.prediction_target(x0, eps, FLOW(t), KINDS[kind])
        return (said - target).square().mean()

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        class Critic:
            schedule, prediction_type, module = FLOW, KINDS[kind], network

            def __call__(self, x_t: Tensor, t: Tensor, condition: nd.Condition) -> Tensor:
                return network(x_t, t)

        t = torch.linspace(0.001, 0.999, len(x0), dtype=x0.dtype)
        step = Step(t, FLOW(t), FLOW(t))
        own = "sample" if weight == "x0" else "prediction"
        return critic_error(
            Critic(),  # pyright: ignore
            own,
            step,
            x0,
            torch.randn_like(x0),
            nd.Condition(),
        ).mean()

    def adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        loss = nd.NonSaturatingGANLoss()
        return loss.discriminator(real, fake).mean(), loss.generator(fake).mean()

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        (step,) = StepPlan.from_schedule(FLOW, 1).steps
        return noise, step.input.mix(torch.ones_like(noise), noise)

    def shifted(self, count: int, shift: float) -> Tensor:
        law = nd.Shifted(shift, nd.Uniform(((0.001, 0.999),)))
        return law(torch.rand(count, dtype=torch.float64))

    def r1(self, scale: float, samples: int) -> float:
        return approximate_r1.ours(samples, [scale])[0]


class ModelOpt(Code):
    """modelopt's fastgen, by what it exports."""

    def __init__(self) -> None:
        from modelopt.torch import fastgen  # pyright: ignore[reportMissingImports]
        from modelopt.torch.fastgen import (  # pyright: ignore[reportMissingImports]
            config,
            flow_matching,
            losses,
            utils,
        )

        self.pipeline: Any = fastgen.DMDPipeline
        self.config: Any = config
        self.flow: Any = flow_matching
        self.losses: Any = losses
        self.utils: Any = utils

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        return self.losses.vsd_loss(x0, real, fake)

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        return self.utils.classifier_free_guidance(conditional, null, scale)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.flow.add_noise(x0, eps, t)

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        of_flow, of_eps = self.flow.pred_x0_from_flow, self.flow.pred_noise_to_pred_x0
        return (of_eps if kind == "eps" else of_flow)(said, x_t, t)

    def from_x0(self, kind: str, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (self.flow.x0_to_eps if kind == "eps" else self.flow.x0_to_flow)(x0, x_t, t)

    def denoising(self, kind: str, said: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        scales = {"alpha_fn": self.flow.rf_alpha, "sigma_fn": self.flow.rf_sigma}
        return self.losses.dsm_loss(kind, said, x0=x0, eps=eps, t=t, **scales)

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        pipeline = self.made(
            lambda x_t, t: (x_t - x0) / t.reshape(-1, 1),  # whichever it takes it for, x0 by `flow`
            network,
            pred_type=kind,
            fake_score_pred_type=weight,
        )
        return pipeline.compute_fake_score_loss(x0, torch.randn_like(x0))["fake_score"]

    def adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.losses.gan_disc_loss(real, fake), self.losses.gan_gen_loss(fake)

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        shown: list[Tensor] = []

        def student(x_t: Tensor, t: Tensor) -> Tensor:
            shown.append(x_t)
            return x_t

        times = self.config.SampleTimestepConfig(max_t=1.0)
        pipeline = self.made(student, lambda x_t, t: x_t, pred_type="x0", sample_t_cfg=times)
        pipeline.compute_student_loss(noise, noise)
        return noise, shown[0]

    def shifted(self, count: int, shift: float) -> Tensor:
        times = self.config.SampleTimestepConfig(time_dist_type="shifted", shift=shift)
        return self.flow.sample_timesteps(count, times, device="cpu", dtype=torch.float64)

    def r1(self, scale: float, samples: int) -> float:
        return approximate_r1.peer(samples, [scale])[0]

    def made(self, student: Any, critic: Any, **settings: Any) -> Any:
        """A pipeline of functions `(x_t, t)`; the teacher is the critic."""

        class Network(nn.Module):
            def __init__(self, of: Any) -> None:
                super().__init__()
                self.of: Any = of

            def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
                return self.of(hidden_states, timestep)

        networks = (Network(f) for f in (student, critic, critic))
        return self.pipeline(*networks, self.config.DMDConfig(**settings))
