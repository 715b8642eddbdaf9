"""The tests' oracles on nvidia-modelopt's fastgen and here, side by side: identity | error here | error there.

    python benchmarks/conformance.py            installs the peer into a folder that is thrown away (needs uv and
                                                PyPI); writes results/ and docs/dmd2.md
    python benchmarks/conformance.py --quick    this library alone, writes nothing

One set of identities runs on two adapters, `Ours` and `Theirs`; the peer is called by what it exports. Each has
the sentence of the peer's documents that promises it, or none: then a difference is one of scope, and no defect.
The peer knows the rectified flow alone, x_t = (1 - t) x0 + t eps, so all identities are on it. Approximate R1 is
`approximate_r1.py`'s.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import approximate_r1
import torch
from _peers import MODELOPT, beside_modelopt
from torch import Tensor, nn

import nitrodistill as nd
from nitrodistill.methods.dmd2.critic import critic_error
from nitrodistill.sampling import Step, StepPlan

DOCS = Path(__file__).parents[1] / "docs" / "dmd2.md"
FLOW = nd.RectifiedFlow(t_max=1)
KINDS: dict[str, nd.PredictionType] = {
    "x0": "sample",
    "eps": "epsilon",
    "flow": "flow_prediction",
    "v": "v_prediction",
}


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(mean_k, std_k^2 I) in two dimensions, of which score and best denoiser are known."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @classmethod
    def of(cls, *numbers: list[Any]) -> Mixture:
        """In float64."""
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in numbers))

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p(x_t) `(B, 2)`, by autograd: it knows nothing of x0."""
        x_t = x_t.detach().requires_grad_()
        return torch.autograd.grad(self._logs(x_t, t)[0].logsumexp(1).sum(), x_t)[0]

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]: the components' posterior means, by their responsibilities."""
        logs, distance, variance = self._logs(x_t, t)
        gain = ((1 - t)[:, None] * self.stds.square() / variance)[..., None]
        return (logs.softmax(1)[..., None] * (self.means + gain * distance)).sum(1)

    def _logs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distance = x_t[:, None] - (1 - t)[:, None, None] * self.means
        variance = ((1 - t)[:, None] * self.stds).square() + t[:, None].square()
        logs = self.weights.log() - distance.square().sum(2) / variance / 2 - variance.log()
        return logs, distance, variance


TEACHER = Mixture.of([0.3, 0.7], [[1.0, -1.0], [-0.5, 0.8]], [0.3, 0.6])
STUDENT = Mixture.of([0.6, 0.4], [[0.4, 0.2], [-1.0, 1.1]], [0.5, 0.4])


class Code(Protocol):
    """What an identity may call; t is `(B,)` in [0, 1], kinds are the keys of `KINDS`."""

    def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The distribution-matching loss, its mean over the batch."""
        ...

    def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
        """The guided prediction."""
        ...

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        ...

    def to_x0(self, kind: str, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0 from an epsilon or flow prediction."""
        ...

    def from_x0(self, kind: str, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The epsilon or flow prediction that x0 stands for."""
        ...

    def denoising(self, kind: str, said: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The denoising loss in the prediction's own space."""
        ...

    def critic(self, kind: str, weight: str, network: nn.Module, x0: Tensor) -> Tensor:
        """The critic's loss on x0 for a network `(x_t, t)` of this kind, in its own space or in x0."""
        ...

    def adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of discriminator and generator for logits `(B, 1)`, the non-saturating ones."""
        ...

    def first_input(self, noise: Tensor) -> Tensor:
        """What a one-step student is shown where the last timestep is 1."""
        ...

    def shifted(self, count: int, shift: float) -> Tensor:
        """Timesteps of the shifted uniform law on [0.001, 0.999]."""
        ...


class Ours:
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

    def first_input(self, noise: Tensor) -> Tensor:
        (step,) = StepPlan.from_schedule(FLOW, 1).steps
        return step.input.mix(torch.ones_like(noise), noise)

    def shifted(self, count: int, shift: float) -> Tensor:
        law = nd.Shifted(shift, nd.Uniform(((0.001, 0.999),)))
        return law(torch.rand(count, dtype=torch.float64))


class Theirs:
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

    def first_input(self, noise: Tensor) -> Tensor:
        shown: list[Tensor] = []

        def student(x_t: Tensor, t: Tensor) -> Tensor:
            shown.append(x_t)
            return x_t

        times = self.config.SampleTimestepConfig(max_t=1.0)
        pipeline = self.made(student, lambda x_t, t: x_t, pred_type="x0", sample_t_cfg=times)
        pipeline.compute_student_loss(noise, noise)
        return shown[0]

    def shifted(self, count: int, shift: float) -> Tensor:
        times = self.config.SampleTimestepConfig(time_dist_type="shifted", shift=shift)
        return self.flow.sample_timesteps(count, times, device="cpu", dtype=torch.float64)

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


def randn(*shape: int, seed: int = 0) -> Tensor:
    """float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(code: Code, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Of matching, on each sample for itself: times the batch size."""
    x0 = x0.detach().requires_grad_()
    (found,) = torch.autograd.grad(code.matching(x0, real, fake), x0)
    return found * len(x0)


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest expected value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def mixture(code: Code) -> float:
    """With exact networks the gradient is (sigma^2 / alpha) (s_student - s_teacher) / mean |x0 - T|."""
    x0, eps, t = randn(40, 2), randn(40, 2, seed=1), torch.linspace(0.02, 0.98, 40).double()
    x_t = code.noised(x0, eps, t)
    real, fake = TEACHER.x0(x_t, t), STUDENT.x0(x_t, t)
    gap = STUDENT.score(x_t, t) - TEACHER.score(x_t, t)
    expected = (t.square() / (1 - t))[:, None] * gap
    expected = expected / (x0 - real).abs().mean(1, keepdim=True)
    return worst(2 * gradient(code, x0, real, fake), expected)


def scale_free(code: Code) -> float:
    """A sample a thousand times as large has the same gradient, and changes no other one's."""
    x0, real, fake = (randn(4, 3, 4, seed=i) for i in range(3))
    size = torch.tensor([1.0, 1e3, 1.0, 10.0]).double().reshape(-1, 1, 1)
    found = gradient(code, size * x0, size * real, size * fake)
    return worst(found, gradient(code, x0, real, fake))


def alone(code: Code) -> float:
    """Another order, and samples that come twice, change no sample's gradient."""
    parts = [randn(4, 3, 4, seed=i) for i in range(3)]
    rows = torch.tensor([2, 0, 3, 3, 1, 0])
    found = gradient(code, *(part[rows] for part in parts))
    return worst(found, gradient(code, *parts)[rows])


def small_in_bfloat16(code: Code) -> float:
    """bfloat16 samples of size 1, predictions that differ by a hundredth; against float64 on the same numbers."""
    x0, real, gap = (randn(4, 64, seed=i) for i in range(3))
    half = [part.bfloat16() for part in (x0, real, real + 1e-2 * gap)]
    exact = gradient(Ours(), *(part.double() for part in half))
    return worst(gradient(code, *half), exact)


def conversions(code: Code) -> float:
    """x0 through epsilon and flow, and back, at t from 0.01 to 0.99."""
    x0, eps, t = randn(40, 5), randn(40, 5, seed=1), torch.linspace(0.01, 0.99, 40).double()
    x_t = code.noised(x0, eps, t)
    said = {"eps": eps, "flow": eps - x0}
    there = [worst(code.from_x0(kind, x0, x_t, t), value) for kind, value in said.items()]
    back = [worst(code.to_x0(kind, value, x_t, t), x0) for kind, value in said.items()]
    return max(*there, *back)


def denoised(code: Code) -> float:
    """The denoising loss of what a network should say is 0, in each of the four kinds."""
    x0, eps, t = randn(40, 5), randn(40, 5, seed=1), torch.linspace(0.01, 0.99, 40).double()
    alpha, sigma = 1 - t[:, None], t[:, None]
    said = {"x0": x0, "eps": eps, "flow": eps - x0, "v": alpha * eps - sigma * x0}
    return max(float(code.denoising(kind, p, x0, eps, t)) for kind, p in said.items())


def exact_critic(kind: str, weight: str) -> Callable[[Code], float]:
    """The critic's loss, on one known x0, of the network that is right there."""

    def identity(code: Code) -> float:
        x0 = randn(1, 5).expand(40, 5)

        def said(x_t: Tensor, t: Tensor) -> Tensor:
            t = t.reshape(-1, 1)
            eps = (x_t - (1 - t) * x0) / t
            return (1 - t) * eps - t * x0 if kind == "v" else eps - x0

        torch.manual_seed(0)
        return float(code.critic(kind, weight, said, x0))  # pyright: ignore

    return identity


def guidance(code: Code) -> float:
    """Scale 1 is the conditional prediction, and scale s is null + s (conditional - null)."""
    c, null = randn(4, 5), randn(4, 5, seed=1)
    at_one = worst(code.guided(c, null, 1.0), c)
    return max(at_one, worst(code.guided(c, null, 4.5), null + 4.5 * (c - null)))


def adversarial(code: Code) -> float:
    """log(1 + e^-r) + log(1 + e^f), and log(1 + e^-f)."""
    real, fake = 3 * randn(8, 1), 3 * randn(8, 1, seed=1)
    expected = [(1 + (-real).exp()).log() + (1 + fake.exp()).log(), (1 + (-fake).exp()).log()]
    found = code.adversarial(real, fake)
    return max(abs(float(a - b.mean())) for a, b in zip(found, expected, strict=True))


def pure_noise(code: Code) -> float:
    """A one-step student that begins at t = 1 sees the noise bit for bit."""
    noise = randn(4, 5).float()
    return float((code.first_input(noise) - noise).abs().max())


def shifted_mean(code: Code) -> float:
    """The mean of s u / (1 + (s - 1) u), u uniform on [0.001, 0.999], in standard errors."""
    shift, low, high, count = 5.0, 0.001, 0.999, 200_000
    torch.manual_seed(0)
    t = code.shifted(count, shift)
    k = shift - 1
    log = math.log((1 + k * high) / (1 + k * low))
    expected = shift / k * (1 - log / (k * (high - low)))
    return abs(float((t.mean() - expected) / (t.std() / math.sqrt(count))))


def zero_snr(code: Code) -> float | str:
    """An epsilon network where nothing of the signal is left, whose epsilon is wrong by a thousandth."""
    x0, eps, t = randn(4, 5), randn(4, 5, seed=1), torch.ones(4).double()
    try:
        found = code.to_x0("eps", eps + 1e-3, code.noised(x0, eps, t), t)
    except ValueError:
        return "refused"
    return worst(found, x0)


def vanishing_r1(code: Code) -> float:
    """The approximate R1 penalty of a linear discriminator at the smallest scale, less its closed form."""
    penalty = approximate_r1.ours if isinstance(code, Ours) else approximate_r1.peer
    scale = approximate_r1.SCALES[-1]
    return abs(penalty(2000, [scale])[0] - approximate_r1.closed_form(scale))


@dataclass(frozen=True)
class Identity:
    """An identity, and the sentence of the peer's documents that promises it ("" where none does)."""

    name: str
    error: Callable[[Code], float | str]
    bound: float
    promise: str


VSD = "`vsd_loss`: per-sample weight 1 / (mean_abs(gen_data - teacher_x0) + 1e-6), gradient (fake - teacher) w"
IDENTITIES = (
    Identity("matching: exact scores of a Gaussian mixture", mixture, 1e-4, VSD),
    Identity("matching: a sample's scale leaves its gradient", scale_free, 1e-5, VSD),
    Identity("matching: no sample changes another one's", alone, 1e-12, VSD),
    Identity("matching: small differences in bfloat16", small_in_bfloat16, 0.01, ""),
    Identity("conversions: x0, epsilon, flow and back", conversions, 1e-12, "`flow_matching`: float64"),
    Identity("denoising loss of what is right: 0", denoised, 1e-12, "`dsm_loss`"),
    Identity("critic on a right flow network, in x0: 0", exact_critic("flow", "x0"), 1e-9, "`dsm_loss`"),
    Identity("critic on a right v network, in v: 0", exact_critic("v", "v"), 1e-9, "`dsm_loss`"),
    Identity(
        "critic on a right v network, in x0: 0",
        exact_critic("v", "x0"),
        1e-9,
        "`pred_type` may be v, which `dsm_loss` defines as alpha eps - sigma x0, and the critic's raw output is "
        "converted into the loss's space",
    ),
    Identity("guidance: 1 is conditional, s is linear", guidance, 1e-12, "`classifier_free_guidance`"),
    Identity("adversarial: softplus, in closed form", adversarial, 1e-12, "`gan_disc_loss`, `gan_gen_loss`"),
    Identity("one step from t = 1 sees the noise itself", pure_noise, 0.0, "`_build_student_input`"),
    Identity("shifted timesteps: mean, in standard errors", shifted_mean, 4.0, "`shifted`"),
    Identity(
        "approximate R1 vanishes with its scale",
        vanishing_r1,
        1e-4,
        "`r1_loss`: penalises sensitivity to small noise perturbations of the real data (APT)",
    ),
    Identity("epsilon at zero SNR is refused", zero_snr, -1.0, ""),
)  # fmt: skip


def errors(code: Code) -> list[float | str]:
    """Of every identity, in their order."""
    return [identity.error(code) for identity in IDENTITIES]


def holds(identity: Identity, error: float | str) -> bool:
    """Whether the error is within the identity's bound."""
    return error == "refused" if isinstance(error, str) else error <= identity.bound


@dataclass(frozen=True)
class Row:
    """What was found of an identity."""

    name: str
    promise: str
    bound: float
    ours: float | str
    theirs: float | str


def cell(identity: Identity, error: float | str) -> str:
    """The error, and whether it is within the bound."""
    if holds(identity, error):
        return error if isinstance(error, str) else f"{error:.1e}"
    return f"**{error:.2g}**" + ("" if identity.promise else " (not promised)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="this library alone, writes nothing")
    parser.add_argument("--peer", action="store_true", help="prints the peer's errors")
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(errors(Theirs())))
        return
    mine = errors(Ours())
    theirs = ["-"] * len(mine) if arguments.quick else beside_modelopt(__file__, ["--peer"])
    if arguments.quick:
        print(dict(zip((i.name for i in IDENTITIES), mine, strict=True)))
        return
    both = list(zip(IDENTITIES, mine, theirs, strict=True))
    lines = [
        [i.name, f"{i.bound:g}" if i.bound >= 0 else "-", cell(i, a), cell(i, b)]
        for i, a, b in both
    ]
    head = ["identity", "bound", f"nitrodistill {version('nitrodistill')}", MODELOPT]
    table = measure.markdown_table(head, lines)
    print(table)
    rows = [Row(i.name, i.promise, i.bound, a, b) for i, a, b in both]
    measure.write_json("conformance", rows, {"peer": MODELOPT})
    measure.replace_between_markers(DOCS, "conformance", table)


if __name__ == "__main__":
    main()
