from __future__ import annotations

import multiprocessing
import resource
import signal

import pytest
import torch

from nitrodistill.training import Trainer, find_checkpoints


def test_only_the_last_checkpoints_are_kept(tiny, tmp_path):
    tiny.train(tiny.config(checkpoint_every=2, keep_checkpoints=2), output=tmp_path)
    assert [c.step for c in find_checkpoints(tmp_path)] == [6, 4]


def test_resume_never_refuses_a_folder_with_checkpoints(tiny, tmp_path):
    tiny.train(tiny.config(), output=tmp_path)
    with pytest.raises(FileExistsError, match="holds checkpoints already"):
        tiny.train(tiny.config(), output=tmp_path, resume="never")


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path):
    method, config = tiny.Method(), tiny.config(checkpoint_every=2)
    trainer = Trainer(method, tiny.Stream(4), config, output=tmp_path)

    def train():
        for state in trainer.fit():
            if state.step == 3:
                method.student_network[0].weight.data[0, 0] = torch.nan

    with (
        pytest.warns(RuntimeWarning, match="skipped step"),
        pytest.raises(FloatingPointError, match=r"after 3 non-finite.*step-00000002"),
    ):
        train()
    with pytest.raises(FloatingPointError, match=r"'student' are not finite.*step-00000002"):
        trainer.save()
    assert [c.step for c in find_checkpoints(tmp_path)] == [2]


def _save_on_a_full_disk(tiny, output, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    method = tiny.Method()
    trainer = Trainer(method, tiny.Stream(4), tiny.config(steps=1), output=output)
    method.student_network.register_buffer("large", torch.zeros(4000))
    try:
        trainer.save()
    except OSError as error:
        results.put(str(error))


def test_a_full_disk_is_an_error_and_leaves_nothing(tiny, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_save_on_a_full_disk, args=(tiny, tmp_path, results))
    child.start()
    assert "could not be written" in results.get()
    child.join(60)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_averages_that_are_not_finite_are_never_saved(tiny, tmp_path):
    trainer = Trainer(
        tiny.Method(), tiny.Stream(4), tiny.config(checkpoint_every=2), output=tmp_path
    )

    def train():
        for state in trainer.fit():
            if state.step == 3:
                trainer.averages["student"].state_dict()["0.weight"][0, 0] = torch.inf

    with pytest.raises(
        FloatingPointError, match=r"averages in 'student.ema' are not.*step-00000002"
    ):
        train()
    assert [c.step for c in find_checkpoints(tmp_path)] == [2]
