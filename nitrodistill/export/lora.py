"""LoRA export: the student's difference from its base model as a file that diffusers loads, and its scheduler.

pipe = DiffusionPipeline.from_pretrained(base_model)
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
pipe.load_lora_weights(folder)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nitrodistill.export.card import Measured, is_hub_name
from nitrodistill.export.comfyui import workflow_for
from nitrodistill.export.folder import CARD, check_target, folder_for, plan_record, write_record
from nitrodistill.export.pipeline import (
    assembled,
    card_of,
    check_export,
    embedded_guidance,
    with_picture,
    without_lora,
)
from nitrodistill.export.self_test import self_test
from nitrodistill.files import hash_file
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.denoiser import frozen
from nitrodistill.models.lora import LoRAConfig, add_lora, free_name
from nitrodistill.models.wrappers import LoRARole, role_in
from nitrodistill.sampling import StepPlan

WEIGHTS = "pytorch_lora_weights.safetensors"  # where load_lora_weights looks
KOHYA = "kohya_lora.safetensors"


def export_lora(
    pipeline: Pipeline,
    student: DiffusersDenoiser,
    plan: StepPlan,
    output: str | Path,
    *,
    base_model: str,
    metrics: Measured | str | None = None,
    licence: str | None = None,
    prompts: Sequence[str] = ("",),
    scheduler: str | None = None,
) -> Path:
    """Writes a LoRA student's weights and scheduler, tests them in a fresh process and returns their folder.

    The file's header holds rank, alpha and layers (which diffusers reads) and, under `nitrodistill`, base model,
    plan and licence. For a UNet there is a second file with the names that ComfyUI and AUTOMATIC1111 know.

    Args:
        pipeline: the teacher's pipeline.
        student: what `add_lora` returned for the teacher, trained.
        plan: how the student samples.
        output: the folder to write; see `export`.
        base_model: what the example in the card loads: a Hub name such as `"user/model"`, or a path.
        metrics: what was measured, for the card; a str is a Markdown table.
        licence: the licence's short name for the card.
        prompts: at least one prompt: for the self-test, and the first one for the card's example.
        scheduler: the diffusers scheduler class to save; by default one that is exact for the plan.

    Returns:
        `output` as a Path.

    Raises:
        FileExistsError: if `output` exists and holds something that is no export.
        PermissionError: if it cannot be written.
        TypeError: if the student is no LoRA role.
        ValueError: if its pipeline cannot load LoRA, no such scheduler expresses the plan, or there is no prompt.
        RuntimeError: if base model and file together draw something else. Nothing is left behind.

    Example:
        >>> student = nd.add_lora(teacher.denoiser.copy(), "student", nd.LoRAConfig(rank=2))
        >>> plan = nd.StepPlan.from_schedule(student.schedule)
        >>> _ = nd.export.export_lora(teacher, student, plan, "lora", base_model="toy", prompts=prompts)
    """
    target = check_target(output)
    if not prompts:
        raise ValueError("prompts is empty; give at least one, for the self-test and the card.")
    role = _role(student)
    kind: Any = type(pipeline.diffusers)
    if not callable(getattr(kind, "save_lora_weights", None)):
        raise ValueError(
            f"{kind.__name__} cannot load LoRA weights, so there is nothing to write for it; use export, which "
            "merges them into a whole pipeline."
        )
    ready = check_export(pipeline, plan, student.prediction_type, scheduler)
    with folder_for(target) as partial:
        weights = {name: value.detach().cpu() for name, value in role.state_dict().items()}
        config = _config(role)
        _write(kind, pipeline.adapter.network, partial, weights, config)
        about = {"base_model": base_model, "licence": licence, "plan": plan_record(plan)}
        scale = {"rank": config["r"], "alpha": config["lora_alpha"]}
        _sign(partial / WEIGHTS, {**about, **scale})
        if pipeline.adapter.network == "unet":
            _write_kohya(partial / KOHYA, weights, config["lora_alpha"])
        ready.save_pretrained(partial / "scheduler")
        with _base(pipeline) as base:
            test = self_test(
                base, pipeline, student, plan, prompts, partial, embedded_guidance(pipeline)
            )
        file = KOHYA if (partial / KOHYA).exists() else WEIGHTS
        flow = workflow_for(
            pipeline, plan, student.prediction_type, target.name, prompts[0], lora=file
        )
        comfyui = "" if flow is None else flow.write(partial)
        found = with_picture(metrics, partial)
        card = card_of(
            pipeline, output, plan, test, prompts[0], base_model, found, licence, comfyui
        )
        (partial / CARD).write_text(card.lora(type(ready).__name__), encoding="utf-8")
        digest = hash_file(partial / WEIGHTS)
        write_record(partial, student.prediction_type, plan, base_model, test, digest)
    return Path(output)


def load_lora(folder: str | Path, pipeline: Pipeline) -> DiffusersDenoiser:
    """The student in a folder that `export_lora` wrote, as a role on the pipeline's network, frozen.

    Args:
        folder: of the export.
        pipeline: its base model, which stays what it is between the student's calls.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another network, or of an older version that did not note its rank.
    """
    file, start = Path(folder) / WEIGHTS, f"{pipeline.adapter.network}."
    weights = {name.removeprefix(start): value for name, value in load_file(file).items()}
    with safe_open(file, "pt") as opened:
        about = json.loads((opened.metadata() or {}).get("nitrodistill", "{}"))
    layers = tuple(sorted({name.split(".lora_")[0] for name in weights}))
    try:
        config = LoRAConfig(about["rank"], about["alpha"], layers)
        student = add_lora(pipeline.denoiser, free_name(pipeline.denoiser, "student"), config)
        student.module.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{file} does not fit this base model, or an older version wrote it ({str(error)[:120]}); give its "
            "base model, or export again."
        ) from error
    frozen(student.module).requires_grad_(False)
    return student


def _role(student: DiffusersDenoiser) -> LoRARole:
    role = role_in(student.module)
    if role is not None:
        return role
    raise TypeError(
        f"the student's module is {type(student.module).__name__}, which is no LoRA role; export_lora takes what "
        "add_lora returned, and export takes whole networks."
    )


def _config(role: LoRARole) -> dict[str, Any]:
    """peft's configuration of a role, read from its layers."""
    from peft import LoraConfig

    layers = sorted({name.split(".lora_")[0] for name in role.state_dict()})
    layer: Any = role.network.get_submodule(layers[0])
    own = role.get_submodule(f"{layers[0]}.lora_A").weight
    (key,) = (key for key, part in layer.lora_A.items() if part.weight is own)
    config = LoraConfig(r=layer.r[key], lora_alpha=layer.lora_alpha[key], target_modules=layers)
    return config.to_dict()


def _write(
    kind: Any, network: str, folder: Path, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    header: dict[str, Any] = {f"{network}_lora_adapter_metadata": config}
    kind.save_lora_weights(folder, **{f"{network}_lora_layers": weights}, **header)


def _sign(file: Path, about: dict[str, Any]) -> None:
    """Adds what the file is to its header."""
    with safe_open(file, "pt") as opened:
        header = dict(opened.metadata() or {})
    save_file(load_file(file), file, metadata={**header, "nitrodistill": json.dumps(about)})


def _write_kohya(file: Path, weights: dict[str, Tensor], alpha: float) -> None:
    from diffusers.utils import convert_state_dict_to_kohya

    found = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in weights.items()})
    scale = torch.tensor(float(alpha))  # diffusers writes the rank there
    named = {k: scale.clone() if k.endswith(".alpha") else v for k, v in found.items()}
    save_file({k: v.contiguous() for k, v in named.items()}, file, metadata={"format": "pt"})


@contextmanager
def _base(pipeline: Pipeline) -> Iterator[str | Path]:
    """Where a fresh process finds the base model: where it came from, else saved for the occasion."""
    name = str(pipeline.diffusers.config.get("_name_or_path") or "")
    if (Path(name) / "model_index.json").is_file():
        yield Path(name)
        return
    if is_hub_name(name):  # it is in the local cache
        yield name
        return
    with tempfile.TemporaryDirectory() as scratch:
        network = without_lora(pipeline.denoiser.network)
        assembled(pipeline, network, pipeline.scheduler).save_pretrained(scratch)
        yield Path(scratch)
