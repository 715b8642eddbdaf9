"""Distribution matching on the embedded teacher: the students of three recipes, in one step and in four.

    python benchmarks/dmd2_toy.py [--recipes dmd2-toy-gan-4step] [--seeds 0] [--output runs/dmd2_toy]

The recipes are those of nitrodistill/recipes, as they stand but for evaluations: no pairs; dmd2-toy-gan-4step also
has a discriminator on rendered scenes. Evaluated on the same held-out noises and prompts as benchmarks/lcm_toy.py,
beside the 25 steps of the teacher, with the verdict of the report: how many measures match the teacher's.

*rendered scenes* stand in a student's place: new ones, like those that the discriminator takes for real. They
differ from the teacher's pictures too, and so does a student that comes near to them.

Resumable: finished runs are kept, a killed one goes on. Writes benchmarks/results/dmd2_toy.json, where the runs of
recipes and seeds that were not asked for stay, and the table in docs/dmd2.md.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _measure import merged
from _toy import METRICS, columns, environment, kept, scene_store, table_cell, train, write_docs
from lcm_toy import SAMPLES, evaluated
from torch import Tensor

from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig, Evaluation
from nitrodistill.evaluation.report import verdict
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher
from nitrodistill.toy import scenes
from nitrodistill.training.recipe import load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Condition, Denoiser, PredictionType

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "dmd2_toy.json"
DOCS = ROOT / "docs" / "dmd2.md"
RECIPES = ("dmd2-toy", "dmd2-toy-4step", "dmd2-toy-gan-4step")


def measured(pipeline: Pipeline, student: Denoiser, plan: StepPlan, root: Path) -> dict[str, Any]:
    """The columns of a student, of what stands beside it, and the verdict."""
    found = evaluated(pipeline, student, plan, root, EvaluateConfig.bootstrap)
    return {**columns(found, METRICS), "verdict": verdict_of(found)}


def run(pipeline: Pipeline, root: Path, name: str, seed: int) -> dict[str, Any]:
    """Training and evaluation of one recipe and seed; kept in `result.json` of its folder."""
    folder = root / f"seed-{seed}" / name
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    recipe = load_recipe(ROOT / "nitrodistill" / "recipes" / f"{name}.yaml")
    trainer = replace(recipe.stages[0].trainer, seed=seed, evaluate_every=0, best_metric="")
    stages = [replace(recipe.stages[0], trainer=trainer)]
    prompts, real = str(root / "prompts.txt"), None
    if recipe.real:  # as the recipe says
        captions = (scenes.captions() * 50)[:16384]
        prompts = real = str(scene_store(pipeline, root, captions, "toy"))
    recipe = replace(recipe, prompts=prompts, real=real, output=str(folder), stages=stages)
    seconds = train(recipe, pipeline)
    student = load_student(folder, pipeline)
    row = {
        "recipe": name,
        "seed": seed,
        "num_inference_steps": len(student.plan),
        "steps": trainer.steps,
        "cpu_seconds": round(seconds, 1),
        **measured(pipeline, student.denoiser, student.plan, root),
    }
    result.write_text(json.dumps(row))
    return row


class RenderedScenes:
    """A denoiser whose one step is a newly rendered scene of the prompt, encoded; whatever its noise."""

    prediction_type: PredictionType = "sample"

    def __init__(self, pipeline: Pipeline, captions: list[str]) -> None:
        self.module = torch.nn.Identity()
        self.schedule = pipeline.denoiser.schedule
        self._pipeline, self._captions = pipeline, captions
        self._embeddings = _embeddings(pipeline.encode_prompt(captions))
        self._generator = torch.Generator().manual_seed(2000)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Latents of new scenes, whose captions are found by their embeddings."""
        found = torch.cdist(_embeddings(condition), self._embeddings).argmin(1).tolist()
        texts = [self._captions[i] for i in found]
        return self._pipeline.encode_image(scenes.render(texts, self._generator))


def _embeddings(condition: Condition) -> Tensor:
    return condition.tensors["encoder_hidden_states"].flatten(1)


def rendered(pipeline: Pipeline, root: Path) -> dict[str, Any]:
    """What rendered scenes come to, in a student's place; kept in the folder."""
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 1)
    student = RenderedScenes(pipeline, shuffled_captions())
    return kept(root / "rendered.json", lambda: measured(pipeline, student, plan, root))


def verdict_of(found: Evaluation) -> dict[str, Any]:
    """What the report says of the student, and which measures differ from the teacher's."""
    said = verdict(found)
    differs = [name for name, one in said.assessments.items() if one.state == "differs"]
    counts = {"matched": said.matched, "decided": said.decided}
    return {"headline": said.headline, **counts, "differs": differs}


def table(rows: list[dict[str, Any]], real: dict[str, Any]) -> str:
    """Markdown: a row a recipe, mean and standard deviation over the seeds; and what stands beside them."""
    lines = [
        f"| | steps | CPU s | {' | '.join(METRICS.values())} | matching |",
        "|---|" + "---:|" * (len(METRICS) + 3),
    ]
    for name in RECIPES:
        found = [row for row in rows if row["recipe"] == name]
        cells = [table_cell([row["student"][key] for row in found]) for key in METRICS]
        seconds = table_cell([row["cpu_seconds"] for row in found])
        steps = found[0]["num_inference_steps"]
        matching = ", ".join(_matching(row) for row in found)
        lines.append(f"| `{name}` | {steps} | {seconds} | {' | '.join(cells)} | {matching} |")
    beside = (
        ("teacher", "25", rows[0]["teacher"], ""),
        ("rendered scenes", "", real["student"], _matching(real)),
        ("floor", "", rows[0]["floor"], ""),
    )
    for name, steps, values, matching in beside:
        cells = [table_cell([values[key]]) for key in METRICS]
        lines.append(f"| {name} | {steps} | | {' | '.join(cells)} | {matching} |")
    return "\n".join(lines)


def _matching(row: dict[str, Any]) -> str:
    """How many measures match the teacher's; of a row from before verdicts were kept, a dash."""
    said = row.get("verdict")
    return "-" if said is None else f"{said['matched']} of {said['decided']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/dmd2_toy"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, root = load_teacher("toy"), options.output
    root.mkdir(parents=True, exist_ok=True)
    (root / "prompts.txt").write_text("\n".join(shuffled_captions()) + "\n")
    made = [run(pipeline, root, name, seed) for name in options.recipes for seed in options.seeds]
    before = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else []
    rows = merged(before, made, ("recipe",), [(name,) for name in RECIPES])
    known, real = environment(), rendered(pipeline, root)
    counts = sorted(set(Counter(row["recipe"] for row in rows).values()))
    seeds = f"{' or '.join(map(str, counts))} seed{'s' if counts != [1] else ''}"
    text = (
        f"{table(rows, real)}\n\n{seeds}, {SAMPLES} pictures each, on one thread of shared machines (the last: "
        f"{known['cpu'].strip()}, torch {known['torch']}, {known['date']})."
    )
    RESULTS.write_text(
        json.dumps({"environment": known, "scenes": real, "runs": rows}, indent=1) + "\n"
    )
    write_docs(DOCS, "result", text)
    print(text)


if __name__ == "__main__":
    main()
