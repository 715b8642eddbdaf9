from __future__ import annotations

import json
import shutil

import accelerate
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from nitrodistill.models import Guided, LoRAConfig, Pipeline, add_lora
from nitrodistill.models.folders import only_variant
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.models.skeleton import shapes_of
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import Condition

PROMPTS = ["a red circle", "a blue ring"]


@pytest.fixture
def pipe(tiny_diffusers, tiny_scheduler):
    return tiny_diffusers(tiny_scheduler)


def test_it_says_what_the_scheduler_says(pipe):
    pipeline = Pipeline.from_diffusers(pipe)
    assert pipeline.denoiser.prediction_type == "v_prediction"
    assert isinstance(pipeline.denoiser.schedule, DiscreteSchedule)
    assert pipeline.denoiser.schedule.num_timesteps == 1000
    assert pipeline.latent_shape == (4, 8, 8)
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_its_resolution_is_that_of_all_that_is_made_from_its_denoiser(pipe):
    """What is trained on prompts alone has nothing else to ask."""
    own = Pipeline.from_diffusers(pipe)
    wide = Pipeline(pipe, own.denoiser, resolution=(8, 24))
    student = add_lora(wide.denoiser.copy(), "student", LoRAConfig(rank=2))
    for denoiser in (wide.denoiser, student, shapes_of(wide).denoiser):
        assert denoiser.latent_shape() == wide.latent_shape == (4, 4, 12)
    assert Pipeline(pipe, wide.denoiser).resolution == (8, 24)
    assert own.denoiser.latent_shape() == own.latent_shape == (4, 8, 8)


def test_prompts_and_guidance_are_diffusers(pipe):
    pipeline = Pipeline.from_diffusers(pipe)
    text, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.equal(pipeline.encode_prompt(PROMPTS)["encoder_hidden_states"], text)
    assert torch.equal(pipeline.null_condition()["encoder_hidden_states"], empty[:1])
    guided = pipeline.guided(3.0)
    assert isinstance(guided, Guided)
    assert guided.scale == 3.0


def test_decode_and_encode_are_the_vaes_with_its_scale(pipe, generator):
    pipeline = Pipeline.from_diffusers(pipe)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        theirs = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        images = pipeline.decode(latents, batch_size=2)
        mean = pipe.vae.encode(images).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(images, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pipeline.encode_image(images), mean, rtol=1e-4, atol=1e-4)


def test_unknown_words_are_told_before_anything_is_encoded(pipe):
    def check(prompt: str) -> None:
        raise ValueError(f"no {prompt}")

    with pytest.raises(ValueError, match="no a red circle"):
        Pipeline.from_diffusers(pipe, check_prompt=check).encode_prompt(PROMPTS)


def test_load_is_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "teacher")
    pipeline = Pipeline.load(tmp_path / "teacher")
    assert fingerprint(pipeline.denoiser.module) == fingerprint(pipe.unet)
    assert isinstance(pipeline.encode_prompt(PROMPTS), Condition)


@pytest.mark.parametrize("name", ["/nowhere/teacher", "./nowhere", "a/b/c", "tests/teachr"])
def test_a_wrong_path_is_told_without_a_download(name, monkeypatch):
    monkeypatch.chdir(__file__.split("/tests/")[0])
    with pytest.raises(FileNotFoundError, match="no teacher at"):
        Pipeline.load(name)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "has no model_index.json"),
        ("not json", "says None"),
        ("[]", "says None"),
        (json.dumps({"_class_name": "KandinskyPipeline"}), "says 'KandinskyPipeline'"),
    ],
)
def test_what_is_no_pipeline(index, message, tmp_path):
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_part_is_a_sentence(damage, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "teacher")
    weights = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "missing":
        shutil.rmtree(weights.parent)
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="a part is missing or damaged"):
        Pipeline.load(tmp_path / "teacher")


def test_other_pipelines_are_refused():
    with pytest.raises(TypeError, match="Linear is not a supported pipeline"):
        Pipeline.from_diffusers(nn.Linear(1, 1))


@pytest.mark.parametrize("prompts", [np.array(PROMPTS), pa.array(PROMPTS), tuple(PROMPTS)])
def test_prompts_may_be_a_column(prompts, pipe):
    pipeline = Pipeline.from_diffusers(pipe)
    expected = pipeline.encode_prompt(PROMPTS)["encoder_hidden_states"]
    assert torch.equal(pipeline.encode_prompt(prompts)["encoder_hidden_states"], expected)


@pytest.mark.parametrize("prompts", [5, [], [3], [["a"]], np.array([1.0])])
def test_what_is_no_list_of_texts_is_told(prompts, pipe):
    with pytest.raises(ValueError, match=r"prompts is .*; give a list of at least one text"):
        Pipeline.from_diffusers(pipe).encode_prompt(prompts)


def test_a_folder_with_one_variant_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    pipeline = Pipeline.load(tmp_path)
    assert fingerprint(pipeline.denoiser.module) == fingerprint(pipe.unet)
    weights = tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.ema.safetensors"))
    with pytest.raises(ValueError, match="in the variants ema, fp16 only; keep the files of one"):
        Pipeline.load(tmp_path)
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.safetensors"))
    assert only_variant(tmp_path / "unet") is None


def test_only_variant_knows_shards(tmp_path):
    for k in (1, 2):
        (tmp_path / f"diffusion_pytorch_model.fp16-0000{k}-of-00002.safetensors").touch()
    assert only_variant(tmp_path) == "fp16"


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet"])
def test_a_part_that_is_missing_and_needed_is_named(part, pipe, tmp_path):
    setattr(pipe, part, None)
    pipe.register_modules(**{part: None})
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"has no {part} \(null in its model_index.json\)"):
        Pipeline.load(tmp_path)
    if part in ("vae", "unet"):
        with pytest.raises(ValueError, match=f"has no {part}, and distillation needs it"):
            Pipeline.from_diffusers(pipe)


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_an_offloaded_pipeline_is_told(way, pipe):
    if way == "group":
        pipe.unet.enable_group_offload(
            torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
        )
    elif way == "model":
        accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    else:
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the unet of this \w+ is offloaded, .*pipe.to\(device\)"):
        Pipeline.from_diffusers(pipe)
