"""What a checkpoint says of its networks, so that a student is loaded without its method.

    "student": {"plan": {"transition": "ode", "steps": [...]}, "prediction_type": "v_prediction"}
    "networks": {"student": {"class": "UNet2DConditionModel", "config": {...}, "lora": null}, ...}

Scales are float64 and timesteps whole or real numbers; JSON keeps both exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nitrodistill.checks import as_tensor
from nitrodistill.export.folder import plan_record
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.models.inputs import built
from nitrodistill.models.lora import LoRAConfig, add_lora, base_copy, free_name
from nitrodistill.models.wrappers import role_in, unwrapped
from nitrodistill.sampling import Step, StepPlan
from nitrodistill.settings import build, to_plain
from nitrodistill.training.checkpoint import Checkpoint
from nitrodistill.types import Denoiser, Scales


def student_record(denoiser: Denoiser, plan: StepPlan) -> dict[str, object]:
    """How a student samples."""
    return {"plan": plan_record(plan), "prediction_type": denoiser.prediction_type}


def network_record(module: nn.Module, lora: LoRAConfig | None) -> dict[str, object] | None:
    """Class, config and LoRA of a diffusers network, prepared or not; None for a network of another kind."""
    network = unwrapped(module)
    from diffusers import ConfigMixin

    if not isinstance(network, ConfigMixin):
        return None
    plain = {k: v for k, v in json.loads(network.to_json_string()).items() if k[:1] != "_"}
    is_role = role_in(module) is not None
    return {
        "class": type(network).__name__,
        "config": plain,
        "lora": to_plain(lora) if is_role else None,
    }


def plan_of(checkpoint: Checkpoint) -> StepPlan:
    """The plan of a checkpoint's student.

    Raises:
        ValueError: if it has none: it was written by a version before records, or by a method without a student.
    """
    record = checkpoint.state().get("student")
    if not isinstance(record, Mapping):
        raise ValueError(
            f"checkpoint {checkpoint.path} does not say how its student samples: an older version wrote it, or "
            "its method has no student. Train it again with this version."
        )
    return plan_from(record["plan"])


def plan_from(record: Mapping[str, Any]) -> StepPlan:
    """The plan that `student_record` or an export wrote down."""
    steps = [
        Step(as_tensor("t", step["t"]), _scales(step["input"]), _scales(step["output"]))
        for step in record["steps"]
    ]
    return StepPlan(tuple(steps), record["transition"])


def load_denoiser(
    checkpoint: Checkpoint, base: DiffusersDenoiser, role: str = "student", *, average: bool = True
) -> DiffusersDenoiser:
    """The network of any role of a checkpoint, with the weights that it had; frozen nowhere, in eval mode.

    Args:
        checkpoint: of a run.
        base: the network that the role started as: the recipe's teacher. A LoRA role becomes a new role on it.
        role: its name.
        average: the moving average of the weights, where there is one, else the weights themselves.

    Raises:
        ValueError: if the checkpoint has no such role, or it is another network than the base.

    Example:
        >>> checkpoint = nd.training.find_student(run)
        >>> nd.training.load_denoiser(checkpoint, teacher.denoiser).prediction_type
        'v_prediction'
    """
    networks = checkpoint.state().get("networks")
    record = networks.get(role) if isinstance(networks, Mapping) else None
    if not isinstance(record, Mapping):
        found = networks if isinstance(networks, Mapping) else {}
        known = ", ".join(name for name, one in found.items() if one) or "none"
        raise ValueError(
            f"checkpoint {checkpoint.path} has no network of the role {role!r}; it has {known}."
        )
    denoiser = denoiser_of(record, base, role)
    load_weights(denoiser, checkpoint, role, average)
    denoiser.module.eval()
    return denoiser


def denoiser_of(record: Mapping[str, Any], base: DiffusersDenoiser, role: str) -> DiffusersDenoiser:
    """A network as a `network_record` says, with the base's weights or none: a new LoRA role, or a whole one."""
    if record["lora"] is not None:
        return add_lora(base, free_name(base, role), build(LoRAConfig, record["lora"]))
    if network_record(base.module, None) != dict(record):
        return base.with_module(_built(record))
    denoiser = base_copy(base)
    denoiser.module.float()  # a base in half precision would round the weights
    return denoiser


def load_weights(
    denoiser: DiffusersDenoiser, checkpoint: Checkpoint, role: str, average: bool
) -> None:
    """Puts a role's weights into a network; what the checkpoint does not hold stays as it is.

    Raises:
        ValueError: if they are another network's.
    """
    tensors = checkpoint.tensors(role)
    if average and checkpoint.has(f"{role}.ema"):
        tensors |= checkpoint.tensors(f"{role}.ema")
    here = {n: v.shape for n, v in denoiser.module.state_dict().items()}
    settings = checkpoint.state().get("trainer")
    whole = not isinstance(settings, Mapping) or settings.get("save_frozen", True)
    strange = [n for n, v in tensors.items() if here.get(n) != v.shape]
    if strange or (whole and here.keys() != tensors.keys()):
        raise ValueError(
            f"checkpoint {checkpoint.path} is of another network than this teacher's; give the teacher "
            "of its recipe."
        )
    denoiser.module.load_state_dict(tensors, strict=False)


def _built(record: Mapping[str, Any]) -> nn.Module:
    import diffusers

    kind: Any = getattr(diffusers, record["class"], None)
    if kind is None:
        raise ValueError(
            f"the student's network is a {record['class']}, which the installed diffusers does not have."
        )
    return built(kind, record["config"])


def _scales(numbers: list[float]) -> Scales:
    alpha, sigma = (torch.tensor(number, dtype=torch.float64) for number in numbers)
    return Scales(alpha, sigma)
