"""Distillation methods: a config dataclass and a method in each file."""

from nitrodistill.methods.ladd import LADD, LADDConfig

__all__ = ["LADD", "LADDConfig"]
