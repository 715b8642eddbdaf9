"""Export: a folder from which plain diffusers draws what the trainer's student draws.

    DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=1, guidance_scale=0)

The StepPlan is baked into the saved scheduler, so that users need no magic timestep; what no scheduler expresses
is refused. The folder is written beside its destination, reloaded by a fresh process that knows diffusers
alone, compared with the trainer's x0 and picture, and only then renamed into place.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nitrodistill.export.card import PICTURE, Card, Measured
from nitrodistill.export.comfyui import workflow_for
from nitrodistill.export.folder import CARD, check_target, folder_for, write_record
from nitrodistill.export.scheduler import scheduler_for_plan
from nitrodistill.export.self_test import SelfTest, absent_parts, self_test
from nitrodistill.models import DiffusersDenoiser, Pipeline, merged
from nitrodistill.models.inputs import baked
from nitrodistill.models.lora import fused
from nitrodistill.models.weights import (
    acting_adapters,
    acting_weights,
    adapter_layers,
    fingerprint,
    rebuilt,
)
from nitrodistill.models.wrappers import role_in, unwrapped
from nitrodistill.sampling import StepPlan, intervals, takes_interval
from nitrodistill.types import PredictionType


def export(
    pipeline: Pipeline,
    student: DiffusersDenoiser | nn.Module,
    plan: StepPlan,
    output: str | Path,
    *,
    base_model: str,
    metrics: Measured | str | None = None,
    licence: str | None = None,
    prompts: Sequence[str] = ("",),
    scheduler: str | None = None,
) -> Path:
    """Writes a student as a diffusers pipeline, tests it in a fresh process and returns its folder.

    Args:
        pipeline: the teacher's pipeline; its VAE, text encoders and tokenizers go with the student.
        student: what was trained: a denoiser (a LoRA role is merged into its network), or its bare network
            (then it predicts as the teacher does). Compiled or prepared by a trainer (DDP) or not; not guided.
        plan: how the student samples, as it was trained: `load_student(...).plan`. A network alone does not know
            it, so that another number of steps is not refused here, as it is by the command line.
        output: the folder to write. It may be missing, empty, or an earlier export, which is replaced.
        base_model: the teacher's name, for the card: a Hub name such as `"user/model"`, or words.
        metrics: what was measured, for the card; a str is a Markdown table.
        licence: the licence's short name for the card, such as `"apache-2.0"`.
        prompts: at least one prompt: for the self-test, and the first one for the card's example.
        scheduler: the diffusers scheduler class to save; by default one that is exact for the plan.

    Returns:
        `output` as a Path.

    Raises:
        FileExistsError: if `output` exists and holds something that is no export.
        PermissionError: if it cannot be written.
        TypeError: if the student is guided, or not the network that the pipeline takes.
        ValueError: what `check_export` and `constant_input` refuse; or there is no prompt.
        RuntimeError: if the reloaded pipeline draws something else. Nothing is left behind.

    Example:
        >>> student = nd.training.load_student(run, teacher)
        >>> more = {"base_model": "toy", "prompts": prompts}
        >>> folder = nd.export.export(teacher, student.denoiser, student.plan, "exported", **more)
        >>> nd.export.verify_export("exported")
    """
    target = check_target(output)
    if not prompts:
        raise ValueError("prompts is empty; give at least one, for the self-test and the card.")
    denoiser = _as_denoiser(pipeline, student)
    kind = denoiser.prediction_type
    value = constant_input(denoiser, plan)
    ready = check_export(pipeline, plan, kind, scheduler)
    network = _called_plainly(pipeline, denoiser, value)
    with folder_for(target) as partial:
        name = pipeline.adapter.exported_as(pipeline.diffusers)
        made = assembled(pipeline, network, ready, name)
        made.save_pretrained(partial, safe_serialization=True)
        test = self_test(partial, pipeline, denoiser, plan, prompts)
        flow = workflow_for(pipeline, plan, kind, target.name, prompts[0])
        comfyui = "" if flow is None else flow.write(partial)
        found = with_picture(metrics, partial)
        card = card_of(
            pipeline, output, plan, test, prompts[0], base_model, found, licence, comfyui
        )
        (partial / CARD).write_text(card.pipeline(), encoding="utf-8")
        write_record(partial, kind, plan, base_model, test, fingerprint(network))
    return Path(output)


def save_with(pipeline: Pipeline, network: nn.Module, output: str | Path) -> Path:
    """Writes a pipeline with another network in place of its own, and all else as it is; returns its folder.

    Raises:
        FileExistsError: if `output` exists and holds something that is no export.
        PermissionError: if it cannot be written.
    """
    target = check_target(output)
    with folder_for(target) as partial:
        made = assembled(pipeline, network, pipeline.scheduler)
        made.save_pretrained(partial, safe_serialization=True)
    return Path(output)


def check_export(
    pipeline: Pipeline,
    plan: StepPlan,
    prediction_type: PredictionType,
    scheduler: str | None = None,
) -> Any:
    """Refuses a student that could not be exported; cheap, to be asked before it is trained.

    Args:
        pipeline: the teacher's pipeline.
        plan: how the student will sample.
        prediction_type: what it will predict.
        scheduler: the diffusers scheduler class to save; by default one that is exact for the plan.

    Returns:
        the scheduler that will be saved.

    Raises:
        ValueError: if the pipeline's call cannot draw what the student draws, a text encoder carries LoRA that is
            not merged, or no such scheduler expresses the plan.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> type(nd.export.check_export(teacher, plan, "v_prediction")).__name__
        'DDIMScheduler'
    """
    pipe, adapter = pipeline.diffusers, pipeline.adapter
    name = type(pipe).__name__
    adapter.call(pipe, [])
    if "height" not in inspect.signature(type(pipe).__call__).parameters:
        own = pipeline.denoiser.adapter.latent_shape()
        if pipeline.latent_shape != own:
            raise ValueError(
                f"{name} draws latents of shape {own} alone, and this student's are {pipeline.latent_shape}; "
                "train it at the resolution that the network was made for."
            )
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module) and part != adapter.network and adapter_layers(module):
            raise ValueError(
                f"the {part} of this {name} carries LoRA, which is not saved with it; merge it first: "
                "pipe.fuse_lora() and pipe.unload_lora_weights()."
            )
    sigmas = adapter.call_sigmas(len(plan))
    return scheduler_for_plan(
        plan, pipeline.scheduler, prediction_type, scheduler, call_sigmas=sigmas
    )


def card_of(
    pipeline: Pipeline, output: str | Path, plan: StepPlan, test: SelfTest, prompt: str, *more: Any
) -> Card:
    """The card of an export of this pipeline; `more` are `Card`'s further arguments from `base_model` on."""
    pipe = pipeline.diffusers
    asked = pipeline.adapter.call(pipe, [prompt])
    return Card(str(output), plan, test.call, asked, *more, absent=absent_parts(pipe))


def with_picture(metrics: Measured | str | None, folder: Path) -> Measured | None:
    """What a card says was measured; its picture is copied into the folder."""
    found = Measured(metrics) if isinstance(metrics, str) else metrics
    if found is not None and found.picture is not None:
        shutil.copyfile(found.picture, folder / PICTURE)
    return found


def _as_denoiser(pipeline: Pipeline, student: object) -> DiffusersDenoiser:
    wanted = type(pipeline.denoiser.network)
    given = student.module if isinstance(student, DiffusersDenoiser) else student
    network = unwrapped(given) if isinstance(given, nn.Module) else given
    if not isinstance(given, nn.Module) or type(network) is not wanted:
        raise TypeError(
            f"the student is a {type(student).__name__} around {type(network).__name__}; export takes a "
            f"{wanted.__name__} or the DiffusersDenoiser around it: unwrap it, and take the guidance off."
        )
    if isinstance(student, DiffusersDenoiser):
        return student
    return pipeline.denoiser.with_module(given)


def constant_input(denoiser: DiffusersDenoiser, plan: StepPlan) -> float | None:
    """The number that a student takes at every step of a plan (`models.inputs`); None: it takes none.

    A diffusers pipeline gives a network nothing but the timestep, so that it has to be baked in. A flow map's
    is how far a step goes: an equal way at each step of a trailing grid, 1/N, but for rounded timesteps.

    Raises:
        ValueError: if the steps are not equally long.
    """
    if not takes_interval(denoiser):
        return next(iter(denoiser.extra_inputs.values()), None)
    found = intervals(plan, denoiser.schedule)
    if max(found) - min(found) > 1e-9:
        raise ValueError(
            f"this student is a flow map, whose input is how far each step goes, and the {len(plan)} steps of its "
            f"plan go from {min(found):.4g} to {max(found):.4g} of the way; a diffusers pipeline can draw equal "
            "steps alone. Export it with a number of steps that divides the timesteps (1, 2, 4, 5, 8 of 1000), or "
            "draw with nitrodistill.sample."
        )
    return found[0]


def _called_plainly(
    pipeline: Pipeline, denoiser: DiffusersDenoiser, value: float | None
) -> nn.Module:
    """The network as it draws with `guidance_scale=0`: LoRA, embedded guidance (Flux-dev), and its number."""
    if role_in(denoiser.module) is not None:
        denoiser = merged(denoiser)
    network = without_lora(denoiser.network)
    if value is not None:
        network = baked(network, value)
    return denoiser.adapter.with_guidance_baked(network, embedded_guidance(pipeline))


def embedded_guidance(pipeline: Pipeline) -> float:
    """The scale of the guidance that students are trained with where it is embedded (Flux-dev), else 0."""
    if not pipeline.denoiser.adapter.embeds_guidance:
        return 0
    return float(pipeline.null_condition()["guidance"])


def assembled(
    pipeline: Pipeline, network: nn.Module, scheduler: Any, name: str | None = None
) -> Any:
    """A pipeline of the teacher's class or that of a name, with its settings and all of its parts but two."""
    import diffusers

    pipe = pipeline.diffusers
    made_by = type(pipe) if name is None else getattr(diffusers, name)
    known = inspect.signature(made_by.__init__).parameters
    settings = {key: pipe.config[key] for key in known if key in pipe.config}
    parts = {**settings, **pipe.components, pipeline.adapter.network: network}
    if "requires_safety_checker" in known:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    parts = {name: unwrapped(p) if isinstance(p, nn.Module) else p for name, p in parts.items()}
    made = made_by(**{**parts, "scheduler": scheduler})
    made.register_to_config(**pipeline.adapter.saved_settings(pipe))
    return made


def without_lora(network: nn.Module) -> nn.Module:
    """The plain network, for saving alone: LoRA that acts is merged into a copy; else the same weights.

    Without the LoRA roles that others play on it, and the wrappers around parts of it.
    """
    if any(acting_adapters(layer) for layer in adapter_layers(network).values()):
        network = fused(network)
    weights = acting_weights(network)
    if weights.keys() == network.state_dict().keys():
        return network
    configured: Any = network
    return rebuilt(network, configured.config, weights)
