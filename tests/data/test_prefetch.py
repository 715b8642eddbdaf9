from __future__ import annotations

import threading

import pytest
import torch

from nitrodistill.data import BatchStream, PairStore, Prefetch
from nitrodistill.types import Batch


class Numbers:
    """Micro-batch n holds n; keeps what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, number: int) -> Batch:
        self.asked.append(number)
        return Batch(torch.tensor([number]))


def test_it_reads_one_ahead_and_not_behind_the_end() -> None:
    stream = Numbers()
    seen = threading.Event()

    def read(number: int) -> Batch:
        batch = stream(number)
        if number == 3:
            seen.set()
        return batch

    with Prefetch(read, end=5) as ahead:
        assert ahead(2).index.tolist() == [2]
        assert seen.wait(60), "the next one is read without being asked for"
        assert [ahead(n).index.item() for n in (3, 4)] == [3, 4]
    assert stream.asked == [2, 3, 4]


def test_threads_read_at_once_and_as_many_ahead() -> None:
    stream = Numbers()
    meeting = threading.Barrier(3)

    def read(number: int) -> Batch:
        if number < 3:
            meeting.wait(60)  # would break if they were read one after the other
        return stream(number)

    with Prefetch(read, end=100, threads=3) as ahead:
        assert [ahead(n).index.item() for n in range(6)] == list(range(6))
    assert set(range(6)) <= set(stream.asked) <= set(range(9))
    assert len(stream.asked) == len(set(stream.asked))


@pytest.mark.parametrize("threads", [1, 3])
def test_another_number_than_the_next_is_read_too(threads: int) -> None:
    with Prefetch(Numbers(), end=9, threads=threads) as ahead:
        assert [ahead(n).index.item() for n in (0, 5, 1, 8, 20)] == [0, 5, 1, 8, 20]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_the_stream_raises_is_raised_where_it_is_asked_for(threads: int) -> None:
    def broken(number: int) -> Batch:
        if number:
            raise KeyError(number)
        return Numbers()(number)

    with Prefetch(broken, end=3, threads=threads) as ahead:
        assert ahead(0).index.item() == 0
        for _ in range(2):
            with pytest.raises(KeyError, match="1"):
                ahead(1)


def test_threads_get_from_a_store_what_one_gets(made: PairStore) -> None:
    alone = BatchStream(made, seed=2, batch_size=5)
    stream = BatchStream(PairStore.open(made.path), seed=2, batch_size=5)  # no file is open yet
    with Prefetch(stream, end=40, threads=4) as ahead:
        for n in range(40):
            expected, batch = alone(n), ahead(n)
            assert torch.equal(batch.index, expected.index)
            found, known = batch.pairs, expected.pairs
            assert found is not None
            assert known is not None
            assert torch.equal(found.x0, known.x0)
            assert torch.equal(found.noise, known.noise)
            name = "encoder_hidden_states"
            assert torch.equal(found.condition[name], known.condition[name])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        Prefetch(Numbers(), end=1, threads=0)
