"""Exported pipelines, reloaded: one in a fresh process, one of every family, and what is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from nitrodistill.export import Measured, check_export, export, verify_export
from nitrodistill.export.folder import RECORD
from nitrodistill.method import Draws
from nitrodistill.models import Adapter, DiffusersDenoiser, Entry, Pipeline
from nitrodistill.models.weights import fingerprint
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import ZeroTerminalSNR
from nitrodistill.types import Condition
from tests.pipelines import make_pipeline, tiny_pipeline

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
PROMPTS = ["a large red ring", "a blue cross"]

Trained = Callable[[Pipeline], DiffusersDenoiser]


@pytest.fixture(scope="module")
def rescaled(tiny_diffusers: Callable[..., Any]) -> Pipeline:
    plain = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction", steps_offset=1)
    return Pipeline.from_diffusers(tiny_diffusers(ZeroTerminalSNR()(plain)))


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text())


def test_v_prediction_at_zero_snr_equals_the_student(
    rescaled: Pipeline, trained: Trained, tmp_path: Path
) -> None:
    student = trained(rescaled)
    plan = StepPlan.from_schedule(student.schedule)
    metrics = "|  | teacher | student |\n| --- | ---: | ---: |\n| alignment | 0.98 | 0.91 |"
    (tmp_path / "its.png").write_bytes(b"a picture")
    output = export(
        rescaled,
        student,
        plan,
        tmp_path / "new" / "student",
        base_model="somebody/teacher",
        metrics=Measured(metrics, picture=tmp_path / "its.png"),
        licence="apache-2.0",
        prompts=PROMPTS,
    )
    assert student.module.training, "the caller's mode is given back"
    assert [p.name for p in output.parent.iterdir()] == ["student"], "nothing is left beside it"

    record = record_of(output)
    assert max(record["self_test"]["latents"], record["self_test"]["images"]) <= 1e-5
    assert record["plan"]["steps"] == [{"t": 999, "input": [0.0, 1.0], "output": [0.0, 1.0]}]
    assert record["call"] == {"num_inference_steps": 1, "guidance_scale": 0}

    pipe: Any = DiffusionPipeline.from_pretrained(output)
    assert pipe.scheduler.config.rescale_betas_zero_snr is True
    assert pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    noise = Draws(5, 0, torch.arange(2)).normal("held out", rescaled.latent_shape)
    call = {"num_inference_steps": 1, "guidance_scale": 0, "latents": noise}
    with torch.no_grad():
        x0 = sample(student, plan, noise, rescaled.encode_prompt(PROMPTS))
    student.module.eval()
    torch.testing.assert_close(pipe(PROMPTS, output_type="latent", **call).images, x0)

    card = (output / "README.md").read_text()
    assert 'pipe("a large red ring", num_inference_steps=1, guidance_scale=0)' in card
    assert "base_model: somebody/teacher" in card
    assert f'from_pretrained("{output}")' in card, "the path as it was given"
    assert f"## Measured\n\n{metrics}\n\n" in card
    assert (output / "grid.png").read_bytes() == b"a picture"
    assert "grid.png" in record["files"]


# family, pixels (None: what a plain call draws), told t (None: the schedule's own), steps, transition, scheduler
PLANS = [
    ("sd15", None, None, 1, "ode", "DDIMScheduler"),
    ("sd15", None, None, 4, "ode", "DDIMScheduler"),
    ("sd21-v", None, None, 1, "ode", "DDIMScheduler"),
    ("sd21-v", None, None, 3, "ode", "DPMSolverMultistepScheduler"),
    ("sdxl", None, 399, 1, "ode", "DDIMScheduler"),
    ("sdxl", (24, 32), None, 4, "renoise", "LCMScheduler"),
    ("pixart-sigma", None, 400, 1, "ode", "DDIMScheduler"),
    ("pixart-sigma", None, None, 2, "renoise", "LCMScheduler"),
    ("sd3", None, None, 1, "ode", "FlowMatchEulerDiscreteScheduler"),
    ("sd3", None, None, 4, "ode", "FlowMatchEulerDiscreteScheduler"),
    ("sd3", None, None, 2, "renoise", "FlowMatchLCMScheduler"),
    ("flux-dev", None, None, 1, "ode", "FlowMatchEulerDiscreteScheduler"),
    ("flux-dev", (32, 48), None, 4, "ode", "FlowMatchEulerDiscreteScheduler"),
    ("flux-schnell", (32, 32), None, 2, "renoise", "FlowMatchLCMScheduler"),
    ("sana", None, None, 1, "ode", "FlowMatchEulerDiscreteScheduler"),
    ("sana", None, None, 3, "ode", "FlowMatchEulerDiscreteScheduler"),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("family", "size", "told", "num_inference_steps", "transition", "scheduler"), PLANS
)
def test_every_familys_plain_call_draws_what_the_student_draws(
    family: str,
    size: tuple[int, int] | None,
    told: int | None,
    num_inference_steps: int,
    transition: Any,
    scheduler: str,
    trained: Trained,
    tmp_path: Path,
) -> None:
    pipeline = Pipeline.from_diffusers(tiny_pipeline(family), resolution=size)
    student = trained(pipeline)
    if told is None:
        plan = StepPlan.from_schedule(student.schedule, num_inference_steps, transition)
    else:
        plan = StepPlan.from_noise(student.schedule, told)
    output = export(pipeline, student, plan, tmp_path / "s", base_model="x", prompts=PROMPTS)
    record = record_of(output)
    assert max(record["self_test"]["latents"], record["self_test"]["images"]) <= 1e-5
    call: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": 0}
    if size is not None:  # whoever trained at another resolution than the default has to say so
        call |= {"height": size[0], "width": size[1]}
    if family == "pixart-sigma":
        call |= {"clean_caption": False}
    assert record["call"] == call
    example = (output / "README.md").read_text().partition("```python")[2].partition("```")[0]
    assert all(f"{key}={value!r}" in example for key, value in call.items())
    saved = json.loads((output / "scheduler" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == scheduler
    weights = {path.name for path in output.rglob("*.safetensors")}
    assert weights <= {"diffusion_pytorch_model.safetensors", "model.safetensors"}
    if family == "sana":  # ComfyUI has no loader for it
        assert not (output / "comfyui.json").exists()
        return
    workflow = json.loads((output / "comfyui.json").read_text())
    assert "not run" in workflow["1"]["_meta"]["title"]
    assert "`comfyui.json` is a workflow" in (output / "README.md").read_text()


# family, steps, transition, scheduler, what the card's example asks for, its task
WITHOUT_TEXT = [
    ("ddpm", 1, "ode", "DDIMScheduler", "pipe(num_inference_steps=1)", True),
    ("ddpm", 2, "renoise", "LCMScheduler", "pipe(num_inference_steps=2)", True),
    ("ddim", 2, "ode", "DDIMScheduler", "pipe(num_inference_steps=2)", True),
    ("ddim", 2, "renoise", "LCMScheduler", "pipe(num_inference_steps=2)", True),
    ("ddpm-classes", 2, "renoise", "LCMScheduler", "pipe(class_labels=[1], num_", False),
    ("edm", 1, "ode", "EDMDPMSolverMultistepScheduler", "pipe(class_labels=[1], num_", False),
    ("edm", 5, "ode", "EDMDPMSolverMultistepScheduler", "pipe(class_labels=[1], num_", False),
    ("dit", 1, "ode", "DDIMScheduler", "pipe(class_labels=[1], num_inference_steps=1,", False),
    ("dit", 4, "renoise", "LCMScheduler", "pipe(class_labels=[1], num_inference_steps=4,", False),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("family", "num_inference_steps", "transition", "scheduler", "example", "unconditional"),
    WITHOUT_TEXT,
)
def test_students_without_text_are_drawn_by_their_pipelines(
    family: str,
    num_inference_steps: int,
    transition: Any,
    scheduler: str,
    example: str,
    unconditional: bool,
    trained: Trained,
    tmp_path: Path,
) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline(family))
    student = trained(pipeline)
    plan = StepPlan.from_schedule(student.schedule, num_inference_steps, transition)
    prompts = {"dit": ["goldfish", "2"], "ddpm": [""], "ddim": [""]}.get(family, ["1", "2"])
    output = export(pipeline, student, plan, tmp_path / "s", base_model="x", prompts=prompts)
    record = record_of(output)
    assert max(record["self_test"]["latents"], record["self_test"]["images"]) <= 1e-5
    assert ("guidance_scale" in record["call"]) == (family == "dit")
    card = (output / "README.md").read_text()
    assert example in card
    assert ("pipeline_tag: unconditional-image-generation" in card) == unconditional
    assert "text-to-image" not in card
    assert json.loads((output / "scheduler/scheduler_config.json").read_text())["_class_name"] == (
        scheduler
    )
    if family == "dit":
        loaded: Any = DiffusionPipeline.from_pretrained(output)
        assert loaded.labels == pipeline.diffusers.labels


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("ddpm-classes", (16, 16), r"DDPMPipeline draws latents of shape \(1, 8, 8\) alone"),
        ("edm", (16, 16), r"ConsistencyModelPipeline draws latents of shape \(3, 8, 8\) alone"),
        ("dit", (32, 32), r"DiTPipeline draws latents of shape \(4, 8, 8\) alone"),
        ("ddpm", (16, 16), r"DDPMPipeline draws latents of shape \(1, 8, 8\) alone"),
    ],
)
def test_what_cannot_be_exported_is_told_before_training(
    family: str, size: Any, message: str
) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline(family), resolution=size)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    with pytest.raises(ValueError, match=message):
        check_export(pipeline, plan, pipeline.denoiser.prediction_type)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_size": (8, 16)}, r"draws squares of sample_size pixels alone.* is \(8, 16\)"),
        ({"num_class_embeds": None, "class_embed_type": "timestep"}, "here it is None"),
    ],
)
def test_networks_that_no_pipeline_draws_by_class_are_told(settings: Any, message: str) -> None:
    pipe = make_pipeline("edm")
    pipe.unet.register_to_config(**settings)
    pipeline = Pipeline.from_diffusers(pipe)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    with pytest.raises(ValueError, match=message):
        check_export(pipeline, plan, "sample")


@pytest.mark.usefixtures("here")
@torch.no_grad()
def test_edms_one_step_is_its_denoiser_at_sigma_max(trained: Trained, tmp_path: Path) -> None:
    """D(x; 80) by EDM's table 1, of an exported bare network, to float32's rounding."""
    pipeline = Pipeline.from_diffusers(make_pipeline("edm"))
    network: Any = trained(pipeline).module.eval()
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    output = export(pipeline, network, plan, tmp_path / "s", base_model="x", prompts=["3", "0"])
    loaded: Any = DiffusionPipeline.from_pretrained(output)
    loaded.set_progress_bar_config(disable=True)
    call = {"batch_size": 2, "class_labels": [3, 0], "output_type": "pt"}
    noise = Draws(5, 0, torch.arange(2)).normal("held out", pipeline.latent_shape)
    found = loaded(latents=noise, **call).images  # one step is the call's default
    x, total, label = noise * (80**2 + 1) ** 0.5, 80**2 + 0.25, torch.tensor([3, 0])
    raw = network(x / total**0.5, torch.tensor(80.0).log() / 4, label).sample
    x0 = 0.25 / total * x + 80 * 0.5 / total**0.5 * raw
    torch.testing.assert_close(found, (x0 / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    assert (x0.abs() < 1).float().mean() > 0.9, "few are clamped"


@torch.no_grad()
def test_edms_many_steps_are_our_sampler() -> None:
    pipe = make_pipeline("edm")
    pipeline = Pipeline.from_diffusers(pipe)
    noise = Draws(5, 0, torch.arange(2)).normal("held out", pipeline.latent_shape)
    call = {"batch_size": 2, "class_labels": [3, 0], "output_type": "pt"}
    found = pipe(latents=noise, num_inference_steps=6, **call).images * 2 - 1
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 6)
    x0 = sample(pipeline.denoiser, plan, noise, pipeline.encode_prompt(["3", "0"]))
    torch.testing.assert_close(found, pipeline.decode(x0), rtol=0, atol=1e-5)


def test_lora_of_a_text_encoder_is_to_be_merged_first() -> None:
    pipe = make_pipeline("sd15")
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    pipeline = Pipeline.from_diffusers(pipe)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    with pytest.raises(ValueError, match=r"the text_encoder of this .* carries LoRA"):
        check_export(pipeline, plan, pipeline.denoiser.prediction_type)


@pytest.mark.usefixtures("here")
def test_sd3_without_t5_and_a_wrapped_student_are_exported(
    trained: Trained, tmp_path: Path
) -> None:
    pipe = make_pipeline("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline = Pipeline.from_diffusers(pipe)
    student = trained(pipeline)
    plan = StepPlan.from_schedule(student.schedule)
    student.module = nn.DataParallel(student.module)
    output = export(pipeline, student, plan, tmp_path / "s", base_model="x", prompts=PROMPTS)
    assert "tokenizer_3=None" in (output / "README.md").read_text()
    assert fingerprint(Pipeline.load(output).denoiser.module) == fingerprint(student.module)


def test_embedded_guidance_is_baked_in_and_the_student_stays(trained: Trained) -> None:
    """Flux-dev is told a scale; its export is a network like schnell's, with the same weights but one."""
    student = trained(Pipeline.from_diffusers(tiny_pipeline("flux-dev")))
    x_t, t, condition = student.example()
    tensors = {key: torch.randn(value.shape) for key, value in condition.tensors.items()}
    tensors["guidance"] = torch.full((1,), 3.5)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    baked: Any = student.adapter.with_guidance_baked(student.module, 3.5)
    assert baked.config.guidance_embeds is False
    plain = DiffusersDenoiser(baked, student.schedule, student.prediction_type)
    with torch.no_grad():
        found = plain(x_t, t, Condition(tensors))
        torch.testing.assert_close(found, student(x_t, t, Condition(tensors)))
        other = student(x_t, t, Condition({**tensors, "guidance": torch.zeros(1)}))
    assert float((found - other).abs().max()) > 1e-3, "the scale matters"
    assert all(
        torch.equal(before[name], value) for name, value in student.module.state_dict().items()
    )


def test_a_family_that_embeds_guidance_must_say_how_to_bake_it() -> None:
    class Careless(Adapter):
        embeds_guidance = True

        def entries(self) -> dict[str, Entry]:
            return {}

        def arguments(self, x_t: Any, t: Any, condition: Condition) -> dict[str, Any]:
            return {"sample": x_t}

    network = tiny_pipeline("sd15").unet
    with pytest.raises(TypeError, match="Careless has embeds_guidance, so it must define"):
        Careless(network).with_guidance_baked(network, 3.5)
    for family in ("sd15", "flux-schnell"):
        plain = Pipeline.from_diffusers(tiny_pipeline(family)).denoiser
        assert plain.adapter.with_guidance_baked(plain.network, 3.5) is plain.network


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("family", ["sd15", "sana"])
def test_half_precision_is_allowed_its_rounding(family: str, tmp_path: Path) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline(family).to(torch.bfloat16))
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    output = export(pipeline, pipeline.denoiser, plan, tmp_path / "s", base_model="x")
    test = record_of(output)["self_test"]
    assert max(test["latents"], test["images"]) <= test["tolerance"] == 8 * 2**-7
    weights = load_file(
        output / pipeline.adapter.network / "diffusion_pytorch_model.safetensors"
    ).values()
    assert {value.dtype for value in weights} == {torch.bfloat16}


@pytest.mark.usefixtures("here")
def test_an_early_timestep_replaces_an_export_and_can_be_read_back(
    tiny_diffusers: Callable[..., Any], trained: Trained, tmp_path: Path
) -> None:
    scheduler = DDIMScheduler(
        **LINEAR, prediction_type="epsilon", clip_sample=False, steps_offset=1
    )
    pipeline = Pipeline.from_diffusers(tiny_diffusers(scheduler))
    student = trained(pipeline)
    plan = StepPlan.from_noise(student.schedule, 400)
    output = tmp_path / "student"
    output.mkdir()
    (output / RECORD).write_text("an earlier export")
    export(pipeline, student.module, plan, output, base_model="a teacher")
    assert record_of(output)["self_test"]["latents"] <= 1e-5

    verify_export(output)
    config = output / pipeline.adapter.network / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match=r"damaged: unet/config.json is not what was written"):
        verify_export(output)
    reloaded = Pipeline.load(output)
    assert reloaded.scheduler.config.num_train_timesteps == 401
    (step,) = StepPlan.from_schedule(reloaded.denoiser.schedule).steps
    assert step.t == 400, "the plan can be read back from the folder"
    torch.testing.assert_close(step.output, plan.steps[0].output, rtol=0, atol=1e-6)
    assert "base_model:" not in (output / "README.md").read_text(), "words are no Hub name"


def test_what_is_refused_leaves_nothing_behind(rescaled: Pipeline, tmp_path: Path) -> None:
    student, base = rescaled.denoiser, {"base_model": "x"}
    plan = StepPlan.from_schedule(student.schedule)
    with pytest.raises(TypeError, match="take the guidance off"):
        export(rescaled, rescaled.guided(3.0), plan, tmp_path / "a", **base)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unwrap"):
        export(rescaled, nn.Sequential(student.module), plan, tmp_path / "a", **base)
    with pytest.raises(ValueError, match="at least one"):
        export(rescaled, student, plan, tmp_path / "a", prompts=[], **base)
    for kind in ("TCDScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"):
        with pytest.raises(ValueError, match=f"{kind} cannot express"):
            export(rescaled, student, plan, tmp_path / "a", scheduler=kind, **base)
    assert list(tmp_path.iterdir()) == []
