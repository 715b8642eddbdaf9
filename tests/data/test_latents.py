from __future__ import annotations

import pytest
import torch

from nitrodistill.data import BatchStream, LatentStore, PairStore, Prompts
from nitrodistill.types import Condition


def test_real_latents_are_the_stores_without_its_noise(made: PairStore) -> None:
    store = LatentStore.open(made.path)
    assert (len(store), store.prompts, store.bounds) == (len(made), made.prompts, made.bounds)
    assert store.identity() == made.manifest.identity()
    rows = [3, 0, 3]
    read, pairs = store.read(rows), made.read(rows)
    assert torch.equal(read.x0, pairs.x0)
    assert read.condition.prompt_ids is not None
    assert pairs.condition.prompt_ids is not None
    assert torch.equal(read.condition.prompt_ids, pairs.condition.prompt_ids)
    batch = BatchStream(store, seed=0, batch_size=2)(0)
    assert list(batch.parts()) == ["real"]


def test_prompts_are_encoded_when_they_are_read_and_know_their_places() -> None:
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> Condition:
        asked.append(list(texts))
        lengths = torch.tensor([[float(len(text))] for text in texts])
        return Condition({"length": lengths})

    prompts = Prompts.encoded_by(encode, ["a", "bb", "ccc"])
    assert asked == []
    read = prompts.read([2, 0, 2])
    assert asked == [["ccc", "a", "ccc"]]
    assert read["length"].flatten().tolist() == [3, 1, 3]
    assert read.prompt_ids is not None
    assert read.prompt_ids.tolist() == [2, 0, 2]
    batch = BatchStream(prompts, seed=0, batch_size=3)(0)
    assert list(batch.parts()) == ["prompts"]
    assert batch.prompts is not None
    assert batch.prompts.prompt_ids is not None
    assert sorted(batch.prompts.prompt_ids.tolist()) == [0, 1, 2]


def test_prompts_of_a_store_are_not_encoded_again(made: PairStore) -> None:
    prompts = Prompts.of(made)
    assert prompts.prompts == made.prompts
    read = prompts.read(range(len(prompts)))
    whole = made.read(range(len(made))).condition
    assert whole.prompt_ids is not None
    for name in read.tensors:
        assert torch.equal(read[name][whole.prompt_ids], whole[name])


def test_identities_are_the_texts() -> None:
    one, same, other = (
        Prompts.encoded_by(lambda texts: Condition(), texts)
        for texts in (["a", "b"], ["a", "b"], ["b", "a"])
    )
    assert one.identity() == same.identity() != other.identity()


def test_no_prompts_are_an_error() -> None:
    with pytest.raises(ValueError, match="give a list of at least one text"):
        Prompts([], lambda rows: Condition())
