"""Export to diffusers: the pipeline folder, its scheduler and its model card."""

from nitrodistill.export.pipeline import export
from nitrodistill.export.scheduler import scheduler_for_plan

__all__ = ["export", "scheduler_for_plan"]
