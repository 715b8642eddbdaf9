"""Ships a student of the embedded teacher: `python -m tools.toy.student RUN`.

RUN is the folder of a run of the recipe dmd2-toy-gan. The moving average of its UNet goes in fp16 to
nitrodistill/toy/student_weights, with the manifest that the package checks, and metrics.json: what those weights
are measured to be, on the noises and prompts of the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from nitrodistill import toy
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig, Evaluation
from nitrodistill.evaluation.student import measure_student
from nitrodistill.files import complete_folder
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher
from nitrodistill.toy.manifest import MANIFEST, STUDENT_WEIGHTS, digest
from nitrodistill.training.run import load_student

METRICS = (
    "alignment",
    "fd_real",
    "fd_teacher",
    "fd_texture",
    "edge_ratio",
    "high_frequency_ratio",
    "diversity",
)
SAMPLES, SEED = 1024, 1000


def measure(cache: Path) -> Evaluation:
    """The shipped weights against the teacher, on held-out noise."""
    pipeline = load_teacher("toy")
    student = Pipeline.from_diffusers(toy.load_student_pipeline()).denoiser
    plan = StepPlan.from_schedule(student.schedule, 1)
    settings = EvaluateConfig(SAMPLES, seed=SEED, bootstrap=2, cost_repeats=0, num_pictures=0)
    return measure_student(
        "toy",
        pipeline,
        student,
        plan,
        shuffled_captions(),
        settings,
        cache=cache,
        keep_student=False,
    )


def write(run: Path) -> None:
    """The weights in fp16, and their manifest."""
    student = load_student(run, load_teacher("toy")).denoiser
    assert isinstance(student, DiffusersDenoiser)
    unet = student.module
    assert isinstance(unet, UNet2DConditionModel)
    unet.register_to_config(_name_or_path="toy")  # no path of this machine
    unet.half().save_pretrained(STUDENT_WEIGHTS)
    complete_folder(STUDENT_WEIGHTS)  # readable by all
    files = sorted(
        p.name for p in STUDENT_WEIGHTS.iterdir() if p.name not in (MANIFEST, "metrics.json")
    )
    found = {"sha256": {name: digest(STUDENT_WEIGHTS / name) for name in files}}
    (STUDENT_WEIGHTS / MANIFEST).write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/student_cache"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    write(options.run)
    found = measure(options.cache)
    models = {n: {k: found.value(n, k) for k in METRICS} for n in ("teacher", "student")}
    about = {
        "samples": SAMPLES,
        "seed": SEED,
        "num_inference_steps": 1,
        "date": time.strftime("%Y-%m-%d"),
        **models,
        "floor": {key: found.floor(key) for key in METRICS},
    }
    (STUDENT_WEIGHTS / "metrics.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
