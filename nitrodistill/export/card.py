"""The model card: YAML for the Hub, the exact call, the numbers, and where it all comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitrodistill.export.folder import RECORD
from nitrodistill.sampling import StepPlan

PICTURE = "grid.png"
_TASKS = {"prompt": "text-to-image", "batch_size": "unconditional-image-generation"}


@dataclass(frozen=True)
class Measured:
    """What was measured of a student, for its card.

    Attributes:
        table: Markdown, for people.
        results: for the card's `model-index`: `type`, `name` and `value` of each number.
        data: on what, in words: "1024 noises and prompts".
        picture: a PNG file to show: it is copied into the folder.

    Example:
        >>> nd.export.Measured("| alignment | 0.9 |", data="512 noises and prompts").picture is None
        True
    """

    table: str
    results: Sequence[Mapping[str, object]] = ()
    data: str = "the evaluation's own noise and prompts"
    picture: Path | None = None


@dataclass(frozen=True)
class Card:
    """What a model card says, whatever is exported.

    Attributes:
        folder: the path or Hub name that the example loads; its last part is the title.
        plan: how the student samples.
        call: the keyword arguments of the call that the self-test made.
        asked: those that ask for the example's picture: its prompt, its class, or how many.
        absent: parts that the pipeline lacks, which diffusers wants named.
        base_model: the teacher's name; it goes into the YAML too if it can be a Hub name.
        metrics: what was measured.
        licence: the licence's short name.
        comfyui: the section on ComfyUI.
    """

    folder: str
    plan: StepPlan
    call: Mapping[str, Any]
    asked: Mapping[str, Any]
    base_model: str
    metrics: Measured | None = None
    licence: str | None = None
    comfyui: str = ""
    absent: Sequence[str] = ()

    def pipeline(self) -> str:
        """The card of a whole pipeline, as Markdown."""
        return self._page([], ["from diffusers import DiffusionPipeline"], [], self.folder)

    def lora(self, scheduler: str) -> str:
        """The card of LoRA weights on a base model, as Markdown.

        Args:
            scheduler: the class of the scheduler beside the weights.
        """
        here = json.dumps(self.folder)
        return self._page(
            ["lora"],
            [f"from diffusers import DiffusionPipeline, {scheduler}"],
            [
                f'pipe.scheduler = {scheduler}.from_pretrained({here}, subfolder="scheduler")',
                f"pipe.load_lora_weights({here})",
            ],
            self.base_model,
        )

    def _page(self, tags: list[str], imports: list[str], more: list[str], loaded: str) -> str:
        steps = f"{len(self.plan)} step" + ("s" if len(self.plan) > 1 else "")
        scale = self.call.get("guidance_scale")
        guidance = f", with an embedded guidance of {scale:g}" if scale else ", without guidance"
        said = "Both" if scale is not None else "That"
        absent = "".join(f", {name}=None" for name in self.absent)
        load = f"pipe = DiffusionPipeline.from_pretrained({json.dumps(loaded)}{absent})"
        asked = [
            json.dumps(value[0]) if key == "prompt" else f"{key}={value!r}"
            for key, value in self.asked.items()
            if key != "batch_size"
        ]
        arguments = ", ".join([*asked, *(f"{key}={value!r}" for key, value in self.call.items())])
        call = f"image = pipe({arguments}).images[0]"
        lines = [*imports, "", load, *more, call]
        example = "\n".join(lines)
        found = self.metrics
        measured = "" if found is None else f"## Measured\n\n{found.table}\n\n"
        if found is not None and found.picture is not None:
            measured = f"![Prompts, and what teacher and student draw]({PICTURE})\n\n{measured}"
        return f"""---
{self._front_matter(tags)}
---

# {Path(self.folder).name}

A student of **{self.base_model}**, distilled with nitrodistill. It draws in {steps}{guidance}. {said}
must be said in the call; the timesteps are in the saved scheduler.

```python
{example}
```

{measured}{self.comfyui}## Where it comes from

Base model: {self.base_model}. {self._terms()}

The folder was reloaded in a fresh process and compared with the student in memory before it was put in place;
`{RECORD}` holds the plan, the versions and the differences found.
"""

    def _terms(self) -> str:
        if self.licence is not None:
            return f"Licence: {self.licence}."
        return (
            f"No licence was stated at export; that of {self.base_model} applies to what is derived "
            "from it."
        )

    def _front_matter(self, tags: list[str]) -> str:
        task = _TASKS.get(next(iter(self.asked)))
        lines = ["library_name: diffusers", *([f"pipeline_tag: {task}"] if task else [])]
        if is_hub_name(self.base_model):
            lines.append(f"base_model: {self.base_model}")
            if "lora" in tags:
                lines.append("base_model_relation: adapter")
        if self.licence is not None:
            lines.append(f"license: {json.dumps(self.licence)}")
        every = ["diffusion-distillation", "one-step", "nitrodistill", *tags]
        every = [task, *every] if task else every
        lines.append(f"tags: [{', '.join(every)}]")
        if self.metrics is not None and self.metrics.results:
            lines.append(f"model-index: {json.dumps([self._index(task, self.metrics)])}")
        return "\n".join(lines)

    def _index(self, task: str | None, found: Measured) -> dict[str, object]:
        """The numbers as the Hub reads them."""
        result = {
            "task": {"type": task or "other"},
            "dataset": {"type": "prompts", "name": found.data},
            "metrics": [dict(one) for one in found.results],
        }
        return {"name": Path(self.folder).name, "results": [result]}


def is_hub_name(name: str) -> bool:
    """Whether a model's name can be one on the Hub, and is no path here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()
