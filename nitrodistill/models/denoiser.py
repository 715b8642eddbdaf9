"""Denoisers: diffusers networks behind `(x_t, t, condition) -> prediction`.

What differs between the families is in `models/adapters`, one small file each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nitrodistill.checks import as_tensor, check_kind, check_within, on_host
from nitrodistill.models.adapters import Adapter, adapter_for
from nitrodistill.models.inputs import Input, add_input, giving, input_of
from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.models.wrappers import checkpointed, has_roles, role_in, unwrapped
from nitrodistill.prediction import Clamp
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import (
    Condition,
    Denoiser,
    NoiseSchedule,
    PredictionType,
    TakesInputs,
    as_condition,
    check_prediction_type,
    check_schedule,
)


class DiffusersDenoiser:
    """A diffusers network as a Denoiser.

    The families are those of `models.adapters.ADAPTERS`, found by the network's class. Latents are maps
    `(B, C, H, W)` for all of them, and `t` is in the network's own unit.

    Args:
        module: the network. A trainer may later replace it by a prepared one.
        schedule: the schedule of its timesteps.
        prediction_type: what it predicts.
        adapter: how it is called, for a network of no known family; by default its family's.
        preconditioning: EDM's, around a raw network; then `t` is sigma and it predicts "sample".
        clamp: how the scheduler of its pipeline clamps x0 while sampling, which `sample` does too; None: it does
            not. Copies, and others made from this one, have none: a student is trained and exported without.

    Attributes:
        size: (height, width) of the latents that it draws; None, the default, is what the network was made for.
            A Pipeline with a resolution sets it.

    Raises:
        TypeError: if the network's class is not one of the families and there is no adapter.
        ValueError: if it wants conditioning that the family's adapter does not pass, or it is preconditioned
            and predicts anything but "sample".

    Example:
        >>> unet = teacher.diffusers.unet
        >>> schedule = nd.DiscreteSchedule.from_scheduler(teacher.scheduler)
        >>> denoiser = nd.DiffusersDenoiser(unet, schedule, "v_prediction")
        >>> denoiser(noise, 999, condition).shape
        torch.Size([2, 4, 8, 8])
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        *,
        adapter: Adapter | None = None,
        preconditioning: EDMPreconditioning | None = None,
        clamp: Clamp | None = None,
    ) -> None:
        if preconditioning is not None and prediction_type != "sample":
            raise ValueError(
                f"prediction_type is {prediction_type!r}, but with EDM's preconditioning the denoiser predicts "
                "x0: say 'sample'."
            )
        check_kind("module", module, nn.Module, ": the network itself")
        self.preconditioning: EDMPreconditioning | None = preconditioning
        self.clamp: Clamp | None = clamp
        self.size: tuple[int, int] | None = None
        self.adapter: Adapter = adapter_for(unwrapped(module)) if adapter is None else adapter
        self.module = module
        self._schedule: NoiseSchedule = check_schedule(schedule)
        self._prediction_type: PredictionType = check_prediction_type(prediction_type)
        self._known: tuple[tuple[nn.Module, torch.dtype], torch.dtype] | None = None

    def __repr__(self) -> str:
        parts = (
            f"{type(self.network).__name__} of {millions(self.network)}",
            *(() if role_in(self.module) is None else ("a LoRA role",)),
            self.prediction_type,
            *map(repr, filter(None, (self.schedule, self.preconditioning, self.clamp))),
        )
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the network's timesteps."""
        return self._schedule

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts."""
        return self._prediction_type

    @property
    def extra_inputs(self) -> dict[str, float]:
        """The number that the network takes next to t, and its value where a Condition does not hold it.

        {"guidance": 3.0}, {"interval": 0.0}, or {} for a plain network; see `models.inputs`.
        """
        return input_of(self.network)

    @property
    def network(self) -> nn.Module:
        """The bare network inside `module`, which may be prepared (DDP), compiled, or a LoRA role."""
        return unwrapped(self.module)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor | float,
        condition: Condition | Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predicts from `x_t` `(B, C, H, W)` at `t` `(B,)` or one for all, in `x_t`'s dtype.

        Inputs are cast to the dtype that the network computes in. None is the Condition that holds nothing.

        Raises:
            ValueError: if latents, timesteps or condition do not fit the network, by their shapes; of timesteps on
                the CPU the values are looked at too.
        """
        network, condition = self.network, as_condition(condition)
        check_kind("x_t", x_t, Tensor)
        self.adapter.check(type(network).__name__, x_t, condition)
        dtype = self._dtype(network)
        t = self._timesteps(t, len(x_t)).to(x_t.device).expand(len(x_t))
        cast = condition.to(x_t.device, dtype)
        with giving(network, condition, x_t, dtype):
            if self.preconditioning is None:
                return self._run(x_t, t, cast, dtype).to(x_t.dtype)
            scaled, c_noise = self.preconditioning.input(x_t, t)
            raw = self._run(scaled, c_noise, cast, dtype)
        return self.preconditioning.denoised(raw, x_t, t).to(x_t.dtype)

    def _timesteps(self, t: Tensor | float, batch: int) -> Tensor:
        """Timesteps, checked; float32 if they are no whole numbers."""
        t = as_tensor("t", t)
        if t.shape not in ((), (1,), (batch,)):
            raise ValueError(
                f"t has shape {tuple(t.shape)}; it must be ({batch},), one timestep per sample, or one for all."
            )
        if isinstance(self._schedule, DiscreteSchedule):
            check_within("t", t, 0, self._schedule.num_timesteps - 1)
        elif on_host(t):
            self._schedule(t)
        return t.float() if t.is_floating_point() else t

    def _run(self, x_t: Tensor, t: Tensor, condition: Condition, dtype: torch.dtype) -> Tensor:
        arguments = self.adapter.arguments(x_t.to(dtype), t, condition)
        return self.adapter.prediction(self.module(**arguments, return_dict=False)[0], x_t)

    def _dtype(self, network: nn.Module) -> torch.dtype:
        """`dtype_of`, which looks at every module; asked anew when the network or its first weight changes."""
        key = (network, next(network.parameters()).dtype)
        if self._known is None or self._known[0] != key:
            self._known = (key, dtype_of(network))
        return self._known[1]

    @property
    def sampler_settings(self) -> str:
        """How x0 is clamped, and EDM's coefficients: what acts in sampling beside weights, schedule and type."""
        return f"clamp: {self.clamp}; preconditioning: {self.preconditioning}"

    def copy(self) -> DiffusersDenoiser:
        """A denoiser with a deep, trainable copy of the network: a student that starts as this.

        Raises:
            ValueError: if weights are stored in eight bits or fewer, which cannot be trained.
        """
        check_wide(
            self.network,
            "cannot be trained: load the network in float32, or train LoRA on one in int8",
        )
        return trainable(self.with_module(copy.deepcopy(self.module)))

    def with_module(self, module: nn.Module) -> DiffusersDenoiser:
        """Another network of the family on the same schedule; with fewer blocks, perhaps."""
        other: Any = unwrapped(module)
        same = other.config == self.adapter.config
        found = DiffusersDenoiser(
            module,
            self._schedule,
            self._prediction_type,
            adapter=self.adapter if same else type(self.adapter)(other),
            preconditioning=self.preconditioning,
        )
        found.size = self.size
        return found

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes each block's activations in backward instead of keeping them: less memory, same gradients.

        Blocks are recomputed in the role that ran them, where several share the network (`add_lora`).
        """
        network: Any = self.network
        network.enable_gradient_checkpointing(checkpointed)

    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the latents that it draws."""
        if self.size is None:
            return self.adapter.latent_shape()
        return self.adapter.channels(), *self.size

    def example(self) -> tuple[Tensor, Tensor, Condition]:
        """The smallest input `(x_t, t, condition)` of batch size one that runs every block."""
        device, dtype = device_of(self.network), dtype_of(self.network)
        side = self.adapter.example_side()
        # not new_zeros: of a weight that processes share out it would be one that they share out
        x_t = torch.zeros(1, self.adapter.channels(), side, side, dtype=dtype, device=device)
        t = self._schedule.timesteps(1).to(device)
        return x_t, t, self.adapter.example_condition(x_t)


def ensure_input(student: Denoiser, name: Input, default: float) -> None:
    """Gives a student's network, in place, an input for a number next to t; see `models.inputs`.

    Args:
        student: what is trained; it must be a whole network of its own.
        name: the number.
        default: its value where a Condition does not hold it.

    Raises:
        ValueError: if it cannot have one.
    """
    if (
        isinstance(student, TakesInputs)
        and name in student.extra_inputs
        and not isinstance(student, DiffusersDenoiser)
    ):
        return  # a network of somebody's own that takes it
    if not isinstance(student, DiffusersDenoiser):
        raise ValueError(
            f"this student is a {type(student).__name__}, which takes nothing next to t; give its class "
            f"`extra_inputs` that hold {name!r}."
        )
    if role_in(student.module) is not None:
        raise ValueError(
            f"the student is a LoRA role, and the weights of an input {name!r} would not be the role's; leave out "
            "`lora`, or what asks for it (guidance_range, or a flow map)."
        )
    if name == "guidance" and student.adapter.embeds_guidance:
        raise ValueError(
            "this network takes the scale of guidance already; leave out guidance_range."
        )
    add_input(student.network, name, default)


def trainable(denoiser: DiffusersDenoiser) -> DiffusersDenoiser:
    """Switches on the gradients of all weights that the prediction depends on; returns the denoiser.

    DDP waits for the gradients of all that asks for one.
    """
    denoiser.module.requires_grad_(True)
    for name, parameter in denoiser.network.named_parameters():
        if name.startswith(denoiser.adapter.unused):
            parameter.requires_grad_(False)
    return denoiser


def frozen(module: nn.Module) -> nn.Module:
    """Switches off gradients and train mode of a module, and returns it.

    The weights of LoRA roles that share a network (`add_lora`) stay as they are: they are not the network's.
    """
    shared = has_roles(module)
    for name, parameter in module.named_parameters():
        if not (shared and ".lora_" in name):
            parameter.requires_grad_(False)
    return module.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside of the block; the mode from before comes back after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are made inside of the block are the seed's, and no global generator is moved.

    They are made on the CPU: `torch.manual_seed` would seed the generators of all GPUs, and leave them so.
    """
    place = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.device(place), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def millions(module: nn.Module) -> str:
    """How many parameters a module has, in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.3g}M parameters"


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter."""
    return next(module.parameters()).device


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype that a module computes in, which differs from that of weights stored in eight bits.

    That is what diffusers and transformers say of their modules; of others, the dtype of the first floating-point
    parameter.
    """
    stated = getattr(module, "dtype", None)
    if isinstance(stated, torch.dtype):
        return stated
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def check_wide(network: nn.Module, problem: str) -> None:
    """Raises ValueError, with the problem and the way out, if weights are stored in eight bits or fewer."""
    for name, parameter in network.named_parameters():
        packed = is_traceable_wrapper_subclass(parameter) and type(parameter).__name__ != "DTensor"
        if packed or parameter.dtype.itemsize < 2:
            stored = type(parameter).__name__ if packed else parameter.dtype
            raise ValueError(
                f"the weights of this {type(network).__name__} are stored as {stored} ({name}), so they {problem}."
            )
