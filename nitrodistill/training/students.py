"""The student of a stage: a copy of the teacher, or a LoRA role on its network; and its saved weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from nitrodistill.models import DiffusersDenoiser
from nitrodistill.models.lora import LoRAConfig, add_lora, base_copy
from nitrodistill.models.wrappers import ROLES
from nitrodistill.training.checkpoint import Checkpoint
from nitrodistill.training.trainer import STUDENT

__all__ = ["load_weights", "new_student"]


def new_student(base: DiffusersDenoiser, lora: LoRAConfig | None) -> DiffusersDenoiser:
    """A student that starts as the base: a trainable copy, or with `lora` a new role on the same network."""
    if lora is None:
        return base_copy(base)
    taken: list[str] = getattr(base.network, ROLES, [])
    names = (f"{STUDENT}_{number}" for number in count(1))  # other runs' may be there
    return add_lora(base, next(name for name in names if name not in taken), lora)


def load_weights(student: DiffusersDenoiser, checkpoint: Checkpoint, average: bool) -> None:
    """Puts a checkpoint's weights into the student; what it does not hold stays the teacher's.

    Raises:
        ValueError: if they are another network's.
    """
    tensors = checkpoint.tensors(STUDENT)
    if average:
        tensors |= checkpoint.tensors(f"{STUDENT}.ema")
    here = {n: v.shape for n, v in student.module.state_dict().items()}
    settings = checkpoint.state().get("trainer")
    whole = not isinstance(settings, Mapping) or settings.get("save_frozen", True)
    strange = [n for n, v in tensors.items() if here.get(n) != v.shape]
    if strange or (whole and here.keys() != tensors.keys()):
        raise ValueError(
            f"checkpoint {checkpoint.path} is of another network than this teacher's; give the teacher "
            "of its recipe."
        )
    student.module.load_state_dict(tensors, strict=False)
