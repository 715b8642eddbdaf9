"""The worker of examples/ray_generate.py, without Ray: tasks in any order, some twice. Ray itself is not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from nitrodistill.cli.main import main
from nitrodistill.data import GenerateConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_generate.py"


def _example():
    spec = importlib.util.spec_from_file_location("ray_generate", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_tasks_in_any_order_and_twice_give_the_bytes_of_generate(place):
    example = _example()
    config = GenerateConfig(num_pairs=5, num_inference_steps=1, shard_size=2)
    output = place.root / "ray"
    settings = (str(place.teacher), str(place.prompts), str(output), config, "cpu")
    assert example.Worker("prompts", *settings)({"file": np.array([0])}) == {
        "file": [0],
        "made": [True],
    }
    worker = example.Worker("shards", *settings)
    made = [worker({"file": np.array([k])})["made"] for k in (2, 0, 2, 1)]
    assert made == [[True], [True], [False], [True]]
    example.open_work(*settings).finish()

    command = ["generate", "--teacher", str(place.teacher), "--prompts", str(place.prompts)]
    command += ["--num_pairs", "5", "--num_inference_steps", "1", "--shard_size", "2", "--quiet"]
    assert main([*command, "--output", str(place.root / "here")]) == 0
    one, two = (
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (output, place.root / "here")
    )
    assert one == two


def test_ray_can_carry_the_worker():
    """Ray pickles what the script defines by value; what the interpreter caches cannot travel so."""
    functions = [
        v for v in vars(_example()).values() if getattr(v, "__module__", "") == "ray_generate"
    ]
    assert len(functions) >= 3
    assert all(type(v) in (type, type(_example)) for v in functions)
