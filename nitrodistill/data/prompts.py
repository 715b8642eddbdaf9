"""Prompts from a text file, a column of a table, or a dataset of the `datasets` library; each of them once.

prompts.txt                 a prompt a line
captions.csv:caption        a column of a file: CSV, TSV, JSONL or parquet
user/name:caption           a column of a dataset on the Hub, or of a folder that `datasets` reads; streamed
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nitrodistill.checks import check_fields
from nitrodistill.data.text import read_lines
from nitrodistill.settings import shown

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts are taken.

    Attributes:
        prompt_column: of a table or dataset; null takes what stands behind the colon, or its only one.
        prompt_subset: of a dataset that has several.
        prompt_split: of a dataset.
        shuffle: seed of their order; null leaves them as they stand.
        num_prompts: the first so many, in that order; null takes all.

    Example:
        >>> nd.data.PromptConfig(shuffle=0, num_prompts=100).prompt_split
        'train'
    """

    prompt_column: str | None = None
    prompt_subset: str | None = None
    prompt_split: str = "train"
    shuffle: int | None = None
    num_prompts: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, shuffle=0, num_prompts=1)


def read_prompts(path: str | Path, config: PromptConfig | None = None) -> list[str]:
    """Reads prompts; they are stripped, empty ones are dropped, and of equal ones the first is kept.

    Args:
        path: of a UTF-8 file with a prompt a line, or of a table or dataset with its column (see above); "" is
            none, and means the empty prompt alone, as unconditional teachers take it.
        config: which; None takes all, as they stand.

    Raises:
        FileNotFoundError: if there is no such file or dataset.
        ImportError: if a dataset is named and `datasets` is not installed.
        ValueError: if it is not UTF-8, has no such column, or holds no prompt, or a setting is of another kind of
            place.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("prompts.txt").write_text("a cat")
        >>> nd.data.read_prompts("prompts.txt")
        ['a cat']
    """
    if path == "":
        return [""]
    config = config or PromptConfig()
    texts = ("" if value is None else str(value).strip() for value in _values(str(path), config))
    first = config.num_prompts if config.shuffle is None else None
    prompts = list(islice(_once(filter(None, texts)), first))
    if not prompts:
        raise ValueError(
            f'{str(path)!r} holds no prompt; write one a line, or give "" in place of the file for an '
            "unconditional teacher."
        )
    if config.shuffle is not None:
        order = np.random.default_rng(config.shuffle).permutation(len(prompts))
        prompts = [prompts[i] for i in order[: config.num_prompts]]
    return prompts


def _once(texts: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text


def _values(path: str, config: PromptConfig) -> Iterator[object]:
    """What the lines, or the rows of the column, hold."""
    file, column = Path(path), config.prompt_column
    if not file.exists() and ":" in path:
        name, _, column = path.rpartition(":")
        file = Path(name)
    suffix = file.suffix.lower()
    is_table = suffix in _TABLES and file.is_file()
    is_name = str(file).count("/") == 1 and not file.is_absolute() and suffix not in _TABLES
    is_dataset = column is not None and (file.is_dir() or (is_name and not file.exists()))
    lines = [] if is_table or is_dataset else read_lines(path)
    fitting = {"prompt_column": (None, column if is_table or is_dataset else None)}
    if not is_dataset:
        fitting |= {"prompt_subset": (None, None), "prompt_split": ("train", None)}
    for name, values in fitting.items():
        if getattr(config, name) not in values:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, which does not fit the prompts {path!r}; leave it out."
            )
    if is_dataset:
        return _dataset(str(file), str(column), config)
    return _table(file, column) if is_table else iter(lines)


def _table(file: Path, column: str | None) -> Iterator[object]:
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            from pyarrow.parquet import ParquetFile

            table = ParquetFile(file)
            name = _column(file, column, table.schema_arrow.names)
            for batch in table.iter_batches(columns=[name]):
                yield from batch.column(0).to_pylist()
            return
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if kind == ".jsonl":
                for row in map(json.loads, filter(str.strip, lines)):
                    columns = row if isinstance(row, dict) else ()
                    yield row[_column(file, column, columns)]
                return
            rows = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
            name = _column(file, column, rows.fieldnames or ())
            yield from (row[name] for row in rows)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as {kind[1:]}: {error}.") from error


def _dataset(name: str, column: str, config: PromptConfig) -> Iterator[object]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"prompts of the dataset {name!r} need `datasets`, which is not installed; pip install "
            '"nitrodistill[datasets]".'
        ) from error
    split = config.prompt_split
    saved = [(Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")]
    rows: Any
    if any(saved):
        found: Any = datasets.load_from_disk(name)
        rows = found[split] if saved[1] else found
    else:
        rows = datasets.load_dataset(name, config.prompt_subset, split=split, streaming=True)
    if rows.column_names:  # a stream may not know them
        rows = rows.select_columns(_column(name, column, rows.column_names))
    for row in rows:
        yield row[_column(name, column, row)]


def _column(place: object, column: str | None, columns: Collection[str]) -> str:
    """The column that is meant."""
    if column is None and len(columns) == 1:
        return next(iter(columns))
    if column is None or column not in columns:
        asked = "" if column is None else f" no column {column!r}, only"
        raise ValueError(
            f"{str(place)!r} has{asked} {shown(list(columns))}; say which column holds prompts: "
            f"{place}:{next(iter(columns), 'COLUMN')}, or --prompt_column."
        )
    return column
