"""A teacher on the disk and pairs of it, small enough for every test here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.models import Pipeline

PROMPTS = ["a small red circle on a black background", "a large blue ring on a gray background"]


class Place(NamedTuple):
    """What a user has before training."""

    root: Path
    teacher: Path
    prompts: Path
    pairs: Path
    recipe: Path


@pytest.fixture(scope="session")
def made(tiny_diffusers, tiny_scheduler, tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    pipe = tiny_diffusers(tiny_scheduler)
    pipe.save_pretrained(root / "teacher")
    config = GenerateConfig(num_pairs=4, steps=2, guidance=2.0)
    teacher = Pipeline.from_diffusers(pipe)
    generate(teacher, PROMPTS, root / "pairs", config, teacher_name="tiny", progress=False)
    return root


@pytest.fixture
def place(made, tmp_path):
    prompts, recipe = tmp_path / "prompts.txt", tmp_path / "recipe.yaml"
    prompts.write_text("\n".join(PROMPTS))
    optimizer = {"learning_rate": 1e-3}
    stage = {
        "method": "ladd",
        "settings": {"adversarial": "hinge", "updates": "shared"},
        "trainer": {
            "steps": 2,
            "batch_size": 2,
            "optimizers": {"student": optimizer, "discriminator": optimizer},
        },
    }
    data = {
        "teacher": str(made / "teacher"),
        "pairs": str(made / "pairs"),
        "output": str(tmp_path / "run"),
        "stages": [stage],
    }
    recipe.write_text(yaml.safe_dump(data))
    return Place(tmp_path, made / "teacher", prompts, made / "pairs", recipe)
