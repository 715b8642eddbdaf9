"""Losses by name and weight, as recipes say them.

    {smooth_l1: 1.0, latent_ssim: {weight: 0.2, data_range: 8}, lpips: {weight: 1, network: vgg, decode: true}}

A number is a weight; a mapping holds `weight` (1 where it is left out), `decode: true` for a loss on the
pictures that the latents decode to, and the arguments of the loss. The `network` of a perceptual loss is a name, a
callable at `package.module:name`, the decoder of the VAE, or the teacher itself, of whose features `u` says which
timestep it is told:

    {latent_lpips: {weight: 1, network: decoder}}
    {latent_lpips: {weight: 1, network: {taps: [0.5, 0.75], u: 0.1}}}

E-LatentLPIPS is `{latent_lpips: {augment: bg, ...}}`; methods call `Loss.draw` with their own draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from torch import Tensor

from nitrodistill.losses.adversarial import (
    AdversarialLoss,
    HingeGANLoss,
    LeastSquaresGANLoss,
    NonSaturatingGANLoss,
    RelativisticGANLoss,
)
from nitrodistill.losses.base import Loss
from nitrodistill.losses.composition import MultiScaleLoss, WeightedSum
from nitrodistill.losses.decoded import DecodedLoss
from nitrodistill.losses.gradient_penalty import (
    ApproximateR1Penalty,
    ApproximateR1R2Penalty,
    LazyPenalty,
    Penalty,
    R1Penalty,
    R1R2Penalty,
)
from nitrodistill.losses.laplacian import LaplacianPyramidLoss
from nitrodistill.losses.latent_lpips import LatentLPIPSLoss
from nitrodistill.losses.lpips import FeatureTrunk, LPIPSLoss
from nitrodistill.losses.ms_ssim import MSSSIMLoss
from nitrodistill.losses.reconstruction import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    PseudoHuberLoss,
    SmoothL1Loss,
)
from nitrodistill.losses.ssim import LatentSSIMLoss, SSIMLoss
from nitrodistill.losses.trunks import TrunkName
from nitrodistill.named import (
    build,
    check_settings,
    import_object,
    one_name,
    pick_class,
    snake_case,
)
from nitrodistill.settings import build as build_settings
from nitrodistill.settings import convert

LossSpec = str | Mapping[str, Any]
"""A loss's name, or name -> weight or settings."""

TeacherFeatures = Callable[[str | Sequence[str | float], float], FeatureTrunk]
"""Taps and the fraction u of noise that the teacher is told of -> its feature maps; `Cast.features`."""

_LOSSES: tuple[type[Loss], ...] = (
    L1Loss,
    L2Loss,
    SmoothL1Loss,
    HuberLoss,
    PseudoHuberLoss,
    CharbonnierLoss,
    SSIMLoss,
    LatentSSIMLoss,
    MSSSIMLoss,
    LaplacianPyramidLoss,
    LPIPSLoss,
    LatentLPIPSLoss,
    MultiScaleLoss,
)
_ADVERSARIAL: tuple[type[AdversarialLoss], ...] = (
    NonSaturatingGANLoss,
    HingeGANLoss,
    LeastSquaresGANLoss,
    RelativisticGANLoss,
)
_PENALTIES: tuple[type[Penalty], ...] = (
    R1Penalty,
    R1R2Penalty,
    ApproximateR1Penalty,
    ApproximateR1R2Penalty,
)


def named_loss(
    spec: LossSpec,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    features: TeacherFeatures | None = None,
    chunk: int | None = 1,
) -> WeightedSum:
    """The losses that a recipe names.

    Example:
        >>> loss = named_loss({"smooth_l1": 1.0, "latent_ssim": {"weight": 0.2, "data_range": 8}})
        >>> loss.weights
        {'smooth_l1': 1.0, 'latent_ssim': 0.2}

    Args:
        spec: `smooth_l1`, or name -> weight, or name -> {weight, decode, arguments of the loss}; a name is
            a class of this package in snake case without "Loss", or `package.module:Class`.
        decode: latents -> pictures, for the losses with `decode: true`.
        features: of the teacher, for the losses whose `network` is its taps.
        chunk: see `DecodedLoss`.

    Raises:
        ValueError: for what `check_losses` refuses, a value out of its range, or what needs `decode` or `features`
            without it.
        FileNotFoundError: if the weights of a network are not on this machine.
    """
    return _parse(spec).build(decode, features, chunk)


def check_losses(spec: LossSpec) -> None:
    """Checks what `named_loss` gets; no network is built and no weights are read.

    Raises:
        ValueError: for an unknown name or argument (shows the nearest), a wrong type, a negative weight, or
            a value out of its range (the last not of classes from outside).

    Example:
        >>> nd.check_losses({"smooth_l1": 1.0, "latent_ssim": {"weight": 0.2, "data_range": 8}})
    """
    _parse(spec).check()


def named_adversarial(spec: LossSpec) -> AdversarialLoss:
    """The adversarial loss that a recipe names: `hinge`, `non_saturating`, `package.module:Class`, ...

    Args:
        spec: a name, or one name with its settings.

    Raises:
        ValueError: for an unknown name or setting (shows the nearest), or a wrong value.

    Example:
        >>> nd.named_adversarial("hinge")
        HingeGANLoss(weights=None)
    """
    name, settings = one_name(spec, "adversarial loss")
    what = "adversarial loss"
    kind = pick_class(name, _ADVERSARIAL, AdversarialLoss, what, "GANLoss")
    return build(kind, check_settings(kind, settings, name), name)


def named_penalties(spec: LossSpec) -> dict[str, LazyPenalty]:
    """The discriminator's penalties that a recipe names.

    Example:
        >>> found = named_penalties({"approximate_r1": {"weight": 100, "scale": 0.01, "every": 4}})
        >>> [found["approximate_r1"].factor(update) for update in range(5)]
        [400.0, 0.0, 0.0, 0.0, 400.0]

    Args:
        spec: `r1`, or name -> weight, or name -> {weight, every, arguments of the penalty}; a name is a class of
            `losses.gradient_penalty` in snake case without "Penalty", or `package.module:Class`. {} is none.

    Returns:
        Name -> the penalty with its weight.

    Raises:
        ValueError: for an unknown name or argument (shows the nearest), or a value out of its range.
    """
    if isinstance(spec, str):
        spec = {spec: 1.0}
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"the penalties are {spec!r}; give a name, or names with their weights: {{r1: 0.1}}."
        )
    found: dict[str, LazyPenalty] = {}
    for key, value in spec.items():
        kind = pick_class(key, _PENALTIES, Penalty, "penalty", "Penalty")
        name = snake_case(kind, "Penalty")
        if name in found:
            raise ValueError(f"there are two penalties {name!r}; keep one.")
        settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
        lazy = {
            key: convert(hint, settings.pop(key), f"{name}.{key}")
            for key, hint in (("weight", float), ("every", int))
            if key in settings
        }
        penalty = build(kind, check_settings(kind, settings, name), name)
        found[name] = build(LazyPenalty, {"penalty": penalty, **lazy}, name)
    return found


@dataclass(frozen=True)
class _Taps:
    """The teacher's own features as the network of a loss, or those of the VAE's decoder."""

    taps: tuple[str | float, ...] | Literal["decoder", "every_block"]
    u: float = 0.0

    def __post_init__(self) -> None:
        if not self.taps or not 0 <= self.u <= 1:
            raise ValueError(f"taps are {self.taps} and u {self.u}; give taps, and u in [0, 1].")

    def build(self, features: TeacherFeatures | None) -> FeatureTrunk:
        if features is None:
            raise ValueError(
                "a network is given by taps or decoder, and nothing here has a teacher."
            )
        return features(self.taps, self.u)


@dataclass(frozen=True)
class _Part:
    """One loss of a recipe, read but not built: an argument that is a loss is a `_Sum`, the teacher is `_Taps`."""

    kind: type[Loss]
    weight: float
    decode: bool
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Sum:
    """What a recipe says of all losses."""

    parts: dict[str, _Part]

    def build(
        self,
        decode: Callable[[Tensor], Tensor] | None,
        features: TeacherFeatures | None,
        chunk: int | None,
    ) -> WeightedSum:
        losses: dict[str, tuple[float, Loss]] = {}
        for name, part in self.parts.items():
            arguments = dict(part.arguments)
            for key, value in arguments.items():
                if isinstance(value, _Sum):
                    arguments[key] = value.build(decode, features, chunk)
                elif isinstance(value, _Taps):
                    arguments[key] = value.build(features)
            loss = build(part.kind, arguments, name)
            if part.decode:
                if decode is None:
                    raise ValueError(f"{name} has decode: true, but nothing here decodes latents.")
                decoded = {"loss": loss, "decode": decode, "chunk": chunk}
                loss = build(DecodedLoss, decoded, name)
            losses[name] = (part.weight, loss)
        return WeightedSum(losses)

    def check(self) -> WeightedSum:
        """Builds the losses with stand-ins for their networks, and for classes from outside."""
        losses: dict[str, tuple[float, Loss]] = {}
        for name, part in self.parts.items():
            inner = {key: v.check() for key, v in part.arguments.items() if isinstance(v, _Sum)}
            loss: Loss = L1Loss()
            if part.kind in _LOSSES:
                loss = build(part.kind, _without_network(part.kind, part.arguments) | inner, name)
            if part.decode:
                loss = build(DecodedLoss, {"loss": loss, "decode": _stand_in}, name)
            losses[name] = (part.weight, loss)
        return WeightedSum(losses)


def _stand_in(x: Tensor) -> Any:
    """What stands for a network or a decoder where a loss is checked; never called."""
    raise NotImplementedError


def _without_network(kind: type[Loss], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with a stand-in for a network that is given as it must be, so that no file is read."""
    if kind not in (LPIPSLoss, LatentLPIPSLoss):
        return arguments
    network, weights = arguments.get("network"), arguments.get("weights")
    by_name = kind is LPIPSLoss and (network is None or isinstance(network, str))
    if not by_name and (network is None) == (weights is None):
        return arguments
    network = network if callable(network) else _stand_in
    return arguments | {"network": network, "weights": None, "heads": None}


def _parse(spec: LossSpec) -> _Sum:
    """A class from outside goes by its own name, in snake case."""
    if isinstance(spec, str):
        spec = {spec: 1.0}
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError(
            f"the losses are {spec!r}; give a name, or names with their weights: "
            "{smooth_l1: 1.0, latent_ssim: {weight: 0.2, data_range: 8}}."
        )
    parts: dict[str, _Part] = {}
    for key, value in spec.items():
        kind = pick_class(key, _LOSSES, Loss, "loss", "Loss")
        name = snake_case(kind, "Loss")
        if name in parts:
            raise ValueError(f"there are two losses {name!r}; a sum needs a name for each.")
        parts[name] = _part(name, kind, value)
    return _Sum(parts)


def _part(name: str, kind: type[Loss], value: Any) -> _Part:
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight, decode = settings.pop("weight", 1.0), settings.pop("decode", False)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= weight < math.inf:
        raise ValueError(f"the weight of {name} is {weight!r}; it must be a finite number >= 0.")
    if not isinstance(decode, bool):
        raise ValueError(f"decode of {name} is {decode!r}; it must be true or false.")
    arguments = check_settings(kind, settings, name, nested=_NESTED, without=("reduction",))
    return _Part(kind, float(weight), decode, arguments)


def _network(value: str | Mapping[str, Any]) -> Any:
    """What stands for the network of a loss: taps of the teacher, or a callable of anybody's."""
    if isinstance(value, Mapping):
        return build_settings(_Taps, value, "network")
    if value == "decoder":
        return _Taps(value)
    found = import_object(value, "network") if ":" in value else None
    if not callable(found):
        raise ValueError(
            f"network is {value!r}; give package.module:callable, from inputs to feature maps, decoder (the "
            "VAE's), or the teacher's {taps: [0.5], u: 0.1}."
        )
    return found


def _network_or_name(value: str | Mapping[str, Any]) -> Any:
    is_name = isinstance(value, str) and ":" not in value
    return convert(TrunkName, value, "network") if is_name else _network(value)


_NESTED: dict[Any, Callable[[Any], Any]] = {
    Loss: _parse,
    FeatureTrunk: _network,
    get_type_hints(LatentLPIPSLoss.__init__)["network"]: _network,
    get_type_hints(LPIPSLoss.__init__)["network"]: _network_or_name,
}
"""An argument's annotation -> what reads its value."""
