"""The demo: the whole road on the embedded teacher, and what it is expected to come to."""

from nitrodistill.demo.demo import DemoConfig, run_demo, shuffled_captions
from nitrodistill.demo.recipes import matching_recipe, toy_recipe

__all__ = ["DemoConfig", "matching_recipe", "run_demo", "shuffled_captions", "toy_recipe"]
