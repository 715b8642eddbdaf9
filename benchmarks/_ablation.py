"""What `loss_ablation.py` compares: the losses of its list for a teacher, their weights, and what a step costs.

**Weights.** Losses have no common unit. Each gets the weight with which its gradient on x0 is as long as that of
smooth L1, on one batch of pairs at the start, where the student is the teacher in one step:

    w = |d smooth_l1 / d x0| / |d loss / d x0|

**Cost.** A step is what a method does with a batch, forward and backward, without the optimizer. All are timed
side by side in one process; memory is the peak above what is resident before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import interleave, peak_mib
from benchmarks.teachers.compare import Place
from benchmarks.teachers.methods import METHODS
from nitrodistill.data import PairStore
from nitrodistill.files import atomic
from nitrodistill.losses.latent_trunk import fitted_trunk
from nitrodistill.losses.named import TeacherFeatures, named_loss
from nitrodistill.method import Cast, DistillationMethod, Draws
from nitrodistill.methods import find_method
from nitrodistill.models.denoiser import frozen
from nitrodistill.sampling import predict_x0
from nitrodistill.types import Batch

REFERENCE, NONE = "smooth_l1", "none"
MMD = "benchmarks.mmd:MMDLoss"
Spec = dict[str, dict[str, Any]]
"""A loss as recipes say it."""


def losses_of(
    latents: Tensor,
    resolution: Sequence[int],
    network: Mapping[str, Any],
    maps: str | None,
    fitted: str | None,
    random: Path,
) -> dict[str, Spec]:
    """The losses of the list that this teacher's sizes and networks allow, by their names in the table.

    Args:
        latents: some of the teacher's, `(N, C, H, W)`.
        resolution: of its pictures.
        network: taps and u of the teacher's own features.
        maps: module:callable, pictures -> feature maps; None leaves the decoded loss out.
        fitted: file of `nitrodistill fit-latent-lpips`, or "toy"; None leaves it out.
        random: file of a trunk with random weights.
    """
    side, pixels = min(latents.shape[-2:]), min(resolution)
    wide = round(8 * float(latents.std()), 3)
    window = min(11, side - 1 + side % 2)
    scales = min(5, 1 + int(math.log2(max(1.0, pixels / 11))))
    found: dict[str, Spec] = {
        NONE: {},
        "l1": {"l1": {}},
        "l2": {"l2": {}},
        REFERENCE: {"smooth_l1": {}},
        "huber, delta 0.1": {"huber": {"delta": 0.1}},
        "pseudo-Huber, each element": {"pseudo_huber": {}},
        "pseudo-Huber, whole sample": {"pseudo_huber": {"dim": "sample", "c": None}},
        "latent SSIM": {
            "latent_ssim": {"data_range": wide, "window_size": window, "padding": "reflect"}
        },
        "Laplacian pyramid": {
            "laplacian_pyramid": {"levels": min(5, max(1, int(math.log2(side)) - 1))}
        },
    }
    if scales > 1:
        weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales]
        weights = [round(w / sum(weights), 4) for w in weights]
        settings = {"decode": True, "data_range": 2, "mode": "shift", "weights": weights}
        found["MS-SSIM, decoded"] = {"ms_ssim": settings}
    if maps is not None:
        found["LPIPS, decoded"] = {"lpips": {"decode": True, "network": maps}}
    found["LatentLPIPS, teacher"] = {"latent_lpips": {"network": dict(network)}}
    if fitted is not None:
        found["LatentLPIPS, fitted"] = {"latent_lpips": {"weights": fitted}}
    found["MMD, teacher"] = {MMD: {"network": dict(network)}}
    found["random trunk"] = {"latent_lpips": {"weights": str(random)}}
    return found


def random_trunk(file: Path, channels: int, seed: int = 0) -> Path:
    """Writes a trunk of the architecture of `fit-latent-lpips` that was never trained."""
    from safetensors.torch import save_file

    if not file.is_file():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trunk = fitted_trunk(channels, [(32, 32), (64, 64)])
        heads = {"heads.0": torch.full((32,), 1.0), "heads.1": torch.full((64,), 1.0)}
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            save_file(trunk.state_dict() | heads, temporary)
    return file


def weighted(spec: Spec, weight: float) -> Spec:
    """The loss with this weight."""
    return {name: {**settings, "weight": weight} for name, settings in spec.items()}


def method_of(spec: Spec, adversarial: bool) -> dict[str, Any]:
    """The method of the teachers' comparison with this reconstruction; nothing else is changed.

    The adversarial loss alone has all of a batch and every step.
    """
    base = METHODS["both" if adversarial else "regression"]
    settings = {**base["settings"], "reconstruction": spec}
    if spec:
        return {**base, "settings": settings}
    return {**base, "settings": {**settings, "fresh_fraction": 1.0}, "shares": {}}


class Bench:
    """One teacher, a student that is still its copy, and a batch of its pairs."""

    def __init__(self, place: Place) -> None:
        pipeline = place.pipeline
        self.place = place
        self.teacher = pipeline.denoiser
        frozen(self.teacher.module)
        self.student = self.teacher.copy()
        self.student.module.float().requires_grad_(True)
        self.empty = pipeline.null_condition() if pipeline.adapter.has_null else None
        pairs = PairStore.open(place.pairs).read(range(place.batch_size))
        self.batch = Batch(torch.arange(place.batch_size), pairs)

    def built(self, method: Mapping[str, Any], steps: int = 100) -> DistillationMethod:
        """The method of a recipe, on the teacher itself and this student."""
        stage = self.place.recipe(method, steps, 0, Path("runs")).stages[0]
        cast = Cast.of(
            self.teacher, self.student, empty=self.empty, decode=self.place.pipeline.decode
        )
        return find_method(stage.method).build(stage.settings, cast)

    def gradient_norms(self, specs: Mapping[str, Spec]) -> dict[str, float]:
        """|d loss / d x0| of each loss at weight 1, at the student's x0."""
        pairs = self.batch.pairs
        assert pairs is not None
        (step,) = self.built(METHODS["regression"]).plan.steps
        with torch.no_grad():
            x_t = step.input.mix(pairs.x0, pairs.noise)
            x0 = predict_x0(self.student, step, x_t, pairs.condition)
        cast = Cast.of(self.teacher, self.student, empty=self.empty)
        return gradient_norms(specs, x0, pairs.x0, self.place.pipeline.decode, cast.features)

    def costs(
        self, methods: Mapping[str, Mapping[str, Any]], seconds: float
    ) -> dict[str, dict[str, float | None]]:
        """Milliseconds and peak MiB of a step of each method, once its adversarial term has begun."""
        calls = {name: self._step(self.built(method)) for name, method in methods.items()}
        times = interleave(calls, seconds=seconds, least=5)
        return {
            name: {"ms": times[name].spread.median, "mib": peak_mib(call)}
            for name, call in calls.items()
        }

    def _step(self, method: DistillationMethod) -> Callable[[], None]:
        step = 99

        def call() -> None:
            draws = Draws(0, step, self.batch.index)
            for _, terms in method.losses(self.batch, method.active(step), draws):
                terms.total.backward()
            self.student.module.zero_grad(set_to_none=True)

        return call


def gradient_norms(
    specs: Mapping[str, Spec],
    x0: Tensor,
    target: Tensor,
    decode: Callable[[Tensor], Tensor] | None = None,
    features: TeacherFeatures | None = None,
) -> dict[str, float]:
    """|d loss / d x0| of the mean over a batch; of a loss with a weight, with that."""
    norms = {}
    for name, spec in specs.items():
        at = x0.clone().requires_grad_()
        named_loss(spec, decode=decode, features=features)(at, target).backward()
        assert at.grad is not None
        norms[name] = float(at.grad.norm())
    return norms


def matched_weights(norms: Mapping[str, float]) -> dict[str, float]:
    """The weight of each loss with which all gradients are as long as the reference's; three digits.

    Raises:
        ValueError: for a loss without a gradient, which no weight can match.
    """
    without = [name for name, norm in norms.items() if not norm > 0]
    if without:
        raise ValueError(f"{without[0]} has a gradient of length {norms[without[0]]} at the start.")
    return {name: float(f"{norms[REFERENCE] / norm:.3g}") for name, norm in norms.items()}
