from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch

from nitrodistill.cli import doctor
from nitrodistill.kernels import backend, launch
from nitrodistill.teachers import load_teacher


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """The self-test, and the import of each extra, have tests of their own."""
    if "self_test" not in request.node.name:
        monkeypatch.setattr(doctor, "self_test", lambda device: doctor.KNOWN)
    if "extra" not in request.node.name:
        monkeypatch.setattr(doctor, "_broken", lambda name: None)


def test_a_machine_without_gpu(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_LEAST_DISK", 0)
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


def test_the_self_test_finds_what_is_known():
    found = doctor.self_test(torch.device("cpu"))
    assert found == pytest.approx(doctor.KNOWN, rel=2e-3)
    abar = load_teacher("toy").scheduler.alphas_cumprod
    assert found["schedule"] == pytest.approx(float(abar[round(0.5 * 999)]) ** 0.5, abs=2e-3)
    assert found["training"] < found["loss"], "the student learns"


def _problems(capsys) -> str:
    capsys.readouterr()
    assert doctor.main([]) == 1
    return capsys.readouterr().out


def test_other_numbers_are_a_problem_with_a_way_out(monkeypatch, capsys):
    wrong = {**doctor.KNOWN, "loss": 0.5}
    monkeypatch.setattr(doctor, "self_test", lambda device: wrong)
    monkeypatch.setattr(doctor, "_LEAST_DISK", 0)
    said = _problems(capsys)
    assert f"loss 0.5000, training {doctor.KNOWN['training']:.4f}; expected is loss" in said
    assert "problem; to solve it: pip install --force-reinstall torch torchvision" in said
    assert "problems     1\n" in said


def test_packages_that_are_too_old_or_missing(monkeypatch, capsys):
    needed = [
        "torch>=99",
        "nothing-of-that-name>=1; python_version < '3'",
        'a-missing-one>=2; extra == "lora"',
        'peft>=0.13; extra == "lora"',
    ]
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    said = _problems(capsys)
    assert "wanted is >=99" in said
    assert 'to solve it: pip install "torch>=99"' in said
    assert "extra        lora: no a-missing-one; it is for LoRA students and their files" in said
    assert "nothing-of-that-name" not in said


class _Eight(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no CUDA\n  binary")


def test_extras_that_are_there_and_do_not_work(monkeypatch, capsys):
    needed = [f'{name}; extra == "{name}"' for name in ("bitsandbytes", "kornia", "peft")]
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    optim = SimpleNamespace(AdamW8bit=lambda weights: _Eight(weights, lr=0.1))
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=optim))
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace())
    monkeypatch.setattr(doctor, "_LEAST_DISK", 0)
    said = _problems(capsys)
    assert "bitsandbytes 1.0 is there and does not work: RuntimeError: no CUDA binary" in said
    assert "kornia 1.0 is there and does not work: ModuleNotFoundError" in said
    assert "to solve it: pip install --force-reinstall kornia" in said
    assert "peft: " not in said
    assert "problems     2\n" in said


def test_a_torchvision_of_another_torch(monkeypatch, capsys):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    said = _problems(capsys)
    assert "does not load: operator torchvision::nms does not exist" in said
    assert "both from one index" in said


def test_a_full_disk_and_a_driver_without_its_torch(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**30))
    monkeypatch.setattr(doctor.Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = _problems(capsys)
    assert "the driver is there (/dev/nvidia0), but torch sees none" in said
    assert "export HF_HOME=" in said
    assert "problems     3\n" in said
    assert importlib.metadata.version("diffusers") in said
