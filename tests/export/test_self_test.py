"""An export whose self-test fails is removed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.export import export
from nitrodistill.export import self_test as testing
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.sampling import Step, StepPlan
from nitrodistill.types import Scales
from tests.pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_diffusers(tiny_pipeline("sd15"))


@pytest.fixture(scope="module")
def plan(pipeline: Pipeline) -> StepPlan:
    return StepPlan.from_noise(pipeline.denoiser.schedule, 999)


def test_a_process_that_fails_is_told_by_its_last_line(
    pipeline: Pipeline, plan: StepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def fails(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        script = "import sys; sys.exit('Traceback\\nKilled: out of memory')"
        return run([sys.executable, "-c", script], **settings)

    monkeypatch.setattr(testing.subprocess, "run", fails)
    with pytest.raises(RuntimeError, match=r"does not load and run .*\(Killed: out of memory\)"):
        export(pipeline, pipeline.denoiser, plan, tmp_path / "new" / "out", base_model="x")
    assert list(tmp_path.iterdir()) == [], "nor are the parents"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("seen", ["latents", "images"])
def test_a_pipeline_that_draws_something_else_is_removed(
    seen: str,
    pipeline: Pipeline,
    plan: StepPlan,
    trained: Callable[[Pipeline], DiffusersDenoiser],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights on disk are changed behind the export's back by one part in a thousand."""
    part = "unet" if seen == "latents" else "vae"

    def damaged(folder: Path, *args: Any) -> Any:
        from safetensors.torch import load_file, save_file

        (file,) = (folder / part).glob("*.safetensors")
        weights = {name: value * 1.001 for name, value in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        return testing.self_test(folder, *args)

    monkeypatch.setattr("nitrodistill.export.pipeline.self_test", damaged)
    with pytest.raises(RuntimeError, match="does not draw what the student draws"):
        export(pipeline, trained(pipeline), plan, tmp_path / "out", base_model="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_the_test_sees_the_timestep_that_the_network_is_told(
    pipeline: Pipeline, plan: StepPlan, tmp_path: Path
) -> None:
    """Another t under the same scales gives another x0."""
    (step,) = plan.steps
    other = StepPlan((Step(torch.tensor(700), Scales(*step.input), Scales(*step.output)),))
    folder = export(pipeline, pipeline.denoiser, plan, tmp_path / "out", base_model="x")
    with pytest.raises(RuntimeError, match="does not draw"):
        testing.self_test(folder, pipeline, pipeline.denoiser, other, ["a red ring"])
