"""The reference trainer: recipes, stages, checkpoints, resume."""

from nitrodistill.training.checkpoint import Checkpoint, find_checkpoints, newest_checkpoint
from nitrodistill.training.config import OptimizerConfig, TrainerConfig, learning_rate_factor
from nitrodistill.training.ema import EMA
from nitrodistill.training.log import make_accelerator, with_progress
from nitrodistill.training.trainer import State, Trainer

__all__ = [
    "EMA",
    "Checkpoint",
    "OptimizerConfig",
    "State",
    "Trainer",
    "TrainerConfig",
    "find_checkpoints",
    "learning_rate_factor",
    "make_accelerator",
    "newest_checkpoint",
    "with_progress",
]
