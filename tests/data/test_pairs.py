from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from nitrodistill.data import BatchStream, PairStore, collate_pairs
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint

Rewrite = Callable[[PairStore, str, Callable[[dict[str, list[Any]]], None]], None]


def test_a_batch_is_its_rows(made: PairStore) -> None:
    order = [10, 0, 4, 4, 3]
    batch = made.read(order)
    assert batch.x0.dtype == batch.noise.dtype == torch.float32
    assert batch.x0.shape == batch.noise.shape == (5, 2, 4, 4)
    for k, row in enumerate(order):
        one = made.read([row])
        assert torch.equal(batch.x0[k], one.x0[0])
        assert torch.equal(batch.noise[k], one.noise[0])
        assert torch.equal(
            batch.condition["encoder_hidden_states"][k], one.condition["encoder_hidden_states"][0]
        )
    stored = made.read(order, dtype=None)
    assert stored.x0.dtype == stored.condition["encoder_hidden_states"].dtype == torch.float16
    assert torch.equal(stored.x0.float(), batch.x0)


def test_an_open_store_goes_to_another_process(made: PairStore) -> None:
    made.read([0])  # its files are open
    there = pickle.loads(pickle.dumps(BatchStream(made, seed=1, batch_size=3)))
    assert len(pickle.dumps(made)) < 10_000  # they do not travel
    two = [stream(2).pairs for stream in (there, BatchStream(made, seed=1, batch_size=3))]
    assert two[0] is not None
    assert two[1] is not None
    assert torch.equal(two[0].x0, two[1].x0)


def test_sample_i_has_prompt_i(made: PairStore, prompts: list[str]) -> None:
    ids = made.read(range(11)).condition.prompt_ids
    assert ids is not None
    assert [made.prompts[i] for i in ids] == [prompts[i % 7] for i in range(11)]
    assert len(made.prompts) == len(set(made.prompts)) == 6


def test_conditions_are_the_text_encoder_s_rounded(made: PairStore, pipeline: Pipeline) -> None:
    encoded = pipeline.encode_prompt(made.prompts)["encoder_hidden_states"]
    stored = made.condition(range(6))
    torch.testing.assert_close(stored["encoder_hidden_states"], encoded, rtol=2**-10, atol=1e-7)
    assert stored.prompt_ids is not None
    assert stored.prompt_ids.tolist() == list(range(6))


def test_bad_rows(made: PairStore) -> None:
    with pytest.raises(IndexError, match="row 11 of 11"):
        made.read([11])
    with pytest.raises(IndexError, match="row -1 of 11"):
        made.read([-1])
    with pytest.raises(IndexError, match="row 6 of 6"):
        made.condition([6])
    with pytest.raises(ValueError, match="no rows"):
        made.read([])
    with pytest.raises(ValueError, match="no prompt ids"):
        made.condition([])


def test_another_teacher_is_refused(made: PairStore, pipeline: Pipeline) -> None:
    made.check_teacher(fingerprint(pipeline.denoiser.module))
    other = pipeline.denoiser.copy()
    with torch.no_grad():
        next(other.module.parameters()).flatten()[0] += 1
    with pytest.raises(ValueError, match=r"made by teacher 'tiny'.*generate pairs with this one"):
        made.check_teacher(fingerprint(other.module))


def test_places_without_a_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="no pair store at"):
            PairStore.open(path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a pair store that can be read"):
        PairStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "nitrodistill.pairs", "version": 7}')
    with pytest.raises(ValueError, match="version is 7 and this nitrodistill reads 3"):
        PairStore.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(FileNotFoundError, match="no pair store at"):
        PairStore.open(tmp_path)


def test_a_missing_or_torn_file_is_seen_at_once(copied: Path) -> None:
    shard = copied / "shards/000001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"000001.arrow is torn: \d+ bytes and not"):
        PairStore.open(copied)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001.arrow is missing"):
        PairStore.open(copied)


def test_a_manifest_that_counts_wrong_is_refused(copied: Path) -> None:
    path = copied / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["rows"] = 5
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="its shards hold 12 rows and its sources made 11"):
        PairStore.open(copied)
    data["shards"][1]["rows"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"000001.arrow begins with row \[4\] and not 5"):
        PairStore.open(copied)
    data["shards"][0]["rows"], data["shards"][1]["rows"] = 4, 4
    data["prompts"][1]["rows"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="has 2 rows and not 1"):
        PairStore.open(copied).condition([4])


def _flip(path: Path, content: bytes) -> None:
    """Flips a bit of the first byte of `content` in the file."""
    data = bytearray(path.read_bytes())
    data[data.index(content)] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_an_error_where_it_is_read(made: PairStore, copied: Path) -> None:
    made.verify()
    latents = made.read([5], dtype=None).x0[0].numpy().tobytes()
    _flip(copied / "shards/000001.arrow", latents)
    store = PairStore.open(copied)
    store.read([4, 6])  # its neighbours are whole
    with pytest.raises(ValueError, match=r"000001.arrow is damaged at row 1"):
        store.read([4, 5])
    with pytest.raises(ValueError, match=r"000001.arrow is damaged: its hash"):
        store.verify()


def test_a_changed_prompt_is_an_error(copied: Path) -> None:
    _flip(copied / "prompts/000000.arrow", b"two dogs")
    with pytest.raises(ValueError, match="prompt texts"):
        _ = PairStore.open(copied).prompts


@pytest.mark.parametrize("kind", ["prompts", "shards"])
def test_files_listed_in_another_order_are_an_error(copied: Path, kind: str) -> None:
    path = copied / "manifest.json"
    data = json.loads(path.read_text())
    data[kind][0], data[kind][1] = data[kind][1], data[kind][0]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="begins with row"):
        PairStore.open(copied)


def test_a_shard_copied_over_another_is_an_error(copied: Path) -> None:
    store = PairStore.open(copied)  # before the copy
    shutil.copy(copied / "shards/000000.arrow", copied / "shards/000001.arrow")
    with pytest.raises(ValueError, match=r"000001.arrow does not hold the rows 4 to 7; run"):
        store.read([4])
    with pytest.raises(
        ValueError, match=r"000001.arrow begins with row \[0\] and not 4: it is another"
    ):
        store.verify()
    with pytest.raises(ValueError, match=r"000001.arrow begins with row \[0\]"):
        PairStore.open(copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("shards", "x0"), ("shards", "noise"), ("prompts", "condition.encoder_hidden_states")],
)
def test_what_is_not_finite_is_not_whole(
    copied: Path, rewritten: Rewrite, kind: str, name: str, value: float
) -> None:
    def change(rows: dict[str, list[Any]]) -> None:
        rows[name][2] = (
            rows[name][2][:-2] + torch.tensor(value, dtype=torch.float16).numpy().tobytes()
        )

    rewritten(PairStore.open(copied), kind, change)
    with pytest.raises(ValueError, match=rf"000000.arrow holds {name} that is not finite at row 2"):
        PairStore.open(copied).verify()


def test_one_row_at_another_s_place_is_an_error(copied: Path, rewritten: Rewrite) -> None:
    """The file's first row is right, and all checksums and hashes are."""

    def change(rows: dict[str, list[Any]]) -> None:
        for values in rows.values():
            values[1], values[2] = values[2], values[1]

    rewritten(PairStore.open(copied), "shards", change)
    store = PairStore.open(copied)
    with pytest.raises(ValueError, match="does not hold the rows 0 to 3"):
        store.read([0])
    with pytest.raises(ValueError, match="does not hold the rows 0 to 3"):
        store.verify()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_dataloader_of_torch_reads_a_store(made: PairStore, workers: int) -> None:
    """Map-style: pickled, spawned, in any order, and joined as `read` joins."""
    store = pickle.loads(pickle.dumps(made))
    settings: Any = {
        "num_workers": workers,
        "multiprocessing_context": "spawn" if workers else None,
    }
    loader = DataLoader(store, 3, sampler=[2, 0, 1, 3], collate_fn=collate_pairs, **settings)  # type: ignore[arg-type]
    for batch, rows in zip(loader, ([2, 0, 1], [3]), strict=True):
        right = made.read(rows)
        assert torch.equal(batch.x0, right.x0)
        assert torch.equal(batch.noise, right.noise)
        assert batch.condition.prompt_ids.tolist() == right.condition.prompt_ids.tolist()
        for name, tensor in right.condition.tensors.items():
            assert torch.equal(batch.condition[name], tensor)
    assert len(list(made)) == len(made)
    with pytest.raises(IndexError):
        made[len(made)]
    assert repr(made).startswith(f"PairStore({str(made.path)!r}, {len(made)} pairs of ")
