from __future__ import annotations

from types import SimpleNamespace

import torch

from nitrodistill.cli import doctor
from nitrodistill.kernels import backend, launch


def test_a_machine_without_gpu(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert f"torch        {torch.__version__}" in said
    assert "none that torch sees" in said


def pretend(monkeypatch, architecture: str, listed: list[str], failure: str | None) -> None:
    properties = SimpleNamespace(name="Some GPU", total_memory=64 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: listed)
    monkeypatch.setattr(launch, "architecture", lambda index: architecture)
    monkeypatch.setattr(backend, "triton_failure", lambda index: failure)


def test_a_gpu_says_which_kernels_run_and_why(monkeypatch, capsys):
    pretend(monkeypatch, "gfx90a", ["gfx90a"], None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(launch, "proven", lambda name: frozenset({"dmd"}))
    monkeypatch.setattr(launch, "results", lambda name: "benchmarks/results/mi250.json")
    assert doctor.doctor() == 0
    said = capsys.readouterr().out
    assert "Some GPU, gfx90a, 64 GiB" in said
    assert "dmd        triton: benchmarks/results/mi250.json shows it to win on gfx90a" in said
    assert "ssim       reference: no committed measurement on gfx90a" in said


def test_a_torch_without_this_gpu_and_a_broken_triton_are_problems(monkeypatch, capsys):
    pretend(monkeypatch, "gfx90a", ["gfx1100"], "RuntimeError: no compiler")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert doctor.doctor() == 1
    said = capsys.readouterr().out
    assert "no code for gfx90a, only for gfx1100" in said
    assert "does not work: RuntimeError: no compiler" in said
