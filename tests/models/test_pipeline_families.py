"""Whole pipelines of every family: what diffusers' own call tells the network, ours tells it too."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from nitrodistill.models import Pipeline
from nitrodistill.models.guidance import EmbeddedGuidance
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition
from tests import flow_pipelines
from tests.pipelines import FAMILIES, ddpm, make_pipeline, tiny_pipeline

PROMPTS = ["a red circle", "a blue ring"]
SMALL = {
    "sd3": (32, 32),
    "flux-dev": (32, 32),
    "flux-schnell": (32, 32),
    "sana": (256, 512),
    **dict.fromkeys(flow_pipelines.FAMILIES, (32, 16)),
}
TWO_CALLS = {"qwen-image", "chroma", "flux2-klein", "lumina2"}
"""Pipelines that call the network with the prompt first and the negative one by itself."""

BACKWARDS = {"z-image", "lumina2"}
"""Families that count from noise to data."""


def asked(name: str, scale: float) -> dict[str, Any]:
    """The arguments of diffusers' call for a scale of guidance as it is here."""
    if name == "qwen-image":
        return {"true_cfg_scale": scale, "negative_prompt": ["", ""]}
    if name == "z-image":
        return {"guidance_scale": scale - 1}
    return {"guidance_scale": scale}


@cache
def loaded(name: str) -> Pipeline:
    return Pipeline.from_diffusers(tiny_pipeline(name), resolution=SMALL.get(name))


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


OTHERWISE = {
    "sample": "hidden_states",
    "x": "hidden_states",
    "t": "timestep",
    "cap_feats": "encoder_hidden_states",
}


class _Recorder:
    """Notes the keyword arguments of each call of a network, and stops diffusers' loop after the first."""

    def __init__(self, network: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self._handle = network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        order = ("hidden_states", "timestep", "encoder_hidden_states")
        named = dict(zip(order, args, strict=False)) | kwargs
        for other, key in OTHERWISE.items():
            if other in named:
                named[key] = named.pop(other)
        self.calls.append(named)
        raise _Told

    def remove(self) -> dict[str, Any]:
        self._handle.remove()
        assert len(self.calls) == 1
        return self.calls[0]


class _Told(Exception):
    pass


def _told(network: Any, call: Any) -> dict[str, Any]:
    recorder = _Recorder(network)
    with pytest.raises(_Told), torch.no_grad():
        call()
    return recorder.remove()


def _second_half(value: Any, batch: int) -> Any:
    """The prompts' part of what the network is told of twice the batch; position ids have no batch."""
    sized = isinstance(value, (list, torch.Tensor)) and len(value) == 2 * batch
    return value[batch:] if sized else value


def _same(ours: Any, theirs: Any, key: str) -> None:
    if isinstance(theirs, dict):
        for inner in theirs:
            _same(ours[inner], theirs[inner], inner)
    elif isinstance(theirs, torch.Tensor):
        if theirs.ndim > ours.ndim:  # FLUX.2's position ids, alike for each sample
            theirs = theirs[0]
        wide = theirs.double().expand_as(ours)
        torch.testing.assert_close(ours.double(), wide, rtol=1e-5, atol=1e-5, msg=key)
    else:
        assert ours == theirs, key


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_network_is_told_what_diffusers_tells_it(name, scale):
    """The first of two steps, with and without guidance: all arguments, and the order of the two halves."""
    if name == "flux-schnell" and scale > 1:
        pytest.skip("diffusers ignores the scale, for a network without guidance")
    pipeline = loaded(name)
    pipe, denoiser = pipeline.diffusers, pipeline.denoiser
    network: Any = denoiser.network
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *pipeline.latent_shape, generator=generator)
    height, width = pipeline.resolution
    given = noise
    if name in ("flux-dev", "flux-schnell", "qwen-image", "chroma"):
        given = pipe._pack_latents(noise, *noise.shape)
    settings: dict[str, Any] = {"use_resolution_binning": False}
    if name not in ("pixart-sigma", "sana"):
        settings = {}
    theirs = _told(
        network,
        lambda: pipe(
            prompt=list(PROMPTS), height=height, width=width, num_inference_steps=2,
            latents=given, output_type="latent", **asked(name, scale), **settings,
        ),
    )  # fmt: skip
    guided = pipeline.guided(scale)
    scheduler_t = theirs["timestep"].flatten()[0]
    if name in BACKWARDS:
        scheduler_t = 1 - scheduler_t
    t = scheduler_t if denoiser.prediction_type == "flow_prediction" else scheduler_t.long()
    condition = pipeline.encode_prompt(PROMPTS)
    ours = _told(network, lambda: guided(noise, t, condition))
    if name == "z-image":
        _check_lists(ours, theirs, scale)
        return
    if name in TWO_CALLS and scale > 1:
        ours = {key: _second_half(value, len(noise)) for key, value in ours.items()}
    assert isinstance(guided, EmbeddedGuidance) == (name in ("flux-dev", "flux2-dev"))
    compared = [
        key
        for key in theirs
        if key != "hidden_states" and (isinstance(theirs[key], torch.Tensor) or theirs[key])
        if key != "return_dict"
    ]
    assert len(compared) >= 2
    if name == "pixart-sigma":
        _check_trimmed(ours, theirs)
    for key in compared:
        _same(ours[key], theirs[key], key)


@pytest.mark.parametrize("name", ["qwen-image", "lumina2"])
@torch.no_grad()
def test_a_guided_prediction_is_drawn_back_as_diffusers_does_by_default(name, monkeypatch):
    pipeline, found = loaded(name), []
    pipe, (height, width) = pipeline.diffusers, pipeline.resolution
    noise = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))

    def packed(latents: torch.Tensor) -> torch.Tensor:
        return pipe._pack_latents(latents, *latents.shape) if name == "qwen-image" else latents

    def step(prediction: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        found.append((prediction, t))
        raise _Told

    monkeypatch.setattr(pipe.scheduler, "step", step)
    with pytest.raises(_Told):
        pipe(
            prompt=list(PROMPTS), height=height, width=width, num_inference_steps=2,
            latents=packed(noise), output_type="latent", **asked(name, 4.0),
        )  # fmt: skip
    theirs, t = found[0]
    t, condition = t * 1e-3, pipeline.encode_prompt(PROMPTS)
    ours = packed(pipeline.guided(4.0)(noise, t, condition))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    plain = packed(pipeline.guided(4.0, rescale=0.0)(noise, t, condition))
    assert not torch.allclose(plain, theirs, rtol=1e-2)


@pytest.mark.parametrize("name", ["pixart-sigma", "sana"])
def test_prompts_are_cleaned_in_training_as_in_the_call_of_the_card(name, monkeypatch):
    """Whether bs4 and ftfy are installed changes nothing: neither asks for it."""
    pipeline, asked = loaded(name), []
    pipe, prepared = pipeline.diffusers, type(pipeline.diffusers)._text_preprocessing

    def preparing(self: Any, text: Any, clean_caption: bool) -> Any:
        asked.append(clean_caption)
        return prepared(self, text, clean_caption=clean_caption)

    monkeypatch.setattr(type(pipe), "_text_preprocessing", preparing)
    pipeline.encode_prompt(PROMPTS)
    pipeline.null_condition()
    ours, settings = set(asked), pipeline.adapter.call_settings
    asked.clear()
    height, width = pipeline.resolution
    size = {"height": height, "width": width, "use_resolution_binning": False}
    _told(
        pipeline.denoiser.network,
        lambda: pipe(PROMPTS, num_inference_steps=1, guidance_scale=3, **size, **settings),
    )
    assert ours == set(asked) == {False}


def _check_trimmed(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Cuts what the mask hides, in place: diffusers pads to 300 tokens, we to the longest prompt."""
    length = ours["encoder_attention_mask"].shape[1]
    assert not theirs["encoder_attention_mask"][:, length:].any()
    for told in (ours, theirs):
        mask = told["encoder_attention_mask"] = told["encoder_attention_mask"][:, :length]
        told["encoder_hidden_states"] = told["encoder_hidden_states"][:, :length] * mask[..., None]


def _check_lists(ours: dict[str, Any], theirs: dict[str, Any], scale: float) -> None:
    """Z-Image's batch has the prompts first, and the empty ones behind them."""
    order = [0, 1] if scale == 1 else [2, 3, 0, 1]
    assert len(theirs["hidden_states"]) == len(theirs["encoder_hidden_states"]) == len(order)
    for i, j in enumerate(order):
        for key in ("hidden_states", "encoder_hidden_states", "timestep"):
            torch.testing.assert_close(ours[key][j], theirs[key][i], rtol=1e-5, atol=1e-6, msg=key)


@torch.no_grad()
def test_it_samples_and_decodes(name):
    """Two steps of our own sampler; pictures of the asked resolution; the VAE's scale, there and back."""
    pipeline = loaded(name)
    condition = pipeline.encode_prompt(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *pipeline.latent_shape, generator=generator)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    x0 = sample(pipeline.guided(2.0, "a green square"), plan, noise, condition)
    images = pipeline.decode(x0)
    assert images.shape == (2, 3, *pipeline.resolution)
    decoded, encoded = _by_hand(pipeline.diffusers.vae, x0, images)
    torch.testing.assert_close(images, decoded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pipeline.encode_image(images), encoded, rtol=1e-4, atol=1e-4)


def _by_hand(vae: Any, x0: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A VAE's pictures of latents, and its latents of pictures, as diffusers' pipelines make them."""
    config = vae.config
    if isinstance(vae, diffusers.AutoencoderKLQwenImage):
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        decoded = vae.decode(x0[:, :, None] * std + mean, return_dict=False)[0][:, :, 0]
        found = vae.encode(images[:, :, None]).latent_dist.mode()
        return decoded, ((found - mean) / std)[:, :, 0]
    if isinstance(vae, diffusers.AutoencoderKLFlux2):
        pipe = diffusers.Flux2Pipeline
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + config.batch_norm_eps)
        decoded = vae.decode(pipe._unpatchify_latents(x0 * std + mean), return_dict=False)[0]
        found = pipe._patchify_latents(vae.encode(images).latent_dist.mode())
        return decoded.clamp(-1, 1), (found - mean) / std
    shift = config.get("shift_factor") or 0.0
    decoded = vae.decode(x0 / config.scaling_factor + shift, return_dict=False)[0].clamp(-1, 1)
    encoded = vae.encode(images)
    mean = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mean
    return decoded, (mean - shift) * config.scaling_factor


def test_a_resolution_that_does_not_divide(name):
    with pytest.raises(ValueError, match=r"resolution is 31x32; .* must be divisible by"):
        Pipeline.from_diffusers(tiny_pipeline(name), resolution=(31, 32))


def test_every_family_loads_by_its_index(tmp_path):
    """SDXL stands for all: the class is read from model_index.json, before anything is loaded."""
    make_pipeline("sdxl").save_pretrained(tmp_path)
    pipeline = Pipeline.load(tmp_path, resolution=(32, 16))
    assert type(pipeline.diffusers) is diffusers.StableDiffusionXLPipeline
    assert pipeline.latent_shape == (4, 16, 8)
    assert pipeline.encode_prompt(["a ring"])["time_ids"].tolist() == [[32, 16, 0, 0, 32, 16]]


def test_sd3_loads_without_t5(tmp_path):
    pipe = make_pipeline("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path)
    pipeline = Pipeline.load(tmp_path, resolution=(32, 32))
    text, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    found = pipeline.encode_prompt(PROMPTS)
    assert torch.equal(found["encoder_hidden_states"], text)
    assert torch.equal(found["pooled_projections"], pooled)


def test_dit_takes_names_and_numbers_of_classes():
    pipeline = Pipeline.from_diffusers(make_pipeline("dit"))
    found = pipeline.encode_prompt(["goldfish", "2", "tench", ""])["class_labels"]
    assert found.tolist() == [1, 2, 0, 3]
    assert pipeline.null_condition()["class_labels"].tolist() == [3]
    assert pipeline.null_condition("goldfish")["class_labels"].tolist() == [1]
    with pytest.raises(ValueError, match=r"'goldfsh' is no class .* such as goldfish"):
        pipeline.encode_prompt(["goldfsh"])
    with pytest.raises(ValueError, match="a number from 0 to 2"):
        pipeline.encode_prompt(["3"])


def test_pixel_pipelines_have_no_vae():
    pipeline = Pipeline.from_diffusers(make_pipeline("ddpm-rgb"))
    assert pipeline.latent_shape == (3, 8, 8)
    assert pipeline.resolution == (8, 8)
    pixels = torch.full((1, 3, 8, 8), 2.0)
    assert torch.equal(pipeline.decode(pixels), torch.ones(1, 3, 8, 8))
    assert torch.equal(pipeline.encode_image(pixels / 4), pixels / 4)
    assert pipeline.guided(1.0) is pipeline.denoiser
    assert pipeline.encode_prompt(["", ""]).tensors == {}
    with pytest.raises(ValueError, match="'dog', but this network is unconditional"):
        pipeline.encode_prompt(["dog"])
    with pytest.raises(ValueError, match="nothing to guide it by"):
        pipeline.guided(3.0)


def test_grey_pictures_have_three_equal_channels():
    pipeline = Pipeline.from_diffusers(make_pipeline("ddpm"))
    assert pipeline.latent_shape == (1, 8, 8)
    grey = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    images = pipeline.decode(grey)
    assert torch.equal(images, grey.expand(1, 3, 8, 8))
    torch.testing.assert_close(pipeline.encode_image(images), grey)


def test_pictures_of_other_channels_are_refused():
    pipe: Any = diffusers.DDPMPipeline(ddpm(channels=2).unet, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match=r"draws 2 channels; pictures are grey \(1\) or RGB \(3\)"):
        Pipeline.from_diffusers(pipe)


def test_classes_of_a_pixel_network():
    pipeline = Pipeline.from_diffusers(make_pipeline("ddpm-classes"))
    assert pipeline.encode_prompt(["3", "0"])["class_labels"].tolist() == [3, 0]
    assert pipeline.null_condition("2")["class_labels"].tolist() == [2]
    with pytest.raises(ValueError, match="'dog' is no class"):
        pipeline.encode_prompt(["dog"])
    with pytest.raises(ValueError, match="no class that stands for none"):
        pipeline.guided(3.0)
    embedded = ddpm(class_embed_type="identity")
    with pytest.raises(ValueError, match="takes an embedding of the class"):
        Pipeline.from_diffusers(embedded).encode_prompt(["1"])


@torch.no_grad()
def test_a_teachers_clip_is_its_samplers_and_not_a_students(generator):
    """DDPM's default clips: a random network in pixel space draws as in diffusers; it was off by 1 in the mean."""
    unet: Any = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler: Any = diffusers.DDIMScheduler(timestep_spacing="trailing")
    pipeline = Pipeline.from_diffusers(diffusers.DDPMPipeline(unet, scheduler))
    noise = x_t = torch.randn(2, 3, 8, 8, generator=generator)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        x_t = scheduler.step(unet(x_t, t).sample, t, x_t).prev_sample
    plan, condition = StepPlan.from_schedule(pipeline.denoiser.schedule, 5), Condition()
    found = sample(pipeline.denoiser, plan, noise, condition)
    torch.testing.assert_close(found, x_t, rtol=1e-4, atol=1e-4)
    student = pipeline.denoiser.copy()
    assert student.clamp is None
    assert (sample(student, plan, noise, condition) - found).abs().mean() > 1
