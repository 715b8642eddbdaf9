from __future__ import annotations

from pathlib import Path

import pytest

from nitrodistill.toy.manifest import WEIGHTS, digest, verify
from tools.toy.train import write_manifest


def folder(root: Path) -> Path:
    (root / "unet").mkdir()
    (root / "unet" / "weights.bin").write_bytes(b"abc")
    write_manifest(root)
    return root


def test_digest_of_abc_is_the_published_one(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    assert (
        digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_whole_folder_passes(tmp_path: Path):
    verify(folder(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path):
    (folder(tmp_path) / "unet" / "weights.bin").write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"unet/weights.bin are damaged"):
        verify(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    (folder(tmp_path) / "unet" / "weights.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/weights.bin are missing"):
        verify(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no toy weights"):
        verify(tmp_path)


def test_shipped_weights_are_whole_and_small():
    verify(WEIGHTS)
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 6_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt"}
