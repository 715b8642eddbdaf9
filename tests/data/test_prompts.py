from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nitrodistill.data import PromptConfig, read_prompts

TEXTS = [
    "a cat, asleep",
    "a dog\nin two lines",
    "a cat, asleep",
    " ",
    'a "quoted" bird',
    "ein Hühnchen",
]
EXPECTED = ["a cat, asleep", "a dog\nin two lines", 'a "quoted" bird', "ein Hühnchen"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same texts as CSV, TSV, JSONL and parquet, with a column of numbers next to them."""
    for name, delimiter in (("texts.csv", ","), ("texts.TSV", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            rows = csv.writer(file, delimiter=delimiter)
            rows.writerows([["number", "caption"], *enumerate(TEXTS)])
    lines = [json.dumps({"number": i, "caption": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines, "", '{"number": 9, "caption": null}']))
    table = pa.table({"number": range(len(TEXTS) + 1), "caption": [*TEXTS, None]})
    pq.write_table(table, tmp_path / "texts.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["texts.csv", "texts.TSV", "texts.jsonl", "texts.parquet"])
def test_a_column_of_a_table(folder, name):
    file = folder / name
    assert read_prompts(f"{file}:caption") == EXPECTED
    assert read_prompts(file, PromptConfig("caption", num_prompts=2)) == EXPECTED[:2]
    assert read_prompts(f"{file}:number")[:3] == ["0", "1", "2"], "classes"
    for wrong in (file, f"{file}:captoin"):
        with pytest.raises(ValueError, match=r"only |has \['number', 'caption'\]; say which"):
            read_prompts(wrong)


def test_the_order_is_a_function_of_the_seed(tmp_path):
    lines = [f"prompt {i}" for i in range(50)]
    (tmp_path / "a.txt").write_text("\n".join(lines + lines))
    one, same, other = (
        read_prompts(tmp_path / "a.txt", PromptConfig(shuffle=s)) for s in (1, 1, 2)
    )
    assert sorted(one) == sorted(other) == sorted(lines), "each once"
    assert one == same != other
    assert one != lines
    few = read_prompts(tmp_path / "a.txt", PromptConfig(shuffle=1, num_prompts=7))
    assert few == one[:7], "of all, not of the first seven"
    assert read_prompts(tmp_path / "a.txt") == lines


def test_a_folder_that_datasets_reads(folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    local, saved, split = (folder / name for name in ("local", "saved", "split"))
    local.mkdir()
    (folder / "texts.parquet").rename(local / "texts.parquet")
    rows = datasets.Dataset.from_dict({"caption": TEXTS})
    rows.save_to_disk(str(saved))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(split))
    assert read_prompts(f"{local}:caption") == EXPECTED
    assert read_prompts(f"{saved}:caption") == EXPECTED
    assert read_prompts(split, PromptConfig("caption", prompt_split="test")) == EXPECTED
    with pytest.raises(ValueError, match=r"no column 'text', only \['number', 'caption'\]"):
        read_prompts(f"{local}:text")


def test_a_dataset_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'need `datasets`.*"nitrodistill\[datasets\]"'):
        read_prompts("user/name:caption")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", b"caption\n\xff\n", "is not UTF-8"),
        ("a.csv", b"", "say which column"),
        ("a.csv", b"caption\n\n", 'holds no prompt; .* give "" in place'),
        ("a.jsonl", b"{", "cannot be read as jsonl"),
        ("a.jsonl", b"[1]", "say which column"),
        ("a.jsonl", b'"a caption"', r"only \[\]; say which column"),
        ("a.parquet", b"no parquet", "arquet"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, sentence):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(f"{tmp_path / name}:caption")


def test_a_file_that_is_not_there(tmp_path):
    relative = "none/none.csv:caption"  # no dataset on the Hub
    for path in (tmp_path / "none.csv", f"{tmp_path / 'none.csv'}:caption", "none.txt", relative):
        with pytest.raises(FileNotFoundError, match="no prompt file at"):
            read_prompts(path)


@pytest.mark.parametrize("wrong", [{"shuffle": -1}, {"num_prompts": 0}])
def test_settings_that_are_none(wrong):
    with pytest.raises(ValueError, match="it must be at least"):
        PromptConfig(**wrong)


def test_settings_that_do_not_fit_the_place(folder):
    lines = folder / "a.txt"
    lines.write_text("a cat")
    table = f"{folder / 'texts.csv'}:caption"
    for path, given in (
        (lines, {"prompt_column": "caption"}),
        (lines, {"prompt_split": "test"}),
        (table, {"prompt_column": "number"}),
        (table, {"prompt_subset": "small"}),
        ("user/name:caption", {"prompt_column": "number"}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is .* does not fit"):
            read_prompts(path, PromptConfig(**given))
    assert read_prompts(table, PromptConfig("caption")) == EXPECTED
