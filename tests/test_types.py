from __future__ import annotations

import pytest
import torch

from nitrodistill.types import (
    Batch,
    Condition,
    Latents,
    Pairs,
    Scales,
    check_prediction_type,
    expand,
)


@pytest.fixture
def condition():
    text = torch.arange(3 * 4 * 2, dtype=torch.float32).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    return Condition({"text": text, "text_mask": mask}, torch.tensor([7, 8, 9]))


def test_index_and_roll_move_everything_together(condition):
    rolled = condition.roll(1)
    assert rolled.prompt_ids.tolist() == [9, 7, 8]
    assert torch.equal(rolled["text"][1], condition["text"][0])
    picked = condition.index([2, 0])
    assert picked.prompt_ids.tolist() == [9, 7]
    assert torch.equal(picked["text_mask"], condition["text_mask"][[2, 0]])
    assert len(condition.index(slice(0, 2))) == 2


def test_cat_pads_with_zeros_to_the_longest(condition):
    longer = Condition(
        {"text": torch.ones(1, 6, 2), "text_mask": torch.ones(1, 6, dtype=torch.int64)}
    )
    joined = Condition.cat([condition, longer])
    assert joined["text"].shape == (4, 6, 2)
    assert joined["text_mask"][:, 4:].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]
    assert torch.equal(joined["text"][:3, :4], condition["text"])
    assert joined.prompt_ids is None, "ids are kept only if all have them"


def test_null_replaces_the_chosen_samples(condition):
    empty = Condition(
        {"text": torch.full((1, 2, 2), -1.0), "text_mask": torch.ones(1, 2, dtype=torch.int64)},
        torch.tensor([0]),
    )
    dropped = condition.null(empty, torch.tensor([True, False, False]))
    assert dropped["text"][0].tolist() == [[-1, -1], [-1, -1], [0, 0], [0, 0]]
    assert torch.equal(dropped["text"][1:], condition["text"][1:])
    assert dropped.prompt_ids.tolist() == [0, 8, 9]
    assert condition.null(empty)["text"].shape == (3, 2, 2)


def test_to_casts_only_floating_point(condition):
    cast = condition.to(dtype=torch.bfloat16)
    assert cast["text"].dtype == torch.bfloat16
    assert cast["text_mask"].dtype == torch.int64


def test_bad_conditions(condition):
    with pytest.raises(ValueError, match="first dimension"):
        Condition({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})
    with pytest.raises(KeyError, match="it holds text, text_mask"):
        condition["pooled"]
    with pytest.raises(ValueError, match="same names"):
        Condition.cat([condition, Condition({"other": torch.zeros(1, 2)})])
    with pytest.raises(ValueError, match="at least one"):
        Condition.cat([])


def test_mix_and_snr(generator):
    x0, noise = torch.randn(2, 2, 3, 4, generator=generator)
    scales = Scales(torch.tensor([0.6, 0.0]).double(), torch.tensor([0.8, 1.0]).double())
    mixed = scales.mix(x0, noise)
    torch.testing.assert_close(mixed[0], 0.6 * x0[0] + 0.8 * noise[0])
    assert torch.equal(mixed[1], noise[1])
    assert mixed.dtype == torch.float32
    half = scales.mix(x0, noise.bfloat16())
    assert half.dtype == torch.bfloat16
    exact = scales.mix(x0, noise.bfloat16().float())
    assert torch.equal(half, exact.bfloat16()), "rounded once, at the end"
    assert scales.snr().tolist() == pytest.approx([0.5625, 0.0])


def test_expand_and_prediction_type():
    assert expand(torch.ones(3), torch.zeros(3, 4, 5)).shape == (3, 1, 1)
    assert expand(torch.tensor(1.0), torch.zeros(3, 4)).ndim == 0
    assert check_prediction_type("epsilon") == "epsilon"
    with pytest.raises(ValueError, match="'eps'"):
        check_prediction_type("eps")


def test_batch_keeps_its_index_on_the_cpu(condition):
    pairs = Pairs(torch.zeros(3, 4), torch.zeros(3, 4), condition)
    moved = Batch(torch.arange(3), pairs).to("cpu", torch.float64)
    assert len(moved) == 3
    assert moved.pairs is not None
    assert moved.pairs.x0.dtype == moved.pairs.noise.dtype == torch.float64
    assert moved.index.dtype == torch.int64


def test_a_batch_has_the_parts_that_were_given_and_moves_all_of_them(condition):
    pairs = Pairs(torch.zeros(3, 4), torch.ones(3, 4), condition)
    real = Latents(torch.full((3, 4), 2.0), condition.roll(1))
    whole = Batch(torch.arange(3), pairs, real, condition.roll(2))
    assert list(whole.parts()) == ["pairs", "real", "prompts"]
    alone = Batch(torch.arange(3), prompts=condition)
    assert list(alone.parts()) == ["prompts"]
    assert (alone.pairs, alone.real) == (None, None)
    moved = whole.to("cpu", torch.bfloat16)
    assert moved.real is not None
    assert moved.prompts is not None
    assert moved.real.x0.tolist() == [[2.0] * 4] * 3
    assert {moved.real.x0.dtype, moved.prompts["text"].dtype} == {torch.bfloat16}
    assert moved.prompts.prompt_ids.tolist() == [8, 9, 7]
    assert moved.real.condition.prompt_ids.tolist() == [9, 7, 8]
