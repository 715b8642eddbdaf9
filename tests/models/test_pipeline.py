from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from nitrodistill.models import Guided, Pipeline
from nitrodistill.models.pipeline import fingerprint
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
