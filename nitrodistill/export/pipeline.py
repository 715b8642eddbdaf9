"""Export: a folder from which plain diffusers draws what the trainer's student draws.

    DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=1, guidance_scale=0)

The StepPlan is baked into the saved scheduler, so that users need no magic timestep; what no scheduler expresses
is refused. The folder is written beside its destination, reloaded by a fresh process that knows diffusers
alone, compared with the trainer's x0 and picture, and only then renamed into place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nitrodistill.export.card import model_card
from nitrodistill.export.scheduler import TOLERANCE, relative_error, scheduler_for_plan
from nitrodistill.method import Draws
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.denoiser import evaluating
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan, sample

__all__ = ["check_target", "export"]

RECORD = "nitrodistill.json"
_FRESH_PROCESS = """
import json, sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
folder, given, answer, settings = sys.argv[1:]
settings = json.loads(settings)
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.to(settings["device"], getattr(torch, settings["dtype"]))
pipe.set_progress_bar_config(disable=True)
noise = load_file(given)["noise"].to(pipe.unet.device, pipe.unet.dtype)
call = dict(num_inference_steps=settings["steps"], guidance_scale=0, latents=noise)
latents, images = (
    pipe(settings["prompts"], output_type=kind, **call).images for kind in ("latent", "pt")
)
save_file({"latents": latents.float().cpu(), "images": images.float().cpu().contiguous()}, answer)
"""


def export(
    pipeline: Pipeline,
    student: DiffusersDenoiser | nn.Module,
    plan: StepPlan,
    output: str | Path,
    *,
    base_model: str,
    metrics: str | None = None,
    licence: str | None = None,
    prompts: Sequence[str] = ("",),
    scheduler: str = "DDIMScheduler",
) -> Path:
    """Writes a student as a diffusers pipeline, tests it in a fresh process and returns its folder.

    Args:
        pipeline: the teacher's pipeline; its VAE, text encoder and tokenizer go with the student.
        student: what was trained: a denoiser, or its bare network (then it predicts as the teacher
            does). Not guided and not wrapped by a trainer.
        plan: how the student samples.
        output: the folder to write. It may be missing, empty, or an earlier export, which is replaced.
        base_model: the teacher's name, for the card: a Hub name such as `"user/model"`, or words.
        metrics: a Markdown table for the card, for example `evaluation.markdown()`.
        licence: the licence's short name for the card, such as `"apache-2.0"`.
        prompts: at least one prompt: for the self-test, and the first one for the card's example.
        scheduler: the diffusers scheduler class to save.

    Returns:
        `output` as a Path.

    Raises:
        FileExistsError: if `output` exists and holds something that is no export.
        PermissionError: if it cannot be written.
        TypeError: if the student is guided, wrapped, or not the network that the pipeline takes.
        ValueError: if no such scheduler expresses the plan, or there is no prompt.
        RuntimeError: if the reloaded pipeline draws something else. Nothing is left behind.
    """
    target = check_target(output)
    if not prompts:
        raise ValueError("prompts is empty; give at least one, for the self-test and the card.")
    denoiser = _as_denoiser(pipeline, student)
    ready = scheduler_for_plan(plan, pipeline.scheduler, denoiser.prediction_type, scheduler)
    with _folder_beside(target) as partial:
        _assemble(pipeline, denoiser.module, ready).save_pretrained(
            partial, safe_serialization=True
        )
        errors = _self_test(partial, pipeline, denoiser, plan, list(prompts))
        record = _record(denoiser, plan, base_model, errors)
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = model_card(
            target.name, str(output), RECORD, plan, prompts[0], base_model, metrics, licence
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.chmod(0o755)
        _move(partial, target)
    return Path(output)


def _as_denoiser(pipeline: Pipeline, student: object) -> DiffusersDenoiser:
    wanted = type(pipeline.denoiser.module)
    network = student.module if isinstance(student, DiffusersDenoiser) else student
    if type(network) is not wanted or not isinstance(network, nn.Module):
        raise TypeError(
            f"the student is a {type(student).__name__} around {type(network).__name__}; export takes a "
            f"bare {wanted.__name__} or the DiffusersDenoiser around it: unwrap what a trainer prepared, and "
            "take the guidance off."
        )
    if isinstance(student, DiffusersDenoiser):
        return student
    teacher = pipeline.denoiser
    return DiffusersDenoiser(network, teacher.schedule, teacher.prediction_type)


def _assemble(pipeline: Pipeline, network: nn.Module, scheduler: Any) -> Any:
    components = {
        **pipeline.diffusers.components,
        "unet": network,
        "scheduler": scheduler,
        "safety_checker": None,
    }
    return type(pipeline.diffusers)(**components, requires_safety_checker=False)


def _self_test(
    folder: Path,
    pipeline: Pipeline,
    denoiser: DiffusersDenoiser,
    plan: StepPlan,
    prompts: list[str],
) -> dict[str, float]:
    """Compares the folder, as a fresh process reads it, with the student in memory."""
    noise = Draws(0, 0, torch.arange(len(prompts))).normal("export", pipeline.latent_shape)
    with torch.no_grad(), evaluating(denoiser.module):
        condition = pipeline.encode_prompt(prompts)
        x0 = sample(denoiser, plan, noise.to(pipeline.device), condition)
        images = (pipeline.decode(x0) / 2 + 0.5).clamp(0, 1)
    found = _fresh_process(folder, pipeline.device, denoiser.module, noise, prompts, len(plan))
    errors = {
        "latents": relative_error(found["latents"], x0.cpu()),
        "images": relative_error(found["images"], images.cpu()),
    }
    parts = (denoiser.module, pipeline.diffusers.vae, pipeline.diffusers.text_encoder)
    rounding = max(torch.finfo(next(part.parameters()).dtype).eps for part in parts)
    tolerance = max(TOLERANCE, 8 * rounding)
    if max(errors.values()) > tolerance:
        raise RuntimeError(
            f"the exported pipeline does not draw what the student draws (latents off by "
            f"{errors['latents']:.2g}, pictures by {errors['images']:.2g}, allowed {tolerance:.2g}); "
            "nothing was written. Check that plan and prediction type are those of the training."
        )
    return {**errors, "tolerance": tolerance}


def _fresh_process(
    folder: Path,
    device: torch.device,
    network: nn.Module,
    noise: Tensor,
    prompts: list[str],
    num_steps: int,
) -> dict[str, Tensor]:
    settings = {
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "device": str(device),
        "steps": num_steps,
        "prompts": prompts,
    }
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch, "given.safetensors"), Path(scratch, "answer.safetensors")
        save_file({"noise": noise}, given)
        arguments = [str(folder.resolve()), str(given), str(answer), json.dumps(settings)]
        run = subprocess.run(
            [sys.executable, "-c", _FRESH_PROCESS, *arguments],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            last = run.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(
                f"the exported pipeline does not load and run in a fresh process ({last[0]}); "
                "nothing was written."
            )
        return load_file(answer)


def check_target(output: str | Path) -> Path:
    """Refuses a place that cannot be exported to; returns it as an absolute path.

    Raises:
        FileExistsError: if it exists and holds something that is no export.
        PermissionError: if it cannot be written.
    """
    target = Path(output).resolve()
    if target.is_dir():
        if any(target.iterdir()) and not (target / RECORD).is_file():
            raise FileExistsError(
                f"{str(target)!r} exists and holds something that is not an earlier export; choose another "
                "folder, or empty it."
            )
    elif target.exists():
        raise FileExistsError(f"{str(target)!r} is a file; give a folder to export to.")
    place = next(path for path in target.parents if path.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(
            f"{str(place)!r} is not writable, so nothing can be exported to {str(target)!r}; choose "
            "another folder."
        )
    return target


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`; what is left of it goes, and parents that were made in vain."""
    made = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # it holds the export
                path.rmdir()


def _move(partial: Path, target: Path) -> None:
    """Puts the finished folder in place; an earlier export goes only when the new one stands."""
    if not target.exists():
        partial.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "export")
    partial.rename(target)
    shutil.rmtree(old)


def _record(
    denoiser: DiffusersDenoiser, plan: StepPlan, base_model: str, errors: Mapping[str, float]
) -> dict[str, Any]:
    steps = [
        {
            "t": step.t.item(),
            "input": [scale.item() for scale in step.input],
            "output": [scale.item() for scale in step.output],
        }
        for step in plan.steps
    ]
    return {
        "format": 1,
        "base_model": base_model,
        "prediction_type": denoiser.prediction_type,
        "plan": {"transition": plan.transition, "steps": steps},
        "fingerprint": fingerprint(denoiser.module),
        "self_test": dict(errors),
        "versions": {name: version(name) for name in ("nitrodistill", "torch", "diffusers")},
    }
