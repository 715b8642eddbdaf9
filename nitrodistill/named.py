"""Classes by name, as recipes say them: `smooth_l1` is SmoothL1Loss, `package.module:Class` anybody's class.

    smooth_l1: {beta: 0.1}      ->  SmoothL1Loss(beta=0.1)

A class has the name that its own name gives, in snake case and without the ending of its kind: there is no
table to keep. A class's settings are the arguments of its constructor. They are checked by their annotations
before anything is built, and what is wrong is shown with the nearest right name.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from nitrodistill.settings import convert, nearest

_T = TypeVar("_T")

# A capital after a small letter or a digit, the last capital of several, and SSIM (in MSSSIM).
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]|SSIM)")


def snake_case(kind: type, ending: str = "") -> str:
    """The name of a class in recipes.

    Example:
        >>> class SmoothL1Loss: ...
        >>> snake_case(SmoothL1Loss, "Loss")
        'smooth_l1'
    """
    return _WORD.sub("_", kind.__name__.removesuffix(ending)).lower()


def one_name(spec: object, what: str) -> tuple[str, Any]:
    """`name` or `{name: settings}` as the name and its settings (None where there are none).

    Raises:
        ValueError: for anything else.
    """
    if isinstance(spec, str):
        return spec, None
    if isinstance(spec, Mapping) and len(spec) == 1:
        return next(iter(spec.items()))
    raise ValueError(f"the {what} is {spec!r}; give a name, or one name with its settings.")


def import_object(path: str, what: str) -> object:
    """What stands at `package.module:name`, looked for in the working directory too; None if nothing does.

    Raises:
        ValueError: if there is no such module.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"the {what} {path!r} cannot be imported: {error}.") from error


def import_class(path: str, base: type[_T], what: str) -> type[_T]:
    """The class at `package.module:Class`.

    Args:
        path: a module that can be imported, a colon, the class's name.
        base: what it must be a subclass of; a protocol will do.
        what: what the class is, for the message: "loss".

    Raises:
        ValueError: if there is no such module or class, or it is no `base`.
    """
    found = import_object(path, what)
    module, _, name = path.partition(":")
    if not isinstance(found, type):
        raise ValueError(f"the {what} {path!r} is no class; {module} has no class {name!r}.")
    if not issubclass(found, base) or (base is not object and inspect.isabstract(found)):
        raise ValueError(f"the {what} {path!r} is no {base.__name__} that can be built.")
    return found


def pick_class(
    name: str, classes: Iterable[type[_T]], base: type[_T], what: str, ending: str = ""
) -> type[_T]:
    """The class called `name` among `classes`, or the one at `package.module:Class`.

    Args:
        name: in snake case, without `ending`.
        classes: those that have a name.
        base: what all of them are.
        what: what they are, for messages: "loss".
        ending: what the names of the classes end with.

    Raises:
        ValueError: if there is none of that name; shows the nearest.
    """
    if ":" in str(name):
        return import_class(name, base, what)
    named = {snake_case(kind, ending): kind for kind in classes}
    if name not in named:
        raise ValueError(f"the {what} {name!r} is unknown; {nearest(name, named)}")
    return named[name]


def check_settings(
    kind: type,
    settings: Mapping[str, Any] | None,
    what: str,
    *,
    nested: Mapping[type, Callable[[Any], Any]] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments for `kind`, checked by name and type against its constructor.

    Args:
        kind: the class that is to be built.
        settings: argument -> value, in the words of YAML: numbers, strings, lists, mappings. None is empty.
        what: whose settings they are, for messages.
        nested: for an argument of such a type, what takes its settings and gives what stands for it.
        without: arguments that cannot be set.

    Returns:
        The arguments, lists as tuples.

    Raises:
        ValueError: for an argument that there is not (shows the nearest), one that is missing, or a value of
            another type.
    """
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"the settings of {what} are {settings!r}; give a mapping of its arguments."
        )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in without
    }
    hints = get_type_hints(kind.__init__)
    arguments: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in parameters:
            raise ValueError(
                f"the setting of {what} {name!r} is unknown; {nearest(str(name), parameters)}"
            )
        hint = hints.get(name, Any)
        if nested is not None and hint in nested and isinstance(value, (str, Mapping)):
            arguments[name] = nested[hint](value)
        else:
            arguments[name] = convert(hint, value, f"{what}.{name}")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}; give it among its settings.")
    return arguments


def build(kind: type[_T], arguments: Mapping[str, Any], what: str) -> _T:
    """`kind(**arguments)`; what the class refuses is said with its name.

    Raises:
        ValueError: for a value out of its range.
    """
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
