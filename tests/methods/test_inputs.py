"""What DMD2's student is fed while it trains is what the exported pipeline feeds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from nitrodistill.export import export
from nitrodistill.method import Cast, Draws
from nitrodistill.methods.dmd2 import DMD2, DMD2Config
from nitrodistill.methods.dmd2.inputs import make_inputs
from nitrodistill.models import Pipeline
from nitrodistill.types import Batch
from tests.pipelines import WITHOUT_TEXT, tiny_pipeline

PROMPTS = ["a large red ring", "a blue cross"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("family", "transition", "module"),
    [
        ("sd15", "ode", None),
        ("sd21-v", "renoise", "scheduling_lcm"),
        ("sd3", "ode", None),
        ("sd3", "renoise", "scheduling_flow_match_lcm"),
        ("edm", "ode", None),
    ],
)
def test_backward_simulation_is_the_exported_pipelines_trajectory(
    family: str, transition: Any, module: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    """At every step of a plan of four; diffusers' arithmetic is another, so that single bits may differ."""
    classes = family == "edm"
    prompts = ["3", "0"] if classes else PROMPTS
    pipeline = Pipeline.from_diffusers(WITHOUT_TEXT[family]() if classes else tiny_pipeline(family))
    teacher = pipeline.denoiser
    student, critic = teacher.copy(), teacher.copy()
    for weight in student.module.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    config = DMD2Config(num_inference_steps=4, transition=transition)
    method = DMD2.build(config, Cast.of(teacher, student, {"critic": critic}))
    batch = Batch(torch.arange(2), prompts=pipeline.encode_prompt(prompts))
    output = export(pipeline, student, method.plan, tmp_path / "s", base_model="x", prompts=prompts)
    pipe: Any = DiffusionPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((output / "nitrodistill.json").read_text())["call"]
    asked: dict[str, Any] = {"prompt": prompts, "output_type": "latent"}
    if classes:
        asked = {"class_labels": [3, 0], "batch_size": 2, "output_type": "pt"}
    seen: list[torch.Tensor] = []

    def note(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    network.register_forward_pre_hook(note, with_kwargs=True)
    reached = set()
    for seed in range(12):
        draws = Draws(seed, 0, batch.index)
        made = make_inputs(config, student, method.plans, batch, draws)
        number = [float(step.t) for step in method.plan.steps].index(float(made.step.t))
        if number in reached:
            continue
        reached.add(number)
        # diffusers' flow scheduler draws once more at the end, and takes none of it
        noises = (draws.normal(f"renoise.{i}", pipeline.latent_shape) for i in (1, 2, 3, 4))
        if module is not None:
            where = f"diffusers.schedulers.{module}.randn_tensor"
            monkeypatch.setattr(where, lambda *_, noises=noises, **__: next(noises))
        seen.clear()
        noise = draws.normal("noise", pipeline.latent_shape)
        pipe(latents=noise, **asked, **call)
        assert len(seen) == 4
        # EDM's c_in
        scale = (teacher.schedule(made.step.t).sigma ** 2 + 0.5**2).rsqrt() if classes else 1.0
        torch.testing.assert_close(scale * made.x_t, seen[number], rtol=0, atol=2e-5)
    assert reached == {0, 1, 2, 3}
