"""Settings: frozen dataclasses from plain mappings, lists and numbers (YAML), and back.

Unknown names are errors that show the nearest one; a value of a wrong type is an error that says where it stands,
what it is and what it must be. YAML is read without surprises: no name twice, no aliases that expand without end.
"""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from unicodedata import category

_T = TypeVar("_T")

_MOST_NODES = 100_000
"""Of a YAML file, its aliases written out."""

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
    Any: "a value",
}
_hints = cache(get_type_hints)
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""A number such as 1e-4, which YAML 1.1 takes for text."""


def build(kind: type[_T], data: object, where: str = "") -> _T:
    """Makes a dataclass of what a YAML file holds.

    Args:
        kind: the dataclass. Its fields may be numbers, text, true or false, `Literal`, `Any`, dataclasses, unions,
            and lists, tuples and dicts of those.
        data: names and values.
        where: dotted path so far, for the message.

    Raises:
        ValueError: if a name is unknown or missing, or a value is of a wrong type or refused by its dataclass.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'this'} is {shown(data)}; it must hold names and values.")
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    values = {}
    for key, value in data.items():
        path = _joined(where, key)
        if key not in known:
            inside = _inside(hints, str(key))
            raise ValueError(f"unknown key {shown(path)}; {inside or nearest(str(key), known)}")
        values[key] = convert(hints[key], value, path)
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{_joined(where, missing[0])} is missing; give it a value.")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _inside(hints: Mapping[str, Any], key: str) -> str:
    """Where a name is known one level further in, for the message; else empty."""
    for name, hint in hints.items():
        for kind in (hint, *get_args(hint)):
            if is_dataclass(kind) and key in {field.name for field in fields(kind)}:
                several = {dict: ".NAME", Mapping: ".NAME", list: ".0", tuple: ".0"}
                return f"it is {name}{several.get(get_origin(hint), '')}.{key}."
    return ""


def convert(hint: Any, value: object, where: str) -> Any:
    """A value as an annotation wants it: lists become tuples where it says so, and mappings dataclasses.

    Args:
        hint: the annotation.
        value: in the words of YAML.
        where: what it is called, for the message.

    Raises:
        ValueError: if it is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return _meant(value)
    if isinstance(value, Word):
        return convert_text(hint, str(value), where)
    if origin in (Union, types.UnionType):
        return _one_of(inner, value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin is Literal and isinstance(value, bool):  # YAML's reading of yes and no
        value = next((w for w in (("yes", "on") if value else ("no", "off")) if w in inner), value)
    if origin is Literal and any(value == one and type(value) is type(one) for one in inner):
        return value
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_key(k, where): convert(inner[1], v, _joined(where, k)) for k, v in value.items()}
    several = origin in (list, Sequence) or (origin is tuple and inner[-1] is ...)
    if several and isinstance(value, str) and str in (inner[0], *get_args(inner[0])):
        value = [value]
    if origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)):
        each = inner if origin is tuple and inner[-1] is not ... else inner[:1] * len(value)
        if len(each) == len(value):
            pairs = zip(each, value, strict=True)
            made = [convert(one, v, _joined(where, i)) for i, (one, v) in enumerate(pairs)]
            return made if origin is list else tuple(made)
    if hint is float and (number := _number(value)) is not None:
        return number
    if hint is Path and isinstance(value, (str, Path)):
        return value
    if _is_instance(value, type(None) if hint is None else hint, origin):
        return value
    raise _misfit(hint, value, where)


class Word(str):
    """A text of the command line: whether it is a text or YAML is known where it is wanted."""


def _meant(value: object) -> object:
    """The value with each `Word` read as YAML, where anything may stand."""
    if isinstance(value, Word):
        return parse_yaml(value)
    if isinstance(value, dict):
        return {key: _meant(one) for key, one in value.items()}
    return [_meant(one) for one in value] if isinstance(value, list) else value


def _misfit(hint: Any, value: object, where: str) -> ValueError:
    yes_no = isinstance(value, bool) and str in (hint, *get_args(hint))
    quote = " (YAML reads yes, no, on and off as true and false: quote it)" if yes_no else ""
    return ValueError(f"{where} is {shown(value)}; it must be {wanted(hint)}{quote}.")


def convert_text(hint: Any, text: str, where: str) -> Any:
    """A value as `convert` makes it, from a word of a command line: the text itself, or what it says in YAML.

    Args:
        hint: the annotation.
        text: the word; null is None where there may be none.
        where: what it is called, for the message.

    Raises:
        ValueError: if it is of another type.
    """
    if text == "null" and type(None) in get_args(hint):
        return None
    try:
        read = parse_yaml(text)
    except ValueError:
        read = text
    first, second = (read, text) if isinstance(read, list) else (text, read)
    try:
        return convert(hint, first, where)
    except ValueError as error:
        try:
            return convert(hint, second, where)
        except ValueError:
            raise error from None


def _is_instance(value: object, hint: Any, origin: Any) -> bool:
    if hint in (int, str, bool, float, Path):
        return type(value) is hint
    if origin is Callable:
        return callable(value)
    return origin is None and isinstance(hint, type) and isinstance(value, hint)


def _one_of(hints: Sequence[Any], value: object, where: str) -> Any:
    """A value of a union: the member that it is already, else the first that takes it."""
    if value is None and type(None) in hints:
        return None
    others = [hint for hint in hints if hint is not type(None)]
    # before a list that takes any word
    others.sort(key=lambda hint: get_origin(hint) is not Literal)
    if type(value) in others:
        return value
    if len(others) == 1 and isinstance(value, Mapping):
        return convert(others[0], value, where)  # its message says more
    for hint in others:
        try:
            return convert(hint, value, where)
        except ValueError:
            continue
    raise _misfit(Union[tuple(hints)], value, where)  # noqa: UP007


def _number(value: object) -> float | None:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return None


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{where} has the name {shown(key)}; names are text.")
    return key


def wanted(hint: Any) -> str:
    """A type in plain words: "a number or null"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        ordered = sorted(inner, key=lambda one: one is type(None))
        return " or ".join(dict.fromkeys(wanted(one) for one in ordered))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (dict, Mapping) or (isinstance(hint, type) and is_dataclass(hint)):
        return "names and values"
    if origin is tuple and inner[-1] is not ...:
        return f"a list of {len(inner)}, each {' or '.join(dict.fromkeys(map(wanted, inner)))}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {wanted(inner[0])}"
    kind = origin or hint
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _joined(where: str, name: object) -> str:
    return f"{where}.{name}" if where else f"{name}"


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or the names that there are."""
    names = [str(one) for one in known]
    near = closest(name, names)
    return f"did you mean {near!r}?" if near else f"known are {', '.join(names) or 'none'}."


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a misspelt one is most like, if any is at least `cutoff` (of 1) like it."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def printable(text: str) -> str:
    """A text with what a terminal would obey written out: control characters, but for new lines and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if category(c)[0] != "C" or c in "\n\t" else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value in a message: at most 60 characters, nothing that a terminal would act on."""
    text = repr(value) if not isinstance(value, (list, tuple, dict)) else _start(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _start(value: object, depth: int = 3) -> str:
    """The beginning of a nested value, without writing all of it."""
    if isinstance(value, Mapping) and depth:
        parts = [f"{k!r:.30}: {_start(v, depth - 1)}" for k, v in list(value.items())[:4]]
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, (list, tuple)) and depth:
        return "[" + ", ".join(_start(v, depth - 1) for v in value[:4]) + "]"
    return "..." if isinstance(value, (list, tuple, dict)) else f"{value!r:.60}"


def to_plain(value: object) -> Any:
    """Dataclasses -> dicts and tuples -> lists, down to the leaves: what JSON and YAML can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    return value


def differences(before: object, now: object, where: str = "") -> list[str]:
    """What differs between two plain values, a phrase each: "stages.0.trainer.seed was 1, now 2"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts = [
            (_joined(where, k), before.get(k), now.get(k)) for k in dict.fromkeys([*before, *now])
        ]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [(_joined(where, i), *two) for i, two in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{where} was {shown(before)}, now {shown(now)}"]
    return [line for name, one, other in parts for line in differences(one, other, name)]


def read_yaml(path: str | Path, what: str = "recipe") -> object:
    """What a YAML file holds.

    Args:
        path: of the file.
        what: what is missing where there is none, for the message.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not YAML, names something twice, or its aliases expand to too much.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no {what} at {str(path)!r}; give a YAML file.")
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"this is not YAML: {error}") from error


def parse_yaml(text: str) -> object:
    """What YAML text holds; see `read_yaml`."""
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _check_node(node, {}, set())
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"this is not YAML: {' '.join(str(error).split())[:200]}") from error


def _check_node(node: Any, sizes: dict[int, int], above: set[int]) -> int:
    """How many nodes there are below, aliases written out; repeated names and endless aliases are refused."""
    if id(node) in above:
        raise ValueError("an alias (*) stands inside of what it names; write it out.")
    if id(node) in sizes:
        return sizes[id(node)]
    parts = node.value if isinstance(node.value, list) else []
    if parts and isinstance(parts[0], tuple):
        names = [key.value for key, _ in parts if isinstance(key.value, str)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise ValueError(
                f"{shown(twice)} stands twice in the names from line {line} on; keep one."
            )
        parts = [part for pair in parts for part in pair]
    above.add(id(node))
    size = 1 + sum(_check_node(part, sizes, above) for part in parts)
    above.discard(id(node))
    if size > _MOST_NODES:
        raise ValueError(f"it holds more than {_MOST_NODES} values, its aliases (*) written out.")
    sizes[id(node)] = size
    return size
