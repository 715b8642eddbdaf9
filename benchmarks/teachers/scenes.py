"""Harder scenes: shapes at free places and angles, prompted, a small PixArt that predicts the flow.

It starts from the embedded transformer's weights, which know the words and another kind of prediction; latents are
those of the embedded autoencoder. The oracle is trained on these scenes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.teachers.base import Quality, Teacher, Trained, held_out
from nitrodistill import toy
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import Extractor
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.toy import scenes
from nitrodistill.toy.oracle import Oracle
from tools.toy.loop import LoopConfig, build, fit, seeded
from tools.toy.train_dit import LATENT_CHANNELS, DiTTeacher, tokenize_with_mask
from tools.toy.train_oracle import degrade
from tools.toy.train_teacher import CAPTION_DROPOUT
from tools.toy.train_vae import encode

ORACLE_STEPS, STEPS, POOL = 1000, 3000, 12_288
RADII = ((0.40, 0.46), (0.62, 0.68))  # of the half-width, by size
NUM_UNIFORMS = 12  # x, y, radius, angle, and the eight of `scenes.paint`


def draw(indices: Tensor, uniforms: Tensor) -> Tensor:
    """Attribute indices `(B, 4)` and uniforms `(B, 12)` to `(B, 3, 32, 32)`; no shape leaves the picture."""
    low, high = torch.tensor(RADII)[indices[:, 0]].unbind(1)
    half = scenes.IMAGE_SIZE / 2
    radius = (low + (high - low) * uniforms[:, 2]) * half
    room = (half - 1.05 * radius)[:, None]
    centre = half + room * (2 * uniforms[:, :2] - 1)
    return scenes.paint(indices, centre, radius, 2 * math.pi * uniforms[:, 3], uniforms[:, 4:])


def random_scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Attribute indices `(count, 4)` and their pictures `(count, 3, 32, 32)`."""
    every = scenes.attribute_indices(scenes.captions())
    indices = every[torch.randint(len(every), (count,), generator=generator)]
    return indices, draw(indices, torch.rand(count, NUM_UNIFORMS, generator=generator))


def oracle_loss(oracle: Oracle, size: int, generator: torch.Generator) -> Tensor:
    """Cross entropy of the four attributes, on blurred and noisy pictures too."""
    indices, images = random_scenes(size, generator)
    logits = oracle(degrade(images, generator))
    pairs = zip(logits, indices.unbind(1), strict=True)
    return torch.stack([cross_entropy(a, b) for a, b in pairs]).sum()


@dataclass(frozen=True)
class FlowLatents:
    """A pool of latents `(N, 4, 8, 8)` with token ids and masks `(N, 12)`, and those of the empty caption."""

    x0: Tensor
    text: tuple[Tensor, Tensor]
    no_text: tuple[Tensor, Tensor]
    schedule: RectifiedFlow

    def loss(self, network: DiTTeacher, size: int, generator: torch.Generator) -> Tensor:
        """Mean squared error of the flow; u is logit-normal(0, 1), one in five uniform."""
        pick = torch.randint(len(self.x0), (size,), generator=generator)
        dropped = torch.rand(size, 1, generator=generator) < CAPTION_DROPOUT
        normal = torch.randn(size, generator=generator).sigmoid()
        uniform = torch.rand(size, generator=generator)
        u = torch.where(torch.rand(size, generator=generator) < 0.2, uniform, normal)
        t, x0 = self.schedule.timestep(u), self.x0[pick]
        eps = torch.randn(x0.shape, generator=generator)
        tokens, mask = (
            torch.where(dropped, none, some[pick])
            for some, none in zip(self.text, self.no_text, strict=True)
        )
        return mse_loss(network(self.schedule(t).mix(x0, eps), t, tokens, mask), eps - x0)


class FreeScenes(Teacher):
    """The harder scenes' teacher."""

    name = "scenes"

    def prompts(self) -> list[str]:
        """The captions."""
        return shuffled_captions()

    def training_set(self, count: int, seed: int) -> Tensor:
        """Renders; held-out ones are drawn from other streams."""
        return random_scenes(count, seeded(seed, "scenes", "pool"))[1]

    def untrained(self) -> Any:
        """The embedded transformer's pipeline with its weights and a flow's scheduler."""
        pipe = toy.load_dit_pipeline()
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        )
        parts: dict[str, Any] = {**pipe.components, "scheduler": scheduler}
        return PixArtSigmaPipeline(**parts)

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """The oracle, then transformer and text encoder."""
        config = LoopConfig("oracle", max(1, round(share * ORACLE_STEPS)), 64, 2e-3)
        oracle = fit(build(Oracle, 0, "free oracle"), oracle_loss, config, folder)
        pipe = self.untrained()
        pool = self._pool(pipe, max(64, round(share * POOL)))
        steps = max(1, round(share * STEPS))
        config = LoopConfig("flow", steps, 48, 1e-3, flat=0.4, ema_decay=0.995)
        network = build(DiTTeacher, 0, "flow")
        network.text_encoder = pipe.text_encoder.train()
        network.transformer = pipe.transformer.train()
        average = fit(network, pool.loss, config, folder)
        pipe.register_modules(
            transformer=average.transformer.eval(), text_encoder=average.text_encoder.eval()
        )
        return Trained(pipe, oracle)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The oracle's features and verdicts; fresh scenes."""
        oracle = Oracle()
        if reader is not None:
            oracle.load_state_dict(load_file(reader))
        oracle.eval().requires_grad_(False)

        def real(texts: Sequence[str], index: Tensor) -> Tensor:
            return draw(scenes.attribute_indices(texts), held_out(seed, index, NUM_UNIFORMS))

        features = Extractor("oracle", oracle.features, fingerprint=fingerprint(oracle))
        return Quality(features, real, oracle.alignment)

    def _pool(self, pipe: Any, count: int) -> FlowLatents:
        indices, images = random_scenes(count, seeded(0, "scenes", "pool"))
        captions = [caption_of(row) for row in indices.tolist()]
        text = tokenize_with_mask(pipe.tokenizer, captions)
        assert isinstance(pipe.vae, nn.Module)
        x0 = encode(pipe.vae, images)  # pyright: ignore
        assert x0.shape[1] == LATENT_CHANNELS
        nothing = tokenize_with_mask(pipe.tokenizer, [""])
        return FlowLatents(x0, text, nothing, RectifiedFlow(t_max=1000.0))


def caption_of(indices: Sequence[int]) -> str:
    """The caption with these four attributes."""
    words = zip(scenes.ATTRIBUTE_VALUES, indices, strict=True)
    return scenes.Attributes(*(values[i] for values, i in words)).caption()
