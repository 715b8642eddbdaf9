from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from nitrodistill.training import find_checkpoints, newest_checkpoint
from nitrodistill.training.checkpoint import Checkpoint, CheckpointWriter, prune
from nitrodistill.training.roles import kept

STATE = {"note": "x"}


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
    assert checkpoint.state() == {**STATE, "stage": 0, "step": 1}
    assert torch.equal(checkpoint.tensors("student")["a"], torch.arange(6.0).reshape(2, 3).t() + 1)
    assert checkpoint.tensors("student.optimizer")["step"].shape == ()


@pytest.mark.parametrize(
    "name", ["stage-0-step-2", "stage-00-step-00000002", "stage-0-step-٠000000٢"]
)
def test_a_folder_with_nearly_the_name_of_a_checkpoint_is_told(tmp_path, name):
    """It would be read under one name and looked for under another."""
    _write(tmp_path, 1)
    new = _write(tmp_path, 2).path
    new.rename(new.parent / name)
    words = rf"{name}' is not how a checkpoint is named \(stage-0-step-00000002 would be\); move it"
    with pytest.raises(ValueError, match=words):
        newest_checkpoint(tmp_path)


def test_other_folders_are_left_alone(tmp_path):
    checkpoint = _write(tmp_path, 1)
    for name in ("stage-0-step-00000001 (copy)", "stage-x", "stage-0-step-" + "9" * 300):
        (checkpoint.path.parent / name[:200]).mkdir()
    assert find_checkpoints(tmp_path) == [checkpoint]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe(tmp_path):
    file = _write(tmp_path).path / "manifest.json"
    file.unlink()
    os.mkfifo(file)
    with (
        pytest.warns(RuntimeWarning, match="manifest.json"),
        pytest.raises(ValueError, match="every"),
    ):
        newest_checkpoint(tmp_path)


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


def test_a_checkpoint_copied_over_another_is_damage(tmp_path):
    old, new = _write(tmp_path, 1), _write(tmp_path, 2)
    shutil.rmtree(new.path)
    shutil.copytree(old.path, new.path)
    with pytest.raises(ValueError, match="step-00000002 is damaged: it holds stage 0, step 1"):
        new.verify()
    with pytest.warns(RuntimeWarning):
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
    assert [(c.stage, c.step) for c in find_checkpoints(tmp_path)] == [
        (1, 2),
        (0, 10),
        (0, 9),
        (0, 8),
    ]
    prune(tmp_path, 0, keep=1)
    assert [(c.stage, c.step) for c in find_checkpoints(tmp_path)] == [(1, 2), (0, 10)]


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path):
    writer = CheckpointWriter(tmp_path, 0, 1)  # of a process that lives: it may still be at work
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    left = writer._aside.name.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-")
    (tmp_path / "checkpoints" / left).mkdir()
    _write(tmp_path, 2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"stage-0-step-00000002", writer._aside.name}


def test_colleagues_can_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        modes = {file.stat().st_mode & 0o777 for file in _write(tmp_path).path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o644}


def test_tensors_that_the_manifest_does_not_name_are_damage(tmp_path):
    checkpoint = _write(tmp_path)
    (checkpoint.path / ".DS_Store").touch()  # of a file manager: harmless
    checkpoint.verify()
    (checkpoint.path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"damaged: student\S*.safetensors is not in its manifest"):
        checkpoint.verify()


def test_a_failed_write_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nitrodistill.training.checkpoint.complete_folder", full)
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
