"""What an evaluation found: scores of each arm, floors, settings; as JSON, as Markdown, as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nitrodistill.data.files import write_text

__all__ = ["Evaluation", "Pictures", "Scores"]


@dataclass(frozen=True)
class Scores:
    """What was measured of one arm; None where it was not, or has no meaning.

    Attributes:
        alignment: share of pictures that show all that their prompt says, in [0, 1].
        alignment_by_attribute: the same for each attribute.
        fd_real: Fréchet distance to real pictures, on the feature extractor given.
        fd_teacher: the same to the teacher's pictures.
        fd_latents: Fréchet distance to the teacher's latents.
        fd_texture: Fréchet distance to the teacher's pictures on texture features.
        edge_ratio: edge strength over the teacher's.
        high_frequency_ratio: energy above 0.25 cycles per pixel over the teacher's.
        diversity: spread of latents within a prompt over the teacher's.
        denoise_ms: wall-clock milliseconds per picture for the latent alone.
        pipeline_ms: the same from prompt to picture.
    """

    alignment: float | None = None
    alignment_by_attribute: Mapping[str, float] = field(default_factory=dict)
    fd_real: float | None = None
    fd_teacher: float | None = None
    fd_latents: float | None = None
    fd_texture: float | None = None
    edge_ratio: float | None = None
    high_frequency_ratio: float | None = None
    diversity: float | None = None
    denoise_ms: float | None = None
    pipeline_ms: float | None = None


LABELS: dict[str, str] = {
    "alignment": "alignment",
    "fd_real": "FD to real",
    "fd_teacher": "FD to teacher",
    "fd_latents": "FD on latents",
    "fd_texture": "texture-FD",
    "edge_ratio": "edge ratio",
    "high_frequency_ratio": "high-frequency ratio",
    "diversity": "diversity",
    "denoise_ms": "denoising, ms/image",
    "pipeline_ms": "pipeline, ms/image",
}
FLOOR = "floor"


@dataclass(frozen=True)
class Pictures:
    """Some pictures of the evaluation, at the same noise in every arm.

    Attributes:
        prompts: K prompts.
        images: arm -> `(K, 3, H, W)` in [-1, 1].
    """

    prompts: tuple[str, ...]
    images: Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Arms side by side, on the same noise and prompts.

    Attributes:
        arms: `"teacher"`, `"naive"` (the teacher in one step without guidance), `"student"`, and
            `"real"` where there were real pictures: what the oracle and the ratios say of them.
        floor: what two sets of one distribution differ by at this number of samples: real against
            real for `fd_real`, teacher against teacher with other noise for the rest.
        settings: what the numbers depend on: the configuration, the teacher, device, versions.
        pictures: some of the pictures; not written to JSON.
    """

    arms: Mapping[str, Scores]
    floor: Scores
    settings: Mapping[str, Any]
    pictures: Pictures | None = None

    @property
    def student(self) -> Scores:
        """The scores of `arms["student"]`."""
        return self.arms["student"]

    def table(self) -> dict[str, dict[str, float | None]]:
        """Arm -> labelled metric -> value, the floor last; metrics that nobody has are left out."""
        columns = {**self.arms, FLOOR: self.floor}
        values = {name: asdict(scores) for name, scores in columns.items()}
        kept = [key for key in LABELS if any(v[key] is not None for v in values.values())]
        return {name: {LABELS[key]: v[key] for key in kept} for name, v in values.items()}

    def markdown(self) -> str:
        """A Markdown table with a row for each metric and a column for each arm."""
        head, *rows = self._cells()
        rule = ["---", *["---:"] * (len(head) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))

    def text(self) -> str:
        """The same as aligned plain text, for a terminal."""
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for label, *values in cells:
            right = [v.rjust(width) for v, width in zip(values, widths[1:], strict=True)]
            lines.append("  ".join([label.ljust(widths[0]), *right]))
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:]])

    def save(self, path: str | Path) -> Path:
        """Writes `metrics.json`: format, settings, arms, floor; never half of it."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "format": 1,
            "settings": dict(self.settings),
            "arms": {name: asdict(scores) for name, scores in self.arms.items()},
            FLOOR: asdict(self.floor),
        }
        write_text(target, json.dumps(found, indent=2, allow_nan=False) + "\n")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads what `save` wrote; `pictures` is None.

        Raises:
            ValueError: if the file is damaged or has another format.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("format") != 1:
                raise ValueError("its format is not 1")
            arms = {name: Scores(**scores) for name, scores in found["arms"].items()}
            return cls(arms, Scores(**found[FLOOR]), dict(found["settings"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{str(path)!r} is not a metrics.json of format 1 ({error}); evaluate again."
            ) from error

    def _cells(self) -> list[list[str]]:
        table = self.table()
        labels = list(next(iter(table.values())))
        rows = [[label, *(_format(scores[label]) for scores in table.values())] for label in labels]
        return [["", *table], *rows]


def _format(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
