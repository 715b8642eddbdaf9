"""What a stage needs: parameters and memory of every role, before anything is allocated.

    peak = weights + moments + averages of all roles + max over backward passes of
           gradients that are there before + max(own gradients, activations) + a recomputed block
           (or text encoders that wait in the host's memory for prompts, if they are more)

A role's gradients come as its activations go. They stay until the optimizer's step: while the next role of the
same turn goes backward, and where micro-batches accumulate, from one to the next. Under gradient checkpointing one
block is there beside either. Weights, gradients, moments and averages follow from the shapes and are exact.
Activations are what autograd saves, counted on the meta device (`training.saved`). What the allocator, the kernels
and the VAE's own activations add is not counted; leave room for it. `benchmarks/estimate.py` compares with runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from nitrodistill.method import DistillationMethod
from nitrodistill.models import LoRAConfig, Pipeline
from nitrodistill.models.skeleton import shapes_of
from nitrodistill.models.wrappers import role_in, unwrapped
from nitrodistill.training.config import OptimizerConfig
from nitrodistill.training.networks import TEACHER, cast_base
from nitrodistill.training.optimizers import ADAMW, state_bytes
from nitrodistill.training.parallel import block_kinds
from nitrodistill.training.passes import LossesOnShapes, Passes, turns_of
from nitrodistill.training.recipe import Stage
from nitrodistill.training.stages import build_on_shapes, student_on_shapes

_log = logging.getLogger(__name__)
_STATE_BLOCK, _SMALL = 256, 4096
"""bitsandbytes: elements a scale, and fewest that are kept in 8 bits."""


@dataclass(frozen=True)
class RoleMemory:
    """One role's share, in bytes but for the counts.

    Attributes:
        parameters: how many the role's network has.
        trained: how many of them are trained.
        weights: of all of them that no other role holds.
        gradients: while the role learns.
        optimizer: the optimizer's state, such as AdamW's moments.
        average: the moving average.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0


@dataclass(frozen=True)
class Memory:
    """What a stage needs on its device.

    Attributes:
        roles: name -> share.
        turns: the roles that learn in a step -> their backward passes, in order.
        batch_size: samples of a micro-batch.
        accumulates: whether gradients stay for the next micro-batch.
        encoders: bytes of text encoders that come while prompts of previews are encoded, and leave again.
    """

    roles: Mapping[str, RoleMemory]
    turns: Mapping[tuple[str, ...], Passes]
    batch_size: int
    accumulates: bool
    encoders: int = 0

    @property
    def resident(self) -> int:
        """Bytes that are there all the time."""
        return sum(r.weights + r.optimizer + r.average for r in self.roles.values())

    def peak(self, batch_size: int | None = None) -> int:
        """Bytes at the worst moment, for the stage's batch size or another one."""
        size = self.batch_size if batch_size is None else batch_size
        turns = (self._peak(turn, size) for turn in self.turns.values())
        return self.resident + max(self.encoders, *turns)

    def _peak(self, turn: Passes, size: int) -> int:
        """Bytes on top of what is resident at the worst moment of a turn."""
        gradients = [self.roles[backward.role].gradients for backward in turn]
        most = 0
        for i, (backward, own) in enumerate(zip(turn, gradients, strict=True)):
            kept, block = backward.kept.at(size), backward.block.at(size)
            if self.accumulates:
                most = max(most, sum(gradients) + kept + block)
            else:
                most = max(most, sum(gradients[:i]) + max(own, kept) + block)
        return most

    def largest_batch(self, capacity: int) -> int:
        """The largest micro-batch whose peak is within `capacity` bytes; 0 if none is."""
        passes = [backward for turn in self.turns.values() for backward in turn]
        each = max(backward.kept.each + backward.block.each for backward in passes)
        size = max(0, (capacity - self.peak(0)) // each) if each else 0
        while self.peak(size + 1) <= capacity:
            size += 1
        return size if self.peak(size) <= capacity else 0


def estimate(
    pipeline: Pipeline, stage: Stage, *, text_length: int, earlier: Sequence[Stage] = ()
) -> Memory:
    """Counts what a stage needs on one device that shares nothing out.

    A LoRA role holds its own weights alone. Moments with `eight_bit` are as bitsandbytes keeps them. With
    `cpu_offload` weights, gradients, moments and averages of the trained roles are in the host's memory; the
    device holds two of their blocks at a time (FSDP2 fetches the next one ahead), and what is in none.

    Args:
        pipeline: the teacher; its shapes are enough (`models.skeleton`).
        stage: method, trainer and student.
        text_length: tokens of a prompt.
        earlier: the recipe's stages before this one, which may have pruned the student.

    Raises:
        ValueError: if the stage's settings do not fit the teacher.
    """
    return Counts(pipeline, text_length, earlier).memory(stage)


def what_helps(counts: Counts, stage: Stage, *, lora_rank: int) -> dict[str, Memory]:
    """The stage as it is, then with each switch that it does not use yet, then with all that go together.

    What the stage or its method refuses, such as a LoRA student of a method that needs whole weights, is left out.

    Args:
        counts: of the teacher.
        stage: method and trainer.
        lora_rank: of the student's adapters, where it has them.

    Raises:
        ValueError: if the stage's settings do not fit the teacher.
    """
    trainer, count = stage.trainer, counts.memory
    _log.info("counting the recipe as it is, on shapes")
    found = {"as it is": count(stage)}
    _log.info("counting what helps")
    if not trainer.gradient_checkpointing:
        found["gradient checkpointing"] = count(_with(stage, gradient_checkpointing=True))
    if trainer.half is None:
        found["bf16"] = count(_with(stage, mixed_precision="bf16"))
    if not trainer.cpu_offload and stage.lora is None and trainer.mixed_precision != "fp16":
        whole = _with(stage, optimizers=_bits(stage, eight=False), term_gradients_every=0)
        found["CPU offload"] = count(_with(whole, parallel="fsdp", cpu_offload=True))
    if trainer.parallel == "fsdp":  # which goes with neither of the others
        return found
    eight = _with(stage, optimizers=_bits(stage, eight=True))
    if eight != stage:
        found["8-bit AdamW"] = count(eight)
    lora = stage.lora or LoRAConfig(rank=lora_rank)
    adapted = _allowed(count, stage, lora)
    if stage.lora is None and adapted is not None:
        found[f"LoRA student, rank {lora_rank}"] = adapted
    lower = "bf16" if trainer.half is None else trainer.mixed_precision
    both = _with(eight, gradient_checkpointing=True, mixed_precision=lower)
    if stage.lora is None:
        found[f"checkpointing, {lower}, 8 bits"] = count(both)
    if adapted is not None:
        found[f"checkpointing, {lower}, 8 bits, LoRA"] = count(replace(both, lora=lora))
    return found


def _allowed(count: Callable[[Stage], Memory], stage: Stage, lora: LoRAConfig) -> Memory | None:
    """With a LoRA student; None where the stage or its method refuses one. (It is known to fit without.)"""
    try:
        return count(replace(stage, lora=lora))
    except ValueError:
        return None


class Counts:
    """What variants of a stage need. What they have in common is built and run once.

    Args:
        pipeline: the teacher; its shapes are enough.
        text_length: tokens of a prompt.
        earlier: the recipe's stages before this one.
    """

    def __init__(self, pipeline: Pipeline, text_length: int, earlier: Sequence[Stage] = ()) -> None:
        self._pipeline, self._text_length = pipeline, text_length
        self._before = student_on_shapes(earlier, pipeline)
        self._counted: dict[tuple[LoRAConfig | None, str], _Counted] = {}
        self._heaviest: dict[tuple[str, ...], int] = {}

    def memory(self, stage: Stage) -> Memory:
        """What the stage needs; see `estimate`."""
        trainer = stage.trainer
        method, _, untrained, plain, checkpointed = self._of(stage)
        roles = dict(untrained)
        for name, role in method.trainable().items():
            optimizer = trainer.optimizers.get(name, OptimizerConfig())
            share = _trained_role(role.module, optimizer)
            if trainer.cpu_offload:
                fetched = _fetched(role.module) * (4 if trainer.half is None else 2)
                share = RoleMemory(share.parameters, share.trained, fetched)
            roles[name] = share
        turns = checkpointed if trainer.gradient_checkpointing else plain
        # text encoders that are on the CPU while the method trains; prompts alone are encoded all the time
        away = self._pipeline.offload_text and "prompts" not in method.reads
        waiting = [name for name in roles if away and name.startswith("text_encoder")]
        encoders = sum(roles[name].weights for name in waiting)
        roles |= {name: replace(roles[name], weights=0) for name in waiting}
        return Memory(roles, turns, trainer.batch_size, trainer.accumulation > 1, encoders)

    def flops(self, stage: Stage) -> float:
        """The operations of all steps of a stage, in all processes together.

        Raises:
            ValueError: if the stage's settings do not fit the teacher.
        """
        method, run, *_ = self._of(stage)
        trainer, total = stage.trainer, 0.0
        for steps in turns_of(method, trainer.steps).values():
            # the first of them and the last, as for the memory; one of them where both run the same
            ends = {run.what_runs(step): step for step in (steps[0], steps[-1])}.values()
            each = [run.flops(step, trainer.gradient_checkpointing) for step in ends]
            total += len(steps) * sum(each) / len(each)
        return total * trainer.batch_size * trainer.accumulation

    def _of(self, stage: Stage) -> _Counted:
        key = stage.lora, stage.trainer.mixed_precision
        if key not in self._counted:
            self._counted[key] = self._count(stage)
        return self._counted[key]

    def _count(self, stage: Stage) -> _Counted:
        shapes = shapes_of(self._pipeline)
        method, cast = build_on_shapes(stage, shapes, self._text_length, before=self._before)
        untrained = _pipeline_roles(shapes) | _frozen_roles(shapes, method, stage)
        run = LossesOnShapes(method, cast, stage, shapes, self._text_length)
        steps = turns_of(method, stage.trainer.steps)
        plain, checkpointed = dict[tuple[str, ...], Passes](), dict[tuple[str, ...], Passes]()
        for active, those in steps.items():
            # a method may begin with less than it ends with: the first of them and the last
            ends = list(dict.fromkeys((those[0], those[-1])))
            if len(ends) > 1 and active not in self._heaviest:
                self._heaviest[active] = max(ends, key=run.kept)
            step = self._heaviest.get(active, ends[0])
            plain[active], checkpointed[active] = run.passes(step)
        return _Counted(method, run, untrained, plain, checkpointed)


class _Counted(NamedTuple):
    """What variants of a stage with the same networks have in common.

    Attributes:
        method: on the meta device.
        run: its losses.
        untrained: the shares of all networks that it does not train.
        plain: see `Memory.turns`; without gradient checkpointing.
        checkpointed: with it.
    """

    method: DistillationMethod
    run: LossesOnShapes
    untrained: Mapping[str, RoleMemory]
    plain: Mapping[tuple[str, ...], Passes]
    checkpointed: Mapping[tuple[str, ...], Passes]


def _with(stage: Stage, **changes: Any) -> Stage:
    """The stage with other settings of the trainer."""
    return replace(stage, trainer=replace(stage.trainer, **changes))


def _bits(stage: Stage, *, eight: bool) -> dict[str, OptimizerConfig]:
    """The optimizers with AdamW's moments in 8 bits, where that can be, or whole; others stay."""
    return {
        name: replace(config, eight_bit=eight and _is_plain_adamw(config))
        for name, config in stage.trainer.optimizers.items()
    }


def _pipeline_roles(pipeline: Pipeline) -> dict[str, RoleMemory]:
    """The pipeline's own networks, which previews and evaluations draw with."""
    network = pipeline.denoiser.module
    parts = pipeline.diffusers.components.items()
    others = {n: p for n, p in parts if isinstance(p, nn.Module) and p is not network}
    return {n: _held(p) for n, p in {TEACHER: network, **others}.items()}


def _frozen_roles(
    pipeline: Pipeline, method: DistillationMethod, stage: Stage
) -> dict[str, RoleMemory]:
    """What the method uses and does not train, where it is not the pipeline's own; cast as a run casts it."""
    found, half = {}, stage.trainer.half
    for name, entry in method.frozen().items():
        if half is not None and not entry.as_it_is and not entry.follows:
            cast_base(entry.module, half)
        is_role = role_in(entry.module) is not None
        own = not is_role and unwrapped(entry.module) is pipeline.denoiser.network
        if not own and any(True for _ in entry.module.parameters()):
            found["teacher's copy" if name == TEACHER else name] = _held(entry.module)
    return found


def _held(module: nn.Module) -> RoleMemory:
    """A network that is not trained, or a LoRA role; the weights of roles on a network are those roles'."""
    role = role_in(module) is not None
    own = [p for n, p in module.named_parameters() if role or ".lora_" not in n]
    return RoleMemory(sum(p.numel() for p in own), 0, _bytes(own))


def _trained_role(module: nn.Module, config: OptimizerConfig) -> RoleMemory:
    """A role's share; of a LoRA role, whose network is the teacher's, only what is its own."""
    trained, own = [p for p in module.parameters() if p.requires_grad], _bytes(module.parameters())
    return RoleMemory(
        _count(unwrapped(module)),
        sum(p.numel() for p in trained),
        own,
        _bytes(trained),
        _state(trained, config),
        own if config.ema_decay > 0 else 0,
    )


def _fetched(module: nn.Module) -> int:
    """The parameters of the two largest blocks and of what is in no block."""
    kinds = block_kinds(module)
    blocks = sorted(_count(part) for part in module.modules() if type(part).__name__ in kinds)
    return _count(module) - sum(blocks[:-2])


def _state(trained: Sequence[nn.Parameter], config: OptimizerConfig) -> int:
    """Bytes of the optimizer's state: AdamW's, or what a step on shapes says; two moments where there is none."""
    known = config.eight_bit or _is_plain_adamw(config)
    asked = None if known else state_bytes(config, trained)
    return sum(_moments(p, config.eight_bit) for p in trained) if asked is None else asked


def _is_plain_adamw(config: OptimizerConfig) -> bool:
    return config.optimizer.lower() == ADAMW and not config.settings


def _moments(weight: Tensor, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments, and its step count."""
    if not eight_bit:
        return 2 * weight.nbytes + 4
    if weight.numel() < _SMALL:
        return 2 * weight.nbytes
    return 2 * (weight.numel() + 4 * -(-weight.numel() // _STATE_BLOCK))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.nbytes for p in parameters)
