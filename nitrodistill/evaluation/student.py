"""How a student is measured next to its teacher: with the oracle on the toy, else with networks at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from nitrodistill.data import LatentStore
from nitrodistill.data.pairs import MANIFEST
from nitrodistill.evaluation import (
    EvaluateConfig,
    Evaluation,
    Extractor,
    ImageFolder,
    RealImages,
    TextureFeatures,
    evaluate,
)
from nitrodistill.evaluation.features import Features
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.named import import_object
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import EMBEDDED
from nitrodistill.types import Denoiser


@dataclass(frozen=True)
class MetricNetworks:
    """Real pictures and networks that metrics need, from this machine; nothing is downloaded.

    Attributes:
        real: folder of real pictures, brought to the teacher's size, or of real latents (`encode`), which are
            decoded; null takes none (the embedded teacher's are drawn).
        features: module:function of your own, pictures (B, 3, H, W) in [-1, 1] -> features (B, F); Frechet
            distance and KID.
        inception: file of torch-fidelity's Inception weights, or auto for torch's hub cache: FID and KID.
        clip: folder of a saved CLIP, or its name in the cache: Frechet distance, CMMD and CLIP score.
        dino: folder of a saved DINOv2, or its name in the cache: Frechet distance and KID.
        lpips: trunk of the paired perceptual distance; its weights are in torch's hub cache.
    """

    real: str | None = None
    features: str | None = None
    inception: str | None = None
    clip: str | None = None
    dino: str | None = None
    lpips: Literal["vgg", "alex", "squeeze"] | None = None

    def extractors(self, device: torch.device) -> list[Extractor]:
        """The networks' features.

        Raises:
            FileNotFoundError: if weights are not on this machine.
        """
        from nitrodistill.evaluation.networks import clip, dino, inception

        found = []
        if self.features is not None:
            function = import_object(self.features, "feature function")
            if not callable(function):
                raise ValueError(
                    f"features is {self.features!r}; it must be module:function, such as mine.features:vectors."
                )
            found.append(Extractor("features", cast(Features, function)))
        if self.inception is not None:
            file = None if self.inception == "auto" else self.inception
            found.append(inception(file, device))
        if self.clip is not None:
            found.append(clip(self.clip, device))
        if self.dino is not None:
            found.append(dino(self.dino, device))
        return found

    def settings(self, teacher: Pipeline) -> dict[str, Any]:
        """Arguments of `evaluate`: real pictures, text score, perceptual distance."""
        found: dict[str, Any] = {}
        if self.real is not None:
            is_store = (Path(self.real) / MANIFEST).is_file()
            size = min(teacher.resolution)
            found["real_images"] = (
                _decoded(LatentStore.open(self.real), teacher)
                if is_store
                else ImageFolder(self.real, size)
            )
        if self.clip is not None:
            from nitrodistill.evaluation.networks import ClipScore

            found["text_score"] = ClipScore(self.clip, teacher.device)
        if self.lpips is not None:
            from nitrodistill.losses.lpips import LPIPSLoss

            found["perceptual"] = LPIPSLoss(self.lpips, reduction="none").to(teacher.device)
        return found


def measure_student(
    teacher_name: str,
    teacher: Pipeline,
    student: Denoiser,
    plan: StepPlan,
    prompts: Sequence[str],
    config: EvaluateConfig,
    *,
    networks: MetricNetworks | None = None,
    training_latents: Tensor | None = None,
    cache: str | Path | None = None,
    keep_student: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measures a student. On the toy: the oracle's features, its alignment, and freshly drawn scenes as
    real pictures; on another teacher the networks' features, or texture features without any.

    Args:
        teacher_name: one of `EMBEDDED` for an embedded one.
        teacher: its pipeline.
        student: the student's denoiser.
        plan: how it samples.
        prompts: what may be drawn.
        config: how much is drawn.
        networks: real pictures and networks; by default none.
        training_latents: x0 of the pairs that the student was trained on, for memorisation.
        cache: folder for latents and for what was measured of real pictures.
        keep_student: keep the student's latents there too.
        progress: show a bar.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> config = nd.evaluation.EvaluateConfig(8, num_inference_steps=1, bootstrap=2, cost_repeats=1)
        >>> found = nd.measure_student("toy", teacher, teacher.denoiser, plan, prompts, config, progress=False)
        >>> "alignment" in found.models["student"]
        True
    """
    networks = networks or MetricNetworks()
    extractors = networks.extractors(teacher.device)
    settings = networks.settings(teacher)
    if teacher_name in EMBEDDED:
        oracle, more = _toy(config.seed)
        extractors, settings = [oracle, *extractors], {**more, **settings}
    return evaluate(
        teacher,
        student,
        plan,
        prompts,
        extractors or [Extractor("texture", TextureFeatures(), fingerprint="texture 1")],
        training_latents=training_latents,
        config=config,
        cache=cache,
        keep_student=keep_student,
        progress=progress,
        **settings,
    )


def _decoded(store: LatentStore, teacher: Pipeline) -> RealImages:
    """The pictures of a store of real latents; what the VAE takes from them is missing."""

    def real(prompts: Sequence[str], index: Tensor) -> Tensor:
        if int(index.max()) >= len(store):
            raise ValueError(
                f"the real latents are {len(store)}, and {int(index.max()) + 1} are wanted; encode more, or lower "
                "num_samples."
            )
        return teacher.decode(store.read(index.tolist()).x0).cpu()

    return real


def _toy(seed: int) -> tuple[Extractor, dict[str, Any]]:
    from nitrodistill import toy

    oracle = toy.load_oracle()

    def aligned(images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        return oracle.alignment(images.cpu(), texts)

    def real(texts: Sequence[str], index: Tensor) -> Tensor:
        uniforms = Draws(seed, 0, index, purpose="evaluation").uniform(
            "scene", (toy.scenes.NUM_UNIFORMS,)
        )
        return toy.scenes.draw(toy.scenes.attribute_indices(texts), uniforms)

    features = Extractor(
        "oracle", lambda images: oracle.features(images.cpu()), None, fingerprint(oracle)
    )
    return features, {"alignment": aligned, "real_images": real}
