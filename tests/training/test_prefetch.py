from __future__ import annotations

import threading

import pytest

from nitrodistill.training.prefetch import Prefetch


def test_it_reads_one_ahead_and_not_behind_the_end(tiny):
    stream = tiny.Stream(4)
    seen = threading.Event()

    def read(number):
        batch = stream(number)
        if number == 3:
            seen.set()
        return batch

    with Prefetch(read, end=5) as ahead:
        assert ahead(2).index.tolist() == [8, 9, 10, 11]
        assert seen.wait(60), "the next one is read without being asked for"
        assert [ahead(n).index[0].item() for n in (3, 4)] == [12, 16]
    assert stream.asked == [2, 3, 4]


def test_another_number_than_the_next_is_read_too(tiny):
    with Prefetch(tiny.Stream(4), end=9) as ahead:
        assert [ahead(n).index[0].item() for n in (0, 5, 1)] == [0, 20, 4]


def test_what_the_stream_raises_is_raised_where_it_is_asked_for():
    def broken(number):
        raise KeyError(number)

    with Prefetch(broken, end=2) as ahead, pytest.raises(KeyError, match="0"):
        ahead(0)
