"""Classes by name, as recipes say them: `smooth_l1` is SmoothL1Loss, `package.module:Class` anybody's class.

    smooth_l1: {beta: 0.1}      ->  SmoothL1Loss(beta=0.1)

A class has the name that its own name gives, in snake case and without the ending of its kind: there is no
table to keep. A class's settings are the arguments of its constructor. They are checked by their annotations
before anything is built, and what is wrong is shown with the nearest right name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "build",
    "check_settings",
    "import_class",
    "one_name",
    "pick_class",
    "snake_case",
    "unknown",
]

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


def unknown(what: str, name: object, names: Iterable[str]) -> str:
    """The sentence for a name that is none of `names`: the nearest one and all of them."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} {name!r} is unknown.{hint} There are: {', '.join(names) or 'none'}."


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


def import_class(path: str, base: type[_T], what: str) -> type[_T]:
    """The class at `package.module:Class`.

    Args:
        path: a module that can be imported, a colon, the class's name.
        base: what it must be a subclass of; a protocol will do.
        what: what the class is, for the message: "loss".

    Raises:
        ValueError: if there is no such module or class, or it is no `base`.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"the {what} {path!r} cannot be imported: {error}.") from error
    if not isinstance(found, type):
        raise ValueError(f"the {what} {path!r} is no class; {module} has no class {name!r}.")
    if not issubclass(found, base) or inspect.isabstract(found):
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
        raise ValueError(unknown(f"the {what}", name, named))
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
            raise ValueError(unknown(f"the setting of {what}", name, parameters))
        hint = hints.get(name, Any)
        if nested is not None and hint in nested and not _fits(value, hint):
            arguments[name] = nested[hint](value)
        elif _fits(value, hint):
            arguments[name] = _frozen(value)
        else:
            raise ValueError(f"{name} of {what} is {value!r}; it must be {_words(hint)}.")
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


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | Path)
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(inner)
            and all(map(_fits, value, inner))
        )
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if origin is Callable:
        return callable(value)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    """A type in plain words: `a number or null`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(choice) for choice in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        return f"a list of {len(inner)}, each {' or '.join(dict.fromkeys(map(_words, inner)))}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {_words(inner[0])}"
    plain = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}
    plain |= {Path: "a path", type(None): "null"}
    kind = origin or hint
    return plain.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
