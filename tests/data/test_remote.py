from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from nitrodistill.data import BatchStream, PairStore, Prefetch
from nitrodistill.data.push import push_store
from nitrodistill.data.remote import is_address


@pytest.fixture
def address(made: PairStore) -> Iterator[str]:
    """The store in a file system that is not this machine's."""
    memory = fsspec.filesystem("memory")
    for path in made.path.rglob("*"):
        if path.is_file():
            memory.pipe(f"/pairs/{path.relative_to(made.path).as_posix()}", path.read_bytes())
    yield "memory://pairs"
    memory.rm("/pairs", recursive=True)


def arrows(cache: Path) -> int:
    return sum(1 for _ in cache.rglob("*.arrow"))


def test_a_store_elsewhere_gives_the_same_batches(
    made: PairStore, address: str, tmp_path: Path
) -> None:
    there = PairStore.open(address, cache=tmp_path)
    assert arrows(tmp_path) == 0  # nothing is fetched before it is needed
    here, far = BatchStream(made, seed=1, batch_size=4), BatchStream(there, seed=1, batch_size=4)
    for i in range(4):
        one, two = here(i).pairs, far(i).pairs
        assert one is not None
        assert two is not None
        assert torch.equal(one.x0, two.x0)
        assert torch.equal(one.noise, two.noise)
        name = "encoder_hidden_states"
        assert torch.equal(one.condition[name], two.condition[name])
    assert there.prompts == made.prompts
    there.verify()
    assert arrows(tmp_path) == 5
    fsspec.filesystem("memory").rm("/pairs/shards", recursive=True)
    again = PairStore.open(address, cache=tmp_path)  # kept from before
    assert torch.equal(again.read([7]).x0, made.read([7]).x0)


def test_a_window_needs_few_files_at_a_time(made: PairStore, address: str, tmp_path: Path) -> None:
    there = PairStore.open(address, cache=tmp_path, max_files=2)
    stream = BatchStream(there, seed=3, batch_size=1, window=1)
    rows = []
    for i in range(11):
        rows.append(stream.row(i))
        batch = stream(i)
        assert batch.pairs is not None
        assert torch.equal(batch.pairs.x0, made.read([rows[-1]]).x0)
        assert arrows(tmp_path) <= 2
    assert sorted(rows) == list(range(11))
    files = [row // 4 for row in rows]
    assert (
        len([k for k, f in enumerate(files) if k == 0 or files[k - 1] != f]) == 3
    )  # one after another


def test_threads_do_not_take_files_from_each_other(
    made: PairStore, address: str, tmp_path: Path
) -> None:
    """Prompts and pairs are both fetched, and only one file is kept: every read evicts another's."""
    stream = BatchStream(PairStore.open(address, cache=tmp_path, max_files=1), seed=3, batch_size=3)
    local = BatchStream(made, seed=3, batch_size=3)
    with Prefetch(stream, end=30, threads=4) as ahead:
        for n in range(30):
            far, here = ahead(n).pairs, local(n).pairs
            assert far is not None
            assert here is not None
            assert torch.equal(far.x0, here.x0)


def test_windows_mix_within_and_over_epochs(made: PairStore) -> None:
    def order(window: int | None, epoch: int) -> list[int]:
        stream = BatchStream(made, seed=0, batch_size=1, window=window)
        return [stream.row(11 * epoch + n) for n in range(11)]

    assert sorted(order(2, 0)) == sorted(order(2, 1)) == list(range(11))
    assert order(2, 0) != order(2, 1)
    assert order(2, 0) == order(2, 0)
    assert order(None, 0) == [BatchStream(made, 0, 1).row(n) for n in range(11)]
    with pytest.raises(ValueError, match="window is 0"):
        BatchStream(made, 0, 1, window=0)
    with pytest.raises(ValueError, match="its source a store"):
        BatchStream([{"x0": torch.zeros(1), "noise": torch.zeros(1)}], 0, 1, window=1)


def test_what_is_wrong_elsewhere_is_an_error(
    made: PairStore, address: str, tmp_path: Path, flip: Callable[[Path, bytes], None]
) -> None:
    memory = fsspec.filesystem("memory")
    store = PairStore.open(address, cache=tmp_path)
    data = bytearray(memory.cat_file("/pairs/shards/000000.arrow"))
    data[len(data) // 2] ^= 1
    memory.pipe("/pairs/shards/000000.arrow", bytes(data))
    with pytest.raises(ValueError, match=r"000000.arrow in 'memory://pairs' is not the file"):
        store.read([0])
    memory.rm("/pairs/shards/000001.arrow")
    with pytest.raises(FileNotFoundError, match=r"000001.arrow is missing in 'memory://pairs'"):
        store.read([4])
    assert arrows(tmp_path) == 0
    with pytest.raises(ValueError, match="cannot be pushed"):
        push_store(store, "me/pairs")
    with pytest.raises(FileNotFoundError, match="no pair store at 'memory://nowhere'"):
        PairStore.open("memory://nowhere", cache=tmp_path)
    with pytest.raises(ValueError, match="'xyz://pairs' cannot be opened"):
        PairStore.open("xyz://pairs", cache=tmp_path)
    with pytest.raises(ValueError, match="max_files is 0"):
        PairStore.open(address, cache=tmp_path, max_files=0)


def test_a_manifest_from_elsewhere_chooses_no_path(
    made: PairStore, address: str, tmp_path: Path
) -> None:
    text = made.manifest.to_json()
    digest = made.manifest.shards[0].blake2b
    memory = fsspec.filesystem("memory")
    memory.pipe("/pairs/manifest.json", text.replace(digest, "../../../evil").encode())
    store = PairStore.open(address, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="must be 32 hexadecimal digits"):
        store.read([0])
    assert [p.name for p in tmp_path.rglob("*.arrow")] == []


def test_addresses() -> None:
    assert is_address("hf://datasets/me/pairs")
    assert not is_address("runs/pairs")
    assert not is_address(Path("a://b"))
