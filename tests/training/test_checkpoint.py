from __future__ import annotations

import json
import os

import pytest
import torch

from nitrodistill.training import find_checkpoints, newest_checkpoint
from nitrodistill.training.checkpoint import Checkpoint, CheckpointWriter, prune
from nitrodistill.training.roles import kept

STATE = {"stage": 0, "note": "x"}


def _write(output, step=1, stage=0):
    value = torch.arange(6.0).reshape(2, 3).t() + step  # not contiguous
    tensors = {
        "student": {"a": value, "tied": value},
        "student.optimizer": {"step": torch.tensor(3.0)},
    }
    writer = CheckpointWriter(output, stage, step)
    for name, values in tensors.items():
        writer.add(name, kept(values, keep=True))
    return writer.finish(STATE)


def test_what_is_written_is_read(tmp_path):
    checkpoint = _write(tmp_path)
    checkpoint.verify()
    assert newest_checkpoint(tmp_path) == checkpoint
    assert checkpoint.state() == STATE
    assert torch.equal(checkpoint.tensors("student")["a"], torch.arange(6.0).reshape(2, 3).t() + 1)
    assert checkpoint.tensors("student.optimizer")["step"].shape == ()


def test_there_is_nothing_but_safetensors_and_json(tmp_path):
    assert {f.suffix for f in _write(tmp_path).path.iterdir()} == {".safetensors", ".json"}


def _flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _truncate, os.unlink])
@pytest.mark.parametrize("name", ["student.safetensors", "state.json", "manifest.json"])
def test_damage_is_named_and_an_older_checkpoint_is_taken(tmp_path, damage, name):
    old, new = _write(tmp_path, 1), _write(tmp_path, 2)
    damage(new.path / name)
    with pytest.raises(ValueError, match=f"is damaged: {name}"):
        new.verify()
    with pytest.warns(RuntimeWarning, match="step-00000002 is damaged"):
        assert newest_checkpoint(tmp_path) == old


def test_when_all_are_damaged_it_says_so(tmp_path):
    _flip(_write(tmp_path).path / "student.safetensors")
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="every checkpoint"):
        newest_checkpoint(tmp_path)


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_order_stages_and_pruning(tmp_path):
    for stage, step in [(0, 9), (0, 10), (1, 2), (0, 8)]:
        _write(tmp_path, step, stage)
    half = tmp_path / "checkpoints" / ".writing-stage-0-step-00000011"
    half.mkdir()
    assert [(c.stage, c.step) for c in find_checkpoints(tmp_path)] == [
        (1, 2),
        (0, 10),
        (0, 9),
        (0, 8),
    ]
    prune(tmp_path, 0, keep=1)
    assert [(c.stage, c.step) for c in find_checkpoints(tmp_path)] == [(1, 2), (0, 10)]
    assert not half.exists()


def test_a_failed_write_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nitrodistill.training.checkpoint._flush", full)
    with pytest.raises(OSError, match=r"could not be written.*No space left"):
        _write(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_manifest_cannot_leave_its_folder(tmp_path):
    checkpoint = _write(tmp_path)
    (checkpoint.path / "manifest.json").write_text(json.dumps({"../x": {}}))
    with pytest.raises(ValueError, match="outside of its folder"):
        checkpoint.verify()


@pytest.mark.parametrize("text", ["[]", "{", "\x00", '{"student.safetensors": 3}'])
def test_a_strange_manifest_is_damage(tmp_path, text):
    checkpoint = _write(tmp_path)
    (checkpoint.path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.verify()


def test_a_missing_tensor_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no readable student"):
        Checkpoint(tmp_path, 0, 0).tensors("student")
