"""Where the latents of an evaluation come from: drawn, or read from the cache.

The teacher's are a pair store, made by the worker of `nitrodistill generate`; its noise comes from a seed that is
a hash of the evaluation's, so that no training pair has it. The other models' latents are kept a batch a file, as
a pair store knows no student's plan. Several processes share either, and it goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nitrodistill.data import GenerateConfig, PairStore, generate
from nitrodistill.evaluation.cache import LatentCache
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.models import Model
from nitrodistill.files import blake2
from nitrodistill.method import Draws
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import printable

NOISE = "evaluation"
OTHER_NOISE = "evaluation floor"
MIN_SHARD = 256


def noise_seed(seed: int, stream: str) -> int:
    """The seed of a stream of noise, a hash: no user's `generate` will meet it."""
    return int.from_bytes(blake2(f"{stream} {seed}", 8), "little") >> 1


def noise_draws(seed: int, stream: str, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The noise of samples `rows`, as `generate` draws it: `(B, *shape)` on the CPU."""
    return Draws(noise_seed(seed, stream), 0, rows, purpose="pairs").normal("noise", shape)


def depends_on(teacher: Pipeline, samples: SamplePlan) -> dict[str, Any]:
    """Everything that the teacher's latents are a function of, as JSON values."""
    config = samples.config
    plan = StepPlan.from_schedule(teacher.denoiser.schedule, config.num_inference_steps)
    return {
        "denoiser": fingerprint(teacher.denoiser.module),
        "text_encoders": teacher.text_fingerprint(),
        "prediction_type": teacher.denoiser.prediction_type,
        "sampler_settings": teacher.denoiser.sampler_settings,
        "plan": [[step.t.item(), *(x.item() for x in step.output)] for step in plan.steps],
        "guidance": config.guidance,
        "latent_shape": teacher.latent_shape,
        "prompts": samples.prompts,
        "num_samples": config.num_samples,
        "batch_size": config.batch_size,
        "seed": config.seed,
        **({} if (negative := teacher.negative_prompt) is None else {"negative_prompt": negative}),
    }


def hashed(values: Mapping[str, Any]) -> str:
    """A hash of JSON values, 16 hexadecimal digits."""
    return blake2(json.dumps(values, sort_keys=True), 8).hex()


def draw_teacher(
    teacher: Pipeline,
    samples: SamplePlan,
    cache: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> dict[str, PairStore]:
    """The teacher's latents as pair stores below `cache`, made or completed; returns when they are whole.

    Args:
        teacher: its pipeline.
        samples: which prompt and which half each belongs to.
        cache: a folder; a store is in `teacher-<hash>` below it.
        rank: number of this worker, of those that share the work.
        world_size: how many they are.
        progress: shows a bar.

    Returns:
        Stream of noise -> store; the second stream too, if the floor is fresh.
    """
    config, stores = samples.config, {}
    for stream in (NOISE, OTHER_NOISE)[: 2 if config.floor == "fresh" else 1]:
        settings = GenerateConfig(
            num_pairs=config.num_samples,
            num_inference_steps=config.num_inference_steps,
            guidance=config.guidance,
            seed=noise_seed(config.seed, stream),
            batch_size=config.batch_size,
            shard_size=config.batch_size * -(-MIN_SHARD // config.batch_size),
            dtype="float32",
        )
        key = hashed(depends_on(teacher, samples) | ({} if stream == NOISE else {"stream": stream}))
        stores[stream] = generate(
            teacher,
            samples.prompts,
            cache / f"teacher-{key}",
            settings,
            teacher_name=f"evaluation {key}",
            rank=rank,
            world_size=world_size,
            progress=progress,
        )
    return stores


class Drawing:
    """Latents of every model, batch by batch.

    Args:
        models: by name; "teacher" is among them.
        samples: which prompt and which half each belongs to.
        cache: a folder, or None to keep nothing.
        progress: show a bar while the teacher draws.
        keep_student: keep the student's latents too, not only the teacher's and the naive model's.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        samples: SamplePlan,
        cache: Path | None,
        progress: bool,
        keep_student: bool = True,
    ) -> None:
        self._models, self._samples, self._cache, self._progress = models, samples, cache, progress
        self.key: str = hashed(depends_on(models["teacher"].pipeline, samples))
        self._stores: dict[str, PairStore] = {}
        self._caches = {
            name: LatentCache(self._folder(name) if name != "student" or keep_student else None)
            for name in models
        }

    def prepare(self) -> None:
        """Draws what the cache lacks of the teacher; `latents` would do it in its first call."""
        if self._cache is not None:
            teacher = self._models["teacher"].pipeline
            self._stores = draw_teacher(
                teacher, self._samples, self._cache, progress=self._progress
            )

    def draw_others(self, rank: int, world_size: int) -> None:
        """Draws what the cache lacks of all models but the teacher, with other workers; returns when it is there.

        Args:
            rank: number of this worker.
            world_size: how many there are.
        """
        for name, cache in self._caches.items():
            if name != "teacher" and cache.folder is not None:
                self._fill(name, cache, rank, world_size)

    def _fill(self, name: str, cache: LatentCache, rank: int, world_size: int) -> None:
        from nitrodistill.progress import progress_bar

        batches = torch.arange(len(self._samples.ids)).split(self._samples.config.batch_size)
        shown = self._progress and rank == 0
        with progress_bar(
            total=len(batches), desc=printable(name), unit="batch", show=shown
        ) as bar:

            def make(number: int) -> Tensor:
                bar.update(cache.count() - bar.n)  # what others made counts too
                return self._draw(name, batches[number], NOISE)

            cache.fill(len(batches), make, rank, world_size)
            bar.update(len(batches) - bar.n)

    def _folder(self, name: str) -> Path | None:
        """None for a denoiser of the caller's own: what it draws is not a function of its weights alone."""
        known = type(self._models[name].denoiser) is DiffusersDenoiser
        return self._cache / f"{name}-{hashed(self._of(name))}" if self._cache and known else None

    def _of(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        assert isinstance(model.denoiser, DiffusersDenoiser)
        plan = [
            [x.item() for x in (step.t, *step.input, *step.output)] for step in model.plan.steps
        ]
        return {
            "noise": self.key,
            "denoiser": fingerprint(model.denoiser.module),
            "text_encoders": model.pipeline.text_fingerprint(),
            "prediction_type": model.denoiser.prediction_type,
            "sampler_settings": model.denoiser.sampler_settings,
            "plan": plan,
            "transition": model.plan.transition,
        }

    def latents(self, name: str, number: int, rows: Tensor, stream: str = NOISE) -> Tensor:
        """The latents of samples `rows`, batch `number`, in a model.

        Raises:
            ValueError: if they are not finite.
        """
        if name != "teacher":
            found = self._caches[name].get(number, lambda: self._draw(name, rows, stream))
        elif self._cache is None:
            found = self._draw(name, rows, stream)
        else:
            if not self._stores:
                self.prepare()
            found = self._stores[stream].read(rows.tolist()).x0
        if not bool(found.isfinite().all()):
            raise ValueError(
                f"the latents of the {name} hold NaN or infinity; it has diverged, or its plan does not fit "
                "its prediction type."
            )
        return found

    def _draw(self, name: str, rows: Tensor, stream: str) -> Tensor:
        model, config = self._models[name], self._samples.config
        noise = noise_draws(config.seed, stream, rows, model.pipeline.latent_shape)
        condition = model.pipeline.encode_prompt(self._samples.texts(rows))
        draws = Draws(config.seed, 0, rows, purpose="evaluation")
        return model.draw(noise.to(model.pipeline.device), condition, draws)
