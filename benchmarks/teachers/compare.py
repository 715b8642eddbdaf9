"""One cell of the comparison: a student of one teacher by one method and seed, trained for so many CPU seconds.

A cell's folder is named after its method and a hash of all that its result depends on, so that a finished one is
kept, a killed one goes on, and a changed method is run anew. A method is a dict as in `methods.py`; one of several
stages has a list `stages` of such dicts, each with its `share` of the steps.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.teachers.base import READER, Quality, Teacher, built
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.evaluation import Evaluation, evaluate
from nitrodistill.files import blake2, write_json
from nitrodistill.methods import LADDConfig, find_method
from nitrodistill.methods.dmd2.config import CriticConfig
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.training.recipe import Recipe, parse_recipe
from nitrodistill.training.run import load_student
from nitrodistill.training.stages import run_recipe
from nitrodistill.training.state import State

PAIRS, BATCH_SIZE, TRIAL_STEPS = 600, 48, 24
CHECKPOINT_EVERY = 200
FORGETTING = 3.0
"""A student's average starts as the teacher; in n updates its decay is 1 - 3 / n at most, so e^-3 is left."""
EVALUATION_SEED = 1000
METRICS_FILE, RESULT, PACE = "metrics.json", "result.json", "steps.json"
METRICS = {
    "fd_real": "FD to held-out",
    "fd_teacher": "FD to teacher",
    "fd_texture": "texture-FD",
    "alignment": "alignment",
    "edge_ratio": "edge ratio",
    "high_frequency_ratio": "high-frequency ratio",
    "diversity": "diversity",
}


@dataclass(frozen=True)
class Place:
    """A teacher, ready to be distilled.

    Attributes:
        teacher: what it is.
        pipeline: it.
        quality: how its students are measured.
        folder: of its cells.
        pairs: folder of its pairs, which all cells share.
        num_pairs: how many they are.
        batch_size: of a step.
        real: folder of latents of real pictures, for methods whose discriminator sees them.
    """

    teacher: Teacher
    pipeline: Pipeline
    quality: Quality
    folder: Path
    pairs: Path
    num_pairs: int = PAIRS
    batch_size: int = BATCH_SIZE
    real: Path | None = None

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        cache: Path,
        output: Path,
        pairs: int = PAIRS,
        share: float = 1.0,
        batch_size: int = BATCH_SIZE,
    ) -> Place:
        """Trains the teacher and makes its pairs, where they are not there."""
        home = built(teacher, cache, share)
        pipeline = teacher.load(home)
        reader = home / READER
        quality = teacher.quality(reader if reader.is_file() else None, EVALUATION_SEED)
        folder = output / teacher.name
        place = cls(teacher, pipeline, quality, folder, folder, pairs, batch_size)
        return replace(place, pairs=place.generated(pairs))

    def generated(self, count: int, seed: int = 0) -> Path:
        """The folder of so many pairs of the teacher; made where they are not there."""
        config = GenerateConfig(
            num_pairs=count,
            seed=seed,
            num_inference_steps=self.teacher.num_inference_steps,
            guidance=self.teacher.guidance,
            batch_size=64,
        )
        store = self.folder / (f"pairs-{count}" + (f"-seed-{seed}" if seed else ""))
        generate(
            self.pipeline, self.teacher.prompts(), store, config, teacher_name=self.teacher.name
        )
        return store

    def recipe(self, method: Mapping[str, Any], steps: int, seed: int, output: Path) -> Recipe:
        """A method as a recipe, of one stage or of several."""
        stages = [self._stage(one, steps, seed) for one in method.get("stages", [method])]
        name, pairs = self.teacher.name, str(self.pairs)
        data = {"pairs": pairs}
        if any(stage["method"] == "dmd2" for stage in stages):
            data["prompts"] = pairs
        gans = [stage["settings"]["gan"] for stage in stages if "gan" in stage["settings"]]
        if any(gan.get("real", "real") == "real" for gan in gans):
            data["real"] = str(self.real)
        return parse_recipe(
            {
                "teacher": name,
                "guidance": self.teacher.guidance,
                "output": str(output),
                **data,
                "trackers": [],
                "stages": stages,
            }
        )

    def _stage(self, method: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
        """One stage, told what the teacher's methods must be told as far as its method asks for it."""
        steps = max(1, round(method.get("share", 1) * steps))
        shares = {name: round(share * steps) for name, share in method.get("shares", {}).items()}
        trainer = {
            "steps": steps,
            "batch_size": self.batch_size,
            "seed": seed,
            "optimizers": forgetting(method, steps),
            "checkpoint_every": CHECKPOINT_EVERY,
            "log_every": 20,
            **method.get("trainer", {}),
        }
        asked = {field.name for field in fields(find_method(method["method"]).Config)}
        told = {"guidance": self.teacher.guidance, **self.teacher.settings()}
        if method["settings"].get("num_inference_steps", 1) > 1:
            asked.discard("timestep")  # of one step alone
        told = {name: value for name, value in told.items() if name in asked}
        more = {name: method[name] for name in ("student", "halvings") if name in method}
        settings = {**told, **method["settings"], **shares}
        return {"method": method["method"], "settings": settings, "trainer": trainer, **more}

    def steps(self, method: Mapping[str, Any], seconds: float, folder: Path) -> int:
        """How many steps take so many CPU seconds here: from a short run, kept in `PACE`.

        All seeds of a method have the same, so that they differ in their draws alone.
        """
        kept = folder / PACE
        if not kept.is_file():
            with tempfile.TemporaryDirectory() as place:
                recipe = self.recipe(method, TRIAL_STEPS, 0, Path(place) / "run")
                pace = measured_pace(run_recipe(recipe, self.pipeline))
            folder.mkdir(parents=True, exist_ok=True)
            write_json(kept, pace)
        pace = json.loads(kept.read_text())
        left = seconds - pace.get("cpu_seconds_once", 0.0)
        return max(20, round(left / pace["cpu_seconds_per_step"]))

    def group(self, name: str, method: Mapping[str, Any]) -> Path:
        """The folder of a method's cells."""
        told = [method, self.num_pairs, self.batch_size, self.teacher.settings(), FORGETTING]
        about = json.dumps(told, sort_keys=True)
        return self.folder / f"{name}-{blake2(about).hex()[:8]}"

    def cell_folder(
        self, name: str, method: Mapping[str, Any], seed: int, seconds: float, steps: int = 0
    ) -> Path:
        """The folder of a cell; it is finished if it holds `RESULT`."""
        budget = f"{steps}-steps" if steps else f"{seconds:g}-seconds"
        return self.group(name, method) / budget / f"seed-{seed}"

    def cell(
        self,
        name: str,
        method: Mapping[str, Any],
        seed: int,
        seconds: float,
        steps: int = 0,
        sampled_in: int | None = None,
    ) -> dict[str, Any]:
        """Trains and evaluates a student; what was found is kept in `result.json`.

        Args:
            name: of the method.
            method: it.
            seed: of all draws.
            seconds: of CPU time to train for.
            steps: to train for instead; 0 are those that take so many seconds.
            sampled_in: steps in which the student samples; None are its own.
        """
        folder = self.cell_folder(name, method, seed, seconds, steps)
        kept, metrics = folder / RESULT, folder / METRICS_FILE
        if sampled_in is not None:
            metrics = folder / f"metrics-in-{sampled_in}.json"
        if not (kept.is_file() and metrics.is_file()):
            steps = steps or self.steps(method, seconds, self.group(name, method))
            recipe = self.recipe(method, steps, seed, folder / "run")
            spent = trained(recipe, self.pipeline)
            self.measure(*self._student(recipe, sampled_in)).save(metrics)
            write_json(kept, {"steps": steps, "cpu_seconds": round(spent, 1)})
        found = Evaluation.load(metrics)
        metrics = {
            model: {
                key: [metric.value, metric.low, metric.high, metric.floor]
                for key, metric in metrics.items()
                if key in METRICS
            }
            for model, metrics in found.models.items()
        }
        about = {"teacher": self.teacher.name, "method": name, "seed": seed}
        return {**about, **json.loads(kept.read_text()), "metrics": metrics}

    def _student(self, recipe: Recipe, steps: int | None) -> tuple[Any, StepPlan]:
        """The student of the last stage, and how it samples; of several the one that samples in so many steps."""
        count = len(recipe.stages)
        found = [load_student(recipe.output, self.pipeline, stage=count - 1)]
        if steps is not None and recipe.stages[0].method == "progressive":
            found = [load_student(recipe.output, self.pipeline, stage=i) for i in range(count)]
            found = [student for student in found if len(student.plan) == steps]
        student = found[-1]
        plan = student.plan
        if steps is not None and len(plan) != steps:
            plan = StepPlan.from_schedule(student.denoiser.schedule, steps, plan.transition)
        return student.denoiser, plan

    def measure(self, student: Any, plan: Any) -> Evaluation:
        """The evaluation of a student; the teacher's pictures are drawn once."""
        return evaluate(
            self.pipeline,
            student,
            plan,
            self.teacher.prompts(),
            self.quality.features,
            alignment=self.quality.alignment,
            real_images=self.quality.real,
            config=self.teacher.evaluation(self.quality, EVALUATION_SEED),
            cache=self.folder / "drawn",
            keep_student=False,
            progress=False,
        )


def forgetting(method: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The optimizers of a method; the student's average forgets the teacher in so many steps, see `FORGETTING`."""
    student, settings = method["optimizers"]["student"], method["settings"]
    every = 1  # steps to an update of the student
    if method["method"] == "dmd2":
        every = settings.get("critic", {}).get("updates", CriticConfig.updates)
    elif method["method"] == "ladd" and settings.get("adversarial_weight") != 0:
        every = 2 if settings.get("updates", LADDConfig.updates) == "alternating" else 1
    most = max(0.0, 1 - FORGETTING * every / steps)
    decay = min(student.get("ema_decay", 0.0), most)
    return {**method["optimizers"], "student": {**student, "ema_decay": decay}}


def measured_pace(states: Iterable[State]) -> dict[str, float]:
    """CPU seconds of a step, and of what a run does once, from a short run.

    The first step of each stage makes its networks and the last one writes a checkpoint: the others say what a
    step takes. Stages count by their steps, which are the same share of a short run as of a long one.
    """
    stages: dict[int, list[float]] = {}
    before = time.process_time()
    for state in states:
        now = time.process_time()
        stages.setdefault(state.stage, []).append(now - before)
        before = now
    steps = sum(len(spent) * statistics.mean(spent[1:-1] or spent) for spent in stages.values())
    total = sum(sum(spent) for spent in stages.values())
    count = sum(len(spent) for spent in stages.values())
    return {"cpu_seconds_per_step": steps / count, "cpu_seconds_once": total - steps}


def trained(recipe: Recipe, pipeline: Pipeline) -> float:
    """Trains a recipe, or what is left of it; the CPU seconds that it took, over all tries."""
    counter = Path(recipe.output).with_suffix(".cpu_seconds")
    before = float(counter.read_text()) if counter.is_file() else 0.0
    start, seconds = time.process_time(), before
    for state in run_recipe(recipe, pipeline):
        seconds = before + time.process_time() - start
        if state.step % CHECKPOINT_EVERY == 0 or state.step == state.steps:
            counter.write_text(str(seconds))
    return seconds
