"""Recipes: what is distilled, from which data, in which stages; YAML <-> frozen dataclasses.

The recipe of a run, with every default written out, lies beside its checkpoints as `recipe.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from nitrodistill.checks import check_fields
from nitrodistill.files import write_text
from nitrodistill.method import Halving
from nitrodistill.methods import find_method
from nitrodistill.models.lora import LoRAConfig
from nitrodistill.models.pruning import parse_spec
from nitrodistill.settings import Word, build, closest, read_yaml, shown, to_plain
from nitrodistill.teachers import TeacherSettings
from nitrodistill.training.config import TrainerConfig

RECIPE = "recipe.yaml"
"""Name of the recipe's file in the folder of a run."""

_SHIPPED = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        method: the distillation method: a name, such as ladd, or package.module:Class for one from outside.
        settings: of the method, by name; null takes its defaults.
        trainer: the trainer's.
        teacher: who teaches: `recipe`, the recipe's teacher; `previous`, the student of the stage before; or the
            directory or the Hub's name of another pipeline, of which the network teaches, with the recipe's
            teacher's prompts, schedule and VAE, and loaded in the dtype that its weights have.
        student: what the student starts as: its teacher, or the student of the stage before. Of that one the
            moving average of the weights is taken where there is one. If the teacher is the recipe's, networks
            that both stages train under one name (DMD2's critic) go on as well.
        prune: which blocks the student keeps of what it starts as: a published spec (bk-base, bk-small, bk-tiny,
            ssd-1b, vega), or `keep:` with the indices that stay, by list of blocks. Not with `lora`.
        halvings: how many stages are put in the place of this one by a method that halves (progressive): the first
            is this one, and each further one has half the steps, the student before as its teacher, and an
            optimizer anew. Stages whose student samples in 2 steps or 1 train twice as long. 0 is this stage
            alone.
        lora: makes the student, and every further network of the method, a LoRA role on the teacher's own network
            (`add_lora`): one network in memory, and checkpoints that hold the roles' weights alone. null trains
            whole copies. With bf16 the network that the roles share is a bfloat16 copy of the teacher's.

    Example:
        >>> nd.training.load_run_recipe(run).stages[0].method
        'ladd'
    """

    method: str
    trainer: TrainerConfig
    settings: Any = None
    teacher: str = "recipe"
    student: Literal["teacher", "previous"] = "teacher"
    prune: Any = None
    halvings: int = 0
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, halvings=0)
        if not self.teacher:
            raise ValueError("teacher is ''; give recipe, previous, or the place of a pipeline.")
        kind = find_method(self.method).Config
        if not isinstance(self.settings, kind):
            if self.settings is not None and not isinstance(self.settings, Mapping):
                raise ValueError(
                    f"settings is {shown(self.settings)}; method {self.method!r} takes a "
                    f"{kind.__name__}, or names and values."
                )
            object.__setattr__(self, "settings", build(kind, self.settings or {}, "settings"))
        if self.halvings and not isinstance(self.settings, Halving):
            raise ValueError(
                f"halvings is {self.halvings}, but {self.method!r} does not halve; leave it out."
            )
        if self.lora is not None and self.trainer.parallel == "fsdp":
            raise ValueError(
                "the stage has `lora` and `parallel: fsdp`, but FSDP2 does not reach the layers that use a "
                "role's weights; a role's weights are small, so prepare it with DDP: `parallel: ddp`."
            )
        if self.prune is not None:
            object.__setattr__(self, "prune", parse_spec(self.prune))
        elsewhere = self.teacher not in ("recipe", "previous")
        if self.lora is not None and (self.prune is not None or elsewhere):
            raise ValueError(
                f"the stage has `lora` and {f'teacher: {self.teacher}' if elsewhere else '`prune`'}, but a LoRA "
                "role is on the network of the recipe's teacher itself; leave one of them out."
            )

    def expanded(self) -> list[Stage]:
        """The stages that `halvings` stands for, written out; without any this one alone.

        Raises:
            ValueError: if a number of steps on the way has no half.
        """
        found: list[Stage] = [replace(self, halvings=0)]
        for _ in range(1, self.halvings):
            settings: Halving = found[-1].settings
            found.append(replace(found[-1], settings=settings.halved(), teacher="previous"))
        if not self.halvings:
            return found
        twice = replace(self.trainer, steps=2 * self.trainer.steps)
        return [
            replace(stage, trainer=twice) if stage.settings.num_inference_steps <= 2 else stage
            for stage in found
        ]


@dataclass(frozen=True)
class Recipe:
    """A whole distillation.

    Attributes:
        teacher: "toy" for the embedded one, else a directory with a diffusers pipeline or a name on
            the Hub.
        output: folder of the run: checkpoints, log, previews.
        stages: what is trained, one after the other.
        pairs: folder of the pairs that this teacher made (`nitrodistill generate`), for methods that read them.
        real: folder of real latents with captions (`nitrodistill encode`), for methods that read them; a folder of
            pairs serves too.
        prompts: text file with a prompt a line ("" is the empty prompt), or table:column, or a dataset, as for
            generate, for methods that read prompts alone; or a folder of pairs or real latents, whose prompts are
            encoded already.
        preview_prompts: prompts of the previews; none takes the first eight of the data.
        num_inference_steps: of the teacher in previews and evaluations; null is what made the pairs, or 25.
        guidance: its guidance scale there; null is what made the pairs, or 3.
        trackers: where numbers and previews go beside the folder, by Accelerate's names (wandb, mlflow,
            ...); null is tensorboard, if it is installed.
        teacher_settings: how the teacher is loaded, and what it draws with.
        evaluate_samples: pictures of each evaluation while training, of the data's prompts and always the
            same noise; see `evaluate_every` of the stages.

    Example:
        >>> nd.training.load_run_recipe(run).teacher
        'toy'
    """

    teacher: str
    output: str
    stages: list[Stage]
    pairs: str | None = None
    real: str | None = None
    prompts: str | None = None
    preview_prompts: tuple[str, ...] = ()
    num_inference_steps: int | None = None
    guidance: float | None = None
    trackers: tuple[str, ...] | None = None
    teacher_settings: TeacherSettings = field(default_factory=TeacherSettings)
    evaluate_samples: int = 64

    def __post_init__(self) -> None:
        check_fields(self, evaluate_samples=4, num_inference_steps=1, guidance=1)
        if not self.stages:
            raise ValueError("stages is empty; a recipe has at least one stage.")
        stages = [stage for given in self.stages for stage in given.expanded()]
        object.__setattr__(self, "stages", stages)
        for name in ("teacher", "student"):
            if getattr(self.stages[0], name) == "previous":
                raise ValueError(
                    f"the first stage's {name} is 'previous', but there is no stage before it; "
                    f"write {'recipe' if name == 'teacher' else 'teacher'}."
                )
        versions = [n for n in ("variant", "revision") if getattr(self.teacher_settings, n)]
        others = [s.teacher for s in self.stages if s.teacher not in ("recipe", "previous")]
        if versions and others:
            raise ValueError(
                f"teacher_settings has {' and '.join(versions)}, which is the recipe's teacher's; of a stage's "
                f"teacher {others[0]!r} there is none to give. Download what you mean, name its directory as the "
                "teacher, and leave the setting out."
            )
        precisions = {stage.trainer.mixed_precision for stage in self.stages}
        if len(precisions) > 1:
            raise ValueError(
                f"the stages' mixed_precision are {', '.join(sorted(precisions))}; use one for all."
            )
        for number, (before, stage) in enumerate(pairwise(self.stages), 1):
            goes_on = "previous" in (stage.student, stage.teacher)
            if goes_on and _layers(stage.lora) != _layers(before.lora):
                raise ValueError(
                    f"stage {number} goes on with the student of the stage before, but their lora differ "
                    f"({stage.lora}, {before.lora}); give both the same rank, alpha and targets."
                )


def _layers(lora: LoRAConfig | None) -> LoRAConfig | None:
    """What must agree for one to take the other's weights: all but the seed."""
    return None if lora is None else replace(lora, seed=0)


def parse_recipe(data: object) -> Recipe:
    """Builds a recipe from plain mappings, lists and numbers.

    Raises:
        ValueError: if a key is unknown or missing, or a value is of the wrong type or out of range.

    Example:
        >>> stage = {"method": "ladd", "trainer": {"steps": 5}}
        >>> data = {"teacher": "toy", "pairs": "pairs", "output": "runs/five", "stages": [stage]}
        >>> nd.training.parse_recipe(data).stages[0].trainer.steps
        5
    """
    stages = data.get("stages") if isinstance(data, Mapping) else None
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, Mapping) and isinstance(stage.get("method"), Mapping):
            raise ValueError(
                "this recipe is of an older form: write `method: ladd`, and what stood below `method` below "
                "`settings`; rates, clipping and averages stand with each role's optimizer now. "
                "`nitrodistill recipes show NAME` has all of them."
            )
    return build(Recipe, data)


def shipped_recipes() -> dict[str, Path]:
    """The recipes in the package, name -> file, whose first two lines say what one is and what is proven of it."""
    return {
        name: _SHIPPED / f"{name}.yaml" for name in sorted(f.stem for f in _SHIPPED.glob("*.yaml"))
    }


def find_recipe(name: str | Path, *, shipped: bool = False) -> Path:
    """The file of a recipe: a path where there is a file, else one that comes with the package, by its name.

    Args:
        name: the path, or the name.
        shipped: whether it is a name alone.

    Raises:
        FileNotFoundError: if there is none; the message has the nearest name.
    """
    if Path(name).is_file() and not shipped:
        return Path(name)
    known = shipped_recipes()
    if str(name) not in known:
        near = closest(Path(name).stem, known)
        way = f"did you mean {near!r}?" if near else "`nitrodistill recipes` lists those that do."
        raise FileNotFoundError(
            f"no recipe at {str(name)!r}, and none of that name comes with nitrodistill; {way}"
        )
    return known[str(name)]


def load_recipe(path: str | Path | None, options: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Reads a recipe from a YAML file.

    Args:
        path: of the file, or a name of `shipped_recipes`; None has the options alone.
        options: (dotted name, text or YAML) of values that win over the file's; see `override`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no recipe.

    Example:
        >>> recipe = nd.training.load_recipe("runs/toy/recipe.yaml", [("stages.trainer.steps", "7")])
        >>> recipe.stages[0].trainer.steps
        7
    """
    try:
        data = {} if path is None else read_yaml(find_recipe(path))
        for name, text in options:
            data = override(data, name, Word(text))
        return parse_recipe(data)
    except ValueError as error:
        raise ValueError(str(error) if path is None else f"{path}: {error}") from error


def override(data: object, name: str, value: object) -> object:
    """The data with another value at a dotted name; of a list without a number the last element.

    Raises:
        ValueError: if the name leads through a value that holds no names.

    Example:
        >>> override({"stages": [{"trainer": {"steps": 5}}]}, "stages.trainer.steps", 7)
        {'stages': [{'trainer': {'steps': 7}}]}
    """
    first, _, rest = name.partition(".")
    if isinstance(data, list) and data:
        if not first.isdecimal():
            return [*data[:-1], override(data[-1], name, value)]
        place = int(first)
        if place >= len(data):
            raise ValueError(f"there is no element {place}; there are {len(data)}, counted from 0.")
        return [
            (override(part, rest, value) if rest else value) if i == place else part
            for i, part in enumerate(data)
        ]
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ValueError(f"{first!r} is set below {shown(data)}, which holds no names.")
    return {**data, first: override(data.get(first), rest, value) if rest else value}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes a recipe with every default written out; the file is whole or not there.

    Example:
        >>> from pathlib import Path
        >>> nd.training.save_recipe(nd.training.load_run_recipe(run), Path("again.yaml"))
    """
    import yaml

    write_text(path, yaml.safe_dump(to_plain(recipe), sort_keys=False))
