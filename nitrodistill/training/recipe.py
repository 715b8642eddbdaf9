"""Recipes: what is distilled, from which pairs, in which stages; YAML <-> frozen dataclasses.

Unknown keys are errors that show the nearest name. The recipe of a run, with every default written out, lies
beside its checkpoints as `recipe.yaml`.
"""

from __future__ import annotations

import copy
import difflib
import re
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nitrodistill.files import write_text
from nitrodistill.methods import LADDConfig
from nitrodistill.models.lora import LoRAConfig
from nitrodistill.training.config import TrainerConfig, to_plain

__all__ = [
    "RECIPE",
    "Recipe",
    "Stage",
    "check_keys",
    "load_recipe",
    "parse_recipe",
    "plain_words",
    "save_recipe",
]

RECIPE = "recipe.yaml"
"""Name of the recipe's file in the folder of a run."""

Start = Literal["teacher", "previous"]


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        method: the distillation method's settings.
        trainer: the trainer's.
        student: what the student starts as: a copy of the teacher, or the student of the stage before
            (its moving average).
        lora: makes the student a LoRA role on the teacher's own network (`add_lora`): one network in memory,
            and checkpoints that hold the role's weights alone. null trains a whole copy. With bf16 the
            network that the roles share is a bfloat16 copy of the teacher's.
    """

    method: LADDConfig
    trainer: TrainerConfig
    student: Start = "teacher"
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        if self.lora is not None and self.trainer.parallel == "fsdp":
            raise ValueError(
                "the stage has `lora` and `parallel: fsdp`, but FSDP2 does not reach the layers that use a "
                "role's weights; a role's weights are small, so prepare it with DDP: `parallel: ddp`."
            )
        if self.student not in get_args(Start):
            raise ValueError(f"student is {self.student!r}; it must be one of {get_args(Start)}.")


@dataclass(frozen=True)
class Recipe:
    """A whole distillation.

    Attributes:
        teacher: "toy" for the embedded one, else a directory with a diffusers pipeline or a name on
            the Hub.
        pairs: folder of the pair store that this teacher made.
        output: folder of the run: checkpoints, log, previews.
        stages: what is trained, one after the other.
        preview_prompts: prompts of the previews; none takes the first eight of the pairs.
        trackers: where numbers and previews go beside the folder, by Accelerate's names (wandb, mlflow,
            ...); null is tensorboard, if it is installed.
        evaluate_samples: pictures of each evaluation while training, of the pairs' prompts and always the
            same noise; see `evaluate_every` of the stages.
    """

    teacher: str
    pairs: str
    output: str
    stages: list[Stage]
    preview_prompts: tuple[str, ...] = ()
    trackers: tuple[str, ...] | None = None
    evaluate_samples: int = 64

    def __post_init__(self) -> None:
        if self.evaluate_samples < 4:
            raise ValueError(f"evaluate_samples is {self.evaluate_samples}; it must be at least 4.")
        if not self.stages:
            raise ValueError("stages is empty; a recipe has at least one stage.")
        if self.stages[0].student == "previous":
            raise ValueError("the first stage's student is 'previous'; it can only be 'teacher'.")
        precisions = {stage.trainer.mixed_precision for stage in self.stages}
        if len(precisions) > 1:
            raise ValueError(f"the stages' mixed_precision are {precisions}; use one for all.")
        for number, (before, stage) in enumerate(pairwise(self.stages), 1):
            if stage.student == "previous" and _layers(stage.lora) != _layers(before.lora):
                raise ValueError(
                    f"stage {number} goes on with the student of the stage before, but their lora differ "
                    f"({stage.lora}, {before.lora}); give both the same rank, alpha and targets."
                )


def _layers(lora: LoRAConfig | None) -> LoRAConfig | None:
    """What must agree for one to take the other's weights: all but the seed."""
    return None if lora is None else replace(lora, seed=0)


def check_keys(kind: type[Any], data: object, where: str = "") -> None:
    """Checks the names in what a YAML file holds, down to the leaves.

    Args:
        kind: the dataclass that it is to become.
        data: what was read.
        where: dotted path so far, for the message.

    Raises:
        ValueError: if a key is unknown; the nearest name is shown. If a value is null that must not be.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'the recipe'} is {data!r:.60}; it must hold names and values.")
    hints = get_type_hints(kind)
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(hints)}."
            raise ValueError(f"unknown key {path!r}; {hint}")
        if value is None and type(None) not in get_args(hints[key]):
            raise ValueError(f"{path} is null; give it a value, or leave it out for its default.")
        for inner in (hints[key], *get_args(hints[key])):
            if is_dataclass(inner) and isinstance(inner, type):
                for label, part in _parts(value, get_origin(hints[key]), path):
                    check_keys(inner, part, label)


def _parts(value: object, container: object, path: str) -> list[tuple[str, object]]:
    if container not in (list, dict):
        return [] if value is None else [(path, value)]
    if isinstance(value, list):
        return [(f"{path}.{i}", part) for i, part in enumerate(value)]
    return [(f"{path}.{n}", part) for n, part in value.items()] if isinstance(value, dict) else []


def parse_recipe(data: object) -> Recipe:
    """Builds a recipe from plain mappings, lists and numbers.

    Raises:
        ValueError: if a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    from jsonargparse import ArgumentParser

    check_keys(Recipe, data)
    assert isinstance(data, Mapping)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    try:
        values = parser.instantiate(parser.parse_object(copy.deepcopy(dict(data))))  # it is changed
    except ArgumentError as error:
        raise ValueError(f"the recipe cannot be read: {plain_words(str(error))}") from error
    except ValueError as error:
        raise ValueError(plain_words(str(error))) from error
    return Recipe(**{field.name: values[field.name] for field in fields(Recipe)})


def plain_words(message: str) -> str:
    """What jsonargparse says of a wrong value, without its classes: the key, what it must be, what it is."""
    text = " ".join(message.split())
    text = re.sub(r"Problem with given class_path '[\w.]+': ", "", text)
    text = re.sub(r"Does not validate against any of the Union subtypes .*? Errors: - ", "", text)
    text, null, rest = text.partition(" - Expected a <class 'NoneType'>")
    if null and "Got value" not in text and ";" not in text:  # our own errors have one
        text += f" or null. Got value: {rest.rpartition('Given value: ')[2]}"
    text = re.sub(r"Expected a <class '(?:\w+\.)*(\w+)'>", r"it must be of type \1", text)
    text = re.sub(r"Expected a typing\.Literal(\[.*?\])", r"it must be one of \1", text)
    text = re.sub(r'Parser key "([\w.]+)": (?=Parser key ")', r"\1.", text)
    return re.sub(r'Parser key "([\w.]+)"', r"\1", text)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a YAML file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no recipe.
    """
    try:
        return parse_recipe(read_yaml(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_yaml(path: str | Path) -> object:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not YAML.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no recipe at {str(path)!r}; give a YAML file.")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"this is not YAML: {' '.join(str(error).split())}") from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes a recipe with every default written out; the file is whole or not there."""
    import yaml

    write_text(path, yaml.safe_dump(to_plain(recipe), sort_keys=False))
