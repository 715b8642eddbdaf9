"""How often the trainer's alarms are right, and how early: failures provoked on the toy, and healthy runs beside them.

    python benchmarks/alarms.py [--seeds 0 1 2] [--only NAME ...] [--output runs/alarms]

Runs of STEPS steps on the same 600 pairs, each evaluated every EVALUATE steps on the same 128 held-out noises and prompts.
Resumable: finished runs are kept and a killed one goes on. The alarms are read from the runs' logs, so that a change of
theirs needs no run anew. A run *fell* at the first evaluation at which its Frechet distance to the teacher (oracle's
features) is FELL times that of the healthy runs of its method at that step, or its alignment is FELL times as far from
1; a failure that never fell did no harm. Writes benchmarks/results/alarms.json and the table in
docs/when_training_fails.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _matching import MatchingConfig

from nitrodistill import toy
from nitrodistill.demo.demo import shuffled_captions, toy_recipe
from nitrodistill.evaluation.frechet import GaussianStatistics, frechet_distance
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.training import OptimizerConfig, TrainerConfig
from nitrodistill.training.recipe import Recipe, Stage
from nitrodistill.training.stages import run_recipe
from nitrodistill.types import Denoiser

RESULTS = Path(__file__).parent / "results" / "alarms.json"
STEPS, BATCH, LOG, EVALUATE, SAMPLES = 120, 8, 4, 20, 128
WINDOW, FELL = 24, 1.5


def ladd(
    settings: Mapping[str, Any] | None = None,
    rates: Mapping[str, float] | None = None,
    batch_size: int = BATCH,
) -> Stage:
    """The demo's stage, shorter, with other settings or learning rates."""
    stage = toy_recipe("", "", STEPS, 0, batch_size).stages[0]
    settings = {"misaligned_negatives": True, **(settings or {})}
    return changed(replace(stage, settings=replace(stage.settings, **settings)), rates)


def regression() -> Stage:
    """Smooth L1 on pairs alone."""
    stage = ladd({"adversarial_weight": 0.0, "fresh_fraction": 0.0, "warmup_steps": 0})
    student = stage.trainer.optimizers["student"]
    return replace(stage, trainer=replace(stage.trainer, optimizers={"student": student}))


def matching(rates: Mapping[str, float] | None = None, **settings: Any) -> Stage:
    """Distribution matching alone, after a short warm-up on pairs."""
    optimizers = {
        "student": OptimizerConfig(5e-4, (0.5, 0.999), lr_decay_from=0.6, ema_decay=0.95),
        "critic": OptimizerConfig(1e-3, (0.9, 0.999), lr_decay_from=0.6),
    }
    trainer = TrainerConfig(steps=STEPS, batch_size=BATCH, optimizers=optimizers)
    settings = {"warmup_steps": 24, **settings}
    return changed(Stage("_matching:Matching", trainer, MatchingConfig(**settings)), rates)


def changed(stage: Stage, rates: Mapping[str, float] | None) -> Stage:
    """The stage with other learning rates, and this script's steps between lines."""
    optimizers = dict(stage.trainer.optimizers)
    for role, rate in (rates or {}).items():
        optimizers[role] = replace(optimizers[role], learning_rate=rate)
    trainer = replace(
        stage.trainer,
        optimizers=optimizers,
        log_every=LOG,
        alarm_window=WINDOW,
        preview_every=0,
        evaluate_every=EVALUATE,
        checkpoint_every=60,
    )
    return replace(stage, trainer=trainer)


BLIND = {"discriminator_timesteps": {"uniform": {"ranges": [[0.97, 1.0]]}}}
ALONE = {"reconstruction": {}, "fresh_fraction": 1.0, "warmup_steps": 0}
HEALTHY: dict[str, Callable[[], Stage]] = {
    "ladd": ladd,
    "ladd, adversarial alone": lambda: ladd(ALONE, {"student": 3e-4}),
    "smooth_l1": regression,
    "matching": matching,
}
FAILURES: dict[str, tuple[str, Callable[[], Stage]]] = {
    "batch of 1": ("ladd", lambda: ladd(batch_size=1)),
    "discriminator too strong": (
        "ladd",
        lambda: ladd({"adversarial_weight": 5.0}, {"discriminator": 2e-2}),
    ),
    "discriminator too weak": ("ladd", lambda: ladd(rates={"discriminator": 1e-6})),
    "wrong timestep law": ("ladd", lambda: ladd(BLIND)),
    "no negatives": (
        "ladd, adversarial alone",
        lambda: ladd({**ALONE, "misaligned_negatives": False}, {"student": 3e-4}),
    ),
    "student's rate too high": ("ladd", lambda: ladd(rates={"student": 2e-2})),
    "critic's rate too high": ("matching", lambda: matching({"critic": 3e-2})),
    "critic's rate too low": ("matching", lambda: matching({"critic": 1e-6}, warmup_steps=0)),
}
"""Name -> the healthy runs that it is compared with, and its stage."""


def quality(pipeline: Pipeline, root: Path) -> Callable[[Denoiser, StepPlan], dict[str, float]]:
    """What measures a student: Frechet distance to the teacher's 128 pictures, and alignment."""
    prompts = shuffled_captions(7)[:SAMPLES]
    draws = Draws(0, 0, torch.arange(SAMPLES), purpose="evaluation")
    condition, oracle = pipeline.encode_prompt(prompts), toy.load_oracle()
    noise = draws.normal("noise", pipeline.latent_shape)

    @torch.no_grad()
    def pictures(denoiser: Denoiser, plan: StepPlan) -> torch.Tensor:
        return pipeline.decode(sample(denoiser, plan, noise, condition))

    kept = root / "teacher.pt"
    if not kept.is_file():
        plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 25)
        torch.save(oracle.features(pictures(pipeline.guided(3.0), plan)), kept)
    teacher = GaussianStatistics.of(torch.load(kept, weights_only=True))

    def scores(student: Denoiser, plan: StepPlan) -> dict[str, float]:
        drawn = pictures(student, plan)
        right = torch.stack([*oracle.alignment(drawn, prompts).values()]).all(0)
        features = GaussianStatistics.of(oracle.features(drawn))
        return {
            "fd_teacher": frechet_distance(features, teacher),
            "alignment": float(right.float().mean()),
        }

    return scores


def log_of(name: str, stage: Stage, seed: int, pipeline: Pipeline, root: Path) -> list[dict]:
    """The log of a run, which is trained if it is not there."""
    folder = root / f"{name.replace(' ', '-')}-{seed}"
    settings = stage.settings
    if hasattr(settings, "seed"):
        settings = replace(settings, seed=seed)
    stage = replace(stage, settings=settings, trainer=replace(stage.trainer, seed=seed))
    done = folder / "seconds"
    if not done.is_file():
        recipe = Recipe("toy", str(folder), [stage], pairs=str(root / "pairs"))
        start = time.process_time()
        for _ in run_recipe(recipe, pipeline, evaluate=quality(pipeline, root)):
            pass
        done.write_text(str(time.process_time() - start))
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
