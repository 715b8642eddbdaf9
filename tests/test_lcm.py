"""The method from outside: examples/lcm.py by the command line, killed and resumed; and its equation."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import nitrodistill as nd
from nitrodistill.cli.main import main
from nitrodistill.method import Cast
from nitrodistill.methods import find_method
from nitrodistill.teachers import load_teacher
from nitrodistill.training.estimate import estimate
from nitrodistill.training.recipe import load_recipe
from nitrodistill.types import Pairs

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "examples" / "recipes" / "lcm-toy.yaml")
STEPS, KILLED_AT = 8, 5


@pytest.fixture(scope="module")
def root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where `examples.lcm:LCM` is found
        yield ROOT


@pytest.fixture(scope="module")
def lcm(root):
    return find_method("examples.lcm:LCM")


def train(teacher: str, pairs: Path, output: Path) -> int:
    settings = {"batch_size": 4, "checkpoint_every": 3, "log_every": 1, "preview_every": STEPS}
    options = [f"--stages.trainer.{name}={value}" for name, value in settings.items()]
    more = [
        f"--teacher={teacher}",
        f"--pairs={pairs}",
        f"--output={output}",
        f"--steps={STEPS}",
        "--quiet",
    ]
    return main(["train", "--config", RECIPE, "--preview_prompts=[]", *more, *options])


def train_and_die(kind, *paths) -> None:
    """Killed in the middle of a step, between the backward pass and the update."""
    whole = kind.losses

    def losses(self, batch, active, draws):
        yield from whole(self, batch, active, draws)
        if draws.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    kind.losses = losses
    torch.set_num_threads(1)
    train(*paths)


@pytest.fixture(scope="module")
def teacher(tiny_diffusers, tiny_scheduler, tmp_path_factory):
    """A teacher on the disk that is smaller than the recipe's."""
    place = tmp_path_factory.mktemp("teacher")
    tiny_diffusers(tiny_scheduler).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def run(lcm, teacher, tmp_path_factory):
    """A run that was killed and resumed, and one that was not; all by the command line."""
    place = tmp_path_factory.mktemp("lcm")
    prompts = place / "prompts.txt"
    prompts.write_text(
        "a small red circle on a black background\na large blue ring on a gray background\n"
    )
    made = ["--output", str(place / "pairs"), "--num_pairs", "8", "--num_inference_steps", "2"]
    assert main(["generate", "--teacher", teacher, "--prompts", str(prompts), *made]) == 0
    assert train(teacher, place / "pairs", place / "whole") == 0
    child = multiprocessing.get_context("fork").Process(
        target=train_and_die, args=(lcm, teacher, place / "pairs", place / "killed")
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    (left,) = (place / "killed" / "checkpoints").iterdir()
    assert left.name == "stage-0-step-00000003"
    assert train(teacher, place / "pairs", place / "killed") == 0
    return place


def test_it_is_short():
    assert len((ROOT / "examples" / "lcm.py").read_text().splitlines()) <= 90


def test_the_docs_quote_it():
    lines = (ROOT / "examples" / "lcm.py").read_text().splitlines()
    page = (ROOT / "docs" / "extending.md").read_text()
    quoted = "".join(re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)).splitlines()
    assert len(quoted) > 20
    assert [line for line in quoted if line not in lines] == []


def test_a_killed_run_ends_bit_equal(run):
    names = ("student", "student.ema", "student.optimizer", "target")
    last = f"checkpoints/stage-0-step-{STEPS:08d}"
    for name in names:
        one, other = (run / k / last / f"{name}.safetensors" for k in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name
    student, target = (run / "whole" / last / f"{n}.safetensors" for n in ("student", "target"))
    assert student.read_bytes() != target.read_bytes(), "the target follows, behind"
    assert len((run / "killed" / "log.jsonl").read_text().splitlines()) == STEPS
    assert (run / "killed" / "previews" / f"stage-0-step-{STEPS:08d}.png").is_file()


def test_other_settings_are_refused_on_resuming(run, teacher, capsys):
    options = ["--teacher", teacher, "--pairs", str(run / "pairs"), "--output", str(run / "whole")]
    changed = ["--stages.settings.guidance", "2"]
    assert main(["train", "--config", RECIPE, *options, *changed]) == 2
    assert "guidance was 3.0, now 2.0" in capsys.readouterr().err


def test_it_is_evaluated_and_exported(run, here, capsys):
    few = [
        "--num_samples",
        "4",
        "--num_inference_steps",
        "2",
        "--cost_repeats",
        "0",
        "--bootstrap",
        "2",
    ]
    assert main(["evaluate", "--run", str(run / "killed"), *few]) == 0
    found = json.loads((run / "killed" / "metrics.json").read_text())
    assert found["settings"]["student_timesteps"] == [999, 749, 499, 249]
    assert main(["export", "--run", str(run / "killed"), "--output", str(run / "pipe")]) == 0
    index = json.loads((run / "pipe" / "scheduler" / "scheduler_config.json").read_text())
    assert index["_class_name"] == "LCMScheduler"
    assert "num_inference_steps=4" in capsys.readouterr().out


def changed(file: Path, entry: str, **settings: object) -> str:
    """The recipe with other values in an entry of its stage; written to the file."""
    recipe = yaml.safe_load(Path(RECIPE).read_text())
    recipe["stages"][0][entry] |= settings
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def test_it_is_estimated(root, teacher, tmp_path, capsys):
    few = {"steps": 1, "parallel": "fsdp", "cpu_offload": True}  # leaves few switches to try
    recipe = changed(tmp_path / "recipe.yaml", "trainer", **few)
    sizes = ["--memory", "1", "--text_length", "8", "--lora_rank", "1"]
    assert main(["estimate", "--config", recipe, "--teacher", teacher, *sizes]) == 0
    roles = capsys.readouterr().out.split("what helps")[0].splitlines()
    rows = {line[:16].strip(): line[16:].split()[:2] for line in roles[1:6]}
    assert list(rows) == ["teacher", "vae", "text_encoder", "target", "student"]
    assert rows["target"] == [rows["student"][0], "0"]
    assert rows["student"][0] == rows["student"][1] == rows["teacher"][0]


def test_a_lora_target_is_counted_as_the_student_is(root):
    """Its weights alone: it is a role on the teacher's network."""
    stage = load_recipe(RECIPE).stages[0]
    trainer = replace(stage.trainer, steps=1)
    stage = replace(stage, lora=nd.LoRAConfig(rank=2), trainer=trainer)
    roles = estimate(load_teacher("toy"), stage, text_length=8).roles
    assert "teacher's copy" not in roles
    assert roles["target"].weights == roles["student"].weights
    assert 0 < roles["target"].weights < roles["teacher"].weights / 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 3}, "must divide grid_steps, 40"),
        ({"distance": "l3"}, "distance is 'l3'"),
        ({"gridsteps": 40}, "did you mean 'grid_steps'"),
    ],
)
def test_wrong_settings_are_told(root, tmp_path, capsys, settings, message):
    recipe = changed(tmp_path / "recipe.yaml", "settings", **settings)
    assert main(["train", "--config", recipe]) == 2
    assert message in capsys.readouterr().err


def test_the_target_is_one_step_of_diffusers_ddim(
    lcm, tiny_denoiser, tiny_condition, tiny_scheduler, generator
):
    """At the noisiest timestep, in the middle and at the last step, where f(x, 0) = x."""
    teacher, student, target = (tiny_denoiser.copy() for _ in range(3))
    for denoiser, scale in ((student, 1.1), (target, 0.9)):
        torch._foreach_mul_([p.data for p in denoiser.module.parameters()], scale)
    c, empty = tiny_condition, tiny_condition.index([0])
    networks = {"teacher": teacher, "student": student, "target": target}
    config = lcm.Config(guidance=2.5)
    method = lcm.build(config, Cast(networks.__getitem__, empty))
    assert method.plan.timesteps().tolist() == [999, 749, 499, 249]

    size = len(c)
    z, noise = torch.randn(2, size, 4, 8, 8, generator=generator)
    scheduler = type(tiny_scheduler).from_config(tiny_scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(40)
    for row in (0, 17, 39):
        u = torch.full((size,), (row + 0.5) / 40)
        draws = SimpleNamespace(uniform=lambda name, u=u: u, normal=lambda *args: noise)
        batch = nd.Batch(torch.arange(size), Pairs(z, noise, c))
        ((role, terms),) = method.losses(batch, ("student",), draws)
        assert role == "student"

        t = scheduler.timesteps[row]
        x = scheduler.add_noise(z, noise, t.expand(size))
        with torch.no_grad():
            null, said = (teacher(x, t, k) for k in (empty.index([0] * size), c))
            nearer = scheduler.step(null + 2.5 * (said - null), t, x).prev_sample
            wanted = nearer
            if row < 39:
                later = scheduler.timesteps[row + 1]
                wanted = scheduler.step(
                    target(nearer, later, c), later, nearer
                ).pred_original_sample
            seen = scheduler.step(student(x, t, c), t, x).pred_original_sample
        expected = ((seen - wanted).square() + 1e-6).sqrt().sub(1e-3).mean((1, 2, 3))
        torch.testing.assert_close(terms.parts["consistency"], expected, rtol=1e-4, atol=1e-6)
    terms.total.backward()
    assert all(p.grad is None for d in (teacher, target) for p in d.module.parameters())
