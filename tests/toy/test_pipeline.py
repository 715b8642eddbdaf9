from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from nitrodistill.toy import scenes
from nitrodistill.toy.oracle import load_oracle
from nitrodistill.toy.pipeline import load_pipeline, load_student_pipeline, save_pipeline
from tools.toy.loop import seeded
from tools.toy.measure import decode, draw_images, joint_alignment, psnr, random_captions
from tools.toy.train_vae import encode


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline()


def test_teacher_draws_what_its_prompts_say(pipeline: StableDiffusionPipeline):
    prompts = random_captions(64, seeded("prompts"))
    images = draw_images(pipeline, prompts, seeded("noise"))
    assert joint_alignment(load_oracle(), images, prompts)["joint"] >= 0.9


def test_the_shipped_student_draws_what_its_prompts_say_in_one_step():
    """In plain diffusers, where the teacher draws a tenth of that."""
    student = load_student_pipeline()
    prompts = random_captions(64, seeded("prompts"))
    generator = torch.Generator().manual_seed(1)
    images = student(
        prompts, num_inference_steps=1, guidance_scale=0, output_type="pt", generator=generator
    ).images
    assert joint_alignment(load_oracle(), 2 * images - 1, prompts)["joint"] >= 0.9


def test_autoencoder_keeps_the_scene(pipeline: StableDiffusionPipeline):
    prompts = random_captions(256, seeded("round trip"))
    images = scenes.render(prompts, 1)
    latents = encode(pipeline.vae, images)
    decoded = decode(pipeline.vae, latents)
    assert psnr(decoded, images) >= 30
    assert joint_alignment(load_oracle(), decoded, prompts)["joint"] >= 0.99
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.15, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.15, rtol=0)


def test_parts_are_float32_and_the_tokenizer_pads(pipeline: StableDiffusionPipeline):
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert pipeline.tokenizer.model_max_length == 12
    assert pipeline.scheduler.alphas_cumprod[-1] == 0


def test_saved_pipeline_is_the_same_one(pipeline: StableDiffusionPipeline, tmp_path: Path):
    path = save_pipeline(tmp_path / "teacher")
    modes = {file.stat().st_mode & 0o666 for file in path.rglob("*") if file.is_file()}
    assert modes == {tmp_path.joinpath("teacher").stat().st_mode & 0o666}, "colleagues can read it"
    again = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    prompts = ["a small red ring on a gray background"]
    first, second = (
        p(
            prompts,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=seeded(0),
            height=32,
            width=32,
            output_type="latent",
        ).images
        for p in (pipeline, again)
    )
    assert torch.equal(first, second)


def test_a_full_folder_is_not_overwritten(tmp_path: Path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        save_pipeline(tmp_path)


def test_a_wrong_path_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no toy weights"):
        load_pipeline(tmp_path)
