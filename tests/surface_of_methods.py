"""As `surface`, for the settings of methods, the discriminator's game, penalties, targets and diagnostics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import nitrodistill as nd
from nitrodistill import diagnostics, discriminator
from nitrodistill import functional as nf
from nitrodistill.models import Pipeline
from nitrodistill.training import Alarms
from tests.pipelines import tiny_pipeline
from tests.surface import (
    Call,
    Wrong,
    choice,
    data,
    fractions,
    number,
    numbers,
    per_sample,
    scale_pair,
    whole,
)
from tests.surface_of_objects import Kinds, laws, settings, words
from tests.surface_of_objects import latents as latents_alone

FRACTION = number(0, zero=True, high=1)


def method_calls(batch: int = 3, channels: int = 4, side: int = 12) -> dict[str, Call]:
    """What came with the methods, called rightly; a name begins with what it is of."""
    generator = torch.Generator().manual_seed(batch + channels + side)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) + 0.05

    made: dict[str, Call] = {}

    def of_tensors(name: str, function: Callable[..., Any], arguments: Any, wrong: Any) -> None:
        made[name] = Call(function, arguments, wrong)

    def of_objects(name: str, function: Callable[..., Any], arguments: Any, wrong: Any) -> None:
        made[name] = Call(function, arguments, wrong, in_words=False)

    _add_targets(of_tensors, rand, (batch, channels, side, side))
    _add_diagnostics(of_tensors, rand, (batch, channels, side, side))
    _add_laws(of_tensors, rand, batch)
    _add_settings(of_objects)
    _add_penalties(of_objects, rand, batch)
    _add_game(of_objects, rand)
    return made


def _add_targets(
    add: Callable[..., None], rand: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    batch = shape[0]
    noisy = nd.Scales(rand(batch) * 0.1, rand(batch) + 1)
    clear = nd.Scales(rand(batch) + 1, rand(batch) * 0.1)
    add(
        "ddim_target",
        nf.ddim_target,
        {"x_t": rand(*shape), "x_s": rand(*shape), "now": noisy, "after": clear},
        {"x_t": data, "x_s": data, "now": scale_pair, "after": scale_pair},
    )
    add(
        "ddim_target backwards",
        lambda after: nf.ddim_target(rand(*shape), rand(*shape), clear, after),
        {"after": nd.Scales(torch.ones(batch), torch.zeros(batch))},
        {"after": lambda v: [Wrong("more noise", noisy), Wrong("the same", clear)]},
    )
    add(
        "x0_of_both",
        nf.x0_of_both,
        {"x0": rand(*shape), "eps": rand(*shape), "x_t": rand(*shape), "scales": clear},
        {"x0": data, "eps": data, "x_t": data, "scales": scale_pair},
    )
    add(
        "flow_map_target",
        nf.flow_map_target,
        {"velocity": rand(*shape), "derivative": rand(*shape), "distance": rand(batch)},
        {
            "velocity": data,
            "derivative": data,
            "distance": lambda v: (*distances(v), Wrong("below", -v)),
        },
    )
    add(
        "ThreePoints.of",
        nf.ThreePoints.of,
        {"first": rand(batch), "second": -rand(batch)},
        {
            "first": lambda v: (*distances(v), Wrong("zero", 0 * v)),
            "second": lambda v: (*distances(v), Wrong("zero", 0 * v)),
        },
    )
    add(
        "ThreePoints of one point",
        lambda second: nf.ThreePoints.of(torch.ones(batch), second),
        {"second": -torch.ones(batch)},
        {"second": lambda v: [Wrong("the first", -v)]},
    )
    values = {name: rand(*shape) for name in ("here", "first", "second")}
    points = nf.ThreePoints.of(rand(batch), -rand(batch))
    add("ThreePoints.derivative", points.derivative, values, dict.fromkeys(values, data))
    matching = {name: rand(*shape) for name in ("x0", "conditional", "null")}
    add(
        "guidance_matching",
        nf.guidance_matching,
        {**matching, "scale": 3.0, "floor": 0.1, "weight": rand(batch)},
        {
            **dict.fromkeys(matching, data),
            "scale": number(1, zero=True),
            "floor": number(0, zero=True),
            "weight": per_sample,
        },
    )
    for divergence in ("kl", "reverse_kl", "jensen_shannon", "hellinger", "jeffreys", "neyman"):
        add(
            f"f_divergence_weight {divergence}",
            nf.f_divergence_weight,
            {"logits": rand(batch, 5), "divergence": divergence, "ratio_range": (0.1, 20.0)},
            {"logits": one_batch, "divergence": choice, "ratio_range": rising},
        )


def _add_diagnostics(
    add: Callable[..., None], rand: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    logits = {"real": rand(shape[0], 5), "fake": rand(shape[0], 5)}
    add(
        "logit_statistics",
        lambda **k: diagnostics.logit_statistics(**k).values(),
        logits | {"boundary": 0.0},
        {"real": data, "fake": data, "boundary": lambda v: number(-math.inf)(v)},
    )
    latents = {name: rand(*shape) for name in ("x0", "other_noise", "other_prompt")}
    add(
        "latent_statistics",
        lambda **k: [torch.stack(list(diagnostics.latent_statistics(**k).values()))[None]],
        latents | {"reference": rand(shape[0] + 2, *shape[1:])},
        {
            "x0": data,
            "reference": lambda v: (w for w in data(v) if "a sample" not in w.what),
            **dict.fromkeys(("other_noise", "other_prompt"), optional),
        },
    )


def _add_laws(add: Callable[..., None], rand: Callable[..., Tensor], batch: int) -> None:
    add(
        "Karras",
        nd.Karras,
        {"ratio_min": 0.1, "ratio_max": 9.0, "rho": 7.0},
        {
            "ratio_min": lambda v: (*number(0)(v), Wrong("the larger", 10.0)),
            "ratio_max": number(0),
            "rho": number(0),
        },
    )
    add(
        "Histogram",
        nd.Histogram,
        {"weights": (1.0, 2.0)},
        {"weights": lambda v: (*numbers(v), Wrong("all zero", (0.0, 0.0)), Wrong("None", None))},
    )
    for law in (nd.Karras(), nd.Histogram((1.0, 0.0, 2.0))):
        r = rand(batch).clamp(max=0.99)
        add(f"{type(law).__name__} law", law, {"r": r}, {"r": fractions})


def _add_settings(add: Callable[..., None]) -> None:
    scales = number(1, zero=True)
    more: dict[type, dict[str, Kinds]] = {
        nd.ConsistencyConfig: {
            "num_inference_steps": whole(1),
            "grid_steps": whole(1),
            "target_decay": lambda v: (*FRACTION(v), Wrong("one", 1.0)),
            "guidance": scales,
            "guidance_range": spans,
        },
        nd.ProgressiveConfig: {
            "num_inference_steps": whole(1),
            "teacher_steps": whole(1),
            "guidance": scales,
            "guidance_range": spans,
        },
        nd.FlowMapConfig: {
            "num_inference_steps": whole(1),
            "guidance": scales,
            "h": number(0, high=0.25),
            "diagonal": lambda v: (*FRACTION(v), Wrong("one", 1.0)),
            "to_data": FRACTION,
            "robustness": FRACTION,
            "timesteps": laws,
        },
        nd.FeatureKDConfig: {
            "num_inference_steps": whole(1),
            "guidance": scales,
            "guidance_dropout": FRACTION,
            "min_snr_gamma": number(0),
            "timesteps": laws,
            "features": matches,
            **dict.fromkeys(("task", "output", "feature"), terms),
        },
        nd.DMD2Config: {
            "num_inference_steps": whole(1),
            "guidance": scales,
            "guidance_rescale": FRACTION,
            "normaliser_floor": number(0, zero=True),
            "off_grid_weight": number(0, zero=True),
            "backward": FRACTION,
            "timestep": number(-math.inf),
            "timesteps": laws,
            "step_range": step_ranges,
            **dict.fromkeys(("decoupled", "critic", "gan", "regression"), parts),
        },
    }
    for cls, wrong in more.items():
        values, kinds = settings(cls)
        made = cls()
        values |= {name: getattr(made, name) for name in wrong}
        add(cls.__name__, cls, values, kinds | wrong)
    config = nd.DMD2Config()
    for cls, wrong in (
        (type(config.critic), {"updates": whole(1), "timesteps": laws, "follow": FRACTION}),
        *_parts_of_dmd2(),
    ):
        values, kinds = settings(cls)
        made = cls()
        values |= {name: getattr(made, name) for name in wrong}
        add(f"DMD2Config {cls.__name__}", cls, values, kinds | wrong)
    add(
        "PruneSpec",
        nd.PruneSpec,
        {"keep": {"transformer_blocks": (0, 1, 3)}},
        {"keep": keeps},
    )
    add(
        "prune",
        lambda spec: nd.prune(_network().module, spec),
        {"spec": nd.PruneSpec({"down_blocks.0.resnets": (0,)})},
        {"spec": specs},
    )
    add(
        "PruneSpec.without",
        lambda names: nd.PruneSpec.without(_network().module, names),
        {"names": ["mid_block"]},
        {"names": lambda v: _each("nonsense", [], ["nonsense"], [3], [None], None, 3)},
    )
    add(
        "Augmentation",
        nd.Augmentation,
        {"flip": 0.5, "translation": 0.1, "crop": 0.8},
        {
            "flip": FRACTION,
            "translation": number(0, zero=True, high=0.5),
            "crop": number(0.1, zero=True, high=1),
        },
    )
    law = nd.Uniform()
    add(
        "Noising",
        nd.Noising,
        {"generator": law, "real": law, "fake": law, "shared": False, "augmentation": None},
        {
            **dict.fromkeys(("generator", "real", "fake"), lambda v: _each("uniform", 1.0, None)),
            "shared": lambda v: _each("false", 2, None, [0]),
            "augmentation": lambda v: _each("flip", 1.0, {"flip": 1.0}),
        },
    )
    add(
        "MLPHead",
        nd.MLPHead,
        {"channels": 8, "width": 4},
        {
            "channels": whole(1),
            "width": lambda v: (w for w in whole(1)(v) if w.value is not None),
        },
    )
    maps = (torch.ones(3, 8, 4, 4), torch.ones(3, 6, 2, 2))
    add(
        "DiscriminatorHeads",
        discriminator.DiscriminatorHeads([nd.MLPHead(8), nd.MLPHead(6)]),
        {"features": maps},
        {
            "features": lambda v: [
                Wrong("one", v[:1]),
                Wrong("turned", v[::-1]),
                Wrong("integers", tuple(m.int() for m in v)),
                Wrong("none", ()),
            ]
        },
    )
    for name in ("conv", "token", "mlp"):
        add(f"named_head {name}", discriminator.named_head, {"name": name}, {"name": words})
    add("Alarms", Alarms, {"window": 4}, {"window": whole(1)})


def _parts_of_dmd2() -> tuple[tuple[type, dict[str, Kinds]], ...]:
    from nitrodistill.methods.dmd2.config import DecoupledConfig, GANConfig, RegressionConfig

    gan: dict[str, Kinds] = {
        "weight": number(0, zero=True),
        "critic_weight": number(0, zero=True),
        "adversarial": words,
        "timesteps": laws,
        "seed": lambda v: _each(-1, 0.5, math.nan, "0", True, None),
        "head_width": lambda v: _each(0.5, math.nan, "8", True),
        "taps": lambda v: _each("every", "0.5", 0.5, None),
    }
    regression: dict[str, Kinds] = {
        "weight": number(0, zero=True),
        "share": number(0, high=1),
        "warmup_steps": whole(0),
        "losses": lambda v: (w for w in terms(v) if w.value != {}),
    }
    decoupled: dict[str, Kinds] = {"timesteps": laws, "floor": number(0, zero=True)}
    return (GANConfig, gan), (RegressionConfig, regression), (DecoupledConfig, decoupled)


def _add_penalties(add: Callable[..., None], rand: Callable[..., Tensor], batch: int) -> None:
    for kind in (nd.ApproximateR1Penalty, nd.ApproximateR1R2Penalty):
        add(kind.__name__, kind, {"scale": 0.1}, {"scale": number(0)})
    add(
        "LazyPenalty",
        nd.LazyPenalty,
        {"penalty": nd.R1Penalty(), "weight": 1.0, "every": 4},
        {
            "penalty": lambda v: _each("r1", None, 1.0),
            "weight": number(0, zero=True),
            "every": whole(1),
        },
    )
    add(
        "LazyPenalty.factor",
        lambda update: [nd.LazyPenalty(nd.R1Penalty(), 1.0, 4).factor(update)],
        {"update": 4},
        {"update": whole(0)},
    )
    add(
        "named_penalties",
        nd.named_penalties,
        {"spec": {"approximate_r1": {"weight": 100, "scale": 0.01, "every": 4}}},
        {"spec": penalty_specs},
    )

    def side(**changes: Any) -> nd.Side:
        features = (rand(batch, 4, 3, 3).requires_grad_(),)
        logits = tuple(f.square().mean((1, 2, 3))[:, None] for f in features)
        samples = rand(batch, 2, 4, 4)
        made = nd.Side(
            samples, features, logits, lambda x: (x.mean((1, 2, 3))[:, None],), lambda: samples
        )
        return dataclasses.replace(made, **changes)

    right, other = side(), side()
    for penalty in (
        nd.R1Penalty(),
        nd.R1R2Penalty(),
        nd.ApproximateR1Penalty(),
        nd.ApproximateR1R2Penalty(),
    ):
        exact = isinstance(penalty, nd.R1Penalty | nd.R1R2Penalty)

        def sides(value: nd.Side, exact: bool = exact) -> Iterator[Wrong]:
            yield Wrong("no logits", dataclasses.replace(value, logits=()))
            yield Wrong(
                "integers", dataclasses.replace(value, logits=(torch.ones(batch, 1).int(),))
            )
            yield Wrong("None", None)
            if exact:
                frozen = tuple(f.detach() for f in value.features)
                yield Wrong("frozen", dataclasses.replace(value, features=frozen))
                yield Wrong("no features", dataclasses.replace(value, features=()))
                yield Wrong("another's", dataclasses.replace(value, features=side().features))
            else:
                yield Wrong(
                    "shape", dataclasses.replace(value, perturbation=lambda: rand(batch, 2))
                )
                double = (value.logits[0].repeat(1, 2),)
                yield Wrong("logits", dataclasses.replace(value, logits=double))

        both = {"real": sides}
        if "R2" in type(penalty).__name__:
            both["fake"] = sides
        add(f"{type(penalty).__name__} call", penalty, {"real": right, "fake": other}, both)


def _add_game(add: Callable[..., None], rand: Callable[..., Tensor]) -> None:
    unet = _network()
    heads = nd.LatentDiscriminator(unet, ("conv_in",), width=8)
    law = nd.Uniform()
    noising = nd.Noising(law, law, law)
    game = nd.AdversarialGame(heads, noising, nd.HingeGANLoss())
    x_t, _, one = unet.example()
    condition = nd.Condition.cat([one] * 3)
    draws = nd.Draws(0, 0, torch.arange(3))
    latents = {"x0": rand(3, *x_t.shape[1:]), "z": rand(3, *x_t.shape[1:])}
    same = {"condition": condition, "draws": draws}
    relativistic = nd.AdversarialGame(heads, noising, nd.RelativisticGANLoss())
    add(
        "AdversarialGame.generator",
        lambda **k: [relativistic.generator(**k, **same)[0]],
        latents,
        dict.fromkeys(latents, latents_alone),
    )
    add(
        "AdversarialGame.update",
        lambda **k: [game.update(**k, **same).per_sample],
        {**latents, "number": 0},
        {**dict.fromkeys(latents, latents_alone), "number": whole(0)},
    )
    frozen = nd.LatentDiscriminator(unet, ("conv_in",), width=8).requires_grad_(False)
    lazy = {"r1": nd.LazyPenalty(nd.R1Penalty())}
    add(
        "AdversarialGame",
        nd.AdversarialGame,
        {
            "discriminator": heads,
            "noising": noising,
            "adversarial": nd.HingeGANLoss(),
            "penalties": lazy,
        },
        {
            "discriminator": lambda v: [Wrong("frozen", frozen), Wrong("None", None)],
            "noising": lambda v: _each(None, "shared", law),
            "adversarial": lambda v: _each("hinge", None, nd.L1Loss()),
            "penalties": lambda v: _each("r1", {"r1": nd.R1Penalty()}, {"r1": 1.0}),
        },
    )
    moved = discriminator.Augmentation(flip=0.5, translation=0.2, crop=0.8)
    add(
        "Augmentation call",
        lambda **k: [moved(**k)],
        {"latents": rand(3, 2, 8, 8), "r": rand(3, 6).clamp(max=0.99)},
        {
            "latents": lambda v: (w for w in data(v) if "NaN" not in w.what),
            "r": lambda v: (
                Wrong("no tensor", 0.5),
                Wrong("(B,)", v[:, 0]),
                Wrong("five", v[:, :5]),
                Wrong("a sample more", torch.cat([v, v[:1]])),
                Wrong("one sample", v[:1]),
                Wrong("above", v + 1),
                Wrong("below", v - 2),
                Wrong("NaN", v * math.nan),
                Wrong("integers", v.int()),
            ),
        },
    )


def _network() -> nd.DiffusersDenoiser:
    return Pipeline.from_diffusers(tiny_pipeline("sd15")).denoiser


def _each(*values: Any) -> list[Wrong]:
    return [Wrong(repr(value), value) for value in values]


def one_batch(value: Tensor) -> Iterator[Wrong]:
    """As `data`, for logits of any shape alone."""
    kept = ("no tensor", "None", "torch.int64", "torch.bool", "no batch", "empty", "NaN")
    yield from (w for w in data(value) if w.what in kept)
    yield Wrong("no heads", ())


def optional(value: Tensor) -> Iterator[Wrong]:
    """As `data`, where None is right."""
    return (w for w in data(value) if w.what != "None")


def distances(value: Tensor) -> Iterator[Wrong]:
    """What is wrong for `(B,)` distances in flow time."""
    kept = ("no tensor", "complex", "(B, 1)", "(1, B)", "one too many", "(1,)", "empty", "NaN")
    yield from (w for w in per_sample(value) if w.what in kept)
    yield from (Wrong("integers", value.ceil().long()), Wrong("None", None))


def rising(value: Any) -> Iterator[Wrong]:
    """What is wrong for two ends of a range of ratios."""
    yield from _each((2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1,), (0.1, 1.0, 2.0), None, 1.0, "ab")
    yield from _each((math.nan, 1.0), (0.1, math.nan), ("a", "b"), (0.1, math.inf), (True, 2.0))


def spans(value: Any) -> Iterator[Wrong]:
    """What is wrong for lowest and highest scale of guidance."""
    yield from _each("ab", 3.0, (), (1.0,), (1.0, 2.0, 3.0), (9.0, 1.0), (0.5, 9.0), (0, 9))
    yield from _each((math.nan, 9.0), (1.0, math.nan), (1.0, math.inf), ("1", "9"), (True, 9.0))


def step_ranges(value: Any) -> Iterator[Wrong]:
    """What is wrong for least and largest number of steps."""
    yield from _each("12", 3, (), (1,), (1, 2, 3), (4, 1), (0, 4), (1.5, 4), (1, 4.0))
    yield from _each((math.nan, 4), (1, math.nan), ("1", "4"), (True, 4))


def matches(value: Any) -> Iterator[Wrong]:
    """What is wrong for pairs of blocks."""
    yield from _each("nonsense", "", (), 3, None, (3,), ("ab",), (("a",),), (("a", "b", "c"),))
    yield from _each((("a", None),), ((0.5, math.nan),))


def terms(value: Any) -> Iterator[Wrong]:
    """What is wrong for losses by name and weight."""
    yield from _each("nonsense", 3, None, {"nonsense": 1.0}, {"l1": math.nan}, {"l1": -1.0})
    yield from _each({"l1": "a"}, {"l1": {"weigth": 1}}, ["l1"])


def parts(value: Any) -> Iterator[Wrong]:
    """What is wrong for a part of the settings that is a dataclass."""
    yield from _each("nonsense", 3, True, {"updates": 5}, nd.L1Loss())


def keeps(value: Any) -> Iterator[Wrong]:
    """What is wrong for the blocks that stay."""
    yield from _each({}, None, "transformer_blocks", ("transformer_blocks",), 3)
    for bad in ("01", 3, None, (-1,), (1, 0), (0, 0), (0.5,), (math.nan,), ("0",), (True,)):
        yield Wrong(f"keeps {bad!r}", {"transformer_blocks": bad})
    yield Wrong("no name", {3: (0,)})


def specs(value: Any) -> Iterator[Wrong]:
    """What is wrong for what is pruned away."""
    yield from _each("nonsense", "", None, 3, ("mid_block",), {"kep": {}}, "ssd-1b")
    yield Wrong("no such list", nd.PruneSpec({"nonsense": (0,)}))
    yield Wrong("beyond", nd.PruneSpec({"down_blocks.0.resnets": (9,)}))


def penalty_specs(value: Any) -> Iterator[Wrong]:
    """What is wrong for penalties by name."""
    yield from _each("nonsense", "", 3, None, ["r1"], {"nonsense": 1.0}, {3: 1.0}, {"r1": "a"})
    yield from _each(
        {"r1": math.nan}, {"r1": -1.0}, {"r1": None}, {"r1": True}, {"r1": {"evry": 1}}
    )
    for bad in (0, 1.5, math.nan, "4", None, True):
        yield Wrong(f"every {bad!r}", {"r1": {"every": bad}})
    for bad in (0.0, -1.0, math.nan, math.inf, "a", None):
        yield Wrong(f"scale {bad!r}", {"approximate_r1": {"scale": bad}})
