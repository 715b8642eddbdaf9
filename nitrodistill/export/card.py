"""The model card: YAML for the Hub, the exact call, the numbers, and where it all comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from nitrodistill.sampling import StepPlan

__all__ = ["model_card"]


def model_card(
    name: str,
    folder: str,
    record: str,
    plan: StepPlan,
    prompt: str,
    base_model: str,
    metrics: str | None = None,
    licence: str | None = None,
) -> str:
    """Writes the card of an exported student, as Markdown.

    Args:
        name: the title.
        folder: the path that the example loads.
        record: the file in it that holds plan, versions and the self-test.
        plan: how the student samples.
        prompt: the example's prompt.
        base_model: the teacher's name; it goes into the YAML too if it can be a Hub name.
        metrics: a Markdown table of what was measured.
        licence: the licence's short name.
    """
    steps = f"{len(plan)} step" + ("s" if len(plan) > 1 else "")
    terms = (
        f"No licence was stated at export; that of {base_model} applies to what is derived from it."
        if licence is None
        else f"Licence: {licence}."
    )
    measured = "" if metrics is None else f"## Measured\n\n{metrics}\n\n"
    return f"""---
{_front_matter(base_model, licence)}
---

# {name}

A student of **{base_model}**, distilled with nitrodistill. It draws in {steps}, without guidance. Both must be
said in the call; the timestep is in the saved scheduler.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({json.dumps(folder)})
image = pipe({json.dumps(prompt)}, num_inference_steps={len(plan)}, guidance_scale=0).images[0]
```

{measured}## Where it comes from

Base model: {base_model}. {terms}

The folder was reloaded in a fresh process and compared with the student in memory before it was put in place;
`{record}` holds the plan, the versions and the differences found.
"""


def _front_matter(base_model: str, licence: str | None) -> str:
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) and not Path(base_model).exists():
        lines.append(f"base_model: {base_model}")
    if licence is not None:
        lines.append(f"license: {json.dumps(licence)}")
    lines.append("tags: [text-to-image, diffusion-distillation, one-step, nitrodistill]")
    return "\n".join(lines)
