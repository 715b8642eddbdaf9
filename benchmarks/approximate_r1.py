"""The approximate R1 penalty beside nvidia-modelopt's, on a linear discriminator, where its value is known.

    python benchmarks/approximate_r1.py            installs nvidia-modelopt into a folder that is thrown away
                                                   (needs uv and PyPI); writes results/ and docs/losses.md
    python benchmarks/approximate_r1.py --quick    fewer samples, writes nothing

Both get real latents z ~ N(0, I), a rectified flow x_t = (1 - t) z + t eps with t uniform on [0.001, 0.999], a
teacher whose features are its input, and the logit w x_t with |w| = 1. Moving z by scale n moves the logit by
(1 - t) scale (w n), so that the penalty is scale^2 E (1 - t)^2 and vanishes with the perturbation. A penalty that
compares x_t with a latent to which no noise was added measures the noise instead: E (t w (eps - z))^2 = 2 E t^2,
which stays however small the scale is.

The peer is called as its users call it: `DMDPipeline.compute_discriminator_loss`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import torch
from _peers import MODELOPT, beside
from torch import Tensor, nn

SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
SHAPE = (4, 4, 4)
LOW, HIGH = 0.001, 0.999
DOCS = Path(__file__).parents[1] / "docs" / "losses.md"


@dataclass(frozen=True)
class Row:
    """The mean penalty at one scale of the perturbation."""

    scale: float
    closed_form: float
    ours: float
    peer: float


def weight() -> Tensor:
    """w, of unit norm."""
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return w / w.norm()


def latents(samples: int) -> Tensor:
    return torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(1))


def closed_form(scale: float) -> float:
    """scale^2 times the mean of (1 - t)^2 over [LOW, HIGH]."""
    return scale**2 * ((1 - LOW) ** 3 - (1 - HIGH) ** 3) / (3 * (HIGH - LOW))


class Backbone(nn.Module):
    """Predicts 0 and keeps its input, where modelopt looks for features."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.features = nn.Identity()
        self._fastgen_captured: list[Tensor] = []

    def forward(self, hidden_states: Tensor, **unused: Any) -> Tensor:
        self._fastgen_captured.append(hidden_states)
        return 0 * self.features(hidden_states)


class Linear(nn.Module):
    """The logit w x, of the first of several features or of one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(weight())

    def forward(self, features: list[Tensor] | Tensor) -> Tensor:
        x = features[0] if isinstance(features, list) else features
        return (x * self.w).flatten(1).sum(1, keepdim=True)


def ours(samples: int, scales: Sequence[float] = SCALES) -> list[float]:
    """Our penalty, as LADD adds it."""
    import nitrodistill as nd

    class Denoiser:
        schedule = nd.RectifiedFlow(t_max=1)
        prediction_type: nd.PredictionType = "sample"
        module = Backbone()

        def __call__(self, x_t: Tensor, t: Tensor, condition: nd.Condition) -> Tensor:
            return self.module(x_t)

    example = (torch.zeros(1, *SHAPE), torch.zeros(()), nd.Condition())
    discriminator = nd.LatentDiscriminator(
        Denoiser(), ["features"], head=lambda channels, width: Linear(), example=example
    )
    law = nd.Uniform(((LOW, HIGH),))
    draws = nd.Draws(0, 0, torch.arange(samples))
    z, found = latents(samples), []
    for scale in scales:
        penalties = {"r1": nd.LazyPenalty(nd.ApproximateR1Penalty(scale))}
        noising = nd.Noising(law, law, law)
        game = nd.AdversarialGame(discriminator, noising, nd.NonSaturatingGANLoss(), penalties)
        with torch.no_grad():
            ((_, value),) = game.update(0 * z, z, nd.Condition(), draws, 0).penalties.values()
        found.append(float(value.mean()))
    return found


def peer(samples: int, scales: Sequence[float] = SCALES) -> list[float]:
    """modelopt's, in an environment that has it."""
    from modelopt.torch.fastgen import DMDPipeline  # pyright: ignore[reportMissingImports]
    from modelopt.torch.fastgen.config import (  # pyright: ignore[reportMissingImports]
        DMDConfig,
        SampleTimestepConfig,
    )

    torch.manual_seed(0)
    z, found = latents(samples), []
    for scale in scales:
        times = SampleTimestepConfig(time_dist_type="uniform", min_t=LOW, max_t=HIGH)
        config = DMDConfig(
            pred_type="x0",
            sample_t_cfg=times,
            gan_loss_weight_gen=1.0,
            gan_r1_reg_weight=1.0,
            gan_r1_reg_alpha=scale,
        )
        networks = (Backbone() for _ in range(3))
        pipeline = DMDPipeline(*networks, config, discriminator=Linear())
        with torch.no_grad():
            terms = pipeline.compute_discriminator_loss(z, torch.randn_like(z))
        found.append(float(terms["r1"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer samples, writes nothing")
    parser.add_argument("--peer", type=int, help="prints the peer's values for so many samples")
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer)))
        return
    samples = 2_000 if arguments.quick else 50_000
    theirs = beside(MODELOPT, __file__, ["--peer", str(samples)])
    pairs = zip(SCALES, ours(samples), theirs, strict=True)
    rows = [Row(scale, closed_form(scale), mine, theirs) for scale, mine, theirs in pairs]
    numbers = [[f"{v:.3g}" for v in (r.scale, r.closed_form, r.ours, r.peer)] for r in rows]
    table = measure.markdown_table(
        ["scale", "closed form", "nitrodistill", MODELOPT.requirement], numbers
    )
    print(table)
    if not arguments.quick:
        measure.write_json(
            "approximate_r1", rows, {"samples": samples, "peer": MODELOPT.requirement}
        )
        note = f"Mean of {samples} samples. Made by `benchmarks/approximate_r1.py`."
        measure.replace_between_markers(DOCS, "approximate_r1", f"{table}\n\n{note}")


if __name__ == "__main__":
    main()
