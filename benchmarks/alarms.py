"""How often the trainer's alarms are right, and how early: failures provoked on the toy, and healthy runs.

    python benchmarks/alarms.py [--seeds 0 1 2] [--only NAME ...] [--output runs/alarms]

Runs of STEPS steps on the same 600 pairs, each evaluated every EVALUATE steps on the same 128 held-out noises and
prompts. Resumable: finished runs are kept and a killed one goes on; `--seeds` without a number only counts what is
there. The alarms are read from the runs' logs, so that a change of theirs needs no run anew.

A run *fell* at the first evaluation at which its Frechet distance to the teacher (the oracle's features) is FELL
times the mean of the healthy runs of its method, or its alignment FELL times as far from 1. Writes
benchmarks/results/alarms.json and the table in docs/when_training_fails.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _matching import MatchingConfig
from _toy import environment

from nitrodistill import toy
from nitrodistill.data import BatchStream, GenerateConfig, PairStore, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.diagnostics import logit_statistics
from nitrodistill.evaluation.frechet import GaussianStatistics, frechet_distance
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import LADD
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import load_teacher
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.training.alarms import Alarm, Alarms
from nitrodistill.training.probe import Probe
from nitrodistill.training.recipe import Recipe, Stage
from nitrodistill.training.stages import run_recipe
from nitrodistill.types import Denoiser

DOCS = Path(__file__).parent.parent / "docs" / "when_training_fails.md"
RESULTS = Path(__file__).parent / "results" / "alarms.json"
STEPS, BATCH, LOG, EVALUATE, SAMPLES = 96, 8, 4, 24, 128
WINDOW, FELL = 20, 1.5


def ladd(
    settings: Mapping[str, Any] | None = None,
    rates: Mapping[str, float] | None = None,
    batch_size: int = BATCH,
) -> Stage:
    """The demo's stage, shorter, with the hinge loss, and other settings or learning rates."""
    stage = toy_recipe("", "", STEPS, 0, batch_size).stages[0]
    settings = {"adversarial": "hinge", "misaligned_negatives": True, **(settings or {})}
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
    settings = {"warmup_steps": 16, **settings}
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
        checkpoint_every=48,
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
    "batch of 1": ("ladd", lambda: ladd({"misaligned_negatives": False}, batch_size=1)),
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


def folder_of(name: str, seed: int, root: Path) -> Path:
    return root / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def train(name: str, stage: Stage, seed: int, pipeline: Pipeline, root: Path) -> None:
    """Trains a run, or what is left of it."""
    folder = folder_of(name, seed, root)
    done = folder / "seconds"
    if done.is_file():
        return
    settings = stage.settings
    if hasattr(settings, "seed"):
        settings = replace(settings, seed=seed)
    stage = replace(stage, settings=settings, trainer=replace(stage.trainer, seed=seed))
    recipe = Recipe("toy", str(folder), [stage], pairs=str(root / "pairs"))
    start = time.process_time()
    for _ in run_recipe(recipe, pipeline, evaluate=quality(pipeline, root)):
        pass
    done.write_text(str(time.process_time() - start))


def read(name: str, seed: int, root: Path) -> tuple[list[dict[str, Any]], list[Alarm]] | None:
    """The evaluations of a finished run, and the alarms that its log sets off."""
    folder = folder_of(name, seed, root)
    if not (folder / "seconds").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "evaluation/fd_teacher" in line]
    reader = Alarms(WINDOW)
    logged = (x for x in lines if "alarm" not in x and "evaluation/fd_teacher" not in x)
    return evaluations, [alarm for line in logged for alarm in reader.read(line)]


def fell(found: list[dict[str, Any]], healthy: list[list[dict[str, Any]]]) -> int | None:
    """The step at which a run was FELL times as bad as the healthy ones' mean; None: never."""
    for place, line in enumerate(found):
        beside = [other[place] for other in healthy]
        distance = statistics.mean(x["evaluation/fd_teacher"] for x in beside)
        wrong = 1 - statistics.mean(x["evaluation/alignment"] for x in beside)
        if (
            line["evaluation/fd_teacher"] > FELL * distance
            or 1 - line["evaluation/alignment"] > FELL * wrong
        ):
            return line["step"]
    return None


def rows(seeds: list[int], root: Path) -> list[dict[str, Any]]:
    """A row for each finished run."""
    healthy = {
        name: [one[0] for seed in seeds if (one := read(name, seed, root))] for name in HEALTHY
    }
    found = []
    for name, like in [(n, "") for n in HEALTHY] + [(n, like) for n, (like, _) in FAILURES.items()]:
        for seed in seeds:
            run = read(name, seed, root)
            if run is None or (like and not healthy[like]):
                continue
            evaluations, alarms = run
            last = evaluations[-1]
            found.append(
                {
                    "run": name,
                    "seed": seed,
                    "healthy": not like,
                    "fd_teacher": round(last["evaluation/fd_teacher"], 1),
                    "alignment": round(last["evaluation/alignment"], 3),
                    "fell": fell(evaluations, healthy[like]) if like else None,
                    "alarms": [[alarm.kind, alarm.step] for alarm in alarms],
                }
            )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row a run, and what they come to."""
    lines = [
        "| run | seed | FD to teacher | alignment | fell at step | alarms (step) | steps early |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in found:
        alarms = ", ".join(f"{kind} ({step})" for kind, step in row["alarms"]) or "none"
        known = row["fell"] is not None and row["alarms"]
        early = row["fell"] - row["alarms"][0][1] if known else "-"
        name = f"healthy: {row['run']}" if row["healthy"] else row["run"]
        lines.append(
            f"| {name} | {row['seed']} | {row['fd_teacher']} | {row['alignment']} | "
            f"{'-' if row['fell'] is None else row['fell']} | {alarms} | {early} |"
        )
    return "\n".join([*lines, "", summary(found)])


def summary(found: list[dict[str, Any]]) -> str:
    """One sentence: how often the alarms were right and wrong, and how early."""
    healthy = [row for row in found if row["healthy"]]
    bad = [row for row in found if row["fell"] is not None]
    harmless = [row for row in found if not row["healthy"] and row["fell"] is None]
    told = [row for row in bad if row["alarms"]]
    early = [row["fell"] - row["alarms"][0][1] for row in told]
    median = (
        f", {statistics.median(early):.0f} steps before they fell in the median" if told else ""
    )
    count = f"{min(early)} to {max(early)}" if told else "none"
    return (
        f"{len(told)} of {len(bad)} runs that fell set off an alarm{median} ({count}; below 0 is after); "
        f"{sum(bool(row['alarms']) for row in healthy)} of {len(healthy)} healthy runs did; of {len(harmless)} "
        f"provoked failures that did not fall within {STEPS} steps, "
        f"{sum(bool(row['alarms']) for row in harmless)} did."
    )


def cost(pipeline: Pipeline, root: Path) -> dict[str, float]:
    """What measuring adds to a step of nitrodistill/recipes/toy.yaml, in CPU time: medians of each part alone."""
    stage = toy_recipe("", "", 900, 0, 64).stages[0]
    settings = replace(stage.settings, warmup_steps=0)
    student = copy.deepcopy(pipeline.denoiser)
    student.module.requires_grad_(True)
    method = LADD.build(settings, Cast.of(pipeline.denoiser, student))
    stream = BatchStream(PairStore.open(root / "pairs"), 0, 64)
    config = replace(stage.trainer, steps=8, diagnose_every=0)
    seconds, last = [], time.process_time()
    for _ in Trainer(method, stream, config).fit():
        seconds.append(time.process_time() - last)
        last = time.process_time()
    batch = stream(0)
    probe = Probe.of(method, 0, 0, None)
    assert probe is not None
    assert batch.pairs is not None
    assert method.discriminator is not None
    with torch.no_grad():
        logits = method.discriminator(
            batch.pairs.x0[:43], torch.tensor(100), batch.pairs.condition.index(slice(0, 43))
        )
    look = median_seconds(lambda: probe(batch, 1), 5)
    read = median_seconds(lambda: logit_statistics(logits, logits), 20)
    step = statistics.median(seconds[1:])
    ratio = 1 + (look / config.log_every + read) / step
    return {"step": step, "look": look, "logits": read, "ratio": round(ratio, 4)}


def median_seconds(act: Callable[[], object], count: int) -> float:
    """CPU seconds of a call."""
    found = []
    for _ in range(count):
        start = time.process_time()
        act()
        found.append(time.process_time() - start)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=None, help="names of runs; by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/alarms"))
    parser.add_argument("--cost", action="store_true", help="only what measuring costs a step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = options.output
    root.mkdir(parents=True, exist_ok=True)
    stages = {**HEALTHY, **{name: make for name, (_, make) in FAILURES.items()}}
    chosen = options.only or list(stages)
    if options.cost:
        print(cost(load_teacher("toy"), root))
        return
    if options.seeds:
        pipeline = load_teacher("toy")
        config = GenerateConfig(num_pairs=600, seed=0, batch_size=64)
        generate(pipeline, shuffled_captions(), root / "pairs", config, teacher_name="toy")
        for seed in options.seeds:
            for name in chosen:
                train(name, stages[name](), seed, pipeline, root)
                print(f"{name}, seed {seed}: done", flush=True)
    found = rows(list(range(6)), root)  # what is finished of them
    made = environment() | {"steps": STEPS, "batch_size": BATCH, "alarm_window": WINDOW}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": made, "runs": found}, indent=1) + "\n")
    print(table(found))
    before, rest = DOCS.read_text().split("<!-- runs -->")
    after = rest.split("<!-- end of runs -->")[1]
    DOCS.write_text(f"{before}<!-- runs -->\n\n{table(found)}\n\n<!-- end of runs -->{after}")


if __name__ == "__main__":
    main()
