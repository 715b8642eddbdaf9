from __future__ import annotations

import os
import signal
import subprocess
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


@pytest.fixture
def cluster(tmp_path):
    """A Slurm of three scripts: srun runs its command once, as process 1 of 2, and passes signals on."""
    scripts = {
        "scontrol": 'case $1 in show) echo node-7;; *) echo "$@" >> requeued;; esac',
        "srun": 'shift; SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 exec "$@"',
        "nitrodistill": (
            'echo "$@ $RANK/$WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT" > started\n'
            "trap 'echo saved; exit 0' USR1\n"
            "while [ ! -e finish ]; do sleep 0.02; done\nexit $(cat finish)"
        ),
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _submit(folder: Path) -> subprocess.Popen[str]:
    names = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "n",
    }
    command = ["bash", str(SBATCH), "recipe.yaml", "--steps", "7"]
    job = subprocess.Popen(command, cwd=folder, env=os.environ | names, text=True)
    for _ in range(3000):
        if (folder / "started").exists() and (folder / "started").read_text():
            return job
        time.sleep(0.02)
    job.kill()
    raise AssertionError("the job never started")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_slurm_example_saves_and_requeues_on_a_signal(cluster, number):
    job = _submit(cluster)
    started = (cluster / "started").read_text()
    assert started == "train --config recipe.yaml --steps 7 1/2 at node-7:20041\n"
    job.send_signal(number)
    assert job.wait(60) == 0
    assert (cluster / "requeued").read_text() == "requeue 41\n"


@pytest.mark.parametrize("code", [0, 2])
def test_the_slurm_example_ends_with_the_run_and_its_exit_code(cluster, code):
    job = _submit(cluster)
    (cluster / "finish").write_text(str(code))
    assert job.wait(60) == code
    assert not (cluster / "requeued").exists()
