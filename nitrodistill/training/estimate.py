"""What a stage needs: parameters and memory of every role, before anything is allocated.

    peak = weights + moments + averages of all roles + max over turns of max(gradients, activations)

Gradients come as activations go; where micro-batches accumulate they stay, and the inner max is a sum.
Weights, gradients, moments and averages follow from the shapes and are exact. Activations are what autograd
saves, counted on the meta device (`training.saved`). What the allocator, the kernels and the VAE's own activations
add is not counted; leave room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.method import Draws
from nitrodistill.methods import LADD
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.training.recipe import Stage
from nitrodistill.training.saved import Autocast, SavedTensors
from nitrodistill.training.trainer import STUDENT
from nitrodistill.types import Batch

__all__ = ["Memory", "RoleMemory", "estimate", "what_helps"]

_SIZES = (
    6,
    12,
)  # micro-batches that are counted: shares of a batch by halves and thirds come out even
_STATE_BLOCK, _SMALL = (
    256,
    4096,
)  # bitsandbytes: elements a scale, and fewest that are kept in 8 bits


@dataclass(frozen=True)
class RoleMemory:
    """One role's share, in bytes but for the counts.

    Attributes:
        parameters: how many the role's network has.
        trained: how many of them are trained.
        weights: of all of them that no other role holds.
        gradients: while the role learns.
        optimizer: AdamW's moments.
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
        activations: turn -> (bytes whatever the batch, bytes a sample).
        active: turn -> the roles whose gradients exist then.
        batch_size: samples of a micro-batch.
        accumulates: whether gradients stay for the next micro-batch.
    """

    roles: Mapping[str, RoleMemory]
    activations: Mapping[str, tuple[int, int]]
    active: Mapping[str, tuple[str, ...]]
    batch_size: int
    accumulates: bool

    @property
    def resident(self) -> int:
        """Bytes that are there all the time."""
        return sum(r.weights + r.optimizer + r.average for r in self.roles.values())

    def peak(self, batch_size: int | None = None) -> int:
        """Bytes at the worst moment, for the stage's batch size or another one."""
        size = self.batch_size if batch_size is None else batch_size
        both = sum if self.accumulates else max
        turns = [
            both(
                (sum(self.roles[role].gradients for role in self.active[turn]), fixed + size * each)
            )
            for turn, (fixed, each) in self.activations.items()
        ]
        return self.resident + max(turns)

    def largest_batch(self, capacity: int) -> int:
        """The largest micro-batch whose peak is within `capacity` bytes; 0 if none is."""
        each = max((slope for _, slope in self.activations.values()), default=0)
        size = max(0, (capacity - self.peak(0)) // each) if each else 0
        while self.peak(size + 1) <= capacity:
            size += 1
        return size if self.peak(size) <= capacity else 0


def estimate(
    pipeline: Pipeline,
    stage: Stage,
    *,
    text_length: int,
    lora_rank: int = 0,
    eight_bit: bool = False,
    offload: bool = False,
) -> Memory:
    """Counts what a stage needs.

    Args:
        pipeline: the teacher; its shapes are enough (`models.skeleton`). Its networks move to the meta device.
        stage: method and trainer.
        text_length: tokens of a prompt.
        lora_rank: the student is the teacher with LoRA adapters of this rank; 0 trains a whole copy.
        eight_bit: the moments in 8 bits, as bitsandbytes keeps them.
        offload: weights, gradients, moments and averages of the trained roles in the host's memory; the
            device then holds two of their blocks at a time (FSDP2 fetches the next one ahead), and what is in
            none.

    Raises:
        ValueError: if the stage's settings do not fit the teacher.
    """
    denoiser = pipeline.denoiser
    denoiser.module.to("meta")
    student = denoiser.copy() if lora_rank == 0 else _adapted(denoiser, lora_rank)
    teacher = denoiser.copy() if stage.trainer.mixed_precision == "bf16" else denoiser
    if teacher is not denoiser:
        teacher.module.to(torch.bfloat16)
    method = LADD.from_config(stage.method, teacher, student)
    roles = _frozen_roles(pipeline, teacher)
    for name, role in method.trainable().items():
        role.module.to("meta")
        share = _trained_role(role.module, name == STUDENT, lora_rank > 0, eight_bit)
        if offload:
            size = 2 if stage.trainer.mixed_precision == "bf16" else 4
            share = replace(
                share, weights=_fetched(role.module) * size, gradients=0, optimizer=0, average=0
            )
        roles[name] = share
    turns = {method.active(step): step for step in _steps(stage)}
    measured = {
        active: [_activations(method, stage, step, pipeline, size, text_length) for size in _SIZES]
        for active, step in turns.items()
    }
    lines = {active: _line(*bytes) for active, bytes in measured.items()}
    return Memory(
        roles,
        {" and ".join(active): line for active, line in lines.items()},
        {" and ".join(active): active for active in lines},
        stage.trainer.batch_size,
        stage.trainer.accumulation > 1,
    )


def what_helps(
    pipeline: Pipeline, stage: Stage, *, text_length: int, lora_rank: int
) -> dict[str, Memory]:
    """The stage as it is, then with each switch that it does not use yet, then with all that go together.

    Args:
        pipeline: see `estimate`.
        stage: method and trainer.
        text_length: tokens of a prompt.
        lora_rank: of the student's adapters, where it has them.
    """
    trainer, count = stage.trainer, partial(estimate, pipeline, text_length=text_length)
    checkpointed = replace(stage, trainer=replace(trainer, gradient_checkpointing=True))
    halved = replace(stage, trainer=replace(trainer, mixed_precision="bf16"))
    found = {"as it is": count(stage)}
    if not trainer.gradient_checkpointing:
        found["gradient checkpointing"] = count(checkpointed)
    if trainer.mixed_precision != "bf16":
        found["bf16"] = count(halved)
    found["8-bit AdamW"] = count(stage, eight_bit=True)
    found["CPU offload"] = count(stage, offload=True)
    found[f"LoRA student, rank {lora_rank}"] = count(stage, lora_rank=lora_rank)
    both = replace(checkpointed.trainer, mixed_precision="bf16")
    found["checkpointing, bf16, 8 bits"] = count(replace(stage, trainer=both), eight_bit=True)
    found["checkpointing, bf16, 8 bits, LoRA"] = count(
        replace(stage, trainer=both), eight_bit=True, lora_rank=lora_rank
    )
    return found


def _steps(stage: Stage) -> tuple[int, ...]:
    """Steps that show every turn: one of the warm-up, and two behind it."""
    return 0, stage.method.warmup_steps, stage.method.warmup_steps + 1


def _adapted(denoiser: DiffusersDenoiser, rank: int) -> DiffusersDenoiser:
    """The denoiser with LoRA adapters on its family's usual layers."""
    from peft import LoraConfig, inject_adapter_in_model

    student = denoiser.copy()
    student.module.requires_grad_(False)
    targets = list(denoiser.adapter.lora_targets)
    inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), student.module)
    return student


def _frozen_roles(pipeline: Pipeline, teacher: DiffusersDenoiser) -> dict[str, RoleMemory]:
    network = pipeline.denoiser.module
    count = _count(network)
    roles = {"teacher": RoleMemory(count, 0, _bytes(network.parameters()))}
    if teacher is not pipeline.denoiser:
        roles["backbone"] = RoleMemory(count, 0, _bytes(teacher.module.parameters()))
    for name, part in pipeline.diffusers.components.items():
        if isinstance(part, nn.Module) and part is not network:
            roles[name] = RoleMemory(_count(part), 0, _bytes(part.parameters()))
    return roles


def _trained_role(module: nn.Module, averaged: bool, shared: bool, eight_bit: bool) -> RoleMemory:
    """A role's share; of one that shares its frozen weights with the teacher, only what is trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    own = trained if shared else list(module.parameters())
    return RoleMemory(
        _count(module),
        sum(p.numel() for p in trained),
        _bytes(own),
        _bytes(trained),
        sum(_moments(p, eight_bit) for p in trained),
        _bytes(own) if averaged else 0,
    )


def _fetched(module: nn.Module) -> int:
    """The parameters of the two largest blocks and of what is in no block."""
    from diffusers import ModelMixin

    kinds = {
        name
        for part in module.modules()
        if isinstance(part, ModelMixin)
        for name in part._no_split_modules or ()
    }
    blocks = sorted(_count(part) for part in module.modules() if type(part).__name__ in kinds)
    return _count(module) - sum(blocks[:-2])


def _moments(weight: Tensor, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments, and its step count."""
    if not eight_bit:
        return 2 * weight.nbytes + 4
    if weight.numel() < _SMALL:
        return 2 * weight.nbytes
    return 2 * (weight.numel() + 4 * -(-weight.numel() // _STATE_BLOCK))


def _activations(
    method: LADD, stage: Stage, step: int, pipeline: Pipeline, size: int, text_length: int
) -> int:
    """The most that autograd saves in one of the step's backward passes, for a micro-batch of `size`."""
    assert isinstance(method.student, DiffusersDenoiser)
    networks = [method.student.module]
    if method.discriminator is not None:
        networks += [method.discriminator.denoiser.module, method.discriminator.heads]
    saved = SavedTensors(*networks)
    for network in networks:  # the frozen backbone too, as the trainer does
        _checkpoint(network, saved if stage.trainer.gradient_checkpointing else None)
    index = torch.arange(size)
    x0 = torch.empty(size, *pipeline.latent_shape, device="meta")
    text = pipeline.denoiser.adapter.example_condition(x0[:1], text_length)
    batch = Batch(index, x0, torch.empty_like(x0), text.index([0] * size))
    active, most = method.active(step), 0
    with saved.counting(), _autocast(method, stage.trainer.mixed_precision == "bf16"):
        for _, terms in method.losses(batch, active, Draws(0, step, index)):
            del terms
            most = max(most, saved.bytes)
            saved.clear()
    return most


def _line(small: int, large: int) -> tuple[int, int]:
    """(bytes whatever the batch, bytes a sample) through what two sizes need."""
    slope = (large - small) // (_SIZES[1] - _SIZES[0])
    return small - _SIZES[0] * slope, slope


def _checkpoint(module: nn.Module, saved: SavedTensors | None) -> None:
    from diffusers import ModelMixin

    for part in module.modules():
        if isinstance(part, ModelMixin) and saved is not None:
            part.enable_gradient_checkpointing(saved.checkpointed)
        elif isinstance(
            part, ModelMixin
        ):  # an earlier count of the same network may have switched it on
            part.disable_gradient_checkpointing()


@contextmanager
def _autocast(method: LADD, enabled: bool) -> Iterator[None]:
    """Autocast around the networks that are trained, as Accelerate puts it there."""
    networks = [role.module for role in method.trainable().values()] if enabled else []
    plain = [network.forward for network in networks]
    for network, forward in zip(networks, plain, strict=True):
        network.forward = partial(_cast_forward, forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward


def _cast_forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with Autocast():
        return forward(*args, **kwargs)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.nbytes for p in parameters)
