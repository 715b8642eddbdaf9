"""A student to keep: its network, how it samples, and both in a folder or on the Hub.

A checkpoint of a run holds the same and more (`load_student`); an export is for those who use diffusers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nitrodistill import pretrained
from nitrodistill.checks import check_kind
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.models.lora import LoRAConfig
from nitrodistill.models.wrappers import role_in
from nitrodistill.pretrained import Pushable
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import build
from nitrodistill.training.record import denoiser_of, network_record, plan_from, student_record


@dataclass(frozen=True)
class Student(Pushable):
    """A student and how it samples.

    Attributes:
        denoiser: the network, a diffusers one; or a LoRA role of one.
        plan: how it samples.
        lora: what its LoRA was made with; None for a whole network.

    Raises:
        ValueError: if `lora` is missing, or there for a whole network.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> nd.training.Student(teacher.denoiser.copy(), plan).save_pretrained("student")
        >>> nd.training.Student.from_pretrained("student", teacher.denoiser).plan
        StepPlan(Step(t=999, input=(0, 1), output=(0, 1)))
    """

    _kind: ClassVar[str] = "student"
    denoiser: DiffusersDenoiser
    plan: StepPlan
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        check_kind("denoiser", self.denoiser, DiffusersDenoiser)
        check_kind("plan", self.plan, StepPlan)
        if (role_in(self.denoiser.module) is None) != (self.lora is None):
            raise ValueError(
                f"lora is {self.lora}; it must be the LoRAConfig of a LoRA student, and None of a whole network."
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights, and a config with the network's and the plan; `from_pretrained` reads them.

        Raises:
            FileExistsError: if the folder holds something else.
        """
        module = self.denoiser.module
        settings = {
            "student": student_record(self.denoiser, self.plan),
            "network": network_record(module, self.lora),
        }
        pretrained.save(Path(folder), "student", module.state_dict(), settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path, base: DiffusersDenoiser) -> Student:
        """A student that `save_pretrained` wrote, in eval mode.

        Args:
            folder: where it is, or a repository's name on the Hub, `"user/name"`.
            base: the network that it started as, the teacher's; a LoRA student becomes a role of it.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or another network's.
        """
        check_kind(
            "base", base, DiffusersDenoiser, ", such as Pipeline.from_diffusers(pipe).denoiser"
        )
        settings, tensors = pretrained.load(folder, "student")
        made = denoiser_of(settings["network"], base, "student")
        here = {name: value.shape for name, value in made.module.state_dict().items()}
        if here != {name: value.shape for name, value in tensors.items()}:
            raise ValueError(
                f"the student in {str(folder)!r} is of another network than this base; give the one it started as."
            )
        made.module.load_state_dict(tensors)
        made.module.eval()
        lora = settings["network"]["lora"]
        return cls(made, plan_from(settings["student"]["plan"]), lora and build(LoRAConfig, lora))
