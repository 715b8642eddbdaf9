"""What an evaluation found; as JSON, as Markdown, as plain text.

    Evaluation
      models      "teacher" | "naive" | "student" | "real" -> metric name -> Metric
      samples   Sample(index, prompt, distances): one for each picture, student against teacher
      examples  Pictures: some samples of every model; `worst`: those farthest from the teacher
      settings  what the numbers depend on: JSON values
  notes     what could not be measured, and why: sentences

    Metric      value, low, high (95% interval), floor, num_samples, extractor

`evaluation.catalogue.info(name)` gives a metric's label, group, direction and meaning. A metric that was not
measured is absent, not None; if it was asked for, a note says why. JSON (`format` 4) holds all but the pictures,
which `Pictures.save` writes:

    {"format": 4, "digest": "...", "settings": {...}, "notes": ["SSIM is left out: ...", ...],
     "models": {"student": {"fd_teacher": {"value": 14.1, "low": 13.2, "high": 15.0, "floor": 7.9,
                                         "num_samples": 1024, "extractor": "oracle"}, ...}, ...},
     "samples": {"prompts": ["a red ring", ...], "index": [0, ...], "prompt": [0, ...],
                 "distances": {"pixel_distance": [0.1, ...], ...}}}

Both carry a hash of what they hold, which is compared when they are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nitrodistill.evaluation.cache import HASH, digest, keep
from nitrodistill.evaluation.catalogue import info, ordered
from nitrodistill.files import blake2, read_text, write_text

FORMAT = 4
FLOOR = "floor"


@dataclass(frozen=True)
class Metric:
    """One number and how far to trust it.

    Attributes:
        value: the number.
        low: lower end of its 95% interval over samples (of cost: the fastest run); None without one.
        high: upper end.
        floor: what two sets of one distribution come to at this number of samples; None without one.
        num_samples: how many pictures it was computed on.
        extractor: name of the feature extractor, the oracle or the network, where there is one.

    Example:
        >>> nd.evaluation.Metric(0.81, low=0.79, high=0.83).high
        0.83
    """

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    num_samples: int | None = None
    extractor: str | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "floor"):
            number = getattr(self, name)
            known = isinstance(number, int | float) and math.isfinite(number)
            if not known and (number is not None or name == "value"):
                raise ValueError(f"a metric's {name} is {number}; it must be a finite number.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"a metric's interval is {self.low} to {self.high}; its low end must not be above its high one."
            )


@dataclass(frozen=True)
class Sample:
    """One sample: the student against its teacher at equal noise.

    Attributes:
        index: its number; with the seed it determines the noise.
        prompt: its prompt.
        distances: paired metric -> value, such as "latent_distance", "pixel_distance", "ssim".

    Example:
        >>> nd.evaluation.Sample(3, "a cat", {"lpips": 0.2}).distances
        {'lpips': 0.2}
    """

    index: int
    prompt: str
    distances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """Some pictures of the evaluation, at the same noise in every model.

    Attributes:
        prompts: K prompts.
        images: model -> `(K, 3, H, W)` in [-1, 1].
        indices: the K samples' numbers; empty if they belong to no evaluation.

    Example:
        >>> nd.evaluation.Pictures(("a",), {"teacher": torch.zeros(1, 3, 8, 8)}).prompts
        ('a',)
    """

    prompts: tuple[str, ...]
    images: Mapping[str, Tensor]
    indices: tuple[int, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file of 8-bit pictures; never half of it."""
        target = Path(path)
        levels = {
            name: ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte()
            for name, x in self.images.items()
        }
        said = {"prompts": self.prompts, "indices": self.indices, "models": list(levels)}
        keep(target, levels, {name: json.dumps(value) for name, value in said.items()})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Pictures:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is something else.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata()
                models = json.loads(about["models"])
                levels = {name: file.get_tensor(name) for name in models}
            said = "".join(about[name] for name in ("prompts", "indices", "models"))
            if about[HASH] != digest(levels, said):
                raise ValueError("they are not what was written")
            images = {name: level.float() / 127.5 - 1 for name, level in levels.items()}
            prompts, indices = json.loads(about["prompts"]), json.loads(about["indices"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} holds no pictures of an evaluation ({error}); evaluate again."
            ) from error
        return cls(tuple(prompts), images, tuple(indices))


@dataclass(frozen=True)
class Evaluation:
    """Models side by side, on the same noise and prompts.

    Attributes:
        models: `"teacher"`, `"naive"` (the teacher in one step without guidance), `"student"`, and
            `"real"` where there were real pictures: what the oracle and the ratios say of them;
            model -> metric name -> Metric.
        settings: what the numbers depend on: the configuration, the teacher, device, versions.
        samples: every sample's distances between student and teacher.
        examples: the first samples' pictures; not written to JSON.
        worst: the pictures of the samples farthest from the teacher, the farthest first; not written
            to JSON.
        notes: a sentence for each thing that could not be measured, and why.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric
        >>> found = Evaluation({"teacher": {"sharpness": Metric(1.0)}, "student": {"sharpness": Metric(0.9)}})
        >>> found.models["student"]["sharpness"].value
        0.9
    """

    models: Mapping[str, Mapping[str, Metric]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    examples: Pictures | None = None
    worst: Pictures | None = None
    notes: tuple[str, ...] = ()

    @property
    def student(self) -> Mapping[str, Metric]:
        """The metrics of `models["student"]`."""
        return self.models["student"]

    def value(self, model: str, metric: str) -> float | None:
        """A number; None where it was not measured."""
        found = self.models.get(model, {}).get(metric)
        return None if found is None else found.value

    def floor(self, metric: str) -> float | None:
        """A metric's floor: the student's, or that of the first model that has one."""
        models = [self.models.get("student", {}), *self.models.values()]
        floors = (model[metric].floor for model in models if metric in model)
        return next((floor for floor in floors if floor is not None), None)

    def metrics(self) -> list[str]:
        """The names of all metrics that some model has, in the catalogue's order."""
        return ordered(name for metrics in self.models.values() for name in metrics)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Model -> labelled metric -> value, the floor last; metrics that nobody has are left out."""
        names = self.metrics()
        columns = {
            model: {info(name).label: self.value(model, name) for name in names}
            for model in self.models
        }
        return {**columns, FLOOR: {info(name).label: self.floor(name) for name in names}}

    def markdown(self) -> str:
        """A Markdown table with a row for each metric and a column for each model, and the notes as a list."""
        head, *rows = self._cells()
        rule = ["---", *["---:"] * (len(head) - 1)]
        table = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*table, *notes])

    def text(self) -> str:
        """The same as aligned plain text, for a terminal."""
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for label, *values in cells:
            right = [v.rjust(width) for v, width in zip(values, widths[1:], strict=True)]
            lines.append("  ".join([label.ljust(widths[0]), *right]))
        rule = "-" * len(lines[0])
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([lines[0], rule, *lines[1:], *notes])

    def save(self, path: str | Path) -> Path:
        """Writes `metrics.json`: format, settings, notes, models, samples; never half of it."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "format": FORMAT,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "models": {
                model: {name: asdict(metric) for name, metric in metrics.items()}
                for model, metrics in self.models.items()
            },
        }
        columns = _columns(self.samples)
        found["digest"] = _digest({**found, "samples": columns})
        text = json.dumps(found, indent=2, allow_nan=False)
        samples = json.dumps(columns, allow_nan=False)  # on one line: it is long
        write_text(target, f'{text[:-2]},\n  "samples": {samples}\n}}\n')
        return target

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads what `save` wrote; `examples` and `worst` are None.

        Raises:
            ValueError: if the file is damaged or has another format.
        """
        try:
            found = json.loads(read_text(Path(path)))
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            if found.pop("digest", None) != _digest(found):
                raise ValueError("it is not what was written")
            models = {
                model: {name: Metric(**metric) for name, metric in metrics.items()}
                for model, metrics in found["models"].items()
            }
            notes = tuple(found.get("notes", ()))
            return cls(models, dict(found["settings"]), _rows(found["samples"]), notes=notes)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{str(path)!r} is not a metrics.json of format {FORMAT} ({error}); evaluate again."
            ) from error

    def _cells(self) -> list[list[str]]:
        table = self.table()
        labels = list(next(iter(table.values())))
        rows = [[label, *(_format(column[label]) for column in table.values())] for label in labels]
        return [["", *table], *rows]


def _digest(found: Mapping[str, Any]) -> str:
    """A hash of the values of a metrics.json, however it is laid out."""
    plain = json.loads(json.dumps(found))
    return blake2(json.dumps(plain, sort_keys=True)).hex()


def _columns(samples: Sequence[Sample]) -> dict[str, Any]:
    prompts = {text: i for i, text in enumerate(dict.fromkeys(s.prompt for s in samples))}
    names = list(samples[0].distances) if samples else []
    return {
        "prompts": list(prompts),
        "index": [sample.index for sample in samples],
        "prompt": [prompts[sample.prompt] for sample in samples],
        "distances": {
            name: [float(f"{sample.distances[name]:.6g}") for sample in samples] for name in names
        },
    }


def _rows(columns: Mapping[str, Any]) -> tuple[Sample, ...]:
    prompts, distances = columns["prompts"], columns["distances"]
    return tuple(
        Sample(index, prompts[prompt], {name: values[i] for name, values in distances.items()})
        for i, (index, prompt) in enumerate(zip(columns["index"], columns["prompt"], strict=True))
    )


def _format(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
