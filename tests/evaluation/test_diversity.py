"""Spread within prompts: closed form, streaming, collapse."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation import PromptSpread


def test_it_is_the_unbiased_deviation_within_prompts() -> None:
    samples = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0)).double() + 5
    ids = torch.tensor([0, 1, 1, 0, 3, 0, 1, 3, 2])  # prompt 2 has one sample and does not count
    spread = PromptSpread(4)
    for part in torch.arange(9).split(4):
        spread.update(ids[part], samples[part])
    variances = [samples[ids == i].flatten(1).var(0).mean() for i in (0, 1, 3)]
    assert spread.spread() == pytest.approx(float(torch.stack(variances).mean().sqrt()), rel=1e-10)


def test_one_picture_a_prompt_has_none() -> None:
    pictures = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20) % 5
    collapsed, single = PromptSpread(5), PromptSpread(5)
    collapsed.update(ids, pictures[ids])
    assert collapsed.spread() == pytest.approx(0.0, abs=1e-6)
    single.update(torch.arange(5), pictures)
    assert single.spread() is None
