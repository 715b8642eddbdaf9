"""The demo: the whole road on the embedded teacher, and what it is expected to come to."""

from nitrodistill.demo.demo import DemoConfig, run_demo, shuffled_captions, toy_recipe

__all__ = ["DemoConfig", "run_demo", "shuffled_captions", "toy_recipe"]
