"""Export to diffusers: pipeline folders, LoRA files, their scheduler and model card, and the Hub."""

from nitrodistill.export.card import Measured
from nitrodistill.export.folder import verify_export
from nitrodistill.export.hub import check_hub, push
from nitrodistill.export.lora import export_lora
from nitrodistill.export.pipeline import check_export, export
from nitrodistill.export.scheduler import scheduler_for_plan

__all__ = [
    "Measured",
    "check_export",
    "check_hub",
    "export",
    "export_lora",
    "push",
    "scheduler_for_plan",
    "verify_export",
]
