"""ComfyUI workflows for exported students, in ComfyUI's API format. They were not run: see below.

Written from ComfyUI's node definitions (comfyanonymous/ComfyUI: nodes.py, comfy_extras/nodes_custom_sampler.py,
nodes_model_advanced.py, comfy/model_sampling.py). Nothing here was executed in ComfyUI, and every workflow says so
in its first node's title.

ComfyUI samples in sigma = sigma_t / alpha_t (flows: sigma_t) and feeds a discrete network x / sqrt(1 + sigma^2).
`ManualSigmas` then is the whole plan. At the table's largest sigma ComfyUI scales the first noise by
sqrt(1 + sigma^2), so that the network sees unit noise as in diffusers. For a student of an earlier t it would
scale by sigma: there `AddNoise` makes the noise with sqrt(1 + sigma^2), and the sampler adds none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.types import PredictionType

WORKFLOW = "comfyui.json"

Link = list[Any]  # [node id, output index]

NOT_RUN = "not run: written from ComfyUI's node definitions"
_ZERO_SNR_ALPHAS_CUMPROD = 4.8973451890853435e-08  # what ComfyUI puts in the place of 0
_SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}


@dataclass
class Workflow:
    """Nodes by their ids, and where the files of the export have to go.

    Attributes:
        nodes: what ComfyUI's API takes.
        files: file or folder of the export -> place under ComfyUI's `models`.
    """

    nodes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, title: str | None = None, **inputs: Any) -> Link:
        """Adds a node; returns the link to its first output."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": inputs}
        self.nodes[number]["_meta"] = {"title": title or kind}
        return [number, 0]

    def place(self, source: str, folder: str, name: str) -> str:
        """Notes that `source` of the export goes to `folder` as `name`; returns the name."""
        self.files[source] = f"{folder}/{name}"
        return name

    def write(self, folder: Path) -> str:
        """Writes the workflow into an export and returns the card's section on it."""
        text = json.dumps(self.nodes, indent=2, ensure_ascii=False)
        (folder / WORKFLOW).write_text(text + "\n", encoding="utf-8")
        rows = "\n".join(
            f"| `{source}`{'' if (folder / source).is_file() else ' (in several files: join them)'} "
            f"| `models/{place}` |"
            for source, place in self.files.items()
        )
        return f"""## ComfyUI

`{WORKFLOW}` is a workflow in ComfyUI's API format, with the noise levels of this student. It was written from the
definitions of ComfyUI's nodes and **has not been run**. Copy the files to where it looks for them:

| here | in ComfyUI |
|---|---|
{rows}

"""


def workflow_for(
    pipeline: Pipeline,
    plan: StepPlan,
    prediction_type: PredictionType,
    name: str,
    prompt: str,
    lora: str | None = None,
) -> Workflow | None:
    """The workflow of a student, or None for pipelines that ComfyUI has no loader for.

    Args:
        pipeline: the teacher's.
        plan: how the student samples.
        prediction_type: what it predicts.
        name: of the student, for its files in ComfyUI.
        prompt: what it draws.
        lora: file name of LoRA weights; the network then is the base model's.
    """
    family = _FAMILIES.get(type(pipeline.diffusers).__name__)
    if family is None:
        return None
    flow = Workflow()
    parts = _load(family, flow, pipeline, name, prompt)
    model = parts.model
    if lora is not None:
        model = flow.add(
            "LoraLoaderModelOnly",
            model=model,
            lora_name=flow.place(lora, "loras", f"{name}.safetensors"),
            strength_model=1.0,
        )
    is_flow = prediction_type == "flow_prediction"
    if not is_flow:
        model = flow.add(
            "ModelSamplingDiscrete",
            model=model,
            sampling=_SAMPLING[prediction_type],
            zsnr=_is_zero_snr(pipeline, plan),
        )
    sigmas = _sigmas(plan, is_flow)
    latent, adds_noise = parts.latent, True
    if not is_flow and int(plan.steps[0].t) + 1 < pipeline.scheduler.config.num_train_timesteps:
        unit_noise = [math.sqrt(1 + sigmas[0] ** 2)]
        latent, adds_noise = _noise(flow, model, unit_noise, latent), False
    sampled = flow.add(
        "SamplerCustom",
        model=model,
        add_noise=adds_noise,
        noise_seed=0,
        cfg=1.0,  # without guidance the negative prompt is not evaluated
        positive=parts.positive,
        negative=parts.negative,
        sampler=flow.add("KSamplerSelect", sampler_name=_sampler(plan)),
        sigmas=flow.add("ManualSigmas", sigmas=_written(sigmas)),
        latent_image=latent,
    )
    images = flow.add("VAEDecode", samples=sampled, vae=parts.vae)
    flow.add("SaveImage", images=images, filename_prefix=name)
    return flow


def _sigmas(plan: StepPlan, is_flow: bool) -> list[float]:
    """ComfyUI's noise levels of the plan, and the 0 behind them."""
    levels = []
    for step in plan.steps:
        alpha, sigma = float(step.output.alpha), float(step.output.sigma)
        if is_flow:
            levels.append(sigma)
        elif alpha > 0:
            levels.append(sigma / alpha)
        else:
            floor = _ZERO_SNR_ALPHAS_CUMPROD
            levels.append(math.sqrt((1 - floor) / floor) + 1)  # beyond its largest: counts as that
    return [*levels, 0.0]


def _written(sigmas: list[float]) -> str:
    """Without exponents, which ManualSigmas would misread."""
    return ", ".join(f"{sigma:.8f}" for sigma in sigmas)


def _sampler(plan: StepPlan) -> str:
    """Euler in sigma is DDIM; "lcm" adds fresh noise to x0."""
    return "lcm" if plan.transition == "renoise" and len(plan) > 1 else "euler"


def _is_zero_snr(pipeline: Pipeline, plan: StepPlan) -> bool:
    zero = bool(torch.stack([step.output.alpha == 0 for step in plan.steps]).any())
    return zero or bool(pipeline.scheduler.config.get("rescale_betas_zero_snr", False))


def _noise(flow: Workflow, model: Link, scale: list[float], latent: Link) -> Link:
    return flow.add(
        "AddNoise",
        model=model,
        noise=flow.add("RandomNoise", noise_seed=0),
        sigmas=flow.add("ManualSigmas", sigmas=_written(scale)),
        latent_image=latent,
    )


@dataclass(frozen=True)
class _Parts:
    """Links to what a family's loaders give."""

    model: Link
    positive: Link
    negative: Link
    vae: Link
    latent: Link


class _Family(NamedTuple):
    """What ComfyUI calls the parts of a pipeline of diffusers, whose weights it reads as they are."""

    loader: str  # of the text encoders
    kind: str | None
    num_encoders: int
    latent: str


def _load(family: _Family, flow: Workflow, pipeline: Pipeline, name: str, prompt: str) -> _Parts:
    height, width = pipeline.resolution
    weights = f"{pipeline.adapter.network}/diffusion_pytorch_model.safetensors"
    model = flow.add(
        "UNETLoader",
        f"Load Diffusion Model ({NOT_RUN})",
        unet_name=flow.place(weights, "diffusion_models", f"{name}.safetensors"),
        weight_dtype="default",
    )
    files = {}
    for i in range(1, family.num_encoders + 1):
        part = "text_encoder" if i == 1 else f"text_encoder_{i}"
        key = "clip_name" if family.num_encoders == 1 else f"clip_name{i}"
        source = f"{part}/model.safetensors"
        files[key] = flow.place(source, "text_encoders", f"{name}_{part}.safetensors")
    settings = files if family.kind is None else {**files, "type": family.kind}
    clip = flow.add(family.loader, **settings)
    vae = "vae/diffusion_pytorch_model.safetensors"
    return _Parts(
        model,
        flow.add("CLIPTextEncode", "Prompt", clip=clip, text=prompt),
        flow.add("CLIPTextEncode", "Negative prompt (unused)", clip=clip, text=""),
        flow.add("VAELoader", vae_name=flow.place(vae, "vae", f"{name}_vae.safetensors")),
        flow.add(family.latent, width=width, height=height, batch_size=1),
    )


_FAMILIES = {
    "StableDiffusionPipeline": _Family("CLIPLoader", "stable_diffusion", 1, "EmptyLatentImage"),
    "StableDiffusionXLPipeline": _Family("DualCLIPLoader", "sdxl", 2, "EmptyLatentImage"),
    "PixArtSigmaPipeline": _Family("CLIPLoader", "pixart", 1, "EmptyLatentImage"),
    "StableDiffusion3Pipeline": _Family("TripleCLIPLoader", None, 3, "EmptySD3LatentImage"),
    "FluxPipeline": _Family("DualCLIPLoader", "flux", 2, "EmptySD3LatentImage"),
}
