"""Workflows: nodes as ComfyUI defines them, and noise levels whose arithmetic is the plan's.

ComfyUI is not run here. Its arithmetic is written down again, from comfy/model_sampling.py and k-diffusion:
the network sees x / sqrt(1 + sigma^2) (flows: x), "euler" goes to x + (x - x0) / sigma * (sigma' - sigma), and
"lcm" to x0 + sigma' noise.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nitrodistill.export.comfyui import Workflow, workflow_for
from nitrodistill.export.scheduler import _Probe
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import ZeroTerminalSNR
from nitrodistill.types import Condition, PredictionType
from tests import flow_pipelines, pipelines
from tests.pipelines import tiny_pipeline

# the inputs of ComfyUI's nodes, from their definitions
INPUTS = {
    "UNETLoader": {"unet_name", "weight_dtype"},
    "CLIPLoader": {"clip_name", "type"},
    "DualCLIPLoader": {"clip_name1", "clip_name2", "type"},
    "TripleCLIPLoader": {"clip_name1", "clip_name2", "clip_name3"},
    "LoraLoaderModelOnly": {"model", "lora_name", "strength_model"},
    "ModelSamplingDiscrete": {"model", "sampling", "zsnr"},
    "CLIPTextEncode": {"clip", "text"},
    "EmptyLatentImage": {"width", "height", "batch_size"},
    "EmptySD3LatentImage": {"width", "height", "batch_size"},
    "KSamplerSelect": {"sampler_name"},
    "ManualSigmas": {"sigmas"},
    "RandomNoise": {"noise_seed"},
    "AddNoise": {"model", "noise", "sigmas", "latent_image"},
    "SamplerCustom": {
        *("model", "add_noise", "noise_seed", "cfg", "positive", "negative"),
        *("sampler", "sigmas", "latent_image"),
    },
    "VAELoader": {"vae_name"},
    "VAEDecode": {"samples", "vae"},
    "SaveImage": {"images", "filename_prefix"},
}


def node(flow: Workflow, kind: str) -> dict[str, Any]:
    (found,) = (n for n in flow.nodes.values() if n["class_type"] == kind)
    return found["inputs"]


def make(family: str, plan: StepPlan, lora: str | None = None) -> Workflow:
    pipeline = Pipeline.from_diffusers(tiny_pipeline(family))
    kind = pipeline.denoiser.prediction_type
    flow = workflow_for(pipeline, plan, kind, "mine", "a red ring", lora)
    assert flow is not None
    return flow


WITHOUT = ("sana", *flow_pipelines.FAMILIES)
"""ComfyUI's own nodes load none of their parts."""

FAMILIES = [name for name in pipelines.FAMILIES if name not in ("flux-dev", *WITHOUT)]


@pytest.mark.parametrize("family", WITHOUT)
def test_there_is_no_workflow_that_comfyui_could_not_load(family: str) -> None:
    pipeline = Pipeline.from_diffusers(tiny_pipeline(family))
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule)
    kind = pipeline.denoiser.prediction_type
    assert workflow_for(pipeline, plan, kind, "mine", "a red ring") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_are_comfyuis_and_links_lead_to_earlier_ones(family: str) -> None:
    pipeline = Pipeline.from_diffusers(tiny_pipeline(family))
    flow = make(family, StepPlan.from_schedule(pipeline.denoiser.schedule), lora="lora.safetensors")
    for number, one in flow.nodes.items():
        assert set(one["inputs"]) == INPUTS[one["class_type"]]
        links = [value[0] for value in one["inputs"].values() if isinstance(value, list)]
        assert all(int(link) < int(number) for link in links)
    assert "not run" in flow.nodes["1"]["_meta"]["title"]
    size = next(n["inputs"] for n in flow.nodes.values() if "Latent" in n["class_type"])
    assert (size["height"], size["width"]) == pipeline.resolution
    assert all(place.split("/")[1].startswith("mine") for place in flow.files.values())


def comfy(flow: Workflow, kind: PredictionType, noise: Tensor, fresh: Any) -> Tensor:
    """What ComfyUI computes with the probe for a network."""
    probe, inputs = _Probe(kind), node(flow, "SamplerCustom")
    read = [float(word) for word in flow.nodes[inputs["sigmas"][0]]["inputs"]["sigmas"].split(",")]
    sampler = node(flow, "KSamplerSelect")["sampler_name"]
    flows = kind == "flow_prediction"
    if inputs["add_noise"]:  # at the largest sigma
        x = noise * (read[0] if flows else math.sqrt(1 + read[0] ** 2))
    else:
        added = node(flow, "AddNoise")["sigmas"]
        x = noise * float(flow.nodes[added[0]]["inputs"]["sigmas"])
    for i, (sigma, following) in enumerate(itertools.pairwise(read)):
        scale = 1.0 if flows else math.sqrt(1 + sigma**2)
        out = probe(x / scale, torch.zeros(()), Condition())
        if kind == "v_prediction":
            x0 = x / scale**2 - out * sigma / scale
        elif kind == "sample":
            x0 = out
        else:
            x0 = x - out * sigma
        if sampler == "euler":
            x = x + (x - x0) / sigma * (following - sigma)
        else:
            weight = 1 - following if flows else 1.0
            x = weight * x0 + (following * fresh(i + 1) if following else 0)
    return x


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transition", ["ode", "renoise"])
@pytest.mark.parametrize("num_inference_steps", [1, 4])
def test_its_arithmetic_is_the_plans(
    family: str, transition: Any, num_inference_steps: int
) -> None:
    denoiser = Pipeline.from_diffusers(tiny_pipeline(family)).denoiser
    kind = denoiser.prediction_type
    plan = StepPlan.from_schedule(denoiser.schedule, num_inference_steps, transition)
    noises = torch.randn(
        num_inference_steps + 1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    noises = noises.double()
    expected = sample(_Probe(kind), plan, noises[0], Condition(), lambda i: noises[i])
    found = comfy(make(family, plan), kind, noises[0], lambda i: noises[i])
    scale = expected.abs().max()
    assert float((found - expected).abs().max() / scale) < 1e-6


@pytest.mark.parametrize(("family", "told"), [("pixart-sigma", 400), ("sdxl", 399), ("sd21-v", 10)])
def test_an_early_timestep_gets_unit_noise(family: str, told: int) -> None:
    denoiser = Pipeline.from_diffusers(tiny_pipeline(family)).denoiser
    plan = StepPlan.from_noise(denoiser.schedule, told)
    flow = make(family, plan)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    expected = sample(_Probe(denoiser.prediction_type), plan, noise, Condition())
    found = comfy(flow, denoiser.prediction_type, noise, None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    sigma, _ = (
        float(word)
        for word in flow.nodes[node(flow, "SamplerCustom")["sigmas"][0]]["inputs"]["sigmas"].split(
            ","
        )
    )
    scales = denoiser.schedule(torch.arange(1000))
    table = (scales.sigma / scales.alpha).log()
    assert int((table - math.log(sigma)).abs().argmin()) == told, "as ComfyUI finds its timestep"


def test_zero_snr_is_comfyuis_switch() -> None:
    schedule = ZeroTerminalSNR()(Pipeline.from_diffusers(tiny_pipeline("sd21-v")).denoiser.schedule)
    plan = StepPlan.from_schedule(schedule)  # type: ignore[arg-type]
    flow = make("sd21-v", plan)
    assert node(flow, "ModelSamplingDiscrete")["zsnr"] is True
    assert node(flow, "ModelSamplingDiscrete")["sampling"] == "v_prediction"
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    expected = sample(_Probe("v_prediction"), plan, noise, Condition())
    torch.testing.assert_close(
        comfy(flow, "v_prediction", noise, None), expected, rtol=0, atol=1e-3
    )


def test_the_card_says_where_files_go_and_which_are_in_pieces(tmp_path: Path) -> None:
    flow = Workflow()
    for source in ("unet/a.safetensors", "text_encoder/b.safetensors"):
        flow.place(source, "somewhere", Path(source).name)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.safetensors").touch()
    section = flow.write(tmp_path)
    assert "**has not been run**" in section
    assert "| `unet/a.safetensors` | `models/somewhere/a.safetensors` |" in section
    assert "`text_encoder/b.safetensors` (in several files: join them)" in section
    assert (tmp_path / "comfyui.json").read_text() == "{}\n"
