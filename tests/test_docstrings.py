"""The example in the docstring of every public name runs, and says what it says.

An example finds `torch`, `nd`, the embedded `teacher`, two `prompts` with their `condition`, latents `x0` and
`noise` `(2, 4, 8, 8)`, a `method` without a discriminator, and in the working directory a store of pairs (`store`,
"pairs"), a folder of "images" with captions, and a `run` ("runs/toy") of one step.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import nitrodistill as nd
from nitrodistill import training
from nitrodistill.demo.demo import toy_recipe
from nitrodistill.export import self_test

PACKAGES = [
    f"nitrodistill{name}"
    for name in (
        *("", ".data", ".discriminator", ".losses", ".losses.functional", ".methods", ".models"),
        *(".models.adapters", ".schedules", ".evaluation", ".evaluation.report", ".export"),
        *(".training", ".toy", ".kernels", ".demo"),
    )
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[tuple[str, Any]]:
    """Every class and function of the packages, under the first name that it has."""
    seen = set()
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            own = getattr(value, "__module__", "").startswith("nitrodistill")
            if own and (inspect.isclass(value) or inspect.isfunction(value)):
                if id(value) not in seen:
                    yield f"{package.__name__}.{name}", value
                seen.add(id(value))


PUBLIC = dict(public())


def given() -> dict[str, Any]:
    """What examples find, made in the working directory."""
    teacher = nd.load_teacher("toy")
    prompts = ["a small red circle on a black background", "a large blue ring on a gray background"]
    config = nd.GenerateConfig(num_pairs=4, num_inference_steps=2)
    store = nd.generate(teacher, prompts, "pairs", config, teacher_name="toy", progress=False)
    Path("images").mkdir()
    for name, prompt in zip("ab", prompts, strict=True):
        Image.new("RGB", (32, 32)).save(f"images/{name}.png")
        Path(f"images/{name}.txt").write_text(prompt)
    generator = torch.Generator().manual_seed(0)
    list(training.run_recipe(toy_recipe("pairs", "runs/toy", 1, batch_size=2), teacher))
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    student = teacher.denoiser.copy()
    plan = nd.StepPlan.from_schedule(student.schedule)
    return {
        "method": nd.LADD(student, None, plan, nd.LADDConfig(adversarial_weight=0)),
        "torch": torch, "nd": nd, "teacher": teacher, "prompts": prompts, "store": store, "run": "runs/toy",
        "x0": x0, "noise": noise, "condition": teacher.encode_prompt(prompts),
    }  # fmt: skip


@pytest.fixture(scope="module")
def names(tmp_path_factory: Any) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        from tests.conftest import run_here

        patch.setattr(self_test.subprocess, "run", run_here)
        yield given()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name, names):
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    assert "Example:" in text, f"{name} has no example in its docstring"
    torch.manual_seed(0)
    own = {value.__name__: value}
    test = doctest.DocTestParser().get_doctest(text, own | names, name, None, None)
    assert test.examples, f"the example of {name} is no doctest (>>>)"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    runner.run(test, out=printed.append, clear_globs=True)
    assert not runner.failures, "".join(printed)
