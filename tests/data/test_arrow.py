from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch

from nitrodistill.data import PairStore
from nitrodistill.data.arrow import ArrowFile, Layout, Table, write_rows
from nitrodistill.data.codec import from_buffers, to_bytes
from nitrodistill.data.columns import DTYPES, Column


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 3)])
def test_every_bit_pattern_survives(dtype: str, shape: tuple[int, ...]) -> None:
    column = Column(dtype, shape)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (4, column.stride_bytes), dtype=torch.uint8, generator=generator)
    if dtype == "bool":
        raw %= 2
    values = raw.view(column.torch_dtype).reshape(4, *shape)
    read = from_buffers([to_bytes(row, column, "x") for row in values], column, "x")
    assert read.dtype == column.torch_dtype
    assert read.shape == values.shape
    assert torch.equal(read.reshape(4, -1).view(torch.uint8), raw)  # also for NaN


def test_rows_of_free_length_are_padded_with_zeros() -> None:
    column = Column("float32", (None, 2))
    rows = [torch.ones(1, 2), torch.full((3, 2), 2.0)]
    read = from_buffers([to_bytes(row, column, "x") for row in rows], column, "x")
    assert read.tolist() == [[[1, 1], [0, 0], [0, 0]], [[2, 2]] * 3]


def test_non_contiguous_rows_are_stored_in_c_order() -> None:
    column = Column("float32", (3, 2))
    row = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(from_buffers([to_bytes(row, column, "x")], column, "x")[0], row)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (torch.zeros(2), Column("float16", (2,))),
        (torch.zeros(2), Column("float32", (3,))),
        (torch.zeros(2), Column("float32", (None, 2))),
        (torch.zeros(()), Column("float32", (None,))),
    ],
)
def test_a_tensor_of_another_kind_is_refused(row: torch.Tensor, column: Column) -> None:
    with pytest.raises(ValueError, match=r"x is torch\.float32"):
        to_bytes(row, column, "x")


def test_a_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="which is no Column"):
        from_buffers([b"123"], Column("float16", (2,)), "x")
    with pytest.raises(ValueError, match="which is no Column"):
        from_buffers([b"123"], Column("float16", (None,)), "x")


def test_datasets_reads_the_files(made: PairStore) -> None:
    shard = datasets.Dataset.from_file(str(made.path / "shards/000001.arrow"))
    assert shard["index"][:] == [4, 5, 6, 7]
    noise = torch.frombuffer(bytearray(shard[2]["noise"]), dtype=torch.float16)
    assert torch.equal(noise.reshape(2, 4, 4), made.read([6], None).noise[0])
    prompts = datasets.Dataset.from_file(str(made.path / "prompts/000000.arrow"))
    assert prompts["text"][:] == ["a red cat", "two dogs", "blue", "sun"]


def test_open_shards_hold_no_descriptors(made: PairStore) -> None:
    before = len(os.listdir("/dev/fd"))
    store = PairStore.open(made.path)
    batch = store.read(range(11))
    assert len(os.listdir("/dev/fd")) == before
    assert torch.equal(batch.x0, made.read(range(11)).x0)


def test_a_table_finds_rows_across_files_of_any_length(made: PairStore) -> None:
    files = [(file.name, file.rows) for file in made.manifest.shards]
    table = Table(made.path.__truediv__, Layout(made.manifest, "shards"), files)
    found = [(file.path.name, row) for file, row in map(table.locate, range(11))]
    assert found == [(f"{n // 4:06d}.arrow", n % 4) for n in range(11)]
    for row in (-1, 11):
        with pytest.raises(IndexError, match=f"row {row} of 11"):
            table.locate(row)
    wrong = Table(made.path.__truediv__, Layout(made.manifest, "shards"), [(files[0][0], 5)])
    with pytest.raises(ValueError, match="has 4 rows and not 5"):
        wrong.locate(0)


def test_a_file_of_another_store_is_refused(made: PairStore, tmp_path: Path) -> None:
    other = Layout(replace(made.manifest, texts_hash="other"), "prompts")
    write_rows(tmp_path / "a.arrow", other, iter(()))
    with pytest.raises(ValueError, match="belongs to another store"):
        ArrowFile(tmp_path / "a.arrow", Layout(made.manifest, "prompts"))
