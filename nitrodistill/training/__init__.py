"""The reference trainer: recipes, stages, checkpoints, resume."""

from nitrodistill.training.alarms import Alarm, Alarms
from nitrodistill.training.best import Best
from nitrodistill.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    find_checkpoints,
    newest_checkpoint,
)
from nitrodistill.training.config import OptimizerConfig, TrainerConfig, learning_rate_factor
from nitrodistill.training.ema import EMA
from nitrodistill.training.log import make_accelerator, with_progress
from nitrodistill.training.networks import place_frozen
from nitrodistill.training.parallel import prepare_frozen
from nitrodistill.training.previews import Previewer
from nitrodistill.training.recipe import Recipe, Stage, load_recipe, parse_recipe, save_recipe
from nitrodistill.training.record import load_denoiser
from nitrodistill.training.run import TrainedStudent, find_student, load_run_recipe, load_student
from nitrodistill.training.signals import StopSignals
from nitrodistill.training.stages import run_recipe
from nitrodistill.training.state import State
from nitrodistill.training.student import Student
from nitrodistill.training.trainer import Trainer

__all__ = [
    "EMA",
    "Alarm",
    "Alarms",
    "Best",
    "Checkpoint",
    "OptimizerConfig",
    "Previewer",
    "Recipe",
    "Stage",
    "State",
    "StopSignals",
    "Student",
    "TrainedStudent",
    "Trainer",
    "TrainerConfig",
    "best_checkpoint",
    "find_checkpoints",
    "find_student",
    "learning_rate_factor",
    "load_denoiser",
    "load_recipe",
    "load_run_recipe",
    "load_student",
    "make_accelerator",
    "newest_checkpoint",
    "parse_recipe",
    "place_frozen",
    "prepare_frozen",
    "run_recipe",
    "save_recipe",
    "with_progress",
]
