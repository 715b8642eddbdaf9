"""A look at the student while it trains: few samples of it, measured against the latents of its batch.

It needs nothing of the method but its plan, so that it works for any: the student draws for the prompts of the
batch at hand, twice, and for each other's prompts, from noise that nothing is trained, previewed or evaluated on
(`Draws`, purpose "diagnostics").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nitrodistill.diagnostics import latent_statistics
from nitrodistill.method import DistillationMethod, Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Batch, Condition, Denoiser, Latents, Pairs

ROWS = 8
"""Samples of a look, in each process: fewer than a batch, so that memory is no question."""

Reference = Callable[[], Latents]
"""-> latents of the teacher with their prompts, for a method that reads prompts alone; asked once."""


@torch.no_grad()
def teacher_latents(
    pipeline: Pipeline, prompts: Sequence[str], num_inference_steps: int, guidance: float
) -> Latents:
    """What the teacher draws for `ROWS` prompts, which begin anew where there are fewer; always the same.

    As costly as a preview.
    """
    condition = pipeline.encode_prompt([prompts[i % len(prompts)] for i in range(ROWS)])
    draws = Draws(0, 0, torch.arange(ROWS), purpose="diagnostics")
    noise = draws.normal("teacher", pipeline.latent_shape, pipeline.device)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, num_inference_steps)
    return Latents(sample(pipeline.guided(guidance), plan, noise, condition), condition)


class Probe:
    """Draws with a student and measures it; see `nitrodistill.diagnostics` for what.

    Args:
        student: the denoiser that is trained.
        plan: how it samples.
        seed: the run's.
        stage: number of the stage.
        reference: see `Reference`; used where a batch has no latents. None measures nothing there.
    """

    def __init__(
        self, student: Denoiser, plan: StepPlan, seed: int, stage: int, reference: Reference | None
    ) -> None:
        self._student, self._plan = student, plan
        self._seed, self._stage = seed, stage
        self._reference = reference
        self._drawn: Latents | None = None

    @classmethod
    def of(
        cls, method: DistillationMethod, seed: int, stage: int, reference: Reference | None
    ) -> Probe | None:
        """Of the method's role "student"; None where that is no denoiser's module, or it has no plan."""
        role = method.trainable().get("student")
        plan = getattr(method, "plan", None)  # a class that says nothing has no such attribute
        if role is None or plan is None or not isinstance(role.owner, Denoiser):
            return None
        return cls(role.owner, plan, seed, stage, reference)

    @torch.no_grad()
    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """ "x0/std.0" and so on after `step`; nothing where there is no reference."""
        found = self._latents(batch)
        if found is None:
            return {}
        latents, condition = found.x0, found.condition
        count = min(ROWS, len(batch), len(latents))
        rows, shape, device, dtype = (
            slice(0, count),
            latents.shape[1:],
            latents.device,
            latents.dtype,
        )
        draws = Draws(self._seed, step, batch.index[rows], stage=self._stage, purpose="diagnostics")

        def look(name: str, condition: Condition) -> Tensor:
            def noise(i: int) -> Tensor:
                return draws.normal(f"{name}.{i}", shape, device).to(dtype)

            return sample(self._student, self._plan, noise(0), condition, noise)

        condition = condition.index(rows)
        first, second = look("first", condition), look("second", condition)
        others = look("first", condition.roll()) if count > 1 and condition.tensors else None
        statistics = latent_statistics(first, latents[rows], second, others)
        return {f"x0/{name}": value for name, value in statistics.items()}

    def _latents(self, batch: Batch) -> Pairs | Latents | None:
        held = batch.pairs or batch.real
        if held is None and self._drawn is None and self._reference is not None:
            self._drawn = self._reference()
        return held or self._drawn
