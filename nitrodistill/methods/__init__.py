"""Distillation methods, one a file; a recipe finds them by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

from nitrodistill.method import DistillationMethod
from nitrodistill.methods.consistency import Consistency, ConsistencyConfig
from nitrodistill.methods.dmd2 import DMD2, DMD2Config
from nitrodistill.methods.feature_kd import FeatureKD, FeatureKDConfig
from nitrodistill.methods.flow_map import FlowMap, FlowMapConfig
from nitrodistill.methods.ladd import LADD, LADDConfig
from nitrodistill.methods.progressive import Progressive, ProgressiveConfig
from nitrodistill.named import import_class
from nitrodistill.settings import nearest, shown

__all__ = [
    "DMD2",
    "LADD",
    "Consistency",
    "ConsistencyConfig",
    "DMD2Config",
    "FeatureKD",
    "FeatureKDConfig",
    "FlowMap",
    "FlowMapConfig",
    "LADDConfig",
    "Progressive",
    "ProgressiveConfig",
    "find_method",
    "known_methods",
]


def known_methods() -> list[str]:
    """The names of the methods in this package.

    Example:
        >>> "dmd2" in nd.methods.known_methods()
        True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_method(name: str) -> type[DistillationMethod]:
    """The class of a method.

    Args:
        name: one of `known_methods()`, or "package.module:Class" for one from outside, which is looked for in the
            working directory too.

    Raises:
        ValueError: if there is none, or the class is no method; it says what is missing.

    Example:
        >>> nd.methods.find_method("ladd").__name__
        'LADD'
    """
    if ":" in name:
        return _from_outside(name)
    if name not in known_methods():
        raise ValueError(
            f"there is no method {shown(name)}; {nearest(name, known_methods())} One from outside is written "
            "package.module:Class."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (c for c in vars(module).values() if _is_own(c, module))
    return found


def _is_own(value: object, module: ModuleType) -> bool:
    """Whether it is a method that the module defines. Its place first: on Python 3.10 `list[int]` is a class."""
    return (
        getattr(value, "__module__", None) == module.__name__
        and inspect.isclass(value)
        and issubclass(value, DistillationMethod)
    )


def _from_outside(name: str) -> type[DistillationMethod]:
    found = import_class(name, object, "method")
    wanted = {"Config", "build", "trainable", "losses"}
    missing = {part for part in wanted if not hasattr(found, part)}
    missing |= set(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ValueError(
            f"{name} is no distillation method: it lacks {', '.join(sorted(missing))}."
        )
    if not issubclass(found, DistillationMethod):
        raise ValueError(
            f"{name} is no distillation method; derive it from nitrodistill.DistillationMethod."
        )
    return found
