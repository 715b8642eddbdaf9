"""LoRA: files that a base model loads back as the student, and a base model's LoRA on exported students."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from nitrodistill.export import export, export_lora
from nitrodistill.export.folder import RECORD
from nitrodistill.export.lora import KOHYA, WEIGHTS
from nitrodistill.models import DiffusersDenoiser, LoRAConfig, Pipeline, add_lora
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from tests.pipelines import make_pipeline, tiny_pipeline

PROMPTS = ["a large red ring", "a blue cross"]
SIZE = {"flux-dev": (32, 32)}

pytestmark = pytest.mark.usefixtures("here")


def moved(role: DiffusersDenoiser, size: float = 0.3) -> DiffusersDenoiser:
    """A role that differs from its base."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in role.module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return role


def lora_student(family: str) -> tuple[Pipeline, DiffusersDenoiser]:
    """A new pipeline, because roles live in its network, and a student of rank 2 with alpha 3."""
    pipeline = Pipeline.from_diffusers(make_pipeline(family), resolution=SIZE.get(family))
    return pipeline, moved(add_lora(pipeline.denoiser, "student", LoRAConfig(rank=2, alpha=3.0)))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev", "sana"])
def test_base_and_file_draw_what_the_student_draws(family: str, tmp_path: Path) -> None:
    pipeline, student = lora_student(family)
    before = fingerprint(pipeline.denoiser.network)
    plan = StepPlan.from_schedule(student.schedule)
    output = export_lora(
        pipeline,
        student,
        plan,
        tmp_path / "lora",
        base_model="some/base",
        licence="apache-2.0",
        prompts=PROMPTS,
    )
    record = json.loads((output / RECORD).read_text())
    assert max(record["self_test"]["latents"], record["self_test"]["images"]) <= 1e-5
    assert record["call"]["guidance_scale"] == (3.5 if family == "flux-dev" else 0)
    assert fingerprint(pipeline.denoiser.network) == before

    with safe_open(output / WEIGHTS, "pt") as file:
        header = file.metadata()
    config = json.loads(header["lora_adapter_metadata"])
    part = pipeline.adapter.network
    assert (config[f"{part}.r"], config[f"{part}.lora_alpha"]) == (2, 3.0)
    about = json.loads(header["nitrodistill"])
    assert about["base_model"] == "some/base"
    assert about["plan"]["steps"][0]["t"] == plan.steps[0].t.item()

    card = (output / "README.md").read_text()
    assert 'DiffusionPipeline.from_pretrained("some/base")' in card
    assert f'pipe.load_lora_weights("{output}")' in card
    assert "base_model_relation: adapter" in card
    assert f"guidance_scale={record['call']['guidance_scale']}" in card
    if family == "sana":  # ComfyUI has no loader for it
        assert not (output / "comfyui.json").exists()
        return
    workflow = json.loads((output / "comfyui.json").read_text()).values()
    assert any(node["class_type"] == "LoraLoaderModelOnly" for node in workflow)


def test_a_unets_kohya_file_says_the_same(tmp_path: Path) -> None:
    pipeline, student = lora_student("sd15")
    plan = StepPlan.from_schedule(student.schedule)
    output = export_lora(pipeline, student, plan, tmp_path / "lora", base_model="b")
    ours, theirs = load_file(output / WEIGHTS), load_file(output / KOHYA)
    assert len(theirs) == len(ours) // 2 * 3, "up, down and alpha"
    for name, value in ours.items():
        layer, kind = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        where = "lora_unet_" + layer.replace(".", "_")
        part = {"lora_A": "lora_down", "lora_B": "lora_up"}[kind]
        assert torch.equal(theirs[f"{where}.{part}.weight"], value)
        assert theirs[f"{where}.alpha"] == 3.0


@pytest.mark.parametrize("family", ["sd15", "pixart-sigma", "flux-dev"])
def test_a_whole_pipeline_holds_the_lora_merged(family: str, tmp_path: Path) -> None:
    pipeline, student = lora_student(family)
    plan = StepPlan.from_schedule(student.schedule)
    output = export(pipeline, student, plan, tmp_path / "s", base_model="x", prompts=PROMPTS)
    record = json.loads((output / RECORD).read_text())
    assert max(record["self_test"]["latents"], record["self_test"]["images"]) <= 1e-5
    part = pipeline.adapter.network
    weights = load_file(output / part / "diffusion_pytorch_model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)


def test_others_roles_on_a_students_network_are_left_out(tmp_path: Path) -> None:
    """A student copied from a teacher on which a critic plays."""
    pipeline, critic = lora_student("sd15")
    student = pipeline.denoiser.copy()
    plan = StepPlan.from_schedule(student.schedule)
    output = export(pipeline, student, plan, tmp_path / "s", base_model="x", prompts=PROMPTS)
    saved = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    plain = tiny_pipeline("sd15").unet.state_dict()
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], value) for name, value in plain.items())
    assert any("lora" in name for name in critic.network.state_dict()), "the critic stays"


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev"])
def test_a_base_models_lora_still_loads_on_the_exported_student(
    family: str, trained: Callable[[Pipeline], DiffusersDenoiser], tmp_path: Path
) -> None:
    """Somebody's LoRA of the base, on a student whose every weight was trained: W + (alpha / r) B A."""
    base, style = lora_student(family)
    plan = StepPlan.from_schedule(style.schedule)
    lora = export_lora(base, style, plan, tmp_path / "style", base_model="b")

    pipeline = Pipeline.from_diffusers(tiny_pipeline(family), resolution=SIZE.get(family))
    student = trained(pipeline)
    output = export(pipeline, student, plan, tmp_path / "student", base_model="b")
    pipe: Any = DiffusionPipeline.from_pretrained(output)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    found = getattr(pipe, pipeline.adapter.network).state_dict()
    added = load_file(lora / WEIGHTS)
    adapted = 0
    for name, value in student.module.state_dict().items():
        key = f"{pipeline.adapter.network}.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in added:
            continue
        wanted = value + 3.0 / 2 * added[f"{key}.lora_B.weight"] @ added[f"{key}.lora_A.weight"]
        where = name.replace(".weight", ".base_layer.weight")
        torch.testing.assert_close(found[where], wanted, rtol=1e-5, atol=1e-6)
        assert float((wanted - value).abs().max()) > 1e-3
        adapted += 1
    assert 2 * adapted == len(added), "every layer of the file found its place"


def test_what_has_no_lora_is_refused(tmp_path: Path) -> None:
    pipeline, student = lora_student("pixart-sigma")
    plan = StepPlan.from_schedule(student.schedule)
    with pytest.raises(ValueError, match="PixArtSigmaPipeline cannot load LoRA weights"):
        export_lora(pipeline, student, plan, tmp_path / "a", base_model="x")
    sd = Pipeline.from_diffusers(tiny_pipeline("sd15"))
    with pytest.raises(TypeError, match="UNet2DConditionModel, which is no LoRA role"):
        export_lora(sd, sd.denoiser, plan, tmp_path / "a", base_model="x")
    assert list(tmp_path.iterdir()) == []
