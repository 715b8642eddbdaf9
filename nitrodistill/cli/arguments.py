"""What the verbs share: parsers whose --help teaches, and mistakes in one sentence.

argparse writes the help and splits the words of a command; what they mean is read by `nitrodistill.settings`, as
what a recipe says is.
"""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, make_dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import docstring_parser

from nitrodistill.cli.terminal import set_output
from nitrodistill.settings import build, closest, convert_text, read_yaml, shown, wanted

_Config = TypeVar("_Config")

_ELSEWHERE = {
    "adam_weight_decay": ["weight_decay"],
    "cfg": ["guidance"],
    "checkpointing_steps": ["checkpoint_every"],
    "dataset": ["pairs", "images", "prompts"],
    "dataset_name": ["pairs", "images", "prompts"],
    "ema": ["ema_decay"],
    "epochs": ["steps"],
    "fp16": ["mixed_precision", "dtype"],
    "bf16": ["mixed_precision", "dtype"],
    "gradient_accumulation_steps": ["accumulation"],
    "guidance_scale": ["guidance"],
    "license": ["licence"],
    "lr": ["learning_rate"],
    "lr_scheduler": ["lr_schedule"],
    "lr_warmup_steps": ["lr_warmup_updates"],
    "max_train_steps": ["steps"],
    "model": ["teacher", "run"],
    "num_train_epochs": ["steps"],
    "num_images": ["num_pairs", "num_samples", "samples"],
    "num_samples": ["num_pairs", "samples"],
    "num_steps": ["steps", "num_inference_steps"],
    "o": ["output"],
    "out": ["output"],
    "output_dir": ["output"],
    "pretrained_model_name_or_path": ["teacher"],
    "prompt": ["prompts"],
    "push_to_hub": ["push"],
    "rank": ["lora.rank", "lora_rank"],
    "report_to": ["trackers"],
    "resume_from_checkpoint": ["resume"],
    "steps": ["num_inference_steps"],
    "train_batch_size": ["batch_size"],
    "validation_prompts": ["preview_prompts"],
    "verbose": ["log_level"],
}
"""Names of options in other tools, or of other verbs -> what they may be called here."""


_WORDS = "words without a name"


class Parser(argparse.ArgumentParser):
    """The options of `nitrodistill VERB`.

    Args:
        verb: its name.
        text: a docstring: what it does, and behind a line "example:" what stands below the options.
        kinds: dataclasses, each of whose fields is an option, but for names that an earlier one has. A docstring's
            first line is the title of its options, "Options." of the verb's own; its `Attributes:` explain them.
        below: what stands between the options and the example.
        words: the option that words without a name are of: `train recipe.yaml` is `train --config recipe.yaml`.
    """

    def __init__(
        self, verb: str, text: str | None, *kinds: type[Any], below: str = "", words: str = ""
    ) -> None:
        about, example, lines = inspect.cleandoc(text or "").partition("example:\n")
        super().__init__(
            prog=f"nitrodistill {verb}",
            usage=f"nitrodistill {verb} {f'[{words.upper()}] ' if words else ''}[options]",
            description=about.strip(),
            epilog=below + example + lines,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            exit_on_error=False,
            allow_abbrev=False,
        )
        self.hints: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.options: list[str] = []
        for kind in (*kinds, SharedOptions):
            self._add_all(kind)
        self.words = words
        if words:
            several = list[str] in (self.hints[words], *get_args(self.hints[words]))
            text = f"--{words} without its name"
            number = "*" if several else "?"
            self.add_argument(_WORDS, metavar=words.upper(), nargs=number, help=text)

    def error(self, message: str) -> NoReturn:
        """What argparse would say and exit with, in a sentence."""
        raise ValueError(f"{message}; `{self.prog} --help` lists the options.")

    def add(
        self, name: str, text: str, hint: Any = str, default: Any = MISSING, group: Any = None
    ) -> None:
        """Adds an option, or an argument without a name.

        Args:
            name: "--steps", or "store" for an argument without a name.
            text: what it means, for --help.
            hint: its type, as a dataclass of settings has it; bool makes a switch, list[str] takes several words.
            default: what it is where nobody gives it; without one a switch is off, what may be null is null, and
                the rest must be given.
            group: of argparse, under whose title it stands.
        """
        key = name.lstrip("-")
        self.options += [key] if name != key else []
        if default is MISSING and (hint is bool or type(None) in get_args(hint)):
            default = False if hint is bool else None
        self.hints[key], self.defaults[key] = hint, default
        if hint is bool:
            kind: dict[str, Any] = {"action": "store_true"}
        else:
            choices = _choices(hint)
            notes = [] if choices else [wanted(hint)]
            notes.append("required" if default is MISSING else f"default: {_plain(default)}")
            text = f"{text.rstrip('.')} ({', '.join(notes)})"
            kind = {"metavar": f"{{{','.join(choices)}}}"} if choices else {}
            several = list[str] in (hint, *get_args(hint))
            kind |= {"nargs": "*" if name == key else "+"} if several else {}
        action = (group or self).add_argument(name, help=text.replace("%", "%%"), **kind)
        action.required = False  # `parse` says what is missing

    def _add_all(self, kind: type[Any]) -> None:
        title, hints, texts = inspect.getdoc(kind) or "", get_type_hints(kind), _texts(kind)
        title = title.partition("\n")[0].rstrip(".")
        group = self if title == "Options" else self.add_argument_group(title)
        for field in fields(kind):
            if field.name not in self.hints:
                text = texts.get(field.name, "")
                self.add(f"--{field.name}", text, hints[field.name], field.default, group)


@dataclass(frozen=True)
class RunOptions:
    """Options.

    Attributes:
        run: folder of the run, train's output.
        checkpoint: which student: the newest, or the best by the recipe's best_metric.
        stage: of which stage, counted from 0; null takes the last that has a checkpoint.
        teacher: where the run's teacher is now; null looks where the recipe says.
    """

    run: str
    checkpoint: Literal["newest", "best"] = "newest"
    stage: int | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class TeacherOption:
    """Options.

    Attributes:
        teacher: "toy" or "toy-dit" for those that ship with the package, a directory with a diffusers pipeline, or
            a name on the Hub.
    """

    teacher: str = "toy"


@dataclass(frozen=True)
class DeviceOption:
    """Options.

    Attributes:
        device: auto takes a GPU for each process, or the CPU.
    """

    device: str = "auto"


@dataclass(frozen=True)
class SharedOptions:
    """What all verbs have.

    Attributes:
        quiet: say results and warnings alone, no progress.
        json: print the results as one JSON document on the standard output, and all else on the standard error.
        log_level: the least that is said of what goes on.
    """

    quiet: bool = False
    json: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def parse(
    parser: Parser, argv: Sequence[str], more: Iterable[str] = (), *, file: bool = False
) -> argparse.Namespace:
    """Parses; dashes inside of option names mean underscores.

    Args:
        parser: what may be given.
        argv: the verb's arguments.
        more: names of options, beyond the parser's own, that may be meant by a misspelt one.
        file: whether `--config` names a YAML file with more options; those in `argv` win over it.

    Returns:
        the options by name, and as `given` the names of those that are no defaults.

    Raises:
        ValueError: if the arguments are wrong; an unknown option is shown with the nearest name.
        FileNotFoundError: if there is no such file.
    """
    try:
        words, others = parser.parse_known_intermixed_args([underscored(one) for one in argv])
    except argparse.ArgumentError as error:
        raise ValueError(_unfit(parser, error.argument_name or "")) from error
    if others:
        raise ValueError(_unknown(parser, others, more))
    found = vars(words)
    if bare := found.pop(_WORDS, None):
        if parser.words in found:
            raise ValueError(
                f"{shown(bare)} stands without a name, which is --{parser.words}; give that once."
            )
        found[parser.words] = bare
    given = {key: _value(parser, key, word) for key, word in found.items()}
    if file and given.get("config") is not None:
        given = _from_file(parser, given["config"]) | given
    values = parser.defaults | given
    missing = [key for key, value in values.items() if value is MISSING]
    if missing:
        needed = ", ".join(f"--{k}" if k in parser.options else k.upper() for k in missing)
        way = ", or a file that says so with --config FILE" if file else ""
        raise ValueError(f"`{parser.prog}` needs {needed}{way}.")
    set_output(quiet=values["quiet"], as_json=values["json"], level=values["log_level"])
    return argparse.Namespace(**values, given=frozenset(given))


def given_of(given: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """What was given, and is no default, of the options of a dataclass's fields."""
    return {f.name: getattr(given, f.name) for f in fields(kind) if f.name in given.given}


def refuse(given: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Refuses options that were given and that nothing would read.

    Raises:
        ValueError: if there is one; it says the reason.
    """
    for name in names:
        if name in given.given:
            raise ValueError(f"--{name} means nothing here: {reason}; leave it out.")


def _value(parser: Parser, key: str, word: Any) -> Any:
    """What an option's word means; switches and lists are what argparse makes of them."""
    hint, default = parser.hints[key], parser.defaults[key]
    if not isinstance(word, str):
        return word
    try:
        return convert_text(hint, word, f"--{key}")
    except ValueError as error:
        examples = [default, *_choices(hint), 8]
        example = next(one for one in examples if one is not None and one is not MISSING)
        raise ValueError(f"{error} For example: --{key} {example}") from error


def _from_file(parser: Parser, path: str) -> dict[str, Any]:
    """The options in a YAML file, checked as a recipe is."""
    try:
        kinds = [(key, hint, None) for key, hint in parser.hints.items() if key != "config"]
        data = read_yaml(path, "file of options")
        made = build(make_dataclass("Options", kinds), data)
        return {key: getattr(made, key) for key in cast("dict[str, Any]", data)}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unfit(parser: Parser, name: str) -> str:
    """Of an option without a value, or a switch with one."""
    if parser.hints.get(name.lstrip("-"), bool) is bool:
        return f"{name} takes no value; write it alone."
    return f"{name} has no value; write {name}=VALUE."


def _unknown(parser: Parser, others: Sequence[str], more: Iterable[str]) -> str:
    """Of what no option took: what others call so, or what ends so, and the nearest name."""
    given = next((one for one in others if one[:1] == "-"), others[0]).partition("=")[0]
    if given[:1] != "-":
        return f"{shown(given)} is not expected; `{parser.prog} --help` lists the options."
    known = [name.replace("ROLE", "student") for name in (*parser.options, *more)]
    names = {name.rpartition(".")[2]: name for name in reversed(known)} | {k: k for k in known}
    name = given.lstrip("-")
    alike = next((one for one in (name, *_ELSEWHERE.get(name, ())) if one in names), None)
    near = closest(name, parser.options if alike else names, 0.7 if alike else 0.5)
    meant = dict.fromkeys(f"--{names[one]}" for one in (alike, near) if one)
    hint = (
        f"did you mean {' or '.join(meant)}?"
        if meant
        else f"`{parser.prog} --help` lists the options."
    )
    return f"there is no option {given}; {hint}"


def read_config(given: argparse.Namespace, kind: type[_Config], **others: object) -> _Config:
    """A dataclass from the options of its fields' names; `others` instead of those."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: getattr(given, name, None) for name in names} | others)


def option_names(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of a dataclass's leaves; of a list's elements without a number."""
    return [name for name, *_ in _leaves(kind, prefix)]


def describe(kind: type[Any], prefix: str = "") -> str:
    """A line for each leaf of a dataclass: its option, what it means, its default.

    Args:
        kind: a dataclass whose docstring has an `Attributes:` section.
        prefix: what goes before the names.
    """
    lines = []
    for name, about, hint, default in _leaves(kind, prefix):
        lines.append(f"  --{name}")
        notes = wanted(hint) if default is None else f"{wanted(hint)}; default: {default}"
        text = f"{about} ({notes})"
        lines.append(textwrap.indent(textwrap.fill(text, 88), " " * 8))
    return "\n".join(lines)


def _leaves(kind: type[Any], prefix: str) -> list[tuple[str, str, Any, str | None]]:
    hints, texts = get_type_hints(kind), _texts(kind)
    leaves: list[tuple[str, str, Any, str | None]] = []
    for field in fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        inner = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)]
        if inner:
            step = "ROLE." if hint is not inner[0] and str in get_args(hint) else ""
            leaves += _leaves(inner[0], f"{name}.{step}")
        else:
            leaves.append((name, texts.get(field.name, ""), hint, _default(field)))
    return leaves


def _default(field: Field[Any]) -> str | None:
    if field.default is MISSING:
        return None if field.default_factory is MISSING else str(field.default_factory())
    return _plain(field.default)


def _plain(default: object) -> str:
    return "null" if default is None else str(default)


def _texts(kind: type[Any]) -> dict[str, str]:
    """What a dataclass's docstring says of each field, on one line."""
    parts = docstring_parser.parse(kind.__doc__ or "").params
    return {part.arg_name: " ".join((part.description or "").split()) for part in parts}


def _choices(hint: Any) -> list[Any]:
    """The values of a `Literal`, alone or in a union."""
    literal = next((one for one in (hint, *get_args(hint)) if get_origin(one) is Literal), None)
    return list(get_args(literal))


def underscored(argument: str) -> str:
    """An option with underscores where its name has dashes; other arguments as they are."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else argument
