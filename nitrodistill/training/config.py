"""Settings of the trainer, and the learning-rate schedule, which is a function of the update alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

import torch

from nitrodistill.checks import check_fields, check_positive
from nitrodistill.settings import build, nearest, to_plain
from nitrodistill.training.best import BestIs
from nitrodistill.training.optimizers import check_optimizer
from nitrodistill.training.parallel import Parallel

MixedPrecision = Literal["no", "bf16", "fp16"]
StopOn = Literal["never", "alarm"]
LearningRateSchedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
]

FREE = (
    "steps",
    "max_skips",
    "checkpoint_every",
    "keep_checkpoints",
    "save_frozen",
    "log_every",
    "diagnose_every",
    "term_gradients_every",
    "alarm_window",
    "stop_on",
    "preview_every",
    "evaluate_every",
    "best_metric",
    "best_is",
    "parallel",
    "cpu_offload",
)
"""Settings of the trainer that may differ between a run and its resumption."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How one role learns: AdamW (Loshchilov & Hutter 2019) or another optimizer, and the average of its weights.

    Its updates are the steps at which its method has it active.

    Attributes:
        learning_rate: at its highest, before decay.
        betas: decay of the two moments; beta1 of 0 or 0.5 is usual in adversarial training.
        weight_decay: decoupled from the gradient.
        eps: added to the denominator.
        lr_warmup_updates: of its updates, over which the learning rate rises linearly.
        lr_decay_from: fraction of its updates after which the learning rate falls linearly to 0;
            1 keeps it constant, 0.5 is "flat to half".
        lr_schedule: diffusers' schedule of this name, over the role's updates, with `lr_warmup_updates` as its
            warm-up steps; null is the rule above.
        lr_schedule_settings: num_cycles of cosine_with_restarts, power of polynomial, step_rules of
            piecewise_constant ("1:100,0.1" is the factor 1 before update 100, then 0.1).
        max_grad_norm: its gradient is scaled down to this norm; null does not clip.
        ema_decay: of the moving average of its weights, an update; 0 keeps none. The average starts at the first
            weights, of which the share ema_decay^n is left after n updates.
        eight_bit: keeps AdamW's moments in 8 bits, by bitsandbytes; not with `parallel: fsdp`.
        optimizer: AdamW, another class of `torch.optim` such as SGD, or package.module:callable, which is called
            with the weights, `lr` and `settings`.
        settings: of that optimizer, by the names of its arguments; of AdamW those that have no place above.

    Example:
        >>> nd.OptimizerConfig(learning_rate=1e-4, betas=(0.5, 0.999), ema_decay=0.999).learning_rate
        0.0001
    """

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    lr_warmup_updates: int = 0
    lr_decay_from: float = 1.0
    lr_schedule: LearningRateSchedule | None = None
    lr_schedule_settings: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float | None = 1.0
    ema_decay: float = 0.0
    eight_bit: bool = False
    optimizer: str = "AdamW"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, lr_warmup_updates=0, weight_decay=0)
        _check("lr_decay_from", self.lr_decay_from, 0 <= self.lr_decay_from <= 1, "in [0, 1]")
        norm = self.max_grad_norm
        _check("max_grad_norm", norm, norm is None or norm > 0, "above 0, or null")
        _check("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "in [0, 1)")
        check_positive("learning_rate", self.learning_rate)
        check_positive("eps", self.eps)
        betas = all(0 <= beta < 1 for beta in self.betas)
        _check("betas", self.betas, betas, "two numbers in [0, 1)")
        check_optimizer(self)
        if self.lr_schedule is None and self.lr_schedule_settings:
            raise ValueError(
                "lr_schedule_settings are of an lr_schedule, which is null; name it too."
            )
        if self.lr_schedule is not None:
            alone = self.lr_decay_from == 1
            _check("lr_decay_from", self.lr_decay_from, alone, "1 where there is an lr_schedule")
            rises = self.lr_schedule not in ("constant", "piecewise_constant")
            rule = f"0 where the lr_schedule is {self.lr_schedule}"
            _check(
                "lr_warmup_updates",
                self.lr_warmup_updates,
                rises or not self.lr_warmup_updates,
                rule,
            )
            _diffusers_schedule(self, 1)


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of the trainer.

    Attributes:
        steps: optimizer steps.
        batch_size: samples of a micro-batch, over all processes.
        accumulation: micro-batches in a step; N of them equal one that is N times as large.
        seed: of the data order and of every draw.
        optimizers: role -> its optimizer; one for each role of the method.
        max_skips: non-finite steps in a row after which the run stops.
        checkpoint_every: steps between checkpoints; 0 writes the last only.
        keep_checkpoints: how many of the newest are kept.
        save_frozen: whether checkpoints hold the frozen weights of a role beside its trained ones.
        log_every: steps between lines of the log.
        diagnose_every: lines of the log between looks at what the student draws (`training.probe`); 0 takes none.
        term_gradients_every: lines of the log between measurements of each term's part in the student's gradient;
            0 measures none. At such a step each term costs a backward pass of its own. Not with `parallel: fsdp`.
        alarm_window: steps over which a symptom must last before there is an alarm.
        stop_on: "alarm" ends the run at the first alarm, without saving; up to two checkpoints more are kept, of
            which one is a whole window older than the alarm.
        preview_every: steps between previews; 0 draws none.
        evaluate_every: steps between evaluations, if the trainer got any; 0 is never.
        best_metric: the evaluation's number by which the best checkpoint is kept; "" keeps none.
        best_is: whether the "lowest" or the "highest" is best.
        mixed_precision: "bf16" computes in bfloat16 and keeps float32 weights; "fp16" in float16, with a scaled
            loss, for GPUs that have no bfloat16; not with `parallel: fsdp`.
        half_precision_weights: trains bfloat16 or float16 weights as they are. At small learning rates most of
            their updates are lost in rounding; without it such weights are refused.
        gradient_checkpointing: recompute activations, to save memory.
        parallel: what several processes do: "ddp" copies every network, "fsdp" shares out its weights.
        cpu_offload: with "fsdp": weights, gradients and moments stay in the CPU's memory.

    Example:
        >>> nd.TrainerConfig(steps=100, batch_size=8, accumulation=2).steps
        100
    """

    steps: int = 1000
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    optimizers: dict[str, OptimizerConfig] = field(default_factory=dict)
    max_skips: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    save_frozen: bool = True
    log_every: int = 10
    diagnose_every: int = 1
    term_gradients_every: int = 0
    alarm_window: int = 100
    stop_on: StopOn = "never"
    preview_every: int = 0
    evaluate_every: int = 0
    best_metric: str = ""
    best_is: BestIs = "lowest"
    mixed_precision: MixedPrecision = "no"
    half_precision_weights: bool = False
    gradient_checkpointing: bool = False
    parallel: Parallel = "ddp"
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        check_fields(self, seed=0, checkpoint_every=0, preview_every=0, evaluate_every=0)
        check_fields(self, diagnose_every=0, term_gradients_every=0, alarm_window=1)
        check_fields(self, steps=1, batch_size=1, accumulation=1, max_skips=1)
        check_fields(self, keep_checkpoints=1, log_every=1)
        self._check_together()

    @property
    def half(self) -> torch.dtype | None:
        """What `mixed_precision` computes in; None is float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)

    def check_evaluates(self, can: bool) -> None:
        """Checks that evaluations are asked for only where there `can` be any.

        Raises:
            ValueError: if not.
        """
        if self.evaluate_every and not can:
            raise ValueError(
                f"evaluate_every is {self.evaluate_every}, but there is nothing to evaluate with; pass "
                "`evaluate`, or set it to 0."
            )

    def check_resumes(self, before: object, where: object) -> None:
        """Checks that a run with the settings `before` can go on with these.

        Args:
            before: `to_plain` of those settings, as a checkpoint has them.
            where: the checkpoint, for the message.

        Raises:
            ValueError: if they differ in more than `FREE`.
        """
        if not isinstance(before, Mapping):
            raise ValueError(f"checkpoint {where} has no settings in its state.json.")
        then: Mapping[Any, Any] = before
        with contextlib.suppress(ValueError):  # with the defaults of what there was not yet
            then = to_plain(build(type(self), before))
        now = to_plain(self)
        changed = [k for k in now if k not in FREE and then.get(k) != now[k]]
        if changed:
            was = ", ".join(f"{k} {then.get(k)} -> {now[k]}" for k in changed)
            raise ValueError(
                f"checkpoint {where} was made with other settings ({was}); resume with the same, "
                "or choose another output."
            )

    def _check_together(self) -> None:
        if self.best_metric and not self.evaluate_every:
            raise ValueError(
                f"best_metric is {self.best_metric!r}, but evaluate_every is 0 and nothing is evaluated; "
                "set it too."
            )
        if self.term_gradients_every and self.parallel == "fsdp":
            raise ValueError(
                "term_gradients_every does not work with `parallel: fsdp`, which shares out the gradients; set it "
                "to 0."
            )
        if self.mixed_precision == "fp16" and (
            self.parallel == "fsdp" or self.half_precision_weights
        ):
            other = "`parallel: fsdp`" if self.parallel == "fsdp" else "half_precision_weights"
            raise ValueError(
                f"mixed_precision is 'fp16', which does not work with {other}; use bf16, or leave that out."
            )
        if self.cpu_offload and self.parallel != "fsdp":
            raise ValueError("cpu_offload works with `parallel: fsdp` only; set both, or neither.")
        for name, optimizer in self.optimizers.items():
            if optimizer.eight_bit and self.parallel == "fsdp":
                raise ValueError(
                    f"the optimizer of {name!r} is eight_bit, which cannot be shared out by "
                    "`parallel: fsdp`; choose one of the two."
                )


def learning_rate_factor(config: OptimizerConfig, update: int, updates: int) -> float:
    """What the learning rate is multiplied with at a role's `update` (from 0), of N = `updates`.

        min(1, (update + 1) / warmup) * min(1, (N - update) / (N - f N)),   f = lr_decay_from

    The last update still learns: its factor is 1 / (N - f N), and the one after it would have 0. With
    `lr_schedule` it is what `diffusers.optimization.get_scheduler` makes of that name.

    Example:
        >>> config = nd.OptimizerConfig(lr_warmup_updates=10)
        >>> nd.training.learning_rate_factor(config, 4, 100)
        0.5
    """
    if config.lr_schedule is not None:
        return _diffusers_schedule(config, updates)(update)
    rise = min(1.0, (update + 1) / config.lr_warmup_updates) if config.lr_warmup_updates else 1.0
    length = updates * (1 - config.lr_decay_from)
    fall = min(1.0, (updates - update) / length) if length > 0 else 1.0
    return rise * fall


def _diffusers_schedule(config: OptimizerConfig, updates: int) -> Callable[[int], float]:
    """Update -> factor.

    Raises:
        ValueError: if the schedule does not take such settings.
    """
    from diffusers.optimization import get_scheduler

    name = str(config.lr_schedule)
    kind = _SCHEDULE_SETTINGS.get(name, _NoSettings)
    settings: Any = build(kind, config.lr_schedule_settings, "lr_schedule_settings")
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        made = get_scheduler(
            name,
            torch.optim.SGD([weight], lr=config.learning_rate),
            num_warmup_steps=config.lr_warmup_updates,
            num_training_steps=updates,
            **vars(settings),
        )
    except ValueError as error:
        raise ValueError(
            f"lr_schedule {name} does not take learning_rate {config.learning_rate} with "
            f'{config.lr_schedule_settings} ({error}); step_rules are such as "1:100,0.1".'
        ) from error
    return made.lr_lambdas[0]


_NoSettings = make_dataclass("_NoSettings", [])
_SCHEDULE_SETTINGS = {
    "cosine_with_restarts": make_dataclass("_Restarts", [("num_cycles", int, 1)]),
    "polynomial": make_dataclass("_Power", [("power", float, 1.0)]),
    "piecewise_constant": make_dataclass("_Rules", [("step_rules", str)]),
}


def check_optimizers(optimizers: Mapping[str, OptimizerConfig], roles: Sequence[str]) -> None:
    """Checks that every role of a method has an optimizer, and no other name has.

    Raises:
        ValueError: if they differ.
    """
    for name in optimizers:
        if name not in roles:
            raise ValueError(
                f"optimizers names {name!r}, which the method does not train; {nearest(name, roles)}"
            )
    missing = [name for name in roles if name not in optimizers]
    if missing:
        raise ValueError(f"optimizers lacks settings for {missing}; every role needs its own.")


def _check(name: str, value: object, ok: bool, rule: object) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; it must be {rule}.")
