"""Which samples are chosen, and whose latent each is shown with a wrong prompt, by hand."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.method import Draws
from nitrodistill.rows import Misaligned, Rows, is_chosen
from nitrodistill.types import Batch, Condition, Pairs


def make_batch(start: int, size: int, ids: list[int]) -> Batch:
    """The latent of sample n is n everywhere."""
    index = torch.arange(start, start + size)
    x0 = index.float().reshape(-1, 1, 1, 1).expand(-1, 2, 2, 2)
    condition = Condition({"text": x0[:, 0, 0]}, torch.tensor(ids))
    return Batch(index, Pairs(x0, x0, condition))


@pytest.mark.parametrize("fraction", [0.25, 1 / 3, 0.5, 2 / 3, 0.9])
def test_fresh_samples_are_spread_evenly_whatever_the_batches(fraction):
    index = torch.arange(3000)
    fresh = is_chosen(index, fraction)
    whole = int(fresh.sum())
    assert whole == pytest.approx(3000 * fraction, abs=1)
    for size in (4, 12, 60):
        counts = fresh.reshape(-1, size).sum(1)
        assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(is_chosen(index.flip(0), fraction), fresh.flip(0))
    assert not is_chosen(index, 0.0).any()
    assert is_chosen(index, 1.0).all()


def test_rows_cut_once():
    batch = make_batch(10, 4, [0, 1, 2, 3])
    rows = Rows.cut(batch, Draws(0, 0, batch.index), torch.tensor([False, True, False, True]), 0.5)
    assert rows.x0[:, 0, 0, 0].tolist() == [11, 13]
    assert rows.draws.index.tolist() == [11, 13]
    assert rows.condition.prompt_ids.tolist() == [1, 3]
    assert float(rows.mean(torch.tensor([1.0, 3.0]))) == 2
    none = Rows.cut(batch, Draws(0, 0, batch.index), torch.zeros(4, dtype=torch.bool), 0.5)
    assert (none.there, len(none.x0)) == (False, 1), (
        "one stands in, for networks that must be called"
    )
    assert float(none.mean(torch.tensor([7.0]))) == 0
    assert none.shown({"loss": torch.ones(1)}) == {}


def everyone(batch: Batch, draws: Draws) -> Rows:
    return Rows.cut(batch, draws, torch.ones(len(batch), dtype=torch.bool), 1.0)


def test_a_sample_gets_the_latent_before_it_and_equal_prompts_are_known():
    batch = make_batch(0, 4, [5, 5, 6, 5])
    draws = Draws(0, 0, batch.index)
    latents, differ = Misaligned()(batch, everyone(batch, draws), 0.0, draws)
    assert latents[:, 0, 0, 0].tolist() == [3, 0, 1, 2]
    assert differ.tolist() == [False, False, True, True]


def test_prompts_without_ids_are_told_apart_by_their_text(recwarn):
    """As those of `Pipeline.encode_prompt` in a loop of one's own; a shorter one is padded."""
    text = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    tensors = {"text": text * mask[..., None], "mask": mask, "guidance": torch.full((2,), 3.5)}
    condition = Condition(tensors).index([0, 0, 1, 0])
    latents = torch.arange(4.0).reshape(4, 1, 1, 1)
    batch = Batch(torch.arange(4), Pairs(latents, latents, condition))
    draws = Draws(0, 0, batch.index)
    assert Misaligned()(batch, everyone(batch, draws), 0.0, draws)[1].tolist() == [0, 0, 1, 1]
    assert not recwarn.list


def test_two_processes_see_what_one_does(recwarn):
    """Each has half of the micro-batch; `gather` joins them."""
    whole, ids = make_batch(0, 4, [5, 5, 6, 5]), [5, 5, 6, 5]
    assert whole.pairs is not None
    kinds = {1: whole.index, 4: whole.pairs.x0}
    found = []
    for start in (0, 2):
        half = make_batch(start, 2, ids[start : start + 2])

        def gather(part: torch.Tensor) -> torch.Tensor:
            is_ids = part.ndim == 1 and bool((part >= 5).all())
            return torch.tensor(ids) if is_ids else kinds[part.ndim]

        draws = Draws(0, 0, half.index, gather=gather)
        latents, differ = Misaligned()(half, everyone(half, draws), 0.0, draws)
        found += [*zip(latents[:, 0, 0, 0].tolist(), differ.tolist(), strict=True)]
    assert found == [(3, False), (0, False), (1, True), (2, True)]
    assert not recwarn.list, "one half alone has one prompt"


def test_it_warns_of_one_prompt_once(recwarn):
    batch = make_batch(0, 3, [5, 5, 5])
    draws, misaligned = Draws(0, 0, batch.index), Misaligned()
    for _ in range(2):
        misaligned(batch, everyone(batch, draws), 0.0, draws)
    (warning,) = recwarn.list
    assert "all 3 prompts of the first micro-batch are one" in str(warning.message)
