"""LoRA roles: several networks in the memory of one (Hu et al. 2022, y = W x + (alpha / rank) B A x).

    student = add_lora(teacher, "student")       # the teacher's weights and a small difference
    critic = add_lora(teacher, "critic")         # another difference on the same weights
    teacher(x_t, t, condition)                   # still the teacher: between calls no role acts

Each role is a DiffusersDenoiser whose `module` holds its own LoRA weights alone (trained, averaged, saved,
prepared by DDP) and switches the shared network to them for the time of a call. peft injects the layers, into
any family.

A role's forward is recomputed in the same role by gradient checkpointing, if that was switched on by
`denoiser.enable_gradient_checkpointing()`. FSDP2 is not for roles: it would shard a role's weights apart from
the layers that use them.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from nitrodistill.checks import check_fields, check_kind, check_positive
from nitrodistill.models.denoiser import DiffusersDenoiser, check_wide, seeded, trainable
from nitrodistill.models.weights import acting_adapters, adapter_layers
from nitrodistill.models.wrappers import ROLES, LoRARole, plain_name, role_in


@dataclass(frozen=True)
class LoRAConfig:
    """A role's difference from the shared weights.

    Attributes:
        rank: of the difference.
        alpha: the difference is scaled by alpha / rank; None is rank, a scale of 1.
        targets: ends of the names of the layers that get one; None is what the family's adapter says, the
            projections of its attention.
        seed: of the initial weights (A is random, B zero: a new role is the base); the global generator is not
            touched.

    Raises:
        ValueError: if rank is below 1 or alpha is not positive.

    Example:
        >>> nd.LoRAConfig(rank=8, alpha=16.0).rank
        8
    """

    rank: int = 64
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, rank=1)
        if self.alpha is not None:
            check_positive("alpha", self.alpha)


def add_lora(
    denoiser: DiffusersDenoiser, role: str, config: LoRAConfig | None = None
) -> DiffusersDenoiser:
    """A new role on a denoiser's network, which is frozen but for the roles' weights.

    Args:
        denoiser: the base, for example the teacher; or another role of it.
        role: its name, a Python identifier.
        config: rank, scale and layers.

    Returns:
        a denoiser with the same schedule whose `module` holds the role's weights, float32 and trainable.

    Raises:
        ModuleNotFoundError: without peft.
        ValueError: if the network has no such layer, peft refuses one, the role is there already or named like a
            part of the network, or the network carries LoRA of somebody else. The network then is as before.

    Example:
        >>> student = nd.add_lora(teacher.denoiser.copy(), "student", nd.LoRAConfig(rank=2))
        >>> [name for name, p in student.module.named_parameters() if p.requires_grad][0]
        'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight'
    """
    lora = _peft()
    check_kind(
        "denoiser", denoiser, DiffusersDenoiser, ", such as Pipeline.from_diffusers(pipe).denoiser"
    )
    check_kind("config", config, LoRAConfig | None)
    config, network = config or LoRAConfig(), denoiser.network
    roles: list[str] = getattr(network, ROLES, [])
    _check_role(role, roles, network)
    targets = _targets(network, config.targets, denoiser.adapter.lora_targets)
    settings = lora.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else config.rank,
        target_modules=targets,
    )
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    with seeded(config.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # other roles'
        try:
            lora.inject_adapter_in_model(settings, network, role)
        except Exception as error:  # whatever peft refuses, it has put layers in by then
            _remove_role(network, role)
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(flags[name])
            raise ValueError(
                f"peft cannot put LoRA of rank {config.rank} on the targets {', '.join(targets)} "
                f"({' '.join(str(error).split())[:200]}); choose other targets, or another rank."
            ) from error
    for layer in _layers(network).values():
        layer.enable_adapters(False)
        if layer.get_base_layer().weight.is_meta:  # peft leaves its own weights on the CPU
            layer.to("meta")
    weights: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        own = "lora_" in name and role in name.split(".")
        used = not name.startswith(denoiser.adapter.unused)
        parameter.requires_grad_((own and used) or ("lora_" in name and flags.get(name, False)))
        if own:
            parameter.data = parameter.data.float()
            path = (part for part in name.split(".") if part != role)
            weights[plain_name(".".join(path))] = parameter
    setattr(network, ROLES, [*roles, role])
    if getattr(network, "is_gradient_checkpointing", False):
        denoiser.enable_gradient_checkpointing()
    scale = settings.lora_alpha / settings.r
    module = LoRARole(network, _Switch(network, role), weights, scale)
    return denoiser.with_module(module)


def free_name(base: DiffusersDenoiser, role: str) -> str:
    """A name for a LoRA role that no role on the base's network has: other runs' may be there."""
    taken: list[str] = getattr(base.network, ROLES, [])
    names = (role if number == 0 else f"{role}_{number}" for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def merged(denoiser: DiffusersDenoiser) -> DiffusersDenoiser:
    """A denoiser with a network of its own, in which the role is merged into the weights: for export.

    Args:
        denoiser: a role, prepared or not.

    Returns:
        a frozen denoiser around a plain network of the family.

    Raises:
        TypeError: if it is not a role.
        ValueError: if the network's weights are stored in eight bits or fewer.

    Example:
        >>> student = nd.add_lora(teacher.denoiser.copy(), "student", nd.LoRAConfig(rank=2))
        >>> nd.models.merged(student)(noise, 999, condition).shape
        torch.Size([2, 4, 8, 8])
    """
    module = role_in(denoiser.module)
    if module is None:
        raise TypeError(
            f"this denoiser's module is {type(denoiser.module).__name__}, which is no LoRA role; only what "
            "add_lora returns can be merged."
        )
    check_wide(module.network, "cannot take the role in: write it apart, with export_lora")
    switch = module._switch
    assert isinstance(switch, _Switch)
    network = copy.deepcopy(switch.network)
    for layer in _layers(network).values():
        layer.merge(adapter_names=[switch.role])
    return denoiser.with_module(_without_roles(network).requires_grad_(False).eval())


def base_copy(denoiser: DiffusersDenoiser) -> DiffusersDenoiser:
    """A denoiser with a deep, trainable copy of the network, without the roles that others play on it.

    LoRA of somebody else that acts on it is merged into the copy's weights.
    """
    copied = denoiser.copy()
    if not adapter_layers(copied.network):
        return copied
    return trainable(copied.with_module(_merged_into(copied.network)))


def fused(network: nn.Module) -> nn.Module:
    """A copy of a network in which the adapters that act are merged into the weights, and the others are gone."""
    return _merged_into(copy.deepcopy(network))


def check_lora(denoiser: DiffusersDenoiser, config: LoRAConfig) -> None:
    """Checks that `add_lora` would take the settings, and adds nothing.

    Raises:
        ModuleNotFoundError: without peft.
        ValueError: if the network has no such layer, or float8 weights, which let no gradient through.
    """
    _peft()
    for name, weight in denoiser.network.named_parameters():
        if weight.is_floating_point() and weight.dtype.itemsize < 2:
            raise ValueError(
                f"{name} is stored as {weight.dtype} (layerwise casting), through which no gradient flows; load "
                "the network in bfloat16 or int8 to train LoRA on it."
            )
    _targets(denoiser.network, config.targets, denoiser.adapter.lora_targets)


def _merged_into(network: nn.Module) -> nn.Module:
    for layer in adapter_layers(network).values():
        if acting_adapters(layer):
            layer.merge()
    return _without_roles(network)


def _without_roles(network: nn.Module) -> nn.Module:
    """Takes the layers of all adapters out of the network; what was merged into its weights stays."""
    for name, layer in _layers(network).items():
        _replace(network, name, layer.get_base_layer())
    for attribute in (ROLES, "peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(network):
            delattr(network, attribute)
    return network


def _remove_role(network: nn.Module, role: str) -> None:
    """Takes the layers of one role out, however many of them were put in."""
    for name, layer in _layers(network).items():
        if any(key != role for key in layer.r):
            layer.delete_adapter(role)
        else:
            _replace(network, name, layer.get_base_layer())
    configs = getattr(network, "peft_config", {})
    configs.pop(role, None)
    if not configs and "peft_config" in vars(network):
        delattr(network, "peft_config")


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)


class _Switch:
    """Makes a context in which a shared network plays a role.

    peft's own switches also set which weights are trained. What an earlier forward recorded would then lose its
    gradients (autograd looks at the flag when it accumulates), so the flags are put back.
    """

    def __init__(self, network: nn.Module, role: str) -> None:
        self.network = network
        self.role = role

    @contextmanager
    def __call__(self) -> Iterator[None]:
        layers = [layer for layer in _layers(self.network).values() if self.role in layer.lora_A]
        with _flags_kept(layers):
            for layer in layers:
                layer.set_adapter(self.role)
                layer.enable_adapters(True)
        try:
            yield
        finally:
            with _flags_kept(layers):
                for layer in layers:
                    layer.enable_adapters(False)


@contextmanager
def _flags_kept(layers: list[Any]) -> Iterator[None]:
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    yield
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _layers(network: nn.Module) -> dict[str, Any]:
    kind = _tuner_layer()
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}


def _tuner_layer() -> Any:
    from peft.tuners.lora import LoraLayer

    return LoraLayer


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LoRA roles need peft, which is not installed: pip install peft."
        ) from error
    return peft


def _check_role(role: str, roles: list[str], network: nn.Module) -> None:
    if not role.isidentifier():
        raise ValueError(f"role is {role!r}; it must be a Python identifier, such as 'student'.")
    if role in roles:
        raise ValueError(f"the network plays {role!r} already; choose another name.")
    if any(role in name.split(".") for name, _ in network.named_parameters()):
        raise ValueError(
            f"role is {role!r}, which is the name of a part of this {type(network).__name__}; choose another "
            "name, such as 'student'."
        )
    if not roles and any("lora_" in name for name, _ in network.named_parameters()):
        raise ValueError(
            "the network carries LoRA that was not added here; merge it first: pipe.fuse_lora() and "
            "pipe.unload_lora_weights()."
        )


def _targets(
    network: nn.Module, asked: tuple[str, ...] | None, usual: tuple[str, ...]
) -> list[str]:
    """What peft is to look for: all that was asked for, or those of the family's that are there."""
    kinds = (nn.Linear, nn.Conv2d, _tuner_layer())
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) and ".lora_" not in name and not name.endswith(".base_layer")
    ]

    def is_there(target: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for name in layers)

    wanted = usual if asked is None else asked
    missing = [target for target in wanted if not is_there(target)]
    if missing and (asked is not None or len(missing) == len(wanted)):
        ends = {end for name in layers for end in (name, name.rpartition(".")[2])}
        names = sorted(end for end in ends if not end.isdecimal())
        near = difflib.get_close_matches(missing[0], names, n=5, cutoff=0.3)
        raise ValueError(
            f"LoRA's target {missing[0]!r} names no linear or convolutional layer of this "
            f"{type(network).__name__}; the nearest are {', '.join(near or names[:5])}."
        )
    return [target for target in wanted if target not in missing]
