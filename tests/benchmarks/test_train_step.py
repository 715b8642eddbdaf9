"""The orders that are compared: the same gradients of the student, and passes as each says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch, tiny_denoiser: Any) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("train_step")
    monkeypatch.setattr(module, "make_network", lambda name: tiny_denoiser.copy().module)
    return module


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_orders_differ_in_passes_and_not_in_the_students_gradient(
    train_step, monkeypatch, checkpoint
):
    """Rows that student and backbone see, and the first update's gradients."""
    gradients, rows = {}, {}
    expected = {"published order": ([2, 2], [2, 2, 2]), "shared": ([2], [2, 4])}
    expected["published order, mended"] = expected["published order"]
    expected["shared_pass"] = ([2], [2, 2])
    for name, build in train_step.COMPETITORS.items():
        setting = train_step.Setting("tiny", 2, "cpu", False, checkpoint)
        call, seen = build(setting), ([], [])
        for denoiser, found in zip((setting.student, setting.teacher), seen, strict=True):
            denoiser.module.register_forward_pre_hook(
                lambda _, __, kwargs, found=found: found.append(len(kwargs["sample"])),
                with_kwargs=True,
            )
        student = list(setting.student.module.parameters())
        before = [p.detach().clone() for p in student]
        finish = train_step.finish

        def record(step: Any, finish=finish, name=name, student=student) -> None:
            if name not in gradients:
                gradients[name] = [p.grad.clone() for p in student]
            finish(step)

        with monkeypatch.context() as patch:
            patch.setattr(train_step, "finish", record)
            call()
        rows[name] = seen
        assert any(not torch.equal(p, q) for p, q in zip(student, before, strict=True))
    assert rows == expected
    first, *others = gradients.values()
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)
