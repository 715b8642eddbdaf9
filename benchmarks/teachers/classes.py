"""By class: a DiT that predicts epsilon, on 30 classes, "red circle" to "orange cross".

Pictures are the embedded teacher's scenes, of which the class says colour and shape; size, place and background
are anything. Latents are those of the embedded autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.teachers.base import Quality, Teacher, Trained, held_out, shuffled
from nitrodistill import toy
from nitrodistill.evaluation import Extractor
from nitrodistill.models.adapters import adapter_for
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.toy import scenes
from tools.toy.loop import LoopConfig, build, fit, seeded
from tools.toy.train_teacher import CAPTION_DROPOUT, random_timesteps
from tools.toy.train_vae import encode, random_scenes

STEPS, POOL = 4000, 12_288
NAMES = [f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]


def class_of(indices: Tensor) -> Tensor:
    """Attribute indices `(B, 4)` to classes `(B,)`."""
    return indices[:, 1] * len(scenes.SHAPES) + indices[:, 2]


class Classes(Teacher):
    """The class-conditional teacher."""

    name = "classes"
    timestep = 400.0

    def prompts(self) -> list[str]:
        """The classes' names."""
        return shuffled(NAMES)

    def training_set(self, count: int, seed: int) -> Tensor:
        """Renders; held-out ones are drawn from other streams."""
        return random_scenes(count, seeded(seed, "classes", "pool"), "cpu")[1]

    def untrained(self) -> Any:
        """DiT with DiT's scheduler; the autoencoder is the embedded one."""
        scheduler = DDIMScheduler(
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            clip_sample=False,
            timestep_spacing="trailing",
        )
        names = {str(label): name for label, name in enumerate(NAMES)}
        numbers: Any = {int(label): name for label, name in names.items()}
        network: Any = build(make_dit, 0, "classes")
        vae: Any = toy.load_pipeline().vae
        pipe = DiTPipeline(network, vae, scheduler, id2label=numbers)  # pyright: ignore
        pipe.register_to_config(id2label=names)
        return pipe

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """The transformer."""
        pipe = self.untrained()
        adapter_for(pipe.transformer)  # switches off the label dropout inside of the blocks
        count = max(64, round(share * POOL))
        indices, images = random_scenes(count, seeded(0, "classes", "pool"), "cpu")
        x0, labels = encode(pipe.vae, images), class_of(indices)
        schedule = DiscreteSchedule.from_scheduler(pipe.scheduler)

        def loss(network: Any, size: int, generator: torch.Generator) -> Tensor:
            pick = torch.randint(len(x0), (size,), generator=generator)
            dropped = torch.rand(size, generator=generator) < CAPTION_DROPOUT
            label = torch.where(dropped, len(NAMES), labels[pick])
            t = random_timesteps(size, generator)
            eps = torch.randn(x0[pick].shape, generator=generator)
            x_t = schedule(t).mix(x0[pick], eps)
            found = network(x_t, timestep=t, class_labels=label, return_dict=False)[0]
            return mse_loss(found, eps)

        steps = max(1, round(share * STEPS))
        config = LoopConfig("dit", steps, 48, 1.5e-3, flat=0.4, ema_decay=0.995)
        pipe.register_modules(transformer=fit(pipe.transformer, loss, config, folder))
        return Trained(pipe)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The embedded oracle's features; its verdicts on colour and shape; fresh renders of the class."""
        oracle = toy.load_oracle()

        def aligned(images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
            read = oracle.predict(images)
            label = torch.tensor([NAMES.index(text) for text in texts])
            count = len(scenes.SHAPES)
            return {"colour": read[:, 1] == label // count, "shape": read[:, 2] == label % count}

        def real(texts: Sequence[str], index: Tensor) -> Tensor:
            uniforms = held_out(seed, index, 1 + scenes.NUM_UNIFORMS)
            every = scenes.attribute_indices(scenes.captions())
            of_class = [every[class_of(every) == NAMES.index(text)] for text in texts]
            rows = zip(of_class, uniforms[:, 0].tolist(), strict=True)
            indices = torch.stack([found[int(u * len(found))] for found, u in rows])
            return scenes.draw(indices, uniforms[:, 1:])

        features = Extractor("oracle", oracle.features, fingerprint=fingerprint(oracle))
        return Quality(features, real, aligned)


def make_dit() -> DiTTransformer2DModel:
    """A transformer of 16 tokens of 2x2."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        sample_size=scenes.IMAGE_SIZE // scenes.GRID,
        patch_size=2,
        num_embeds_ada_norm=len(NAMES),
    )
