"""How to evaluate, and what follows from it: which prompt and which half each sample belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.method import Draws


@dataclass(frozen=True)
class EvaluateConfig:
    """How to evaluate.

    Attributes:
        num_samples: pictures of each model. Fréchet distances of different numbers do not compare.
        seed: of noise, choice of prompts and halves.
        batch_size: pictures at a time.
        num_inference_steps: sampling steps of the teacher.
        guidance: the teacher's guidance scale; 1 is none.
        samples_per_prompt: at least so many pictures of each prompt (fewer prompts are used if needed);
            1 leaves diversity out, and the floor from halves.
        floor: where the teacher's floor comes from. "halves": from two halves of its pictures with the
            same prompts, extrapolated to the whole. "fresh": from a second set with other noise, at
            twice the cost.
        bootstrap: replicates of the intervals.
        cost_batch_size: pictures at a time when time is measured.
        cost_repeats: timed runs of each model, after one for warming up; 0 measures no time.
        num_pictures: pictures of each model to hand back: the first so many, and as many of the farthest
            from the teacher.

    Example:
        >>> nd.evaluation.EvaluateConfig(num_samples=256, guidance=3.0).num_samples
        256
    """

    num_samples: int = 1024
    seed: int = 0
    batch_size: int = 64
    num_inference_steps: int = 25
    guidance: float = 3.0
    samples_per_prompt: int = 4
    floor: Literal["halves", "fresh"] = "halves"
    bootstrap: int = 200
    cost_batch_size: int = 8
    cost_repeats: int = 5
    num_pictures: int = 8

    def __post_init__(self) -> None:
        check_fields(self, num_samples=4, bootstrap=2, cost_repeats=0, num_pictures=0, guidance=1)
        check_fields(self, batch_size=1, num_inference_steps=1, samples_per_prompt=1)
        check_fields(self, cost_batch_size=1)


@dataclass(frozen=True)
class SamplePlan:
    """Which prompt and which half every sample belongs to.

    The samples of a prompt go to the two halves in turn, so that both have the same prompts: else the floor would
    measure the choice of prompts, which teacher and student share.

    Attributes:
        prompts: P prompts, in a random order.
        ids: `(num_samples,)` the prompt of each sample.
        places: `(num_samples,)` where each sample is in the halves: even numbers are in the first half,
            and 2k and 2k + 1 have the same prompt.
        config: what it was made from.
    """

    prompts: tuple[str, ...]
    ids: Tensor
    places: Tensor
    config: EvaluateConfig

    @classmethod
    def of(cls, prompts: Sequence[str], config: EvaluateConfig) -> SamplePlan:
        known = tuple(dict.fromkeys(prompts))
        if not known:
            raise ValueError("there are no prompts; give at least one.")
        used = min(len(known), max(1, config.num_samples // config.samples_per_prompt))
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(len(known), generator=generator)[:used].tolist()
        index = torch.arange(config.num_samples)
        draws = Draws(config.seed, 0, torch.arange(used), purpose="evaluation")
        first = (draws.uniform("half") < 0.5).long()
        turn, prompt = index // used, index % used
        places = 2 * (turn // 2 * used + prompt) + (turn + first[prompt]) % 2
        return cls(tuple(known[i] for i in chosen), prompt, places, config)

    @property
    def has_halves(self) -> bool:
        """Whether every prompt is in both halves."""
        return len(self.ids) >= 2 * len(self.prompts)

    def texts(self, rows: Tensor) -> list[str]:
        """The prompts of samples `rows`."""
        return [self.prompts[i] for i in self.ids[rows].tolist()]
