"""What the verbs share: parsers whose --help teaches, and mistakes in one sentence."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from nitrodistill.settings import read_yaml

_Config = TypeVar("_Config")
_VALUE = re.compile(r"(Got value: )(.{57}).{4,}")
"""What an option was given, where it is too long for a message."""


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults and types of every option; paragraphs and examples as they were written."""


def make_parser(verb: str, text: str | None, below: str = "") -> ArgumentParser:
    """A parser for `nitrodistill VERB`.

    Args:
        verb: its name.
        text: a docstring: what it does, and behind a line "example:" what stands below the options.
        below: what stands between the two.
    """
    about, example, lines = inspect.cleandoc(text or "").partition("example:\n")
    return ArgumentParser(
        prog=f"nitrodistill {verb}",
        usage=f"nitrodistill {verb} [options]",
        description=about.strip(),
        epilog=below + example + lines,
        formatter_class=_Formatter,
        exit_on_error=False,
        print_config=None,
        allow_abbrev=False,
    )


def add_teacher(parser: ArgumentParser) -> None:
    """The option that `load_teacher` takes."""
    parser.add_argument(
        "--teacher",
        type=str,
        default="toy",
        help='"toy" or "toy-dit" for those that ship with the package, a directory with a diffusers pipeline, '
        "or a name on the Hub",
    )


class _ConfigFile(ActionConfigFile):
    """Options from a YAML file, with the checks that a recipe goes through."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *more: Any) -> None:
        try:
            read_yaml(values, "file of options")
        except ValueError as error:
            raise ValueError(f"{values}: {error}") from error
        super().__call__(parser, namespace, values, *more)


def add_config(parser: ArgumentParser) -> None:
    """The option that reads others from a YAML file."""
    parser.add_argument("--config", action=_ConfigFile, help="a YAML file with these options")


def add_device(parser: ArgumentParser) -> None:
    """The option that `Place.device` takes."""
    parser.add_argument(
        "--device", type=str, default="auto", help="auto takes a GPU for each process, or the CPU"
    )


def add_quiet(parser: ArgumentParser) -> None:
    """The option that hides progress bars."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_run(parser: ArgumentParser) -> None:
    """The options that `cli.runs.open_run` takes."""
    parser.add_argument("--run", type=str, required=True, help="folder of the run, train's output")
    parser.add_argument(
        "--checkpoint",
        type=Literal["newest", "best"],
        default="newest",
        help="which student: the newest, or the best by the recipe's best_metric",
    )
    parser.add_argument(
        "--stage",
        type=int | None,
        default=None,
        help="of which stage, counted from 0; null takes the last that has a checkpoint",
    )


def parse(parser: ArgumentParser, argv: Sequence[str], more: Iterable[str] = ()) -> Namespace:
    """Parses; dashes inside of option names mean underscores.

    Args:
        parser: from `make_parser`.
        argv: the verb's arguments.
        more: names of options, beyond the parser's own, that may be meant by a misspelt one.

    Raises:
        ValueError: if the arguments are wrong; an unknown option is shown with the nearest name.
    """
    arguments = [underscored(argument) for argument in argv]
    try:
        return parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(_sentence(parser, str(error), more)) from error


def read_config(given: Namespace, kind: type[_Config], **others: object) -> _Config:
    """A dataclass from the options of its fields' names; `others` instead of those."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: given.get(name) for name in names} | others)


def option_names(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of a dataclass's leaves; of a list's elements without a number."""
    return [name for name, _, _ in _leaves(kind, prefix)]


def describe(kind: type[Any], prefix: str = "") -> str:
    """A line for each leaf of a dataclass: its option, what it means, its default.

    Args:
        kind: a dataclass whose docstring has an `Attributes:` section.
        prefix: what goes before the names.
    """
    lines = []
    for name, about, default in _leaves(kind, prefix):
        lines.append(f"  --{name}")
        text = about if default is None else f"{about} (default: {default})"
        lines += [f"        {line}" for line in _wrapped(text, 88)]
    return "\n".join(lines)


def _leaves(kind: type[Any], prefix: str) -> list[tuple[str, str, str | None]]:
    hints = get_type_hints(kind)
    about = {p.arg_name: p.description or "" for p in parse_from_object(kind).params}
    leaves: list[tuple[str, str, str | None]] = []
    for field in fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        inner = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)]
        if inner:
            step = "ROLE." if hint is not inner[0] and str in get_args(hint) else ""
            leaves += _leaves(inner[0], f"{name}.{step}")
        else:
            leaves.append((name, " ".join(about.get(field.name, "").split()), _default(field)))
    return leaves


def _default(field: Field[Any]) -> str | None:
    if field.default is MISSING:
        return None if field.default_factory is MISSING else str(field.default_factory())
    return "null" if field.default is None else str(field.default)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def underscored(argument: str) -> str:
    """An option with underscores where its name has dashes; other arguments as they are."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else argument


def _sentence(parser: ArgumentParser, message: str, more: Iterable[str]) -> str:
    text = _VALUE.sub(r"\1\2...", " ".join(message.split()))
    missing = re.search(r"arguments are required: (.+)", text)
    if missing:
        named = {a.dest for a in parser._actions if a.option_strings}
        options = ", ".join(
            f"--{name}" if name in named else name.upper() for name in missing[1].split(", ")
        )
        if "config" in parser.get_defaults():
            options += ", or a file that says so with --config FILE"
        return f"`{parser.prog}` needs {options}."
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", text)
    unknown = unknown or re.search(r"Option '(\w+)' is not accepted", text)  # of what may be null
    if not unknown:
        return f"{text} (`{parser.prog} --help` lists the options)"
    known = [*parser.get_defaults().keys(), *more]
    # an option of a list's element arrives without the list's name
    given = unknown[1] if not text.startswith("Parser key") else _owner(text) + unknown[1]
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean --{near[0]}?" if near else f"`{parser.prog} --help` lists the options."
    return f"there is no option --{given}; {hint}"


def _owner(text: str) -> str:
    owners = re.findall(r'Parser key "([\w.]+)"', text)
    return "".join(f"{owner}." for owner in owners)
