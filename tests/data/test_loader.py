from __future__ import annotations

import datasets
import pytest
import torch

from nitrodistill.data import BatchStream, PairStore, RowPairs
from nitrodistill.types import Batch, Pairs


def rows(count: int) -> list[dict[str, torch.Tensor | int]]:
    return [
        {
            "x0": torch.full((1, 2, 2), float(i)),
            "noise": torch.full((1, 2, 2), -float(i)),
            "text": torch.full((i % 3 + 1, 2), float(i)),
            "prompt_id": i,
        }
        for i in range(count)
    ]


def pairs_of(batch: Batch) -> Pairs:
    assert batch.pairs is not None
    return batch.pairs


def values(batch: Batch) -> list[int]:
    return pairs_of(batch).x0[:, 0, 0, 0].int().tolist()


def same(one: Batch, other: Batch) -> bool:
    a, b = pairs_of(one), pairs_of(other)
    tensors = zip(a.condition.tensors.values(), b.condition.tensors.values(), strict=True)
    assert a.condition.prompt_ids is not None
    assert b.condition.prompt_ids is not None
    return (
        torch.equal(one.index, other.index)
        and torch.equal(a.x0, b.x0)
        and torch.equal(a.noise, b.noise)
        and torch.equal(a.condition.prompt_ids, b.condition.prompt_ids)
        and all(torch.equal(x, y) for x, y in tensors)
    )


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (5, 5), (3, 8), (1, 4)])
def test_every_epoch_holds_every_pair_once(count: int, batch_size: int) -> None:
    stream = BatchStream(rows(count), seed=1, batch_size=batch_size)
    batches = [stream(i) for i in range(4 * count)]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(4 * count * batch_size))
    drawn = [value for batch in batches for value in values(batch)]
    for start in range(0, len(drawn), count):
        assert sorted(drawn[start : start + count]) == list(range(count))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {
        tuple(values(BatchStream(rows(30), seed, 30)(epoch))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_a_batch_is_a_function_of_its_number_alone(made: PairStore) -> None:
    forward = BatchStream(made, seed=3, batch_size=4)
    batches = [forward(i) for i in range(9)]
    torch.manual_seed(99)
    for i in (8, 0, 5, 4, 7):
        assert same(BatchStream(made, seed=3, batch_size=4)(i), batches[i])
        assert same(forward(i), batches[i])


def test_the_global_rng_is_left_alone(made: PairStore) -> None:
    state = torch.random.get_rng_state()
    BatchStream(made, seed=0, batch_size=2)(0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ranks_split_the_global_batch(made: PairStore) -> None:
    for i in range(4):
        whole = BatchStream(made, seed=2, batch_size=6)(i)
        parts = [BatchStream(made, seed=2, batch_size=6, rank=r, world_size=3)(i) for r in range(3)]
        assert torch.equal(torch.cat([p.index for p in parts]), whole.index)
        assert torch.equal(torch.cat([pairs_of(p).x0 for p in parts]), pairs_of(whole).x0)


def test_rows_and_store_give_the_same_batches(made: PairStore) -> None:
    read = made.read(range(len(made)))
    assert read.condition.prompt_ids is not None
    copies = [
        {
            "x0": read.x0[i],
            "noise": read.noise[i],
            "encoder_hidden_states": read.condition["encoder_hidden_states"][i],
            "prompt_id": int(read.condition.prompt_ids[i]),
        }
        for i in range(len(made))
    ]
    assert same(BatchStream(copies, 7, 5)(3), BatchStream(made, 7, 5)(3))


def test_rows_are_padded_to_the_longest() -> None:
    read = RowPairs(rows(3)).read([2, 0])
    assert read.condition["text"].tolist() == [[[2, 2]] * 3, [[0, 0]] * 3]
    assert read.condition.prompt_ids is not None
    assert read.condition.prompt_ids.tolist() == [2, 0]
    bare = [{"x0": torch.zeros(1, 2, 2), "noise": torch.zeros(1, 2, 2)}]
    assert pairs_of(BatchStream(bare, 0, 2)(0)).condition.prompt_ids is None


def test_a_dataset_of_hugging_face_is_a_sequence_of_dicts() -> None:
    lists = [{k: torch.as_tensor(v).tolist() for k, v in row.items()} for row in rows(5)]
    dataset = datasets.Dataset.from_list(lists)
    for source in (dataset, dataset.with_format("torch")):
        assert same(BatchStream(source, 3, 4)(2), BatchStream(rows(5), 3, 4)(2))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no rows; it needs at least one"):
        BatchStream([], 0, 1)
    for batch_size, world_size in [(0, 1), (4, 3), (4, 0)]:
        with pytest.raises(ValueError, match="batch_size is"):
            BatchStream(rows(2), 0, batch_size, 0, world_size)
    with pytest.raises(ValueError, match="rank is 2"):
        BatchStream(rows(2), 0, 2, 2, 2)
    with pytest.raises(ValueError, match="numbered from 0"):
        BatchStream(rows(2), 0, 2)(-1)
    with pytest.raises(ValueError, match="a pair needs x0 and noise"):
        BatchStream([{"x0": torch.zeros(1)}], 0, 1)(0)
