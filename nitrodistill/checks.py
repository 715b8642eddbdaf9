"""What is asked of arguments, everywhere: one sentence for each wrong value.

Numbers are looked at. Of tensors it is the type, the dtype, the shape and the device: looking at the values of a
tensor on a device would make the host wait for it. Timesteps and their fractions are looked at on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

_T = TypeVar("_T", bound=str)


def check_finite(name: str, value: float) -> float:
    """Returns `value` as a float if it is a finite number.

    Raises:
        TypeError: if it is no number (true and false are none).
        ValueError: if it is NaN or infinite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number.")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite.")
    return value


def check_positive(name: str, value: float, *, zero: bool = False) -> float:
    """Returns `value` as a float if it is finite and positive (or zero, if `zero`).

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of that range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number.")
    value = float(value)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} is {value}; it must be finite and {'>=' if zero else '>'} 0.")
    return value


def check_numbers(name: str, values: Sequence[float], *, zero: bool = False) -> tuple[float, ...]:
    """Returns a sequence of numbers as a tuple of floats, each as `check_positive` wants it.

    Raises:
        TypeError: if it is no sequence of numbers.
        ValueError: if one is out of that range.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name} is {values!r}; it must be a sequence of numbers.")
    return tuple(check_positive(f"a number of {name}", value, zero=zero) for value in values)


def check_whole(name: str, value: int, low: float = 1) -> int:
    """Returns `value` as an int if it is a whole number of at least `low`.

    Raises:
        TypeError: if it is no whole number; 2.0 is none.
        ValueError: if it is too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a whole number.")
    if value < low:
        raise ValueError(f"{name} is {value}; it must be at least {low}.")
    return int(value)


def check_choice(name: str, value: str, choices: tuple[_T, ...]) -> _T:
    """Returns `value` if it is one of `choices`.

    Raises:
        ValueError: otherwise.
    """
    for choice in choices:
        if value == choice:
            return choice
    raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}.")


def check_fields(config: Any, **least: float) -> None:
    """Refuses a dataclass with a value that its fields do not allow.

    A value must be what the field's type says, in sequences and mappings too, where numbers must be finite. A list
    may stand for a tuple. None is allowed where the type says so.

    Args:
        config: the dataclass.
        least: name of a field -> its least value.

    Raises:
        TypeError: if a value is of another type.
        ValueError: if a value is not finite, out of its range, or none of the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        value: Any = getattr(config, name)
        low = least.get(name, -math.inf)
        kinds = {hint, *get_args(hint)} if get_origin(hint) in (None, Union, UnionType) else {hint}
        if type(None) in kinds and value is None:
            continue
        literals = {kind for kind in kinds if get_origin(kind) is Literal}
        choices = tuple(choice for kind in literals for choice in get_args(kind))
        if literals and (kinds - literals <= {hint, type(None)} or value in choices):
            check_choice(name, value, choices)
        elif issubclass(type(value), str) and not kinds & {str, Any}:
            # its letters would be taken for several
            raise TypeError(f"{name} is {value!r:.60}; it must not be a text.")
        elif float in kinds:
            if check_finite(name, value) < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}.")
        elif int in kinds:
            check_whole(name, value, low)
        else:
            check_kind(name, value, hint)


def check_kind(name: str, value: object, kind: Any, way_out: str = "") -> None:
    """Refuses what is not of a type, as `check_fields` reads one: a class, or a container of some.

    Args:
        name: what the value is called.
        value: what was given.
        kind: its type.
        way_out: ends the sentence.

    Raises:
        TypeError: otherwise.
    """
    if not _fits(value, kind):
        plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
        shown = f"{value!r:.60}" if plain else _describe(value)
        raise TypeError(f"{name} is {shown}; it must be {_wanted(kind)}{way_out}.")


def check_floating(name: str, value: Tensor) -> None:
    """Refuses what is no tensor of real floating-point numbers.

    Raises:
        TypeError: otherwise.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor.")
    if not value.is_floating_point():
        raise TypeError(
            f"{name} has dtype {value.dtype}; floating-point values are wanted, convert it with .float() (and "
            "scale images to their range) first."
        )


def check_tensor(name: str, value: Tensor) -> None:
    """Refuses what is not a non-empty, batch-first tensor of real floating-point numbers.

    Raises:
        TypeError: for anything but a floating-point tensor.
        ValueError: for a tensor without a batch dimension or without elements.
    """
    check_floating(name, value)
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be batch-first and not empty."
        )


def check_pair(pred: Tensor, target: Tensor) -> None:
    """Refuses two tensors that cannot be compared element by element.

    Raises:
        TypeError: for anything but floating-point tensors.
        ValueError: for unequal shapes or devices, and for empty tensors.
    """
    check_tensor("pred", pred)
    check_tensor("target", target)
    if pred.shape != target.shape:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}; they must be "
            "equal, a loss never broadcasts (expand one of them if that is what you mean)."
        )
    if pred.device != target.device:
        raise ValueError(
            f"pred is on {pred.device} and target on {target.device}; move them to one device."
        )


def check_alike(**tensors: Tensor) -> None:
    """Refuses samples, by name, that are not of one shape and on one device.

    Raises:
        TypeError: for anything but floating-point tensors.
        ValueError: for unequal shapes or devices, and for empty tensors.
    """
    for name, value in tensors.items():
        check_tensor(name, value)
    for what, each in (
        ("shape", [str(tuple(value.shape)) for value in tensors.values()]),
        ("device", [str(value.device) for value in tensors.values()]),
    ):
        if len(set(each)) > 1:
            raise ValueError(
                f"{', '.join(tensors)} have the {what}s {', '.join(each)}; they must be equal."
            )


def check_per_sample(name: str, value: Tensor, batch_size: int | None = None) -> None:
    """Refuses what is not one floating-point number per sample, `(B,)`.

    Raises:
        TypeError: if it is no floating-point tensor.
        ValueError: for a wrong shape.
    """
    check_floating(name, value)
    size = len(value) if batch_size is None and value.ndim else batch_size
    if value.shape != (size,) or size == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be ({batch_size or 'B'},), one number per sample."
        )


def check_mask(mask: Tensor, data: Tensor) -> None:
    """Refuses a mask that does not broadcast to `data` dimension by dimension.

    Raises:
        TypeError: if it is no tensor of real numbers.
        ValueError: for a wrong shape or device.
    """
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise TypeError(f"mask is {_describe(mask)}; it must be a tensor of real numbers or bool.")
    fits = mask.ndim == data.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, data.shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, the data {tuple(data.shape)}; a mask needs the "
            "same number of dimensions, each of the data's size or 1 (for example (B, 1, H, W))."
        )
    if mask.device != data.device:
        raise ValueError(f"mask is on {mask.device} and the data on {data.device}; move one.")


def check_weight(weight: Tensor, batch_size: int) -> None:
    """Refuses a weight that is not one number per sample.

    Raises:
        TypeError: if it is no tensor of real numbers.
        ValueError: for a wrong shape.
    """
    if not isinstance(weight, Tensor) or weight.is_complex():
        raise TypeError(f"weight is {_describe(weight)}; it must be a tensor of real numbers.")
    if tuple(weight.shape) != (batch_size,):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be one factor per sample, "
            f"({batch_size},). A weight per element is a mask."
        )


def check_scales(scales: object, batch_size: int | None = None) -> None:
    """Refuses what is no alpha and sigma of a batch.

    Args:
        scales: a `Scales`.
        batch_size: of the data that it goes with, or None where there is none.

    Raises:
        TypeError: if it is no pair of floating-point tensors.
        ValueError: for shapes other than `(B,)` and `()`, or unequal ones.
    """
    if not isinstance(scales, tuple) or len(scales) != 2:
        raise TypeError(f"scales is a {type(scales).__name__}; it must be a nitrodistill.Scales.")
    for name, value in zip(("alpha", "sigma"), scales, strict=True):
        check_floating(f"scales.{name}", value)
        fits = value.ndim < 2 if batch_size is None else value.shape in ((), (batch_size,))
        if not fits:
            size = "B" if batch_size is None else batch_size
            raise ValueError(
                f"scales.{name} has shape {tuple(value.shape)}; it must be ({size},), one number per sample, or "
                "zero-dimensional."
            )
    if scales[0].shape != scales[1].shape:
        raise ValueError(
            f"scales.alpha has shape {tuple(scales[0].shape)} and scales.sigma {tuple(scales[1].shape)}; "
            "they must be equal."
        )


def as_tensor(name: str, value: Tensor | float) -> Tensor:
    """A tensor as it is; a number as one without dimensions, whole ones int64 and others float64.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        shown = type(value).__name__
        raise TypeError(f"{name} is a {shown}; it must be a torch.Tensor, or a number.")
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, Integral) else torch.float64)


def on_host(value: Tensor) -> bool:
    """Whether a look at the values costs no transfer: they are on the CPU, and nothing is being compiled."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel() > 0


def check_fraction(name: str, value: Tensor | float) -> Tensor:
    """Returns floating-point numbers in [0, 1] as a tensor and refuses others; looks at them on a CPU alone.

    Raises:
        TypeError: if it is no floating-point tensor, and no number.
        ValueError: if a value is out of that range.
    """
    found = as_tensor(name, value)
    if not isinstance(value, Tensor):
        found = found.double()
    check_floating(name, found)
    return check_within(name, found, 0, 1)


def check_within(name: str, value: Tensor | float, low: float, high: float) -> Tensor:
    """Returns numbers in [low, high], but for rounding, as a tensor; refuses others and NaN on a CPU alone.

    Raises:
        TypeError: if it is no tensor of numbers, and no number.
        ValueError: if a value is out of that range.
    """
    value = as_tensor(name, value)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}; it must be a tensor of real numbers.")
    if not on_host(value):
        return value
    finite = math.isfinite(high)
    slack = torch.finfo(value.dtype).eps * max(1.0, abs(high)) if value.is_floating_point() else 0
    least, most = (end.item() for end in value.detach().aminmax())
    if not (low - (slack if finite else 0) <= least <= most <= high + slack and most < math.inf):
        found = f"is {least:.6g}" if least == most else f"runs from {least:.6g} to {most:.6g}"
        rule = f"in [{low:.6g}, {high:.6g}]" if finite else f"at least {low:.6g}"
        raise ValueError(f"{name} {found}; it must be finite and {rule}.")
    return value


def _fits(value: object, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (tuple, list, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if origin is tuple and inner[-1] is not Ellipsis:
            pairs = zip(value, inner, strict=False)
            return len(value) == len(inner) and all(_fits(one, each) for one, each in pairs)
        return all(_fits(one, inner[0]) for one in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(one, each)
            for item in value.items()
            for one, each in zip(item, inner, strict=True)
        )
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        return number and not isinstance(value, bool) and math.isfinite(value)  # pyright: ignore[reportArgumentType]
    return isinstance(value, origin or kind)


def _wanted(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"({', '.join(_wanted(one) for one in inner)})"
    if origin in (tuple, list, Sequence):
        return f"a sequence, each {_wanted(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return (
            "a mapping" if inner[1] is Any else f"a mapping from {' to '.join(map(_wanted, inner))}"
        )
    return _WORDS.get(kind, f"a {getattr(origin or kind, '__name__', kind)}")


_WORDS: dict[Any, str] = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    type(None): "none",
    Tensor: "a torch.Tensor",
    torch.nn.Module: "an nn.Module",
    Callable: "a function or a class",
    Mapping: "a mapping",
}


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    return f"a {type(value).__name__}"
