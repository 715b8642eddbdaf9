"""The tests' oracles on this library and on its peers, side by side: identity | error here | errors there.

    python benchmarks/conformance.py            installs each peer into a folder that is thrown away (needs uv and
                                                PyPI); writes results/ and docs/dmd2.md
    python benchmarks/conformance.py --quick    this library alone, writes nothing

One set of identities runs on an adapter each (`_codes.py`, `_flow_codes.py`); a peer is called by what it exports.
For each peer an identity has the sentence of the peer's documents that promises it, or none: then a difference is
one of scope, and no defect. "-" is what a peer does not offer. The peers know the rectified flow alone, x_t =
(1 - t) x0 + t eps, so all identities are on it. Approximate R1 is `approximate_r1.py`'s. Bounds leave room for
losses in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import approximate_r1
import torch
from _codes import Code, ModelOpt, Ours
from _flow_codes import DiffSynth, FastVideo
from _peers import DIFFSYNTH, FASTVIDEO, MODELOPT, Peer, beside
from torch import Tensor

DOCS = Path(__file__).parents[1] / "docs" / "dmd2.md"
PEERS: dict[str, tuple[Peer, type[Code]]] = {
    "modelopt": (MODELOPT, ModelOpt),
    "diffsynth": (DIFFSYNTH, DiffSynth),
    "fastvideo": (FASTVIDEO, FastVideo),
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
    x_t = (1 - t)[:, None] * x0 + t[:, None] * eps
    real, fake = TEACHER.x0(x_t, t), STUDENT.x0(x_t, t)
    gap = STUDENT.score(x_t, t) - TEACHER.score(x_t, t)
    expected = (t.square() / (1 - t))[:, None] * gap
    expected = expected / (x0 - real).abs().mean(1, keepdim=True)
    singles = zip(
        x0.split(1), real.split(1), fake.split(1), strict=True
    )  # whatever a batch does to it
    return worst(2 * torch.cat([gradient(code, *single) for single in singles]), expected)


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


def flow_to_x0(code: Code) -> float:
    """x0 from the flow, at eighths: timesteps of any table of 1000."""
    x0, eps, t = randn(8, 5), randn(8, 5, seed=1), torch.arange(1, 9).double() / 8
    x_t = (1 - t)[:, None] * x0 + t[:, None] * eps
    return worst(code.to_x0("flow", eps - x0, x_t, t), x0)


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
    noise, shown = code.first_input(randn(4, 5).float())
    return float((shown - noise).abs().max())


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
    scale = approximate_r1.SCALES[-1]
    return abs(code.r1(scale, 2000) - approximate_r1.closed_form(scale))


@dataclass(frozen=True)
class Identity:
    """An identity, and the sentences of the peers' documents that promise it, by the peer's name in `PEERS`."""

    name: str
    error: Callable[[Code], float | str]
    bound: float
    promises: Mapping[str, str] = field(default_factory=dict[str, str])


VSD = "`vsd_loss`: per-sample weight 1 / (mean_abs(gen_data - teacher_x0) + 1e-6), gradient (fake - teacher) w"
FLOWS = "Basic Principles of Diffusion Models: x_t = (1 - sigma_t) x_0 + sigma_t x_T, the model says x_T - x_0"
INFRASTRUCTURE = "Training Infrastructure, DMD2"
IDENTITIES = (
    Identity("matching: exact scores of a Gaussian mixture", mixture, 1e-4, {"modelopt": VSD}),
    Identity("matching: a sample's scale leaves its gradient", scale_free, 1e-5, {"modelopt": VSD}),
    Identity("matching: no sample changes another one's", alone, 1e-6, {"modelopt": VSD}),
    Identity("matching: small differences in bfloat16", small_in_bfloat16, 0.01),
    Identity(
        "conversions: x0, epsilon, flow and back",
        conversions,
        1e-12,
        {"modelopt": "`flow_matching`: float64"},
    ),
    Identity(
        "conversion: flow to x0",
        flow_to_x0,
        1e-12,
        {
            "modelopt": "`flow_matching`: float64",
            "diffsynth": FLOWS,
            "fastvideo": "`pred_noise_to_pred_video`: convert predicted noise to clean latent",
        },
    ),
    Identity("denoising loss of what is right: 0", denoised, 1e-12, {"modelopt": "`dsm_loss`"}),
    Identity(
        "critic on a right flow network, in x0: 0",
        exact_critic("flow", "x0"),
        1e-9,
        {"modelopt": "`dsm_loss`", "diffsynth": FLOWS},
    ),
    Identity(
        "critic on a right flow network, in flow: 0",
        exact_critic("flow", "flow"),
        1e-9,
        {"modelopt": "`dsm_loss`", "fastvideo": "`predict_noise`: predict video flow"},
    ),
    Identity(
        "critic on a right v network, in v: 0",
        exact_critic("v", "v"),
        1e-9,
        {"modelopt": "`dsm_loss`"},
    ),
    Identity(
        "critic on a right v network, in x0: 0",
        exact_critic("v", "x0"),
        1e-9,
        {
            "modelopt": "`pred_type` may be v, which `dsm_loss` defines as alpha eps - sigma x0, and the critic's "
            "raw output is converted into the loss's space"
        },
    ),
    Identity(
        "guidance: 1 is conditional, s is linear",
        guidance,
        1e-6,
        {
            "modelopt": "`classifier_free_guidance`",
            "diffsynth": "`--dmd2_teacher_cfg_scale`: CFG scale",
            "fastvideo": f"{INFRASTRUCTURE}: `real_score_guidance_scale`: CFG scale for teacher predictions",
        },
    ),
    Identity(
        "adversarial: softplus, in closed form",
        adversarial,
        1e-12,
        {"modelopt": "`gan_disc_loss`, `gan_gen_loss`"},
    ),
    Identity(
        "one step from t = 1 sees the noise itself",
        pure_noise,
        0.0,
        {
            "modelopt": "`_build_student_input`",
            "diffsynth": "`--dmd2_student_t_list`: student sigma schedule, including the final 0",
            "fastvideo": f"{INFRASTRUCTURE}: `rollout_mode: simulate` (pure noise)",
        },
    ),
    Identity(
        "shifted timesteps: mean, in standard errors", shifted_mean, 4.0, {"modelopt": "`shifted`"}
    ),
    Identity(
        "approximate R1 vanishes with its scale",
        vanishing_r1,
        1e-4,
        {
            "modelopt": "`r1_loss`: penalises sensitivity to small noise perturbations of the real data (APT)",
            "diffsynth": "`--dmd2_gan_r1_reg_alpha`: noise scale for approximate R1 regularization",
        },
    ),
    Identity("epsilon at zero SNR is refused", zero_snr, -1.0),
)


def errors(code: Code) -> list[float | str]:
    """Of every identity, in their order; "-" where the code does not offer what it calls."""
    found: list[float | str] = []
    for identity in IDENTITIES:
        try:
            found.append(identity.error(code))
        except NotImplementedError:
            found.append("-")
    return found


def holds(identity: Identity, error: float | str) -> bool:
    """Whether the error is within the identity's bound."""
    return error == "refused" if isinstance(error, str) else error <= identity.bound


@dataclass(frozen=True)
class Found:
    """A peer's error, and the sentence that promises the identity ("" where none does)."""

    error: float | str
    promise: str


@dataclass(frozen=True)
class Row:
    """What was found of an identity, here and by peer."""

    name: str
    bound: float
    ours: float | str
    peers: dict[str, Found]


def cell(identity: Identity, error: float | str, promise: str) -> str:
    """The error, in bold if it is beyond the bound."""
    if isinstance(error, str):
        return error
    if holds(identity, error):
        return f"{error:.1e}"
    return f"**{error:.2g}**" + ("" if promise else " (not promised)")


def line(identity: Identity, row: Row) -> list[str]:
    """A row of the table."""
    cells = [cell(identity, found.error, found.promise) for found in row.peers.values()]
    bound = f"{row.bound:g}" if row.bound >= 0 else "-"
    return [row.name, bound, cell(identity, row.ours, row.name), *cells]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="this library alone, writes nothing")
    parser.add_argument(
        "--peer", choices=PEERS, help="prints the errors of a peer that is installed"
    )
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(errors(PEERS[arguments.peer][1]())))
        return
    mine = errors(Ours())
    if arguments.quick:
        print(dict(zip((i.name for i in IDENTITIES), mine, strict=True)))
        return
    theirs = {name: beside(peer, __file__, ["--peer", name]) for name, (peer, _) in PEERS.items()}
    rows = [
        Row(
            identity.name,
            identity.bound,
            mine[i],
            {
                name: Found(found[i], identity.promises.get(name, ""))
                for name, found in theirs.items()
            },
        )
        for i, identity in enumerate(IDENTITIES)
    ]
    requirements = {name: peer.requirement for name, (peer, _) in PEERS.items()}
    head = ["identity", "bound", f"nitrodistill {version('nitrodistill')}", *requirements.values()]
    lines = (line(identity, row) for identity, row in zip(IDENTITIES, rows, strict=True))
    table = measure.markdown_table(head, lines)
    print(table)
    measure.write_json("conformance", rows, {"peers": requirements})
    measure.replace_between_markers(DOCS, "conformance", table)


if __name__ == "__main__":
    main()
