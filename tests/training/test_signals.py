from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nitrodistill.training import StopSignals

SBATCH = Path(__file__).parents[2] / "examples" / "train.sbatch"


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with StopSignals() as stop:
        assert stop() == ""
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == "SIGUSR1"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


TRAIN = """
import os, signal, sys, time
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
told = f"{sys.argv[1:]} {os.environ['RANK']}/{os.environ['WORLD_SIZE']} at {os.environ['MASTER_ADDR']}"
with open(f"aside{os.environ['RANK']}", "w") as file:
    file.write(told)
os.rename(f"aside{os.environ['RANK']}", f"started{os.environ['RANK']}")
while not stopped and not os.path.exists("finish"):
    time.sleep(0.02)
if not stopped:
    sys.exit(int(open("finish").read()))
open(f"saved{os.environ['RANK']}", "w")
"""
"""What is started, in place of the trainer."""


@pytest.fixture
def cluster(tmp_path):
    """A Slurm of two scripts: srun runs its command once, as process 1 of 2, and is killed by no signal."""
    scripts = {
        "scontrol": 'case $1 in show) echo localhost;; *) echo "$@" >> requeued;; esac',
        "srun": (
            "while [[ $1 == --* ]]; do shift; done\n"
            'SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 exec "$@"'
        ),
        "nitrodistill": f'exec {sys.executable} -m nitrodistill "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "nitrodistill").mkdir()
    (tmp_path / "nitrodistill" / "__init__.py").touch()  # before the real one
    (tmp_path / "nitrodistill" / "__main__.py").write_text(TRAIN)
    (tmp_path / "examples").symlink_to(SBATCH.parent)
    return tmp_path


def _submit(folder: Path, launcher: str, *ranks: int) -> subprocess.Popen[str]:
    """A job of which these processes have started."""
    names = {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "LAUNCHER": launcher,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    command = ["bash", str(SBATCH), "recipe.yaml", "--steps", "7"]
    job = subprocess.Popen(command, cwd=folder, env=os.environ | names, text=True)
    for _ in range(3000):
        if all((folder / f"started{rank}").exists() for rank in ranks):
            return job
        time.sleep(0.02)
    job.kill()
    raise AssertionError("the job never started")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_slurm_example_saves_and_requeues_on_a_signal(cluster, number):
    job = _submit(cluster, "srun", 1)
    started = (cluster / "started1").read_text()
    assert started == "['train', '--config', 'recipe.yaml', '--steps', '7'] 1/2 at localhost"
    job.send_signal(number)
    assert job.wait(60) == 0
    assert (cluster / "saved1").exists()
    assert (cluster / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize("code", [0, 2])
def test_the_slurm_example_ends_with_the_run_and_its_exit_code(cluster, code):
    job = _submit(cluster, "srun", 1)
    (cluster / "finish").write_text(str(code))
    assert job.wait(60) == code
    assert not (cluster / "requeued").exists()


def test_under_a_real_torchrun_it_saves_ends_with_0_and_requeues(cluster):
    """torchrun itself would end with 1 after SIGTERM."""
    job = _submit(cluster, "torchrun", 0, 1)
    started = (cluster / "started1").read_text()
    assert started.startswith("['train', '--config', 'recipe.yaml', '--steps', '7'] 1/2 at ")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0
    assert (cluster / "saved0").exists()
    assert (cluster / "saved1").exists()
    assert (cluster / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.soak
def test_two_real_processes_under_torchrun_save_and_go_on(tmp_path):
    """`nitrodistill train` itself: told to stop, it leaves with 0, and the same command goes on."""
    from nitrodistill import toy
    from nitrodistill.data import GenerateConfig, generate
    from nitrodistill.models import Pipeline
    from nitrodistill.training import find_checkpoints, parse_recipe, save_recipe

    teacher = Pipeline.from_diffusers(toy.load_pipeline(), check_prompt=toy.check_prompt)
    config, prompts = GenerateConfig(num_pairs=8, num_inference_steps=2), ["a small red circle"]
    generate(teacher, prompts, tmp_path / "pairs", config, teacher_name="toy", progress=False)
    roles = {name: {"learning_rate": 1e-4} for name in ("student", "discriminator")}
    stage = {"method": "ladd", "trainer": {"steps": 400, "batch_size": 2, "optimizers": roles}}
    data = {"teacher": "toy", "pairs": str(tmp_path / "pairs"), "output": str(tmp_path / "run")}
    save_recipe(parse_recipe({**data, "stages": [stage]}), tmp_path / "recipe.yaml")
    train = ["-m", "nitrodistill", "train", "--config", str(tmp_path / "recipe.yaml")]
    command = ["bash", str(SBATCH.parent / "torchrun.sh"), "--standalone", "--nproc_per_node", "2"]
    names = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *train, *more], env=os.environ | names, text=True, stdout=subprocess.PIPE
        )

    job = start()
    for _ in range(3000):
        if (tmp_path / "run" / "log.jsonl").exists():
            break
        time.sleep(0.1)
    job.terminate()
    told, _ = job.communicate(timeout=300)
    (saved,) = find_checkpoints(tmp_path / "run")
    assert job.returncode == 0
    assert f"after step {saved.step} of 400" in told
    assert "the same command goes on from there" in told
    job = start("--steps", str(saved.step + 2))
    told, _ = job.communicate(timeout=300)
    assert job.returncode == 0
    assert f"trained to step {saved.step + 2}" in told
