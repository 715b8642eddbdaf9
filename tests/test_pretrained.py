"""Heads and students in a folder and on a Hub that stands in for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import nitrodistill as nd
from nitrodistill import pretrained
from nitrodistill.training import Student
from tests.export.test_hub import FakeHub


@pytest.mark.parametrize("lora", [None, nd.LoRAConfig(rank=2, alpha=3.0)])
def test_a_student_is_the_same_again(tiny_denoiser, tiny_condition, tmp_path, lora):
    copy, plan = tiny_denoiser.copy(), nd.StepPlan.from_schedule(tiny_denoiser.schedule, 2, "ode")
    trained = copy if lora is None else nd.add_lora(copy, "student", lora)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            parameter.add_(0.1)
    Student(trained, plan, lora).save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student", tiny_denoiser)
    assert (repr(again.plan), again.lora) == (repr(plan), lora)
    call = (torch.ones(3, 4, 8, 8), 500, tiny_condition)
    assert torch.equal(again.denoiser(*call), trained(*call))
    with pytest.raises(ValueError, match="it must be the LoRAConfig of a LoRA student, and None"):
        Student(trained, plan, nd.LoRAConfig() if lora is None else None)
    with pytest.raises(
        FileExistsError, match=r"holds 'student.safetensors', which is no file of heads"
    ):
        pretrained.save(tmp_path / "student", "heads", {}, {})


def test_heads_and_students_are_pushed_privately_and_come_back(
    tiny_denoiser, tmp_path, monkeypatch
):
    plan = nd.StepPlan.from_schedule(tiny_denoiser.schedule)
    heads = nd.LatentDiscriminator(tiny_denoiser, "mid_block", width=4)
    for value, name in ((heads, "heads"), (Student(tiny_denoiser.copy(), plan), "student")):
        hub = FakeHub()
        assert value.push_to_hub(f"me/{name}", api=hub) == f"https://huggingface.co/me/{name}"
        assert hub.repos == [(f"me/{name}", True)]
        assert set(hub.files) == {"config.json", f"{name}.safetensors"}
        (tmp_path / name).mkdir()
        for file, content in hub.files.items():
            (tmp_path / name / file).write_bytes(content)
        with pytest.raises(PermissionError, match="nobody is logged in"):
            value.push_to_hub(f"me/{name}", api=FakeHub(logged_in=False))
    asked: list[Any] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repo, allow_patterns: (
            asked.append((repo, allow_patterns)) or str(tmp_path / repo.split("/")[1])
        ),
    )
    loaded = nd.LatentDiscriminator.from_pretrained("me/heads", tiny_denoiser)
    assert all(map(torch.equal, loaded.parameters(), heads.parameters()))
    assert repr(Student.from_pretrained("me/student", tiny_denoiser).plan) == repr(plan)
    assert asked == [
        (f"me/{name}", ["config.json", f"{name}.safetensors"]) for name in ("heads", "student")
    ]


def test_what_is_damaged_or_anothers_is_refused(tiny_denoiser, tmp_path):
    plan = nd.StepPlan.from_schedule(tiny_denoiser.schedule)
    Student(tiny_denoiser, plan).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["student"]["plan"]["transition"] = "renoise"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"files of student in .* are damaged: its hash differs"):
        Student.from_pretrained(tmp_path, tiny_denoiser)
    with pytest.raises(FileNotFoundError, match="no heads in"):
        nd.LatentDiscriminator.from_pretrained(tmp_path / "elsewhere", tiny_denoiser)
