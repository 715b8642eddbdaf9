"""As `surface`, for networks, stores, settings and pictures; and what of the public is in no table."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

import nitrodistill as nd
from nitrodistill import data as stores
from nitrodistill import demo, evaluation, losses, methods, toy, training
from nitrodistill.data import Column, DictRows, GenerateConfig, PairStore, generate
from nitrodistill.models import Pipeline
from tests.pipelines import tiny_pipeline
from tests.surface import Call, Wrong, choice, data, mask, number, per_sample, whole

Kinds = Callable[[Any], Iterator[Wrong]]

PACKAGES = (
    "nitrodistill",
    "nitrodistill.data",
    "nitrodistill.discriminator",
    "nitrodistill.evaluation",
    "nitrodistill.evaluation.report",
    "nitrodistill.export",
    "nitrodistill.losses",
    "nitrodistill.losses.functional",
    "nitrodistill.methods",
    "nitrodistill.models",
    "nitrodistill.models.adapters",
    "nitrodistill.schedules",
    "nitrodistill.toy",
    "nitrodistill.training",
    "nitrodistill.kernels",
    "nitrodistill.demo",
)

RECORD, ABSTRACT, TYPE = "holds what a function returns", "is made by subclasses", "is a type"
FILES = "reads files of a run: hostile ones in test_fuzz, test_faults, test_verbs and its own tests"
NETWORKS = "takes whole networks or pipelines of a family: test_road and its own tests"
ELSEWHERE = {
    **dict.fromkeys(
        ("Batch", "Pairs", "Latents", "Terms", "Frozen", "Role", "Cast", "Side", "Alarm"), RECORD
    ),
    **dict.fromkeys(
        (
            "TargetFeatures",
            "FeatureShape",
            "Entry",
            "State",
            "TrainedStudent",
            "Student",
            "Checkpoint",
        ),
        RECORD,
    ),
    **dict.fromkeys(
        ("Evaluation", "Metric", "MetricInfo", "Pictures", "Sample", "Timing", "Statistics"), RECORD
    ),
    **dict.fromkeys(
        ("Assessment", "Comparison", "Verdict", "Captioned", "DryRun", "Values", "LossSpec"), RECORD
    ),
    **dict.fromkeys(
        ("Encoded", "Generated", "Imported", "Grid", "File", "Manifest", "Attributes", "Best"),
        RECORD,
    ),
    **dict.fromkeys(("AdversarialLoss", "DistillationMethod", "Loss", "Work", "Penalty"), ABSTRACT),
    **dict.fromkeys(
        ("Denoiser", "NoiseSchedule", "TimestepLaw", "PredictionType", "Reduction"), TYPE
    ),
    **dict.fromkeys(
        ("Embeddings", "Encoding", "FloatType", "Noise", "Source", "TextScore", "Alignment"), TYPE
    ),
    **dict.fromkeys(
        (
            "RealImages",
            "DictRows",
            "Adapter",
            "PipelineAdapter",
            "Backend",
            "Conditioned",
            "MakeHead",
            "ProjectableHead",
        ),
        TYPE,
    ),
    **dict.fromkeys(
        ("load_run_recipe", "load_student", "load_denoiser", "find_student", "find_checkpoints"),
        FILES,
    ),
    **dict.fromkeys(
        ("best_checkpoint", "newest_checkpoint", "push", "check_hub", "save_recipe"), FILES
    ),
    **dict.fromkeys(
        ("Merge", "merge", "NitroImport", "Generation", "generate", "encode", "complete"), FILES
    ),
    **dict.fromkeys(
        ("export", "export_lora", "verify_export", "scheduler_for_plan", "check_export"), NETWORKS
    ),
    **dict.fromkeys(
        ("Pipeline", "DiffusersDenoiser", "add_lora", "merged", "evaluate", "help_draw"), NETWORKS
    ),
    **dict.fromkeys(
        ("measure_student", "run_recipe", "Trainer", "place_frozen", "prepare_frozen"), NETWORKS
    ),
    **dict.fromkeys(
        ("adapter_for", "pipeline_adapter_for", "first_tensor", "image_tokens", "on_grid"), NETWORKS
    ),
    **dict.fromkeys(
        (
            "LADD",
            "Previewer",
            "make_accelerator",
            "Oracle",
            "oracle_maps",
            "run_demo",
            "load_teacher",
            "DecoderFeatures",
        ),
        NETWORKS,
    ),
    **dict.fromkeys(("DMD2", "Consistency", "FlowMap", "FeatureKD", "Progressive"), NETWORKS),
    **dict.fromkeys(
        ("report_html", "comparison_html", "model_card_table", "model_results", "write_report"),
        "takes an Evaluation",
    ),
    **dict.fromkeys(("write_comparison", "compare", "verdict", "assess"), "takes an Evaluation"),
    **dict.fromkeys(
        (
            "load_pipeline",
            "load_dit_pipeline",
            "load_student_pipeline",
            "load_oracle",
            "known_methods",
        ),
        "takes nothing",
    ),
    **dict.fromkeys(
        ("StopSignals", "Prefetch", "with_progress", "frozen_within", "together"),
        "takes a callable",
    ),
    **dict.fromkeys(
        ("count_flops", "peak_memory", "shuffled_captions"), "takes a callable or a seed"
    ),
    "Measured": "takes text for people: tests/export/test_card",
    "save_pipeline": "takes a folder: tests/toy",
    "info": "answers for any name: extractors have names of their own",
    "learning_rate_factor": "takes what the trainer counts",
    "use": "takes a word: test_backend",
}


class Spy:
    """A denoiser that answers with what it is shown, and checks nothing."""

    def __init__(self, schedule: nd.NoiseSchedule | None = None) -> None:
        self.module: nn.Module = nn.Identity()
        self.schedule: nd.NoiseSchedule = schedule or nd.RectifiedFlow()
        self.prediction_type: nd.PredictionType = "flow_prediction"

    def __call__(self, x_t: Tensor, t: Tensor, condition: nd.Condition) -> Tensor:
        return 0.5 * x_t + condition["text"].mean(1).reshape(-1, 1, 1, 1)


@cache
def store() -> PairStore:
    """Five pairs of two prompts of a tiny pipeline."""
    folder = Path(tempfile.mkdtemp()) / "pairs"
    config = GenerateConfig(5, num_inference_steps=1, guidance=1.0, shard_size=2)
    teacher = Pipeline.from_diffusers(tiny_pipeline("sd15"))
    return generate(teacher, ["a", "b"], folder, config, teacher_name="tiny", progress=False)


def rows(value: list[int]) -> Iterator[Wrong]:
    """What is wrong for places in a store of five."""
    yield from (
        Wrong(f"{w}", w) for w in ([], [-1], [5], [0.5], [math.nan], ["a"], [None], None, 0, "0")
    )


def places(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for `(B,)` numbers of prompts, of which there are two."""
    yield from (
        Wrong("none", None),
        Wrong("floats", value.float()),
        Wrong("below", value - 5),
        Wrong("many", value + 9),
    )
    yield from (
        Wrong("one too many", torch.cat([value, value[:1]])),
        Wrong("(B, 1)", value[:, None]),
    )


def features(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for features `(n, F)` that are compared with others: NaN is refused, too."""
    for w in data(value):
        if w.what not in ("a sample more", "a sample that would broadcast"):
            yield Wrong(w.what, w.value)
    yield Wrong("infinite", value * math.inf)
    yield Wrong("another width", value[:, :-1])


def images(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for images `(B, C, H, W)` alone."""
    yield from (w for w in data(value) if "sample" not in w.what)
    yield from (Wrong("(C, H, W)", value[0]), Wrong("one pixel", value[..., :1, :1]))


def words(value: Any) -> Iterator[Wrong]:
    """What is wrong for a name or a path."""
    yield from (Wrong(repr(w), w) for w in ("nonsense", "", 3, None, math.nan, ["a"]))


def switch(value: Any) -> Iterator[Wrong]:
    """What is wrong for true or false."""
    yield from (Wrong(repr(w), w) for w in ("false", "no", 2, math.nan, [0]))


def texts(value: Any) -> Iterator[Wrong]:
    """What is wrong for a text."""
    yield from (Wrong(repr(w), w) for w in (3, math.nan, ["a"], True))


def settings(cls: type) -> tuple[dict[str, Any], dict[str, Kinds]]:
    """The defaults of a dataclass of settings, and what is wrong for each field by its type."""
    defaults: dict[str, Any] = {}
    wrong: dict[str, Kinds] = {}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING:
            continue
        defaults[field.name], hint = field.default, get_type_hints(cls)[field.name]
        kinds = () if get_origin(hint) in (tuple, list, dict) else (hint, *get_args(hint))
        if get_origin(hint) is Literal:
            wrong[field.name] = choice
        elif float in kinds:
            wrong[field.name] = _no_number
        elif int in kinds:
            wrong[field.name] = _no_whole
        elif bool in kinds:
            wrong[field.name] = switch
        elif str in kinds:
            wrong[field.name] = texts
    return defaults, wrong


def _no_number(value: Any) -> Iterator[Wrong]:
    yield from number(-math.inf)(value)


def _no_whole(value: Any) -> Iterator[Wrong]:
    yield from (Wrong(repr(v), v) for v in (1.5, math.nan, math.inf, "2", [2], True, 2.0))


def object_calls(seed: int = 0) -> dict[str, Call]:
    """What is public and made of objects, called rightly; a name begins with what it is of."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) + 0.05

    made: dict[str, Call] = {}

    def add(name: str, function: Callable[..., Any], arguments: Any, wrong: Any) -> None:
        made[name] = Call(function, arguments, wrong, in_words=False)

    _add_settings(add)
    _add_sampling(add, rand)
    _add_losses(add, rand)
    _add_data(add, rand)
    _add_evaluation(add, rand)
    _add_training(add, rand)
    return made


def _add_settings(add: Callable[..., None]) -> None:
    for cls in (
        nd.GenerateConfig,
        stores.EncodeConfig,
        stores.NitroConfig,
        stores.PromptConfig,
        evaluation.EvaluateConfig,
        demo.DemoConfig,
        nd.LADDConfig,
        nd.LoRAConfig,
        nd.OptimizerConfig,
        nd.TrainerConfig,
    ):
        add(cls.__name__, cls, *settings(cls))
    for name, kind in (
        ("evaluate_samples", whole(4)),
        ("num_inference_steps", _no_whole),
        ("guidance", _no_number),
    ):
        stage = training.Stage("ladd", nd.TrainerConfig(), nd.LADDConfig())
        made = {"teacher": "toy", "output": "runs/x", "stages": [stage], "pairs": "p", name: 8}
        add(f"Recipe {name}", training.Recipe, made, {name: kind})
    add(
        "Stage",
        lambda **k: training.Stage(trainer=nd.TrainerConfig(), **k),
        {"method": "ladd", "teacher": "recipe"},
        {
            "method": words,
            "teacher": lambda v: (*texts(v), Wrong("none", None), Wrong("empty", "")),
        },
    )


def _add_sampling(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    flow, spy = nd.RectifiedFlow(), Spy()
    condition, empty = nd.Condition({"text": rand(3, 5)}), nd.Condition({"text": rand(1, 5)})
    noise = rand(3, 2, 4, 4)
    plan = nd.StepPlan.from_schedule(flow, 3)
    fraction: Kinds = number(0, zero=True, high=1)
    add(
        "Guided",
        lambda **k: nd.Guided(spy, null=empty, **k),
        {"scale": 2.0, "rescale": 0.5},
        {"scale": number(1, zero=True), "rescale": fraction},
    )
    add(
        "Guided interval",
        lambda **k: nd.Guided(spy, 2.0, empty, **k),
        {"interval": (0.0, 0.5)},
        {"interval": _ends},
    )
    add("Guided null", lambda **k: nd.Guided(spy, 2.0, **k), {"null": empty}, {"null": _null})
    add(
        "Condition",
        nd.Condition,
        {"tensors": {"a": rand(3, 5)}, "prompt_ids": torch.arange(3)},
        {
            "tensors": _bags,
            "prompt_ids": lambda v: (
                Wrong(w, x) for w, x in (("a list", [1, 2, 3]), ("short", v[:1]))
            ),
        },
    )
    add("Condition.null", condition.null, {"empty": empty}, {"empty": _null})
    add(
        "Condition.null where",
        lambda where: condition.null(empty, where),
        {"where": torch.tensor([True, False, True])},
        {
            "where": lambda v: (
                w
                for w in (
                    Wrong("short", v[:2]),
                    Wrong("(B, 1)", v[:, None]),
                    Wrong("floats", v.float()),
                )
            )
        },
    )
    add(
        "Step",
        lambda t: nd.Step(t, nd.Scales(*rand(2, 3)), nd.Scales(*rand(2, 3))),
        {"t": rand(3)},
        {
            "t": lambda v: (
                w
                for w in per_sample(v)
                if w.what in ("no tensor", "(B, 1)", "one too many", "(1,)")
            )
        },
    )
    add(
        "StepPlan",
        nd.StepPlan,
        {"steps": plan.steps, "transition": "ode"},
        {
            "steps": lambda v: (
                w for w in (Wrong("none", ()), Wrong("no steps", (1, 2)), Wrong("None", None))
            ),
            "transition": choice,
        },
    )
    add("StepPlan.at", plan.at, {"u": rand(3).clamp(max=0.99)}, {"u": _draws})
    for name in ("predict_x0", "predict_both"):
        add(
            name,
            lambda name=name, **k: getattr(nd, name)(spy, plan.steps[0], condition=condition, **k),
            {"x_t": noise},
            {"x_t": latents},
        )
    add(
        "ode_step",
        lambda **k: nd.ode_step(spy, plan.steps[0], plan.steps[1], condition=condition, **k),
        {"x_t": noise},
        {"x_t": latents},
    )
    add(
        "sample",
        lambda **k: nd.sample(spy, plan, condition=condition, **k),
        {"noise": noise, "start": 0, "stop": 2},
        {
            "noise": latents,
            "start": _places,
            "stop": lambda v: (Wrong(repr(w), w) for w in (0, -1, 9, 1.5, "1")),
        },
    )
    for name, schedule in (
        ("DiscreteSchedule", nd.DiscreteSchedule(torch.linspace(0.99, 0.01, 50))),
        ("RectifiedFlow", flow),
        ("KarrasSchedule", nd.KarrasSchedule()),
    ):
        last = schedule.timestep(torch.ones(3))
        add(f"{name} fraction", schedule.fraction, {"t": last}, {"t": _out_of_range})
        add(f"{name} scales", schedule, {"t": last}, {"t": _negative})
    add(
        "ZeroTerminalSNR",
        nd.ZeroTerminalSNR().rescale_betas,
        {"betas": torch.full((9,), 0.1)},
        {"betas": _betas},
    )
    add(
        "check_convertible",
        lambda **k: nd.check_convertible(**k) or k,
        {"scales": nd.Scales(rand(3), rand(3)), "source": "epsilon", "target": "sample"},
        {"source": choice, "target": choice},
    )
    add(
        "convert_prediction",
        lambda **k: nd.convert_prediction(noise, noise, nd.Scales(rand(3), rand(3)), **k),
        {"source": "epsilon", "target": "sample"},
        {"source": choice, "target": choice},
    )
    add(
        "expand",
        nd.expand,
        {"value": rand(3), "like": noise},
        {
            "value": lambda v: (
                w for w in per_sample(v) if w.what in ("(B, 1)", "one too many", "(1, B)")
            )
        },
    )
    index = torch.tensor([3, 5])
    for kind in ("normal", "uniform"):
        add(
            f"Draws.{kind}",
            lambda kind=kind, seed=0, step=0, stage=0, index=index, name="n", shape=(2,): getattr(
                nd.Draws(seed, step, index, stage=stage), kind
            )(name, shape),
            {"seed": 0, "step": 1, "stage": 0, "index": index, "name": "n", "shape": (2,)},
            {
                "seed": _no_whole,
                "step": _no_whole,
                "stage": _no_whole,
                "index": lambda v: (
                    w
                    for w in (Wrong("floats", v + 0.5), Wrong("2-d", v[None]), Wrong("a list", [1]))
                ),
                "shape": lambda v: (Wrong(repr(w), w) for w in ((-1,), (1.5,), 2.5, "ab")),
            },
        )
    unet = Pipeline.from_diffusers(tiny_pipeline("sd15")).denoiser
    add(
        "LatentDiscriminator",
        lambda **k: nd.LatentDiscriminator(unet, **k),
        {"taps": ("conv_in",), "width": 8, "seed": 0},
        {
            "taps": lambda v: (
                Wrong(repr(w), w)
                for w in (
                    (),
                    ("nonsense",),
                    ("conv_in", "conv_in"),
                    (math.nan,),
                    (2.0,),
                    (0.0,),
                    (None,),
                )
            ),
            "width": lambda v: (Wrong(repr(w), w) for w in (0, -1, 1.5, "8", math.nan, True)),
            "seed": _no_whole,
        },
    )
    add(
        "FeatureTaps",
        lambda **k: nd.FeatureTaps(unet, **k),
        {"taps": (0.5,)},
        {"taps": lambda v: (Wrong(repr(w), w) for w in ((), ("nonsense",), (math.nan,), (-1.0,)))},
    )
    for head in (nd.ConvHead, nd.TokenHead):
        add(
            head.__name__,
            head,
            {"channels": 8, "width": 4},
            {
                "channels": whole(1),
                "width": lambda v: (w for w in whole(1)(v) if w.value is not None),
            },
        )


def _add_losses(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    pair = {"pred": rand(3, 3, 12, 12), "target": rand(3, 3, 12, 12), "mask": rand(3, 1, 12, 12)}
    of_pair: dict[str, Kinds] = {"pred": data, "target": data, "mask": mask}
    convolution = nn.Conv2d(3, 5, 3).requires_grad_(False)
    made: dict[str, nd.Loss] = {
        "L1Loss": nd.L1Loss(reduction="none"),
        "L2Loss": nd.L2Loss(reduction="none"),
        "SmoothL1Loss": nd.SmoothL1Loss(reduction="none"),
        "HuberLoss": nd.HuberLoss(reduction="none"),
        "PseudoHuberLoss": nd.PseudoHuberLoss(reduction="none"),
        "CharbonnierLoss": nd.CharbonnierLoss(reduction="none"),
        "SSIMLoss": nd.SSIMLoss(data_range=1.0, window_size=3, reduction="none"),
        "MSSSIMLoss": nd.MSSSIMLoss(
            data_range=1.0, window_size=3, weights=(0.5, 0.5), reduction="none"
        ),
        "LatentSSIMLoss": nd.LatentSSIMLoss(2.0, window_size=3, reduction="none"),
        "LaplacianPyramidLoss": nd.LaplacianPyramidLoss(2, reduction="none"),
        "LPIPSLoss": nd.LPIPSLoss(lambda x: [convolution(x)], reduction="none"),
        "DecodedLoss": nd.DecodedLoss(
            nd.L1Loss(), lambda z: z.repeat_interleave(2, -1), reduction="none"
        ),
        "MultiScaleLoss": nd.MultiScaleLoss(nd.L1Loss(), (0.5, 0.5), reduction="none"),
        "WeightedSum": nd.WeightedSum(
            {"a": (1.0, nd.L1Loss()), "b": (0.0, nd.L2Loss())}, reduction="none"
        ),
    }
    for name, loss in made.items():
        add(
            f"{name} of a batch", loss, pair | {"weight": rand(3)}, of_pair | {"weight": per_sample}
        )
    add(
        "LPIPSLoss",
        lambda **k: nd.LPIPSLoss(lambda x: [x], **k),
        {"value_range": (0.0, 1.0), "reduction": "sum"},
        {"value_range": _ends, "reduction": choice},
    )
    add(
        "DecodedLoss",
        lambda **k: nd.DecodedLoss(decode=lambda z: z, **k),
        {"loss": nd.L1Loss(), "chunk": 2},
        {"loss": choice, "chunk": lambda v: (w for w in whole(1)(v) if w.value is not None)},
    )
    add(
        "WeightedSum",
        lambda weight: nd.WeightedSum({"a": (weight, nd.L1Loss())}),
        {"weight": 1.0},
        {"weight": number(0, zero=True)},
    )
    for kind in (nd.L1Loss, nd.L2Loss, nd.LatentSSIMLoss, nd.MSSSIMLoss):
        more = {"data_range": 1.0} if kind in (nd.LatentSSIMLoss, nd.MSSSIMLoss) else {}
        add(f"{kind.__name__} reduction", kind, {"reduction": "sum"} | more, {"reduction": choice})
    for kind in (
        nd.HingeGANLoss,
        nd.LeastSquaresGANLoss,
        nd.NonSaturatingGANLoss,
        nd.RelativisticGANLoss,
    ):
        game = kind()
        add(
            f"{kind.__name__}.discriminator",
            game.discriminator,
            {"real": rand(3, 5), "fake": rand(3, 5)},
            {"real": _logits, "fake": _logits},
        )
    samples = rand(3, 4).requires_grad_(True)
    add(
        "gradient_penalty",
        losses.gradient_penalty,
        {"logits": samples.square().sum(1), "inputs": samples},
        {
            "logits": lambda v: (
                w
                for w in (
                    Wrong("no tensor", 1.0),
                    Wrong("cut off", v.detach()),
                    Wrong("ints", v.long()),
                )
            ),
            "inputs": lambda v: (
                w
                for w in (
                    Wrong("no tensor", 1.0),
                    Wrong("other", v.detach().clone().requires_grad_(True)),
                    Wrong("frozen", v.detach()),
                    Wrong("none", ()),
                )
            ),
        },
    )
    add(
        "approximate_gradient_penalty logits",
        lambda **k: losses.approximate_gradient_penalty(
            lambda x: x.mean(1), rand(3, 4), noise=rand(3, 4), scale=0.1, **k
        ),
        {"logits": rand(3)},
        {"logits": lambda v: (w for w in data(v) if "sample" in w.what or "NaN" in w.what)},
    )
    add("named_loss", lambda name: nd.named_loss(name), {"name": "l1"}, {"name": words})
    add(
        "named_adversarial",
        lambda name: nd.named_adversarial(name),
        {"name": "hinge"},
        {"name": words},
    )
    add(
        "named_law",
        lambda spec: nd.named_law(spec),
        {"spec": {"logit_normal": {"mean": 0.0, "std": 1.0}}},
        {"spec": laws},
    )
    add(
        "check_losses",
        lambda specs: nd.check_losses(specs) or specs,
        {"specs": {"l1": 1.0}},
        {
            "specs": lambda v: (
                Wrong(repr(w), w)
                for w in (
                    {"nonsense": 1.0},
                    {"l1": math.nan},
                    {"l1": -1.0},
                    {"l1": "a"},
                    {"l1": {"weigth": 1}},
                )
            )
        },
    )


def _add_data(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    pairs = store()
    held = nd.LatentStore(pairs)
    for name, read in (
        ("PairStore", pairs.read),
        ("PairStore latents", pairs.read_latents),
        ("LatentStore", held.read),
    ):
        add(f"{name}.read" if " " not in name else name, read, {"rows": [0, 4]}, {"rows": rows})
    add("PairStore.condition", pairs.condition, {"prompt_ids": [1, 0]}, {"prompt_ids": rows})
    add("Prompts.read", nd.Prompts.of(pairs).read, {"rows": [1, 0]}, {"rows": rows})
    add("Prompts", lambda texts: nd.Prompts(texts, len), {"texts": ["a"]}, {"texts": _prompts})
    for name, opened in (("PairStore", PairStore.open), ("LatentStore", nd.LatentStore.open)):
        add(f"{name}.open", opened, {"path": str(pairs.path)}, {"path": words})
    for name, read in (("read_prompts", stores.read_prompts), ("read_lines", stores.read_lines)):
        add(
            name,
            read,
            {"path": __file__},
            {"path": lambda v: (w for w in words(v) if w.value != "")},
        )
    add("open_images", stores.open_images, {"path": _pictures()}, {"path": words})
    sizes = {"seed": 0, "batch_size": 4, "rank": 0, "world_size": 2, "stage": 0, "window": 1}
    add(
        "BatchStream",
        lambda **k: nd.BatchStream(pairs, **k),
        sizes,
        {
            "seed": _no_whole,
            "batch_size": whole(1),
            "rank": _places,
            "world_size": whole(1),
            "stage": _no_whole,
            "window": lambda v: (w for w in whole(1)(v) if w.value is not None),
        },
    )
    add("BatchStream number", nd.BatchStream(pairs, 0, 2), {"i": 3}, {"i": _places})
    row = {"x0": rand(1, 2, 2), "noise": rand(1, 2, 2)}
    add(
        "RowPairs.read",
        lambda rows: stores.RowPairs([row, row]).read(rows),
        {"rows": [0, 1]},
        {"rows": lambda v: (Wrong(f"{w}", w) for w in ([], [-1], [2], [0.5], ["a"], [None]))},
    )
    add("collate_pairs", stores.collate_pairs, {"rows": [row, row]}, {"rows": _row_dicts})
    add(
        "RowPairs",
        lambda rows: stores.RowPairs(rows).read([0, 1]),
        {"rows": [row, row]},
        {"rows": _row_dicts},
    )
    add(
        "Column",
        Column,
        {"dtype": "float32", "shape": (1, 2, 2), "encoding": "raw"},
        {
            "dtype": choice,
            "encoding": choice,
            "shape": lambda v: (Wrong(repr(w), w) for w in ((-1,), (0,), (1.5,), ("a",))),
        },
    )
    add("statistics", stores.statistics, {"store": pairs}, {})


def _add_evaluation(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    first, second, pictures = rand(9, 3), rand(9, 3), rand(4, 3, 16, 16)
    ev = evaluation
    add(
        "GaussianStatistics.of",
        ev.GaussianStatistics.of,
        {"features": first},
        {"features": lambda v: (w for w in features(v) if w.what != "another width")},
    )
    known = ev.GaussianStatistics.of(first)
    add(
        "frechet_distance",
        lambda a, b: [
            ev.frechet_distance(ev.GaussianStatistics.of(a), ev.GaussianStatistics.of(b))
        ],
        {"a": first, "b": second},
        {"a": features, "b": features},
    )
    add(
        "extrapolated_floor",
        lambda a: [ev.extrapolated_floor(ev.GaussianStatistics.of(a), known)],
        {"a": second},
        {"a": features},
    )
    gaussian = {
        "mean_a": known.mean,
        "cov_a": known.covariance,
        "mean_b": known.mean + 1,
        "cov_b": known.covariance,
    }
    add(
        "gaussian_distance",
        ev.gaussian_distance,
        gaussian,
        {
            **dict.fromkeys(("mean_a", "mean_b"), _mean),
            **dict.fromkeys(("cov_a", "cov_b"), _covariance),
        },
    )
    for kernel in ("cubic", "gaussian"):
        add(
            f"KernelDistance {kernel}",
            lambda kernel=kernel, **k: ev.KernelDistance(kernel=kernel, **k).interval(),
            {"first": first, "second": second},
            {"first": _whole_set(features), "second": _whole_set(features)},
        )
    add(
        "KernelDistance",
        lambda kernel: ev.KernelDistance(first, second, kernel),
        {"kernel": "cubic"},
        {"kernel": choice},
    )
    add(
        "manifold_scores",
        ev.manifold_scores,
        {"pictures": first, "reference": second, "neighbours": 3},
        {"pictures": features, "reference": features, "neighbours": whole(1)},
    )
    add(
        "NearestPair",
        lambda latents: ev.NearestPair(latents).distances(second),
        {"latents": first},
        {"latents": features},
    )
    add(
        "NearestPair.distances",
        ev.NearestPair(first).distances,
        {"latents": second},
        {"latents": lambda v: (w for w in features(v) if w.what != "empty")},
    )

    def spread(ids: Tensor, samples: Tensor) -> Any:
        found = ev.PromptSpread(2)
        found.update(ids, samples)
        return found.spread()

    add("PromptSpread", ev.PromptSpread, {"num_prompts": 2}, {"num_prompts": whole(0)})
    add(
        "PromptSpread.update",
        spread,
        {"ids": torch.arange(9) % 2, "samples": first},
        {
            "ids": places,
            "samples": lambda v: (
                Wrong(w.what, w.value) for w in data(v) if w.what != "a dimension more"
            ),
        },
    )
    for name in ("edge_strength", "gradient_energy", "high_frequency_energy"):
        add(name, getattr(ev, name), {"images": pictures}, {"images": images})
    add(
        "TextureFeatures call",
        ev.TextureFeatures(),
        {"images": pictures},
        {"images": lambda v: (*images(v), Wrong("another channel", v[:, :2]))},
    )
    add(
        "TextureFeatures",
        ev.TextureFeatures,
        {"channels": 3, "num_filters": 4, "size": 5, "seed": 0},
        {"channels": whole(1), "num_filters": whole(1), "size": whole(2), "seed": _no_whole},
    )
    add(
        "Extractor",
        lambda **k: ev.Extractor(features=torch.flatten, **k),
        {"name": "a", "kernel": "cubic"},
        {
            "name": lambda v: (Wrong(repr(w), w) for w in ("", "a@b", "\x1b", "a\nb", 3, None)),
            "kernel": lambda v: (w for w in choice(v) if w.value is not None),
        },
    )
    add(
        "Extractor call",
        ev.Extractor("a", lambda x: x.flatten(1)),
        {"images": pictures},
        {
            "images": lambda v: (
                Wrong(w.what, w.value)
                for w in (Wrong("NaN", v * math.nan), Wrong("inf", v * math.inf))
            )
        },
    )
    add(
        "measure",
        lambda **k: ev.measure({"a": int}, **k),
        {"repeats": 1, "warmup": 0},
        {"repeats": whole(1), "warmup": whole(0)},
    )
    add(
        "ImageFolder",
        ev.ImageFolder,
        {"path": _pictures(), "size": 8},
        {"path": words, "size": lambda v: (w for w in whole(2)(v) if w.value is not None)},
    )
    shown = ev.Pictures(("a",), {"teacher": pictures[:1]})
    add(
        "draw_grid",
        lambda images: ev.draw_grid(
            dataclasses.replace(shown, images={"a": images}), Path(tempfile.mkdtemp()) / "a.png"
        ),
        {"images": pictures[:1]},
        {
            "images": lambda v: (
                Wrong(w.what, w.value) for w in (Wrong("(C, H, W)", v[0]), Wrong("none", None))
            )
        },
    )


def _add_training(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    add(
        "EMA",
        lambda decay: training.EMA(nn.Linear(2, 2), decay),
        {"decay": 0.5},
        {"decay": lambda v: (w for w in number(0, zero=True, high=1)(v))},
    )
    add(
        "parse_recipe",
        training.parse_recipe,
        {
            "data": {
                "teacher": "toy",
                "output": "x",
                "pairs": "p",
                "stages": [{"method": "ladd", "trainer": {"steps": 1}}],
            }
        },
        {
            "data": lambda v: (
                Wrong(repr(w), w)
                for w in (None, 3, "a", [], {}, {**v, "teachr": 1}, {**v, "stages": []})
            )
        },
    )
    add(
        "load_recipe",
        training.load_recipe,
        {"path": "nitrodistill/recipes/toy.yaml"},
        {"path": lambda v: (w for w in words(v) if w.value is not None)},
    )
    add("find_method", methods.find_method, {"name": "ladd"}, {"name": words})
    add(
        "check_prompt",
        lambda text: toy.check_prompt(text) or text,
        {"text": "a small red circle on a black background"},
        {"text": lambda v: (Wrong(repr(w), w) for w in ("nonsense", 3, None))},
    )
    add(
        "toy_recipe",
        lambda **k: demo.toy_recipe("p", "o", **k),
        {"steps": 9, "seed": 0, "batch_size": 4},
        {"steps": whole(1), "seed": _no_whole, "batch_size": whole(1)},
    )
    add(
        "matching_recipe",
        lambda **k: demo.matching_recipe("s", "o", **k),
        {"steps": 9, "num_inference_steps": 4, "seed": 0},
        {"steps": whole(1), "num_inference_steps": whole(1), "seed": _no_whole},
    )


def _pictures() -> str:
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    for name in "ab":
        Image.new("RGB", (9, 9)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    return str(folder)


def _null(value: nd.Condition) -> Iterator[Wrong]:
    yield from (Wrong("two samples", nd.Condition.cat([value, value])), Wrong("None", None))
    yield Wrong("no samples", nd.Condition({}))


def _bags(value: Any) -> Iterator[Wrong]:
    yield from (
        Wrong("a number", {"a": 1.0}),
        Wrong("a list", {"a": [1.0]}),
        Wrong("no batch", {"a": torch.ones(())}),
    )
    yield from (
        Wrong("unequal", {"a": torch.ones(3), "b": torch.ones(2)}),
        Wrong("no mapping", torch.ones(3)),
    )


def _ends(value: Any) -> Iterator[Wrong]:
    wrong = [
        (0.5, 0.2),
        (math.nan, 0.5),
        (0.0, math.nan),
        (0.0,),
        (0.0, 0.1, 0.2),
        ("a", "b"),
        None,
        1.0,
        (-math.inf, 0.5),
    ]
    return (Wrong(repr(w), w) for w in wrong)


def _draws(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("below", value - 1.5),
        Wrong("above", value + 1.5),
        Wrong("NaN", value * math.nan),
    )
    yield from (Wrong("no tensor", 0.5), Wrong("integers", value.long()), Wrong("2-d", value[None]))


def latents(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for latents, whatever the denoiser looks at."""
    wanted = (
        "no tensor",
        "None",
        "a list",
        "torch.int64",
        "torch.uint8",
        "torch.bool",
        "NaN",
        "a sample more",
    )
    return (w for w in data(value) if w.what in wanted)


def _places(value: Any) -> Iterator[Wrong]:
    yield from (Wrong(repr(w), w) for w in (-1, 0.5, math.nan, "0", None, [0]))


def _out_of_range(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("below", -1 - value),
        Wrong("above", 2 * value + 2),
        Wrong("a text", "1"),
        Wrong("bool", value > 0),
    )
    if value.is_floating_point():
        yield Wrong("NaN", value * math.nan)


def _negative(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("-1", torch.full_like(value, -1)),
        Wrong("0-d", torch.full_like(value[0], -1)),
    )


def _betas(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("2-d", value[None]),
        Wrong("NaN", value * math.nan),
        Wrong("above 1", value * 20),
    )
    yield from (Wrong("below", -value), Wrong("one", value[:1]), Wrong("None", None))


def _logits(value: Tensor) -> Iterator[Wrong]:
    wanted = ("no tensor", "None", "torch.int64", "torch.bool", "empty", "NaN")
    return (w for w in data(value) if w.what in wanted)


def laws(value: Any) -> Iterator[Wrong]:
    wrong = (
        "nonsense",
        "",
        3,
        None,
        {"nonsense": {}},
        {"logit_normal": {"std": -1.0}},
        {"logit_normal": {"mean": math.nan}},
        {"uniform": {"ranges": [[0.5, 2.0]]}},
        {"shifted": {"shift": 0}},
        {},
    )
    return (Wrong(repr(w), w) for w in wrong)


def _prompts(value: Any) -> Iterator[Wrong]:
    return (Wrong(repr(w), w) for w in ([], "ab", [3], [None], None))


def _row_dicts(value: DictRows) -> Iterator[Wrong]:
    first = value[0]
    yield Wrong("no noise", [first, {"x0": first["x0"]}])
    yield Wrong("sizes", [first, {"x0": torch.ones(1, 3, 3), "noise": torch.ones(1, 3, 3)}])
    yield Wrong("x0 and noise apart", [{**first, "x0": torch.ones(1, 3, 3)}] * 2)
    yield Wrong("integers", [{**first, "x0": torch.ones(1, 2, 2).long()}] * 2)
    yield Wrong("names", [{**first, "a": torch.ones(2)}, {**first, "b": torch.ones(2)}])
    yield Wrong("prompt_id", [{**first, "prompt_id": 0.5}] * 2)


def _mean(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("NaN", value * math.nan),
        Wrong("one", value[:1]),
        Wrong("(F, 1)", value[:, None]),
        Wrong("None", None),
    )


def _covariance(value: Tensor) -> Iterator[Wrong]:
    yield from (
        Wrong("NaN", value * math.nan),
        Wrong("diagonal", value.diag()),
        Wrong("one", value[:1, :1]),
        Wrong("None", None),
    )


def _whole_set(kinds: Kinds) -> Kinds:
    return lambda value: (*kinds(value), Wrong("one sample less", value[:-1]))
