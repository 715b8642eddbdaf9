"""Export to diffusers: the pipeline folder, its scheduler, its model card, and the Hub."""

from nitrodistill.export.hub import check_hub, push
from nitrodistill.export.pipeline import export
from nitrodistill.export.scheduler import scheduler_for_plan

__all__ = ["check_hub", "export", "push", "scheduler_for_plan"]
