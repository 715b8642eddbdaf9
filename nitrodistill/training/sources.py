"""The data of a recipe: its stores, opened and checked against the teacher."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nitrodistill.data import GenerateConfig, LatentStore, PairStore, Prompts, read_prompts
from nitrodistill.data.loader import Source
from nitrodistill.data.sources import Encoded
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.training.recipe import Recipe
from nitrodistill.types import Part


@dataclass(frozen=True)
class Sources:
    """What a recipe's methods may read.

    Attributes:
        recipe: whose data it is.
        pairs: what the teacher made.
        real: real latents.
        texts: prompts alone.
    """

    recipe: Recipe
    pairs: PairStore | None
    real: LatentStore | None
    texts: Prompts | None

    @classmethod
    def open(cls, recipe: Recipe, pipeline: Pipeline) -> Sources:
        """Opens the stores that a recipe names.

        Raises:
            FileNotFoundError: if there is no store, or no file of prompts.
            ValueError: if the pairs are of another teacher or scheduler, the real latents of another VAE, or a
                prompt is unknown to the teacher.
        """
        pairs = None if recipe.pairs is None else PairStore.open(recipe.pairs)
        if pairs is not None:
            _check_teacher(pairs, pipeline)
        real = None if recipe.real is None else LatentStore.open(recipe.real)
        if real is not None:
            _check_latents(real.store, pipeline)
        return cls(recipe, pairs, real, _prompts(recipe.prompts, pipeline))

    def of(self, reads: Collection[Part]) -> Sequence[Source]:
        """The sources of these parts."""
        return [source for source in self._given if source.part in reads]

    def identities(self) -> dict[str, str]:
        """Part -> digest of what it holds."""
        return {source.part: source.identity() for source in self._given}

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the data, for previews and evaluations."""
        return self._given[0].prompts if self._given else ()

    @property
    def _given(self) -> list[PairStore | LatentStore | Prompts]:
        return [one for one in (self.pairs, self.real, self.texts) if one is not None]


def teacher_draws(recipe: Recipe) -> tuple[int, float]:
    """(steps, guidance scale) of the teacher in previews and evaluations: the recipe's, or what made the pairs.

    Raises:
        FileNotFoundError: if the pairs are gone and the recipe does not say.
    """
    steps, guidance = recipe.num_inference_steps, recipe.guidance
    if steps is not None and guidance is not None:
        return steps, guidance
    pairs = recipe.pairs
    made = GenerateConfig() if pairs is None else PairStore.open(pairs).manifest.teachers[0]
    return steps or made.num_inference_steps, made.guidance if guidance is None else guidance


def recipe_prompts(recipe: Recipe) -> tuple[str, ...]:
    """The prompts of a recipe's data; no teacher is needed.

    Raises:
        FileNotFoundError: if the data is gone.
    """
    store, prompts = recipe.pairs or recipe.real, recipe.prompts
    if store is None and prompts is None:
        return ()
    if store is None and prompts is not None and not (prompts and Path(prompts).is_dir()):
        return tuple(read_prompts(prompts))
    return PairStore.open(store or prompts or "").prompts


def _prompts(path: str | None, pipeline: Pipeline) -> Prompts | None:
    if path is None:
        return None
    if path and Path(path).is_dir():
        return Prompts.of(PairStore.open(path))
    texts = read_prompts(path)
    for text in texts:
        pipeline.check_prompt(text)
    return Prompts.encoded_by(pipeline.encode_prompt, texts)


def _check_latents(store: PairStore, pipeline: Pipeline) -> None:
    """Real latents must be of the teacher's size, and encoded by its VAE."""
    shape = store.manifest.columns["x0"].shape
    if tuple(shape) != tuple(pipeline.latent_shape):
        raise ValueError(
            f"the latents in {str(store.path)!r} have the shape {tuple(shape)}, and this teacher's "
            f"{tuple(pipeline.latent_shape)}; encode the images with this teacher."
        )
    made = {source.vae for source in store.manifest.sources if isinstance(source, Encoded)}
    vaes = (pipeline.vae, pipeline.diffusers.components.get("vae"))
    if made - {"" if vae is None else fingerprint(vae) for vae in vaes}:
        raise ValueError(
            f"the latents in {str(store.path)!r} were encoded by another VAE than this teacher's; encode the "
            "images with this teacher."
        )


def _check_teacher(store: PairStore, pipeline: Pipeline) -> None:
    """The teacher must have the weights, the prediction type and the noise levels that made the pairs."""
    denoiser = pipeline.denoiser
    store.check_teacher(fingerprint(denoiser.module))
    for source in store.manifest.generated:
        made = f"the pairs in {str(store.path)!r} were made by teacher {source.teacher!r} with"
        way_out = "use that teacher's scheduler, or generate pairs with this one."
        if source.text_encoders != pipeline.text_fingerprint():
            raise ValueError(
                f"{made} other text encoders than this teacher has; use that teacher, or generate pairs with "
                "this one."
            )
        if source.sampler_settings != denoiser.sampler_settings:
            raise ValueError(
                f"{made} {source.sampler_settings}, and this teacher's are {denoiser.sampler_settings}; {way_out}"
            )
        if source.prediction_type != denoiser.prediction_type:
            raise ValueError(
                f"{made} prediction type {source.prediction_type!r}, and this teacher's is "
                f"{denoiser.prediction_type!r}; {way_out}"
            )
        steps = StepPlan.from_schedule(denoiser.schedule, source.num_inference_steps).steps
        here = [(s.t.item(), s.output.alpha.item(), s.output.sigma.item()) for s in steps]
        there = zip(source.grid.t, source.grid.alpha, source.grid.sigma, strict=True)
        for (t, *scales), (its_t, *known) in zip(here, there, strict=True):
            if t != its_t or not all(map(_close, scales, known)):
                raise ValueError(
                    f"{made} signal and noise scales {known} at timestep {its_t}, and this teacher's are "
                    f"{scales} at {t}; {way_out}"
                )


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
