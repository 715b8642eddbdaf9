"""The samples: prompts, repeats and halves; and settings that make no sense."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.config import SamplePlan


def test_prompts_repeat_and_both_halves_have_them_all() -> None:
    samples = SamplePlan.of([f"p{i}" for i in range(330)], EvaluateConfig(num_samples=1024))
    assert len(samples.prompts) == 256
    counts = torch.bincount(samples.ids)
    assert (counts == 4).all()
    assert (torch.bincount(samples.ids[samples.places % 2 == 0]) == 2).all()
    assert samples.has_halves
    assert samples.texts(torch.tensor([1, 257])) == [samples.prompts[1]] * 2
    other = SamplePlan.of([f"p{i}" for i in range(330)], EvaluateConfig(seed=1))
    assert set(other.prompts) != set(samples.prompts)


def test_few_prompts_are_all_used_and_duplicates_count_once() -> None:
    samples = SamplePlan.of(["a", "b", "a"], EvaluateConfig(num_samples=7, samples_per_prompt=2))
    assert sorted(samples.prompts) == ["a", "b"]
    single = SamplePlan.of(
        ["a", "b", "c", "d"], EvaluateConfig(num_samples=4, samples_per_prompt=1)
    )
    assert len(single.prompts) == 4
    assert not single.has_halves


@pytest.mark.parametrize(
    "settings",
    [
        {"num_samples": 3},
        {"batch_size": 0},
        {"num_inference_steps": 0},
        {"samples_per_prompt": 0},
        {"cost_repeats": -1},
        {"floor": "none"},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, object]) -> None:
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"{name} is"):
        EvaluateConfig(**settings)  # type: ignore[arg-type]


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        SamplePlan.of([], EvaluateConfig())
