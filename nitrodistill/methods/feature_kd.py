"""Feature distillation: what heals a network of which blocks were removed (`models.pruning`).

Both networks see the same noised latent at the same timestep with the same prompt:

    L = lambda_task |s - y|^2 + lambda_out |s - t|^2 + lambda_feat sum_l |f_l(student) - f_l(teacher)|^2

s and t are their predictions, y what a network of their kind should predict (eps, v or eps - x0), and f_l what
pairs of their blocks return, in the same pass. |.|^2 is the mean over all elements; any named loss, or sum, may
stand in its place. The student samples in as many steps as its teacher; a later stage (LADD) takes it to one.

Published weights: 1, 1, 1 (BK-SDM); 1, 0.5, 0.5 (Segmind's small-sd, tiny-sd and SSD-1B). Published pairs of
blocks are in `MATCHINGS`; for the tiny student there are two. There no prompt is dropped, no layer normalised.

Departures, as options: `guidance` above 1 lets the teacher's prediction be the guided one, so that the student
draws without guidance; `normalise` divides each layer by the teacher's own size, as the plain sum is dominated
by the layers of largest numbers; min-SNR weights fall on both predictions' losses (Segmind's script drops the
distillation where they are on).

Kim et al. 2023, "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion" (arXiv 2305.15798), eq. 1-4;
Gupta et al. 2024, "Progressive Knowledge Distillation of Stable Diffusion XL Using Layer Level Loss" (arXiv
2401.02677); Hang et al. 2023, min-SNR (arXiv 2303.09556).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields, check_positive
from nitrodistill.losses import WeightedSum
from nitrodistill.losses.named import check_losses, named_loss
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, check_build
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.prediction import prediction_target
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import nearest, shown
from nitrodistill.timesteps import TimestepLaw, named_law
from nitrodistill.types import Batch, Condition, Denoiser, Part, Scales, Terms, expand
from nitrodistill.weighting import min_snr_weight

Match = tuple[str | float, str | float]


def _same(*names: str) -> tuple[Match, ...]:
    return tuple((name, name) for name in names)


_DOWN, _UP = ([f"{side}_blocks.{i}" for i in range(4)] for side in ("down", "up"))
_SHIFTED: tuple[Match, ...] = tuple((f"up_blocks.{i + 1}", f"up_blocks.{i}") for i in range(3))
_LAST = "down_blocks.2.attentions.{}.proj_out"
_SSD_RESNETS = [f"down_blocks.{i}.resnets.{j}" for i in range(3) for j in range(2)]
_SSD_RESNETS += [f"up_blocks.{i}.resnets.{j}" for i in range(3) for j in range(3)]
_SSD_ATTENTIONS = [f"down_blocks.{i}.attentions.{j}" for i in (1, 2) for j in range(2)]
_SSD_ATTENTIONS += [f"up_blocks.{i}.attentions.{j}" for i in (0, 1) for j in range(3)]

MATCHINGS: dict[str, tuple[Match, ...]] = {
    "bk-base": _same(*_DOWN, *_UP),
    "bk-tiny": (*_same(*_DOWN[:2]), (_LAST.format(1), _LAST.format(0)), *_SHIFTED),
    "segmind-small": _same(*_DOWN, "mid_block", *_UP),
    "segmind-tiny": (*_same(*_DOWN[:2]), ("up_blocks.0", "down_blocks.2"), *_SHIFTED),
    "ssd-1b": (*_same(*_SSD_RESNETS, *_SSD_ATTENTIONS), ("mid_block", "mid_block.resnets.0")),
}
"""Published pairs (teacher's block, student's block): BK-SDM's (bk-base for small too), Segmind's, SSD-1B's."""


@dataclass(frozen=True)
class FeatureKDConfig:
    """Settings of feature distillation; the defaults are BK-SDM's.

    Attributes:
        data: what is noised: `real` latents (`nitrodistill encode`), or those of the teacher's `pairs`.
        task: the losses between the student's prediction and what it should be, by name, each with its weight or
            its settings, as in {l2: 1.0}; {} leaves them out.
        output: the losses between the student's prediction and the teacher's.
        feature: the losses between their blocks, summed over `features`.
        features: a published matching (bk-base, bk-tiny, segmind-small, segmind-tiny, ssd-1b), or pairs [teacher's
            block, student's block] of names or depths in (0, 1].
        normalise: divide each pair's features by the root mean square of the teacher's, a sample.
        guidance: scale of guidance of the teacher's prediction; 1 is none.
        guidance_dropout: share of the samples whose prompt is replaced by the empty one, in [0, 1].
        min_snr_gamma: ceiling of min-SNR weights on task and output; null weighs all timesteps alike.
        timesteps: law of the timesteps in u: uniform, logit_normal or shifted.
        num_inference_steps: steps in which previews, evaluations and export draw the student.

    Example:
        >>> nd.FeatureKDConfig(data="pairs", num_inference_steps=4).num_inference_steps
        4
    """

    data: Literal["real", "pairs"] = "real"
    task: dict[str, Any] = field(default_factory=lambda: {"l2": 1.0})
    output: dict[str, Any] = field(default_factory=lambda: {"l2": 1.0})
    feature: dict[str, Any] = field(default_factory=lambda: {"l2": 1.0})
    features: str | tuple[Match, ...] = "bk-base"
    normalise: bool = False
    guidance: float = 1.0
    guidance_dropout: float = 0.0
    min_snr_gamma: float | None = None
    timesteps: str | dict[str, Any] = "uniform"
    num_inference_steps: int = 25

    def __post_init__(self) -> None:
        check_fields(self, guidance=1, num_inference_steps=1)
        if not 0 <= self.guidance_dropout <= 1:
            raise ValueError(f"guidance_dropout is {self.guidance_dropout}; it must be in [0, 1].")
        if self.min_snr_gamma is not None:
            check_positive("min_snr_gamma", self.min_snr_gamma)
        losses = [spec for spec in (self.task, self.output, self.feature) if spec]
        if not losses:
            raise ValueError("task, output and feature are all {}; nothing to do.")
        for spec in losses:
            check_losses(spec)
        if isinstance(self.features, str) and self.features not in MATCHINGS:
            raise ValueError(
                f"features is {shown(self.features)}; {nearest(self.features, MATCHINGS)} Or give pairs "
                "[teacher's block, student's block]."
            )
        if self.feature and not self.features:
            raise ValueError("features is empty; give pairs of blocks, or write `feature: {}`.")
        named_law(self.timesteps)

    @property
    def matches(self) -> tuple[Match, ...]:
        """The pairs of blocks (teacher's, student's)."""
        found = self.features
        return MATCHINGS[found] if isinstance(found, str) else found


class FeatureKD(DistillationMethod):
    """Feature distillation on the contract of `nitrodistill.method`.

    Args:
        teacher: frozen.
        student: the denoiser that is trained; it predicts what the teacher does.
        plan: how the student samples.
        config: losses, matches, data.
        empty: the unconditional Condition, of batch size one, for guidance and for dropped prompts.
        example: `(x_t, t, condition)` of batch size one, to compare the features' shapes; by default the
            teacher's.

    Raises:
        ValueError: if a matched block is missing, two matched blocks differ in shape, the predictions differ in
            kind, or there is no empty condition and one is needed.

    Example:
        >>> student, plan = teacher.denoiser.copy(), nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> config = nd.FeatureKDConfig(feature={})
        >>> list(nd.FeatureKD(teacher.denoiser, student, plan, config).trainable())
        ['student']
    """

    Config: ClassVar[type[FeatureKDConfig]] = FeatureKDConfig

    def __init__(
        self,
        teacher: Denoiser,
        student: Denoiser,
        plan: StepPlan,
        config: FeatureKDConfig | None = None,
        *,
        empty: Condition | None = None,
        example: tuple[Tensor, Tensor, Condition] | None = None,
    ) -> None:
        self.config: FeatureKDConfig = config or FeatureKDConfig()
        check_build(self.config, FeatureKDConfig, plan=plan, teacher=teacher, student=student)
        if teacher.prediction_type != student.prediction_type:
            raise ValueError(
                f"the teacher predicts {teacher.prediction_type!r} and the student {student.prediction_type!r}; "
                "feature distillation compares predictions, so they must be of one kind."
            )
        if empty is None and (self.config.guidance > 1 or self.config.guidance_dropout > 0):
            raise ValueError(
                "guidance and guidance_dropout need a condition that stands for none, and this teacher has none; "
                "leave them out."
            )
        self.teacher: Denoiser = teacher
        self.student: Denoiser = student
        self.empty: Condition | None = empty
        self.plan: StepPlan = plan.check(student.prediction_type)
        part: Part = self.config.data
        self.reads: frozenset[Part] = frozenset({part})
        self.law: TimestepLaw = named_law(self.config.timesteps)
        self.task: WeightedSum | None = _loss(self.config.task)
        self.output: WeightedSum | None = _loss(self.config.output)
        self.feature: WeightedSum | None = _loss(self.config.feature)
        self._taps: tuple[FeatureTaps, FeatureTaps] | None = None
        if self.feature is not None:
            ours = _taps(teacher, "teacher", [pair[0] for pair in self.config.matches])
            theirs = _taps(student, "student", [pair[1] for pair in self.config.matches])
            self._taps = ours, theirs
            _check_shapes(ours, theirs, example)

    @classmethod
    def build(cls, config: FeatureKDConfig, cast: Cast) -> FeatureKD:
        """The student samples on its own schedule, by DDIM (Euler, for flows)."""
        check_build(config, FeatureKDConfig, cast)
        plan = StepPlan.from_schedule(cast.student.schedule, config.num_inference_steps)
        return cls(cast.teacher, cast.student, plan, config, empty=cast.empty)

    def trainable(self) -> Mapping[str, Role]:
        """The student."""
        return {"student": Role(self.student)}

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher, and the networks of perceptual losses."""
        losses = {f"{name}_loss": Frozen(it, as_it_is=True) for name, it in self._losses().items()}
        return {"teacher": Frozen(self.teacher.module), **losses}

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's terms; see `DistillationMethod.losses`."""
        data = batch.real if self.config.data == "real" else batch.pairs
        assert data is not None, f"feature distillation reads {self.config.data}"
        x0, schedule = data.x0, self.student.schedule
        t = schedule.timestep(self.law(draws.uniform("t"))).to(x0.device)
        noise = draws.normal("noise", x0.shape[1:], x0.device).to(x0.dtype)
        scales = schedule(t)
        x_t, condition = scales.mix(x0, noise), self._dropped(data.condition, draws)
        with torch.no_grad():
            target, wanted = self._predict(0, x_t, t, condition)
            target = self._guided(target, x_t, t, condition)
        found, features = self._predict(1, x_t, t, condition)
        for name, loss in self._losses().items():
            loss.draw(draws.uniform, name)
        kind, parts, total = (
            self.student.prediction_type,
            dict[str, Tensor](),
            x0.new_zeros(len(x0)),
        )
        if self.task is not None:
            should = prediction_target(x0, noise, scales, kind)
            parts["task"] = self._weighed(scales) * self.task.per_sample(found, should)
        if self.output is not None:
            parts["output"] = self._weighed(scales) * self.output.per_sample(found, target)
        if self.feature is not None:
            pairs = zip(features, wanted, strict=True)
            parts["feature"] = torch.stack([self._compared(*pair) for pair in pairs]).sum(0)
        for part in parts.values():
            total = total + part
        yield "student", Terms(total.mean(), {name: part.detach() for name, part in parts.items()})

    def _losses(self) -> dict[str, WeightedSum]:
        """Those that there are, by the name of their setting."""
        named = {"task": self.task, "output": self.output, "feature": self.feature}
        return {name: loss for name, loss in named.items() if loss is not None}

    def _predict(
        self, who: int, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Prediction and features of the teacher (0) or the student (1), from one pass."""
        if self._taps is None:
            return (self.teacher, self.student)[who](x_t, t, condition), ()
        return self._taps[who].prediction_and_features(x_t, t, condition)

    def _guided(self, target: Tensor, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`null + guidance (target - null)`, target being the conditional prediction."""
        if self.config.guidance == 1 or self.output is None:
            return target
        assert self.empty is not None
        null = self.teacher(x_t, t, condition.null(self.empty.to(x_t.device)))
        return null + self.config.guidance * (target - null)

    def _dropped(self, condition: Condition, draws: Draws) -> Condition:
        if self.config.guidance_dropout == 0:
            return condition
        assert self.empty is not None
        where = draws.uniform("dropout") < self.config.guidance_dropout
        device = next(iter(condition.tensors.values())).device
        return condition.null(self.empty.to(device), where)

    def _weighed(self, scales: Scales) -> Tensor | float:
        if self.config.min_snr_gamma is None:
            return 1.0
        kind = self.student.prediction_type
        return min_snr_weight(scales, kind, self.config.min_snr_gamma).float()

    def _compared(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The loss of one pair of maps, `(B,)`."""
        assert self.feature is not None
        if self.config.normalise:
            size = wanted.float().square().flatten(1).mean(1).rsqrt()
            found, wanted = (expand(size, wanted) * each.float() for each in (found, wanted))
        return self.feature.per_sample(found, wanted)


def _loss(spec: Mapping[str, Any]) -> WeightedSum | None:
    return named_loss(spec) if spec else None


def _taps(denoiser: Denoiser, who: str, names: Sequence[str | float]) -> FeatureTaps:
    """Taps on the matched blocks; a block that pruning removed is named."""
    modules = dict(unwrapped(denoiser.module).named_modules())
    gone = [name for name in names if isinstance(name, str) and name not in modules]
    if gone:
        raise ValueError(
            f"features match {gone[0]!r} of the {who}, which has no such block (was it pruned away?); "
            f"{nearest(gone[0], modules)} Match blocks that are there."
        )
    return FeatureTaps(denoiser, names)


def _check_shapes(
    teacher: FeatureTaps, student: FeatureTaps, example: tuple[Tensor, Tensor, Condition] | None
) -> None:
    """Runs both on one input, without gradients, and compares what the matched blocks return."""
    if example is None:
        denoiser: Any = teacher.denoiser
        example = denoiser.example()
    for one, other in zip(teacher.shapes(example), student.shapes(example), strict=True):
        if (one.channels, one.grid) != (other.channels, other.grid):
            shapes = [f"{s.channels} channels on {s.grid[0]}x{s.grid[1]}" for s in (one, other)]
            raise ValueError(
                f"features match {one.name!r} of the teacher ({shapes[0]}) and {other.name!r} of the student "
                f"({shapes[1]}), which cannot be compared; match blocks of one width and size."
            )
