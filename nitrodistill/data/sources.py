"""How samples came into a store: made by a teacher, encoded from images, or imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from nitrodistill.data.columns import check_integer, check_number
from nitrodistill.types import check_prediction_type


@dataclass(frozen=True)
class Grid:
    """The steps that the teacher took, noisiest first: the timestep and the scales of each.

    Attributes:
        schedule: class of the NoiseSchedule.
        t: timesteps in the network's unit.
        alpha: signal scale at each.
        sigma: noise scale at each.

    Example:
        >>> store.manifest.sources[0].grid.t
        (999, 499)
    """

    schedule: str
    t: tuple[int | float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("t", "alpha", "sigma"):
            for value in getattr(self, name):
                check_number(value, f"grid.{name}")
        if not len(self.t) == len(self.alpha) == len(self.sigma):
            raise ValueError("the grid's t, alpha and sigma must have one value a step.")


@dataclass(frozen=True)
class Generated:
    """How `generate` made samples: with which teacher, from which prompts and seed.

    Attributes:
        num_samples: how many.
        teacher: the name it was given, for people.
        fingerprint: of the denoiser's weights, for `PairStore.check_teacher`.
        prediction_type: what it predicts.
        sampler: transition of the StepPlan; "ode" is DDIM (eta 0), or Euler for rectified flow and EDM.
        sampler_settings: `DiffusersDenoiser.sampler_settings`: how x0 was clamped, and EDM's coefficients.
        num_inference_steps: of the sampler.
        guidance: scale of classifier-free guidance; 1 is none.
        grid: timesteps and scales of the steps.
        text_encoders: fingerprint of the text encoders; empty for pipelines without text.
        compute: element type that the teacher computed in ("bfloat16": autocast; weights stay float32).
        seed: noise of sample i is `Draws(seed, 0, [i], purpose="pairs").normal("noise", shape)`,
            rounded.
        batch_size: how many the teacher saw at once.
        num_prompts: length of the prompt list; sample i has prompt `i % num_prompts`.
        prompts_hash: of that list.
        code_version: nitrodistill's.
        negative_prompt: what guidance led away from; None is diffusers' default, and is not written down.

    Example:
        >>> source = store.manifest.sources[0]
        >>> source.teacher, source.guidance, source.num_inference_steps
        ('toy', 3.0, 2)
    """

    kind: ClassVar[str] = "generated"

    num_samples: int
    teacher: str
    fingerprint: str
    prediction_type: str
    sampler: str
    sampler_settings: str
    num_inference_steps: int
    guidance: float
    grid: Grid
    text_encoders: str
    compute: str
    seed: int
    batch_size: int
    num_prompts: int
    prompts_hash: str
    code_version: str
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_inference_steps", "batch_size", "num_prompts"):
            check_integer(getattr(self, name), name, 1)
        check_integer(self.seed, "seed", 0)
        check_number(self.guidance, "guidance")
        check_prediction_type(self.prediction_type)


@dataclass(frozen=True)
class Encoded:
    """How `encode` made samples: real images through the VAE. Their noise is drawn and belongs to no image.

    Attributes:
        num_samples: how many.
        teacher: name of the pipeline whose VAE and text encoder were used, for people.
        vae: fingerprint of the VAE; empty for pipelines that draw pixels.
        text_encoders: fingerprint of the text encoders; empty for pipelines without text.
        image_size: height and width in pixels, after scaling the shorter side and cutting the middle.
        seed: of the noise, as in `Generated`.
        batch_size: how many images the VAE saw at once.
        images_hash: of the images' names and captions.
        code_version: nitrodistill's.

    Example:
        >>> nd.data.encode(
        ...     teacher, nd.data.open_images("images"), "real", teacher_name="toy", progress=False
        ... ).manifest.sources[0].image_size
        (32, 32)
    """

    kind: ClassVar[str] = "encoded"

    num_samples: int
    teacher: str
    vae: str
    text_encoders: str
    image_size: tuple[int, int]
    seed: int
    batch_size: int
    images_hash: str
    code_version: str

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size"):
            check_integer(getattr(self, name), name, 1)
        check_integer(self.seed, "seed", 0)
        for size in self.image_size:
            check_integer(size, "image_size", 1)


@dataclass(frozen=True)
class Imported:
    """Pairs that another program made; what it did not record is unknown.

    Attributes:
        num_samples: how many.
        format: of what was read, for example "nitro".
        teacher: name of the teacher that is said to have made them, for people.
        fingerprint: of its denoiser's weights.
        prediction_type: what it predicts.
        num_inference_steps: that it is said to have taken.
        guidance: scale of classifier-free guidance that it is said to have had.
        files_hash: of the names of what was read.
        code_version: nitrodistill's.

    Example:
        >>> from dataclasses import fields
        >>> [field.name for field in fields(nd.data.Imported)][:3]
        ['num_samples', 'format', 'teacher']
    """

    kind: ClassVar[str] = "imported"

    num_samples: int
    format: str
    teacher: str
    fingerprint: str
    prediction_type: str
    num_inference_steps: int
    guidance: float
    files_hash: str
    code_version: str

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_inference_steps"):
            check_integer(getattr(self, name), name, 1)
        check_number(self.guidance, "guidance")
        check_prediction_type(self.prediction_type)


Source = Generated | Encoded | Imported
"""What a manifest says of the origin of its samples."""


def code_version() -> str:
    """nitrodistill's version, or "unknown" in a source tree that is not installed."""
    try:
        return version("nitrodistill")
    except PackageNotFoundError:
        return "unknown"
