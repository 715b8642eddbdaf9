"""How a teacher is loaded, and that what acts on its pictures stands in what is made with it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nitrodistill.cli.main import main
from nitrodistill.data import PairStore, encode, open_images
from nitrodistill.data.conditioning import encoded_prompts
from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.drawing import depends_on
from nitrodistill.models.denoiser import dtype_of
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import TeacherSettings, load_teacher, teacher_shapes
from nitrodistill.training import Recipe, find_checkpoints, load_recipe
from nitrodistill.training.sources import Sources
from nitrodistill.types import Condition

NEGATIVE = "a large green cross on a white background"

_BLOCKS: dict[str, Any] = {
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
    "encoder_block_out_channels": (4, 4),
    "decoder_block_out_channels": (4, 4),
}


@pytest.fixture
def tiny_vae(tmp_path: Path) -> tuple[Any, str]:
    """A small autoencoder of 4 channels and 2 pixels a latent, and its folder."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = AutoencoderTiny(**_BLOCKS).eval()
    vae.save_pretrained(tmp_path / "vae")
    return vae, str(tmp_path / "vae")


def _generate(place: Any, output: Path, *options: str) -> int:
    few = ["--num_pairs", "2", "--num_inference_steps", "2", "--guidance", "2", "--quiet"]
    source = ["--teacher", str(place.teacher), "--prompts", str(place.prompts)]
    return main(["generate", *source, "--output", str(output), *few, *options])


def test_weights_and_size(place):
    settings = TeacherSettings(weights_dtype="bfloat16", resolution=(32, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # diffusers' of torch_dtype
        pipeline = load_teacher(str(place.teacher), settings)
    for each in (pipeline, teacher_shapes(str(place.teacher), settings)):
        parts = (each.denoiser.network, each.diffusers.vae, each.diffusers.text_encoder)
        assert [dtype_of(part) for part in parts] == [torch.bfloat16] * 3
        assert each.latent_shape == (4, 16, 8)
    assert load_teacher("toy", settings).resolution == (32, 16)
    assert TeacherSettings(resolution=64).size == (64, 64)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"weights_dtype": "half"}, ValueError),
        ({"resolution": "64"}, TypeError),
        ({"resolution": (64,)}, TypeError),
        ({"resolution": True}, TypeError),
        ({"negative_prompt": 3}, TypeError),
        ({"vae": 3}, TypeError),
        ({"offload_text": "yes"}, TypeError),
    ],
)
def test_settings_that_are_none(given, error):
    with pytest.raises(error, match=f"{next(iter(given))} is .*; it must be"):
        TeacherSettings(**given)


def test_a_variant_is_the_one_asked_for(place, tmp_path):
    both, name = tmp_path / "both", "diffusion_pytorch_model"
    shutil.copytree(place.teacher, both)
    network = load_teacher(str(place.teacher)).denoiser.network
    with torch.no_grad():
        next(network.parameters()).zero_()
    network.save_pretrained(both / "unet", variant="fp16")  # pyright: ignore[reportCallIssue]
    assert (both / "unet" / f"{name}.fp16.safetensors").is_file()
    plain = load_teacher(str(both)).denoiser.network
    other = load_teacher(str(both), TeacherSettings(variant="fp16")).denoiser.network
    assert next(plain.parameters()).any()
    assert not next(other.parameters()).any()
    for read in (load_teacher, teacher_shapes):
        with pytest.raises(ValueError, match="is a directory here; leave revision out"):
            read(str(both), TeacherSettings(revision="main"))
    with pytest.raises(ValueError, match="ships in one version"):
        load_teacher("toy", TeacherSettings(variant="fp16"))


def test_a_negative_prompt_acts_and_is_written_down(place, capsys):
    output = place.root / "negative"
    assert _generate(place, output, "--negative_prompt", NEGATIVE) == 0
    store = PairStore.open(output)
    assert store.manifest.generated[0].negative_prompt == NEGATIVE
    pipeline = load_teacher(str(place.teacher))
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    pairs = store.read([0, 1])
    condition = (
        pipeline.encode_prompt(store.prompts).to(dtype=torch.float16).to(dtype=torch.float32)
    )
    with torch.no_grad():
        x0 = sample(pipeline.guided(2.0, NEGATIVE), plan, pairs.noise.float(), condition)
    torch.testing.assert_close(pairs.x0.float(), x0, atol=5e-3, rtol=5e-3)

    assert _generate(place, output) == 2
    assert "negative_prompt is " in capsys.readouterr().err, "made with other settings"
    assert "negative_prompt" not in PairStore.open(place.pairs).manifest.to_json()
    samples = SamplePlan.of(store.prompts, EvaluateConfig(num_samples=4))
    keys = [depends_on(pipeline, samples)]
    pipeline.negative_prompt = NEGATIVE
    keys.append(depends_on(pipeline, samples))
    assert keys[0] != keys[1]
    with pytest.raises(ValueError, match="crcle"):
        load_teacher("toy", TeacherSettings(negative_prompt="a crcle"))


def test_another_vae_makes_the_pictures(place, tiny_vae, generator):
    vae, path = tiny_vae
    pipeline = load_teacher(str(place.teacher), TeacherSettings(vae=path))
    latents, images = (torch.randn(2, c, s, s, generator=generator) for c, s in ((4, 8), (3, 16)))
    with torch.no_grad():
        expected = vae.decode(latents).sample.clamp(-1, 1), vae.encode(images).latents
        found = pipeline.decode(latents), pipeline.encode_image(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert pipeline.diffusers.vae is not pipeline.vae, "what export writes"
    shapes = teacher_shapes(str(place.teacher), TeacherSettings(vae=path))
    assert type(shapes.vae) is type(vae)
    assert next(shapes.vae.parameters()).is_meta, "what `estimate` counts"
    with pytest.raises(FileNotFoundError, match="no VAE at"):
        pipeline.use_vae(place.root / "nowhere")
    type(vae)(**_BLOCKS, latent_channels=8).save_pretrained(path)
    with pytest.raises(ValueError, match="has 8 channels and 2 pixels a latent"):
        pipeline.use_vae(path)


def test_real_latents_may_be_of_either_vae(place, tiny_vae, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for n in range(2):
        Image.new("RGB", (16, 16), (90 * n, 9, 9)).save(tmp_path / "images" / f"{n}.png")
        (tmp_path / "images" / f"{n}.txt").write_text("a red circle")
    images = open_images(tmp_path / "images")
    own, other = (
        load_teacher(str(place.teacher), TeacherSettings(vae=vae)) for vae in (None, tiny_vae[1])
    )
    recipe = load_recipe(place.recipe)
    for name, made, read in (("a", own, own), ("a", own, other), ("b", other, other)):
        encode(made, images, tmp_path / name, teacher_name="x", progress=False)
        Sources.open(Recipe(recipe.teacher, "x", recipe.stages, real=str(tmp_path / name)), read)
    with pytest.raises(ValueError, match="encoded by another VAE"):
        Sources.open(Recipe(recipe.teacher, "x", recipe.stages, real=str(tmp_path / "b")), own)


def test_a_recipe_with_a_teacher_in_bfloat16_trains_a_student_in_float32(place, tiny_vae, capsys):
    pairs = place.root / "bf16"
    assert _generate(place, pairs, "--weights_dtype", "bfloat16", "--num_pairs", "4") == 0
    training = ["train", "--config", str(place.recipe), "--pairs", str(pairs), "--quiet"]
    assert main(training) == 2
    assert "made by teacher" in capsys.readouterr().err, "in float32 its weights are others"
    recipe = place.root / "half.yaml"
    settings = yaml.safe_load(place.recipe.read_text())
    recipe.write_text(
        yaml.safe_dump(settings | {"teacher_settings": {"weights_dtype": "bfloat16"}})
    )
    assert main(["estimate", "--config", str(recipe), "--text_length", "8"]) == 0
    half = ["--teacher_settings.weights_dtype", "bfloat16", "--teacher_settings.vae", tiny_vae[1]]
    assert main([*training, *half, "--stages.trainer.preview_every", "2"]) == 0
    run = place.root / "run"
    weights = find_checkpoints(run)[0].tensors("student")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert list((run / "previews").glob("*.png"))
    numbers = ["--num_samples", "4", "--cost_repeats", "0"]
    assert main(["evaluate", "--run", str(run), *numbers]) == 0


def test_text_encoders_wait_where_they_are(place, monkeypatch):
    pipeline = load_teacher(str(place.teacher), TeacherSettings(offload_text=True))
    pipeline.to("meta")
    assert pipeline.diffusers.vae.device.type == pipeline.device.type == "meta"
    assert pipeline.diffusers.text_encoder.device.type == "cpu"
    moves = []
    monkeypatch.setattr(pipeline.diffusers.text_encoder, "to", moves.append)
    with pipeline.encoding():
        assert moves == [pipeline.device]
    assert moves == [pipeline.device, "cpu"]
    moves.clear()
    encoded = Condition({"x": torch.ones(1, 2)})
    monkeypatch.setattr(pipeline, "encode_prompt", lambda _: encoded)
    assert len(list(encoded_prompts(pipeline, ["a"] * 3, range(3), 1, "float32"))) == 3
    assert moves == [pipeline.device, "cpu"], "once, not for each batch"


@pytest.mark.gpu
def test_text_encoders_come_and_go_on_a_gpu(place):
    pipeline = load_teacher(str(place.teacher), TeacherSettings(offload_text=True)).to("cuda")
    encoder = pipeline.diffusers.text_encoder
    with pipeline.encoding():
        assert encoder.device.type == "cuda"
    assert encoder.device.type == "cpu"
    assert pipeline.encode_prompt(["a red circle"])["encoder_hidden_states"].is_cuda
    assert encoder.device.type == "cpu"
