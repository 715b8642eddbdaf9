"""A role that is trained: its prepared module, its optimizer, and what a checkpoint keeps of both."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nitrodistill.method import Role
from nitrodistill.models.wrappers import checkpointed, plain_name, role_in, unwrapped
from nitrodistill.training.config import OptimizerConfig, TrainerConfig
from nitrodistill.training.optimizers import load_state, make_optimizer, state_tensors
from nitrodistill.training.parallel import gather_rows, laid_out_like, local, prepare_module, whole

_log = logging.getLogger(__name__)
_SAMPLE = 256


@dataclass(frozen=True)
class TrainedRole:
    """A role with its optimizer.

    Attributes:
        name: of the role.
        role: where its prepared module lives.
        module: the network itself, without DDP or torch.compile around it.
        config: the optimizer's settings.
        optimizer: over `weights`.
        weights: name -> parameter, those that are trained.
    """

    name: str
    role: Role
    module: nn.Module
    config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    weights: dict[str, nn.Parameter]

    @classmethod
    def prepare(
        cls, name: str, role: Role, config: TrainerConfig, accelerator: Accelerator
    ) -> TrainedRole:
        """Prepares the role's module, binds it, and makes its optimizer.

        Raises:
            ValueError: if no parameter asks for a gradient, or one that does has half precision and
                `half_precision_weights` is off.
        """
        module = role.module
        dtypes = {p.dtype for p in module.parameters() if p.requires_grad}
        if not dtypes:
            raise ValueError(
                f"role {name!r} has no parameter that requires a gradient; call "
                "requires_grad_(True) on its module before the trainer is made."
            )
        _check_precision(name, dtypes, config, accelerator)
        if config.gradient_checkpointing:
            checkpoint_gradients(module)
        prepared = prepare_module(
            module,
            accelerator,
            config.parallel,
            config.cpu_offload,
            config.mixed_precision == "fp16",
        )
        role.bind(prepared)
        module = role_in(prepared) or unwrapped(prepared)
        # after the preparation, which may put other parameters in their place
        weights = {plain_name(n): p for n, p in module.named_parameters() if p.requires_grad}
        settings = config.optimizers[name]
        optimizer = make_optimizer(settings, list(weights.values()))
        return cls(name, role, module, settings, optimizer, weights)

    def clip(self) -> Tensor:
        """Scales the gradient down to the norm `max_grad_norm`; returns the norm before, over all processes."""
        limit = self.config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.weights.values(), math.inf if limit is None else limit)
        return whole(torch.as_tensor(norm))

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    @torch.no_grad()
    def sample(self) -> list[Tensor]:
        """A copy of the first elements of each trained weight, of what this process holds."""
        return [local(w.detach()).flatten()[:_SAMPLE].clone() for w in self.weights.values()]

    @torch.no_grad()
    def changed_since(self, before: list[Tensor]) -> Tensor:
        """The share of a `sample` that is another number now; a scalar on the device."""
        moved = [(now != then).flatten() for now, then in zip(self.sample(), before, strict=True)]
        return torch.cat(moved).float().mean()

    def tensors(self, frozen: bool, keep: bool) -> dict[str, Tensor]:
        """The network's whole weights on the CPU; all processes must call it.

        Args:
            frozen: those that are not trained, and buffers, as well.
            keep: False returns nothing (and spends no memory): for all processes but one.
        """
        return kept(self._places() if frozen else self.weights, keep)

    def optimizer_tensors(self, keep: bool) -> dict[str, Tensor]:
        """The optimizer's whole state as "key:weight" -> tensor; all processes must call it."""
        return kept(state_tensors(self.optimizer, self.weights), keep)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites the weights, all or the trained ones; all processes must call it.

        Raises:
            ValueError: if they are another network's.
        """
        places = self._places()
        absent = [n for n in self.weights if n not in tensors]
        strange = [n for n, v in tensors.items() if n not in places or v.shape != places[n].shape]
        if absent or strange:
            raise ValueError(
                f"the checkpoint's {self.name!r} is another network than the one to train: "
                f"{(absent + strange)[:3]} differ."
            )
        for name, value in tensors.items():
            local(places[name]).copy_(local(laid_out_like(value, places[name])))

    def _places(self) -> dict[str, Tensor]:
        """All weights and buffers by their plain names, whatever is compiled."""
        return {plain_name(name): value for name, value in self.module.state_dict().items()}

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `optimizer_tensors`; all processes must call it."""
        load_state(self.optimizer, self.weights, tensors)

    def is_finite(self) -> Tensor:
        """Whether all of the weights that this process holds are; a scalar on their device."""
        values = [local(v).isfinite().all() for v in self.module.state_dict().values()]
        return torch.stack(values).all()

    def disagreements(self, accelerator: Accelerator) -> list[str]:
        """The trained weights that are not the same in all processes, of the first 256 elements of each."""
        wrong = []
        for name, weight in self.weights.items():
            sample = weight.detach().flatten()[:_SAMPLE][None]
            rows = gather_rows(accelerator, sample)
            if not bool((rows == rows[0]).all()) and bool(rows.isfinite().all()):
                wrong.append(name)
        return wrong


def _check_precision(
    name: str, dtypes: set[torch.dtype], config: TrainerConfig, accelerator: Accelerator
) -> None:
    narrow = dtypes & {torch.bfloat16, torch.float16}
    if not narrow:
        return
    if not config.half_precision_weights:
        raise ValueError(
            f"the weights of role {name!r} are {' and '.join(map(str, narrow))}: at a learning rate of 1e-6 "
            "nearly all of AdamW's updates would be lost in rounding. Train float32 weights "
            "(module.float(), with `mixed_precision: bf16` for speed), or set half_precision_weights: true."
        )
    if accelerator.is_main_process:
        _log.warning(
            "role %s trains half-precision weights (half_precision_weights); see %s/changed in the log.",
            name,
            name,
        )


def kept(values: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole copies on the CPU, contiguous and sharing no memory; empty unless `keep`.

    All processes must call it.
    """
    copies = {}
    for name, value in values.items():
        value = whole(value.detach())
        if keep:
            copies[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copies


def checkpoint_gradients(module: nn.Module) -> None:
    """Lets a network of diffusers compute activations anew in the backward pass, to save memory.

    In train and eval mode alike, and so on a frozen backbone too. Networks of other kinds are left alone. A LoRA
    role switches it on for the network that it shares, and each block is computed anew in the role that ran it.
    """
    from diffusers import ModelMixin

    for part in unwrapped(module).modules():
        if isinstance(part, ModelMixin):
            part.enable_gradient_checkpointing(checkpointed)
