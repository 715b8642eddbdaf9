"""What `conformance.py` calls of diffsynth and fastvideo, which know flow predictions alone.

Both are called as their training calls them: an update of DMD2, by the class they export, on networks that are
functions. A network that says a known x0 everywhere says the flow (x_t - x0) / t.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import approximate_r1
import torch
from _codes import Code
from torch import Tensor, nn

Network = Callable[[Tensor, Tensor, str], Tensor]  # (x_t, t, "positive" or "negative") -> flow


def towards(x0: Tensor) -> Network:
    """The flow network that says x0 everywhere, in float64: no error of its own."""
    return lambda x_t, t, prompt: (x_t.double() - x0.double()) / t


def noted() -> tuple[Network, list[Tensor]]:
    """A network that says what it is shown, and the list of that."""
    shown: list[Tensor] = []

    def network(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
        shown.append(x_t)
        return x_t

    return network, shown


def padded(said: Tensor) -> Tensor:
    """With a 0 in front, from which `unnormalised` learns the scale of a gradient."""
    return nn.functional.pad(said, (1, 0))


def unnormalised(loss: Tensor, x0: Tensor) -> Tensor:
    """The teacher's x0 T, by the matching loss of padded ones whose critic says x0: gradient (x0 - T) / m."""
    (g,) = torch.autograd.grad(loss, x0)
    return (x0 - g / g[:, :1]).detach()[:, 1:]


class DiffSynth(Code):
    """diffsynth, by `DMD2Loss` on a module of functions, and `flow_to_x0`. It knows flow predictions alone."""

    def __init__(self) -> None:
        from diffsynth import diffusion  # pyright: ignore[reportMissingImports]

        self.diffusion: Any = diffusion

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        return self.loss(0, x0.detach(), towards(x0), towards(real), towards(fake))

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        x0 = torch.ones_like(padded(null)).requires_grad_()
        said = {"positive": towards(padded(conditional)), "negative": towards(padded(null))}

        def teacher(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
            return said[prompt](x_t, t, prompt)

        student, critic = towards(x0), towards(x0.detach())
        loss = self.loss(0, x0.detach(), student, teacher, critic, teacher_cfg_scale=scale)
        return unnormalised(loss, x0)

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if kind != "flow":
            raise NotImplementedError
        return self.diffusion.flow_to_x0(x_t, said, t)

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        if (kind, weight) != ("flow", "x0"):
            raise NotImplementedError

        def critic(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
            return network(x_t, t)

        times = {"matching_t_min": 0.001, "matching_t_max": 0.999}
        return self.loss(1, x0, towards(x0), critic, critic, **times)

    def adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        data = torch.full_like(real, 1e3)
        made = towards(-data)

        def logits(features: Tensor) -> Tensor:
            return torch.where(features > 0, real, fake)

        losses = (
            self.loss(update, data, made, made, made, logits, gan_loss_weight=1.0)
            for update in (1, 0)
        )
        discriminator, generator = losses
        return discriminator, generator

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        student, shown = noted()
        torch.manual_seed(0)
        drawn = torch.randn_like(noise)
        self.loss(0, noise, student, student, student)
        return drawn, shown[0]

    def r1(self, scale: float, samples: int) -> float:
        """The difference of two losses of the discriminator, whose penalty has weight 2 and weight 1."""
        data = approximate_r1.latents(samples).double()
        settings = {"matching_t_min": approximate_r1.LOW, "matching_t_max": approximate_r1.HIGH}
        made, linear, found = towards(0 * data), approximate_r1.Linear(), []
        for weight in (1.0, 2.0):
            penalty = {"gan_loss_weight": 1.0, "gan_r1_reg_weight": weight}
            networks = (made, made, made, linear)
            found.append(
                self.loss(1, data, *networks, gan_r1_reg_alpha=scale, **penalty, **settings)
            )
        return float(found[1].detach() - found[0].detach())

    def loss(
        self,
        update: int,
        data: Tensor,
        student: Network,
        teacher: Network,
        critic: Network,
        discriminator: Any = None,
        **settings: Any,
    ) -> Tensor:
        """Of the student (update 0), or of critic and discriminator (1), whose features are x_t. Seeded."""

        class Role(nn.Module):
            def __init__(self, said: Any) -> None:
                super().__init__()
                self.said = said

            def forward(self, *inputs: Any) -> Tensor:
                return self.said(*inputs)

        def call(
            pipe: Any,
            model: Role,
            timestep: Tensor,
            inputs_shared: dict[str, Tensor],
            inputs_posi: dict[str, str],
            return_features: bool = False,
            **unused: Any,
        ) -> Tensor:
            x_t = inputs_shared["latents"]
            if return_features:
                return x_t
            t = timestep.reshape(-1, *[1] * (x_t.ndim - 1)) / 1000
            return model(x_t, t, inputs_posi["prompt"])

        fixed: dict[str, Any] = {
            "matching_t_min": 0.5,
            "matching_t_max": 0.5,
            "gan_loss_weight": 0.0,
        }
        fixed |= {"student_sample_steps": 1, "student_t_list": [1.0, 0.0], "feature_indices": [0]}
        roles = {"student": student, "teacher": teacher, "fake_score": critic}
        models = {name: Role(said) for name, said in roles.items()}
        models["discriminator"] = Role(discriminator)
        pipe = SimpleNamespace(scheduler=self.diffusion.FlowMatchScheduler(), **models)
        module = SimpleNamespace(
            pipe=pipe,
            **{f"dmd2_{name}_model_name": name for name in models},
            **{f"dmd2_model_fn_{name}": call for name in roles},
            _dmd2_student_param_names=set(),
            _dmd2_fake_score_param_names=set(),
        )
        inputs = ({"input_latents": data}, {"prompt": "positive"}, {"prompt": "negative"})
        config = self.diffusion.DMD2Config(**(fixed | settings))
        torch.manual_seed(0)
        return self.diffusion.DMD2Loss(config)(module, inputs, update)["total_loss"]


def video(x: Tensor) -> Tensor:
    """`(B, *)` as fastvideo's latents `(B, T, C, H, W)`, of one frame."""
    return x.reshape(len(x), 1, 1, 1, -1)


class FastVideo(Code):
    """fastvideo, by `DMD2Method.single_train_step` on models of functions. It knows flow predictions alone."""

    def __init__(self) -> None:
        from fastvideo.models import utils  # pyright: ignore[reportMissingImports]
        from fastvideo.models.schedulers import (  # pyright: ignore[reportMissingImports]
            scheduling_flow_match_euler_discrete as schedulers,
        )
        from fastvideo.train.methods import DMD2Method  # pyright: ignore[reportMissingImports]
        from fastvideo.train.models.base import ModelBase  # pyright: ignore[reportMissingImports]
        from fastvideo.train.utils import training_config  # pyright: ignore[reportMissingImports]
        from fastvideo.training import training_utils  # pyright: ignore[reportMissingImports]

        self.utils: Any = utils
        self.scheduler: Any = schedulers.FlowMatchEulerDiscreteScheduler
        self.method: Any = DMD2Method
        self.base: Any = ModelBase
        self.config: Any = training_config
        self.training: Any = training_utils

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        if (
            x0.dtype == torch.bfloat16
        ):  # the flow of a bfloat16 network is rounded before the loss sees its x0
            raise NotImplementedError
        networks = (towards(video(x)) for x in (x0, real, fake))
        return self.losses(x0.detach(), *networks)["generator_loss"]

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        x0 = torch.ones_like(padded(null)).requires_grad_()
        said = {"positive": conditional, "negative": null}

        def teacher(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
            return towards(video(padded(said[prompt])))(x_t, t, prompt)

        student, critic = towards(video(x0)), towards(video(x0.detach()))
        found = self.losses(x0.detach(), student, teacher, critic, real_score_guidance_scale=scale)
        return unnormalised(found["generator_loss"], x0)

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if kind != "flow":
            raise NotImplementedError
        said, x_t = (x.reshape(len(x), 1, 1, -1) for x in (said, x_t))
        found = self.utils.pred_noise_to_pred_video(said, x_t, 1000 * t, self.scheduler())
        return found.flatten(1)

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        if (kind, weight) != ("flow", "flow"):
            raise NotImplementedError

        def critic(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
            return video(network(x_t.flatten(1), t))

        return self.losses(x0, towards(video(x0)), critic, critic)["fake_score_loss"]

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        student, shown = noted()
        torch.manual_seed(0)
        torch.randint(0, 1, [1])  # the method's choice among the steps, of which there is one
        drawn = torch.randn_like(noise)
        steps = {"rollout_mode": "simulate", "dmd_denoising_steps": [1000]}
        self.losses(noise, student, student, student, **steps)
        return drawn, shown[0].flatten(1)

    def shifted(self, count: int, shift: float) -> Tensor:
        t = 1000 * (0.001 + 0.998 * torch.rand(count, dtype=torch.float64))
        return self.training.shift_timestep(t, shift, 1000) / 1000

    def losses(
        self, data: Tensor, student: Network, teacher: Network, critic: Network, **settings: Any
    ) -> dict[str, Tensor]:
        """`generator_loss` and `fake_score_loss` of one step. Seeded."""
        scheduler = self.scheduler()

        class Role(self.base):
            def __init__(self, said: Network, trainable: bool) -> None:
                super().__init__(trainable=trainable)
                self.said, self.noise_scheduler = said, scheduler
                self.transformer = nn.Linear(1, 1)

            def prepare_batch(self, raw_batch: Any, **unused: Any) -> Any:
                blank = dict.fromkeys(("timesteps", "attn_metadata", "attn_metadata_vsa"))
                return SimpleNamespace(
                    latents=raw_batch["latents"], dmd_latent_vis_dict={}, **blank
                )

            def add_noise(self, clean_latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
                parts = (x.flatten(0, 1) for x in (clean_latents, noise))
                return scheduler.add_noise(*parts, timestep).unflatten(0, noise.shape[:2])

            def predict_noise(
                self,
                noisy_latents: Tensor,
                timestep: Tensor,
                batch: Any,
                *,
                conditional: bool,
                **unused: Any,
            ) -> Tensor:
                t = timestep.double() / 1000
                return self.said(noisy_latents, t, "positive" if conditional else "negative")

            def backward(self, loss: Tensor, ctx: Any, *, grad_accum_rounds: int) -> None:
                loss.backward()

        fixed = {
            "rollout_mode": "data_latent",
            "dmd_denoising_steps": [500],
            "min_timestep_ratio": 0.5,
            "max_timestep_ratio": 0.5,
            "fake_score_learning_rate": 1e-5,
            "fake_score_betas": [0.0, 0.999],
            "fake_score_lr_scheduler": "constant",
        }
        config = SimpleNamespace(training=self.config.TrainingConfig(), method=fixed | settings)
        roles = {"student": Role(student, True), "teacher": Role(teacher, False)}
        method = self.method(cfg=config, role_models=roles | {"critic": Role(critic, True)})
        torch.manual_seed(0)
        return method.single_train_step({"latents": video(data)}, 0)[0]
