"""Right calls of public functions, and what is wrong for each argument; `test_checks` makes the calls.

An argument is replaced by what it must not be: another dtype, shape or size, NaN, infinity, a fraction for a whole
number, an unknown word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nitrodistill as nd
from nitrodistill import functional as nf

SENTENCES = (TypeError, ValueError, IndexError, OSError)


@dataclass(frozen=True)
class Wrong:
    """A value that must be refused or, with `is_nan`, answered with NaN in the first sample."""

    what: str
    value: Any
    is_nan: bool = False


def data(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for samples `(B, *)`."""
    yield from (Wrong("no tensor", 1.0), Wrong("None", None), Wrong("a list", value.tolist()))
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        yield Wrong(str(dtype), value.abs().to(dtype))
    yield Wrong("no batch", value.mean())
    yield Wrong("empty", value[:0])
    yield Wrong("a sample more", torch.cat([value, value[:1]]))
    yield Wrong("a sample that would broadcast", value[:1])
    yield Wrong("a dimension more", value.unsqueeze(-1).expand(*value.shape, 2))
    bad = value.detach().clone()
    bad[0].view(-1)[0] = math.nan
    yield Wrong("NaN", bad.requires_grad_(value.requires_grad), is_nan=True)


def per_sample(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for one number per sample `(B,)`."""
    yield from (Wrong("no tensor", 1.0), Wrong("complex", value.to(torch.complex64)))
    yield Wrong("(B, 1)", value[:, None])
    yield Wrong("(1, B)", value[None])
    yield Wrong("one too many", torch.cat([value, value[:1]]))
    yield Wrong("(1,)", value[:1])
    yield Wrong("empty", value[:0])
    bad = value.clone()
    bad[0] = math.nan
    yield Wrong("NaN", bad, is_nan=True)


def mask(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for a mask `(B, 1, H, W)`."""
    yield from (Wrong("no tensor", 1.0), Wrong("complex", value.to(torch.complex64)))
    yield Wrong("(H, W)", value[0, 0])
    yield Wrong("a sample more", torch.cat([value, value[:1]]))
    yield Wrong("another size", value[..., :-1])
    yield Wrong("channels", value.expand(-1, 7, -1, -1))
    bad = value.clone()
    bad[0, 0, 0, 0] = math.nan
    yield Wrong("NaN", bad, is_nan=True)


def number(
    low: float, *, zero: bool = False, high: float = math.inf
) -> Callable[[Any], Iterator[Wrong]]:
    """What is wrong for a finite number above `low` (or at it) and at most `high`."""

    def wrong(value: Any) -> Iterator[Wrong]:
        yield from (Wrong(str(v), v) for v in (math.nan, math.inf, -math.inf, "1", 1j, True, [1j]))
        if low > -math.inf:
            yield Wrong("below", low - 0.5)
            if not zero:
                yield Wrong("at the bound", low)
        if high < math.inf:
            yield Wrong("above", high + 0.5)

    return wrong


def whole(low: int) -> Callable[[Any], Iterator[Wrong]]:
    """What is wrong for a whole number of at least `low`."""

    def wrong(value: Any) -> Iterator[Wrong]:
        yield from (
            Wrong(repr(v), v) for v in (value + 0.5, math.nan, math.inf, "2", None, [2], True)
        )
        yield Wrong("too small", low - 1)

    return wrong


def numbers(value: Any) -> Iterator[Wrong]:
    """What is wrong for several non-negative numbers."""
    for bad in (math.nan, math.inf, -1.0, "a", True):
        yield Wrong(f"one is {bad}", (*value[:-1], bad))
    yield from (Wrong("none", ()), Wrong("a number", 1.0), Wrong("a word", "ab"))


def choice(value: Any) -> Iterator[Wrong]:
    """What is wrong for one word of several."""
    yield from (Wrong(repr(v), v) for v in ("nonsense", "", 3, None, ("mean",)))


def of_samples(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for draws `(B, N)`."""
    yield from (Wrong("no tensor", 1.0), Wrong("None", None), Wrong("integers", value.long()))
    yield from (Wrong("one too many", torch.cat([value, value[:1]])), Wrong("(B,)", value[:, 0]))


def choice_of_letters(value: Any) -> Iterator[Wrong]:
    """What is wrong for groups of augmentations."""
    yield from (Wrong(repr(v), v) for v in ("nonsense", "bb", 3, None, ("b",)))


@dataclass(frozen=True)
class Call:
    """A right call, and what is wrong for each of its arguments."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    wrong: dict[str, Callable[[Any], Iterator[Wrong]]]
    in_words: bool = True  # whether it must be refused by a sentence of ours; else by any error


def calls(batch: int = 3, channels: int = 4, side: int = 12) -> dict[str, Call]:
    """Every public function of tensors, and every class of settings, called rightly."""
    generator = torch.Generator().manual_seed(batch + channels + side)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) + 0.05

    shape = (batch, channels, side, side)
    pair = {"pred": rand(*shape), "target": rand(*shape)}
    masked = pair | {"mask": rand(batch, 1, side, side)}
    of_pair = {"pred": data, "target": data}
    of_masked = of_pair | {"mask": mask}
    window = {
        "window_size": whole(1), "sigma": number(0), "k1": number(0), "k2": number(0),
        "padding": choice, "mode": choice, "data_range": number(0), "offset": number(-math.inf),
    }  # fmt: skip
    chosen = {
        "window_size": 3,
        "sigma": 1.5,
        "k1": 0.01,
        "k2": 0.03,
        "padding": "valid",
        "mode": "shift",
    }
    chosen |= {"data_range": 2.0, "offset": 1.0}
    logits = {"real": rand(batch, 5), "fake": rand(batch, 5)}
    made: dict[str, Call] = {}

    def add(name: str, function: Callable[..., Any], arguments: Any, wrong: Any) -> None:
        made[name] = Call(function, arguments, wrong)

    for name in ("l1", "l2"):
        add(f"{name}_loss", getattr(nf, f"{name}_loss"), masked, of_masked)
    add(
        "smooth_l1_loss",
        nf.smooth_l1_loss,
        masked | {"beta": 0.5},
        of_masked | {"beta": number(0, zero=True)},
    )
    add("huber_loss", nf.huber_loss, masked | {"delta": 0.5}, of_masked | {"delta": number(0)})
    add(
        "charbonnier_loss",
        nf.charbonnier_loss,
        masked | {"eps": 0.5},
        of_masked | {"eps": number(0)},
    )
    for dim in ("element", "sample"):
        add(
            f"pseudo_huber_loss of a {dim}", nf.pseudo_huber_loss, masked | {"c": 0.5, "dim": dim},
            of_masked | {"c": number(0), "dim": choice},
        )  # fmt: skip
    add("ssim_loss", nf.ssim_loss, masked | chosen, of_masked | window)
    add(
        "ms_ssim_loss",
        nf.ms_ssim_loss,
        masked | chosen | {"weights": (0.5, 0.5)},
        of_masked | window | {"weights": numbers},
    )
    pyramid = {"levels": 2, "weights": (1.0, 2.0), "convention": "kornia"}
    bands = {"levels": whole(1), "weights": numbers, "convention": choice}
    add("laplacian_pyramid_loss", nf.laplacian_pyramid_loss, masked | pyramid, of_masked | bands)
    del chosen["offset"], window["offset"]
    add("SSIMLoss", nd.SSIMLoss, chosen, window)
    add("MSSSIMLoss", nd.MSSSIMLoss, chosen | {"weights": (1.0,)}, window | {"weights": numbers})
    add(
        "LatentSSIMLoss",
        nd.LatentSSIMLoss,
        chosen | {"offset": 1.0},
        window | {"offset": number(-math.inf)},
    )
    add("LaplacianPyramidLoss", nd.LaplacianPyramidLoss, pyramid, bands)
    add(
        "SmoothL1Loss",
        nd.SmoothL1Loss,
        {"beta": 1.0, "reduction": "sum"},
        {"beta": number(0, zero=True), "reduction": choice},
    )
    add("HuberLoss", nd.HuberLoss, {"delta": 1.0}, {"delta": number(0)})
    add(
        "PseudoHuberLoss",
        nd.PseudoHuberLoss,
        {"c": 1.0, "dim": "sample"},
        {"c": number(0), "dim": choice},
    )
    add("CharbonnierLoss", nd.CharbonnierLoss, {"eps": 1.0}, {"eps": number(0)})
    add(
        "MultiScaleLoss",
        nd.MultiScaleLoss,
        {"loss": nd.L1Loss(), "weights": (1.0,)},
        {"weights": numbers, "loss": choice},
    )
    add(
        "a loss",
        nd.L1Loss(reduction="none"),
        masked | {"weight": rand(batch)},
        of_masked | {"weight": per_sample},
    )
    maps = {
        "features": (rand(*shape),),
        "target_features": (rand(*shape),),
        "heads": (rand(channels),),
    }

    def one(what: Callable[[Any], Iterator[Wrong]]) -> Callable[[Any], Iterator[Wrong]]:
        return lambda value: (Wrong(w.what, (w.value,), w.is_nan) for w in what(value[0]))

    add(
        "lpips_distance", nf.lpips_distance, maps | {"mask": masked["mask"]},
        {"features": one(data), "target_features": one(data), "heads": one(per_sample), "mask": free_mask},
    )  # fmt: skip
    add(
        "augment_latents", nd.losses.augment_latents,
        {"latents": rand(*shape), "r": torch.rand(batch, 14, generator=generator), "groups": "co"},
        {"latents": unpaired, "r": of_samples, "groups": choice_of_letters},
    )  # fmt: skip
    add(
        "LatentLPIPSLoss",
        nd.LatentLPIPSLoss,
        {"network": lambda z: [z], "heads": (rand(channels),), "augment": "", "reduction": "sum"},
        {"augment": choice_of_letters, "reduction": choice},
    )
    for name in ("non_saturating", "hinge", "least_squares", "relativistic"):
        similar = data if name == "relativistic" else unpaired
        of_logits = {"real": similar, "fake": similar}
        add(f"{name}_discriminator", getattr(nf, f"{name}_discriminator"), logits, of_logits)
        mine = logits if name == "relativistic" else {"fake": logits["fake"]}
        wrong = dict.fromkeys(mine, data)
        if name != "relativistic":  # nothing else to be compared with
            wrong = {"fake": alone}
        add(f"{name}_generator", getattr(nf, f"{name}_generator"), mine, wrong)
    add(
        "distribution_matching", nf.distribution_matching,
        {"x0": rand(*shape), "real": rand(*shape), "fake": rand(*shape), "weight": rand(batch)},
        {"x0": data, "real": data, "fake": data, "weight": per_sample},
    )  # fmt: skip
    add(
        "approximate_gradient_penalty", nf.approximate_gradient_penalty,
        {"discriminate": lambda x: x.mean(1), "samples": rand(*shape), "noise": rand(*shape), "scale": 0.1},
        {"samples": data, "noise": data, "scale": number(0, zero=True)},
    )  # fmt: skip
    x0, noise, scales = rand(*shape), rand(*shape), nd.Scales(rand(batch), rand(batch))
    prediction = {"scales": scales, "prediction_type": "v_prediction"}
    of_prediction = {"scales": scale_pair, "prediction_type": choice}
    add(
        "denoising_loss", nd.denoising_loss,
        {"output": x0, "x_t": noise, "target": rand(*shape), "weight": rand(batch), "mask": masked["mask"],
         "loss": "huber", "parameter": 0.5, "reduction": "none"} | prediction,
        {"output": data, "x_t": data, "target": data, "weight": per_sample, "mask": mask,
         "loss": choice, "parameter": number(0), "reduction": choice} | of_prediction,
    )  # fmt: skip
    for name in ("to_x0", "to_eps"):
        add(name, getattr(nd, name), {"prediction": x0, "x_t": noise} | prediction,
            {"prediction": data, "x_t": data} | of_prediction)  # fmt: skip
    add("prediction_target", nd.prediction_target, {"x0": x0, "noise": noise} | prediction,
        {"x0": data, "noise": data} | of_prediction)  # fmt: skip
    add("Scales.mix", scales.mix, {"x0": x0, "noise": noise}, {"x0": data, "noise": data})
    add("min_snr_weight", nd.min_snr_weight, prediction | {"gamma": 5.0},
        {"scales": scale_pair_alone, "prediction_type": choice, "gamma": number(0)})  # fmt: skip
    for name in ("truncated_snr_weight", "snr_plus_one_weight"):
        add(
            name,
            getattr(nd, name),
            prediction,
            {"scales": scale_pair_alone, "prediction_type": choice},
        )
    discrete = nd.DiscreteSchedule(torch.linspace(0.99, 0.01, 50))
    for name, schedule in (
        ("discrete", discrete),
        ("flow", nd.RectifiedFlow()),
        ("karras", nd.KarrasSchedule()),
    ):
        last = schedule.timestep(torch.ones(batch))
        add(f"{name} scales", schedule, {"t": last}, {"t": timesteps})
        add(
            f"{name} timestep", schedule.timestep, {"u": rand(batch).clamp(max=1)}, {"u": fractions}
        )
        add(
            f"{name} timesteps",
            schedule.timesteps,
            {"num_inference_steps": 4},
            {"num_inference_steps": whole(1)},
        )
        add(f"{name} plan", lambda schedule=schedule, **k: nd.StepPlan.from_schedule(schedule, **k),
            {"num_inference_steps": 4, "transition": "ode"},
            {"num_inference_steps": whole(1), "transition": choice})  # fmt: skip
        add(f"{name} from noise", lambda schedule=schedule, **k: nd.StepPlan.from_noise(schedule, **k),
            {"t": float(last[0])}, {"t": number(0, zero=True, high=float(last[0]))})  # fmt: skip
    add(
        "RectifiedFlow",
        nd.RectifiedFlow,
        {"t_max": 1.0, "shift": 3.0},
        {"t_max": number(0), "shift": number(0)},
    )
    add("KarrasSchedule", nd.KarrasSchedule, {"sigma_min": 0.1, "sigma_max": 9.0, "rho": 7.0},
        {"sigma_min": number(0), "sigma_max": number(0), "rho": number(0)})  # fmt: skip
    add(
        "DiscreteSchedule",
        nd.DiscreteSchedule,
        {"alphas_cumprod": torch.linspace(0.9, 0.1, 9)},
        {"alphas_cumprod": table},
    )
    add("Uniform", nd.Uniform, {"ranges": ((0.0, 0.5),)}, {"ranges": ranges})
    add(
        "LogitNormal",
        nd.LogitNormal,
        {"mean": 0.0, "std": 1.0},
        {"mean": number(-math.inf), "std": number(0)},
    )
    add("Shifted", nd.Shifted, {"shift": 3.0}, {"shift": number(0)})
    for law in (nd.Uniform(), nd.LogitNormal(), nd.Shifted(3.0)):
        add(f"{type(law).__name__} law", law, {"r": rand(batch).clamp(max=0.99)}, {"r": fractions})
    return made


def alone(value: Tensor) -> Iterator[Wrong]:
    """As `data`, where there is nothing of the same batch to compare with."""
    return (w for w in data(value) if w.what not in LARGER)


def unpaired(value: Tensor) -> Iterator[Wrong]:
    """As `data`, where each has any number of logits."""
    return (w for w in data(value) if w.what != "a dimension more")


LARGER = ("a sample more", "a sample that would broadcast", "a dimension more")


def free_mask(value: Tensor) -> Iterator[Wrong]:
    """As `mask`, of any size and, for one sample, for all."""
    return (w for w in mask(value) if w.what != "another size")


def scale_pair(value: nd.Scales) -> Iterator[Wrong]:
    """What is wrong for alpha and sigma."""
    for index, name in enumerate(value._fields):
        for w in per_sample(value[index]):
            yield Wrong(f"{name}: {w.what}", value._replace(**{name: w.value}), w.is_nan)
    yield Wrong("one scale", value.alpha)
    yield Wrong("None", None)


def scale_pair_alone(value: nd.Scales) -> Iterator[Wrong]:
    """As `scale_pair`, where the batch is that of the scales."""
    return (w for w in scale_pair(value) if "empty" not in w.what)


def timesteps(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for timesteps on the CPU."""
    yield from (Wrong("a text", "1"), Wrong("below", -torch.ones_like(value)), Wrong("None", None))
    yield from (Wrong("a list", [1]), Wrong("true", True), Wrong("a number below", -1))
    yield from (Wrong("bool", value > 0), Wrong("complex", value.to(torch.complex64)))
    if value.is_floating_point():
        yield from (Wrong("NaN", value * math.nan), Wrong("infinite", value * math.inf))
    else:
        yield from (Wrong("floats", value.float()), Wrong("after the last", value + 1))


def fractions(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for fractions in [0, 1] on the CPU."""
    yield from (Wrong("a text", "0.5"), Wrong("None", None), Wrong("a number above", 1.5))
    yield from (Wrong("below", value - 1.5), Wrong("above", value + 1.0))
    yield Wrong("NaN", value * math.nan)
    yield from (
        Wrong("bool", value > 0),
        Wrong("integers", value.long()),
        Wrong("complex", value + 0j),
    )


def table(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for alphas_cumprod."""
    yield from (Wrong("rising", value.flip(0)), Wrong("betas", torch.full((9,), 0.1)))
    yield from (
        Wrong("two dimensions", value[None]),
        Wrong("one value", value[:1]),
        Wrong("empty", value[:0]),
    )
    for bad in (math.nan, math.inf, -0.1, 1.1):
        yield Wrong(str(bad), torch.cat([value.new_tensor([bad]), value]))
        yield Wrong(f"{bad} at the end", torch.cat([value, value.new_tensor([bad])]))


def ranges(value: Any) -> Iterator[Wrong]:
    """What is wrong for ranges of u."""
    wrong = [
        (),
        ((0.5, 0.2),),
        ((-0.1, 0.5),),
        ((0.5, 1.5),),
        ((math.nan, 0.5),),
        ((0.0, math.nan),),
    ]
    wrong += [
        ((0.0, 0.5), (0.4, 1.0)),
        ((0.0, 0.2), (math.nan, math.nan)),
        ((0.0,),),
        ((0, 0.1, 0.2),),
        (0.0, 1.0),
    ]
    wrong += ["ab", None, (("a", "b"),)]
    return (Wrong(repr(w), w) for w in wrong)


def answer(call: Call, changes: dict[str, Wrong]) -> str:
    """What is silent about the answer; empty where it is as it must be."""
    arguments = call.arguments | {name: wrong.value for name, wrong in changes.items()}
    try:
        result = call.function(**arguments)
    except SENTENCES as error:
        sentence = str(error)
        return (
            ""
            if not call.in_words or (sentence.rstrip().endswith((".", ")")) and len(sentence) < 600)
            else f"says {sentence!r}"
        )
    except Exception as error:
        if not call.in_words:
            return ""
        return f"raises {type(error).__name__}: {error}"
    if all(wrong.is_nan for wrong in changes.values()):
        found = [result] if isinstance(result, Tensor) else list(result)
        if any(bool(t[0].isnan().any()) for t in found):
            return ""
    return f"answers {str(result)[:80]}"
