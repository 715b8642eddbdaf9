"""What a run, an export and their teacher draw: one function loads them, one draws a picture.

One seed is one noise, for every prompt and every model, from a stream of its own (`purpose="draw"`): no pair, no
preview and no evaluation has it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nitrodistill.cli.runs import open_run, student_plan, teacher_settings
from nitrodistill.evaluation.cost import synchronize
from nitrodistill.evaluation.models import Model
from nitrodistill.export.folder import RECORD
from nitrodistill.export.lora import WEIGHTS, load_lora
from nitrodistill.method import Draws
from nitrodistill.models.denoiser import evaluating
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import TeacherSettings, load_teacher
from nitrodistill.training.recipe import RECIPE
from nitrodistill.training.record import plan_from


def load_models(
    path: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    compare: bool = False,
    teacher: str | None = None,
    steps: int | None = None,
    teacher_steps: int | None = None,
    guidance: float | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Model]:
    """What draws: "student" and, with `compare`, "teacher".

    Args:
        path: folder of a run, of an exported pipeline, or of an exported LoRA.
        settings: of `TeacherSettings`, by name: how pipelines are loaded; of a run they win over its recipe.
        compare: whether the teacher is wanted too.
        teacher: where it is; None looks where the run or the export says.
        steps: of the student of a run, if it is a flow map; None takes those that it was trained for.
        teacher_steps: of the teacher; None takes those of the run's previews, or 25.
        guidance: its scale; None takes that of the run's previews, or 3.
        device: where they draw.

    Raises:
        FileNotFoundError: if the folder is none of these, or its teacher is gone.
        ValueError: if something does not fit, or the student cannot draw in so many steps.
    """
    folder, known = Path(path), (25, 3.0)
    if (folder / RECIPE).is_file():
        run = open_run(str(path), teacher=teacher, settings=settings)
        drawing = base = run.pipeline
        denoiser, plan = run.student.denoiser, student_plan(run.student, steps)
        known = teacher_settings(run)
    elif (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        lora, plan = (folder / WEIGHTS).is_file(), plan_from(record["plan"])
        if steps not in (None, len(plan)):
            raise ValueError(
                f"steps is {steps}, but this export draws in {len(plan)}; leave it out."
            )
        place, loading = teacher or str(record["base_model"]), TeacherSettings(**(settings or {}))
        base = load_teacher(place, loading) if lora or compare else None
        drawing = base if base is not None and lora else load_teacher(str(folder), loading)
        denoiser = load_lora(folder, drawing) if lora else drawing.denoiser
    else:
        raise FileNotFoundError(
            f"{str(path)!r} is neither a run (it has no {RECIPE}) nor an export (it has no {RECORD}); give the "
            "output of train or of export."
        )
    drawing.to(device)
    denoiser.module.to(device)
    models = {"student": Model(denoiser, plan, drawing, lambda: denoiser)}
    if compare:
        assert base is not None
        other, scale = base.to(device), known[1] if guidance is None else guidance
        count = known[0] if teacher_steps is None else teacher_steps
        many = StepPlan.from_schedule(other.denoiser.schedule, count)
        models["teacher"] = Model(other.denoiser, many, other, lambda: other.guided(scale))
    return models


@torch.no_grad()
def draw(model: Model, prompt: str, seed: int) -> tuple[Tensor, float]:
    """A picture `(3, H, W)` in [-1, 1] on the CPU, and the seconds it took from the prompt on.

    Args:
        model: of `load_models`.
        prompt: what to draw.
        seed: of the noise, the same for every model and prompt.

    Raises:
        ValueError: if the prompt holds words that the model does not know, or the picture is not finite.
    """
    draws = Draws(seed, 0, torch.tensor([0]), purpose="draw")
    device = model.pipeline.device
    noise = draws.normal("noise", model.pipeline.latent_shape, device)
    with evaluating(model.denoiser.module):
        synchronize(device)
        start = time.perf_counter()
        image = model.whole([prompt], noise, draws)[0]
        synchronize(device)
        seconds = time.perf_counter() - start
    if not bool(image.isfinite().all()):
        raise ValueError(
            f"the picture of {prompt!r} holds NaN or infinity; the network has diverged, or overflows."
        )
    return image.cpu(), seconds
