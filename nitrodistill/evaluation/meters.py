"""Streamed measurements of one model: a few numbers of each picture are kept, and bounded sets of features."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nitrodistill.evaluation.alignment import Alignment, check_verdicts
from nitrodistill.evaluation.colour import colour_features
from nitrodistill.evaluation.diversity import PromptSpread
from nitrodistill.evaluation.features import Extractor, FeatureSet
from nitrodistill.evaluation.nearest import NearestPair
from nitrodistill.evaluation.sharpness import (
    TextureFeatures,
    edge_strength,
    gradient_energy,
    high_frequency_energy,
)
from nitrodistill.evaluation.text import TextScore

MAX_LATENT_FEATURES = 1024


class Columns:
    """Numbers of each sample, by name, with the place of each sample.

    They lie in arrays that grow: a tensor a batch would pin the memory between batches, which then never shrinks.
    """

    def __init__(self) -> None:
        self._values: dict[str, array[float]] = {}
        self._places: dict[str, array[int]] = {}

    def update(self, values: Mapping[str, Tensor], places: Tensor) -> None:
        """Adds values, each `(B,)`, of samples at `places` `(B,)`, see `SamplePlan`.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"{name} of a picture is NaN or infinite; what measures it, or the picture, has overflowed."
                )
            self._values.setdefault(name, array("d")).extend(value.detach().double().tolist())
            self._places.setdefault(name, array("q")).extend(places.tolist())

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        """All names."""
        return list(self._values)

    def __getitem__(self, name: str) -> Tensor:
        """The values of one name, `(n,)` float64."""
        return torch.tensor(self._values[name], dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """All values, and the place of each sample."""
        values = {f"values.{name}": self[name] for name in self._values}
        return values | {f"places.{name}": self._place(name) for name in self._places}

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """The values of either half."""
        values, half = self[name], self._place(name) % 2
        return values[half == 0], values[half == 1]

    def _place(self, name: str) -> Tensor:
        return torch.tensor(self._places[name], dtype=torch.int64)


class Meter:
    """Measures the pictures, and where there are any the latents, of one model.

    Args:
        num_prompts: prompts are numbered 0..num_prompts - 1.
        extractors: feature extractors.
        alignment: the oracle, or None.
        text_score: how well picture and prompt agree, or None.
        nearest: finds the nearest training pair, or None.
        texture: texture features.
    """

    def __init__(
        self,
        num_prompts: int,
        extractors: Sequence[Extractor],
        alignment: Alignment | None = None,
        text_score: TextScore | None = None,
        nearest: NearestPair | None = None,
        texture: TextureFeatures | None = None,
    ) -> None:
        self._extractors = extractors
        self._oracle = alignment
        self._text_score = text_score
        self._nearest = nearest
        self._texture = texture or TextureFeatures()
        self.features: dict[str, FeatureSet] = {e.name: FeatureSet(e.name) for e in extractors}
        self.texture: FeatureSet = FeatureSet("texture")
        self.colour: FeatureSet = FeatureSet("colour")
        self.latents: FeatureSet = FeatureSet("latents")
        self.latent_shape: torch.Size | None = None
        self.columns: Columns = Columns()
        self.spreads: tuple[PromptSpread, PromptSpread] = (
            PromptSpread(num_prompts),
            PromptSpread(num_prompts),
        )

    def update(self, images: Tensor, prompts: Sequence[str], places: Tensor) -> None:
        """Adds images `(B, 3, H, W)` in [-1, 1], their prompts (real pictures may have none), their places."""
        for extractor in self._extractors:
            self.features[extractor.name].update(extractor(images), places)
        self.texture.update(self._texture(images), places)
        self.colour.update(colour_features(images), places)
        found = {
            "edge": edge_strength(images),
            "gradient_energy": gradient_energy(images),
            "high_frequency": high_frequency_energy(images),
        }
        if self._oracle is not None and prompts:
            found |= check_verdicts(self._oracle(images, prompts))
        if self._text_score is not None and prompts:
            found["clip_score"] = self._text_score(images, prompts)
        self.columns.update(found, places)

    def update_latents(self, latents: Tensor, prompt_ids: Tensor, places: Tensor) -> None:
        """Adds latents `(B, C, H, W)` of the prompts `(B,)`."""
        self.latent_shape = latents.shape[1:]
        features = latent_features(latents)
        self.latents.update(features, places)
        for number, spread in enumerate(self.spreads):
            rows = places % 2 == number
            spread.update(prompt_ids[rows], features[rows.to(features.device)])
        if self._nearest is not None:
            self.columns.update({"nearest": self._nearest.distances(features)}, places)

    def state(self) -> dict[str, Tensor]:
        """What `from_state` needs, as tensors; latents and what belongs to prompts is left out."""
        sets = {f"features.{name}": found for name, found in self.features.items()}
        sets |= {"texture": self.texture, "colour": self.colour}
        found = {f"{n}/{key}": v for n, s in sets.items() for key, v in s.state().items()}
        return found | {f"columns/{key}": v for key, v in self.columns.state().items()}

    @classmethod
    def from_state(cls, extractors: Sequence[Extractor], state: Mapping[str, Tensor]) -> Meter:
        """The meter that `state` was made of."""
        found = cls(0, extractors)

        def below(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}/")}

        for extractor in extractors:
            part = below(f"features.{extractor.name}")
            found.features[extractor.name] = FeatureSet.from_state(extractor.name, part)
        found.texture = FeatureSet.from_state("texture", below("texture"))
        found.colour = FeatureSet.from_state("colour", below("colour"))
        columns = below("columns")
        for key, values in columns.items():
            kind, _, name = key.partition(".")
            if kind == "values":
                found.columns.update({name: values}, columns[f"places.{name}"])
        return found

    @property
    def count(self) -> int:
        """How many pictures were measured."""
        return self.texture.count


def latent_features(latents: Tensor) -> Tensor:
    """Latents `(B, C, H, W)` as features `(B, F)`, averaged over cells where F would exceed 1024.

    A covariance of Stable Diffusion's 16,384 numbers would need 2 GB and more samples than anybody draws.
    """
    channels, height, width = latents.shape[1:]
    if channels * height * width > MAX_LATENT_FEATURES:
        side = max(1, int((MAX_LATENT_FEATURES // channels) ** 0.5))
        latents = adaptive_avg_pool2d(latents.float(), (min(side, height), min(side, width)))
    return torch.flatten(latents, 1)
