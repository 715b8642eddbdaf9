from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nitrodistill.data import read_prompts
from nitrodistill.data.text import hash_texts, token_lengths
from nitrodistill.types import Condition


def test_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff  a cat \r\n\n\t\nein Hühnchen\x0bx\nlast".encode())
    assert read_prompts(path) == ["a cat", "ein Hühnchen\x0bx", "last"]
    assert read_prompts("") == [""]


def test_bad_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(FileNotFoundError, match="no prompt file at"):
        read_prompts(path)
    with pytest.raises(FileNotFoundError, match="no prompt file at"):
        read_prompts(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError, match="no prompt file at"):
            read_prompts(tmp_path / "pipe")
    path.write_bytes(b"\n \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"ok\n\xff\xfe")
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 3\)"):
        read_prompts(path)


def test_hash_sees_order_and_borders() -> None:
    lists = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [], [""]]
    assert len({hash_texts(texts) for texts in lists}) == len(lists)


def test_token_lengths_follow_the_mask() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    tensors = {"text": torch.zeros(3, 4, 2), "text_mask": mask, "pooled": torch.zeros(3, 4)}
    expected = [2, 3, 1]  # the last kept token decides; at least one stays
    assert token_lengths(Condition(tensors)) == {"text": expected, "text_mask": expected}
    assert token_lengths(Condition({"text": torch.zeros(3, 4, 2)})) == {}


def test_masks_of_one_length_share_the_longer_extent() -> None:
    one, two = torch.tensor([[1, 0, 0]]), torch.tensor([[True, True, False]])
    found = token_lengths(Condition({"a": torch.zeros(1, 3, 2), "a_mask": one, "b_mask": two}))
    assert found == {"a": [2], "a_mask": [2], "b_mask": [2]}
