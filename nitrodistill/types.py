"""The nouns that every other module shares.

One equation governs the library,

    x_t = alpha_t x0 + sigma_t eps,

where `x0` is always the data and `eps` the noise. A **timestep** `t` is what a network is conditioned
on, in the network's own unit (int64 0..999 for Stable Diffusion, sigma * 1000 for SD3, sigma for EDM);
`u` in [0, 1] is the fraction of the way from data (0) to noise (1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from nitrodistill.checks import as_tensor, check_floating, check_kind, check_scales

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""What a network predicts, in diffusers' words; `flow_prediction` is `eps - x0`, always."""

PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)


def check_prediction_type(value: str) -> PredictionType:
    """Returns `value` if it is a prediction type.

    Raises:
        ValueError: if it is none of `PREDICTION_TYPES`.
    """
    for known in PREDICTION_TYPES:  # torch 2.5 compiles no get_args
        if value == known:
            return known
    raise ValueError(
        f"prediction_type is {value!r}; it must be one of {', '.join(PREDICTION_TYPES)}."
    )


def brief(value: object) -> str:
    """A value for a `repr` of one line: of tensors and networks what they are, not what is in them."""
    if isinstance(value, Tensor):
        dtype, of = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        return f"{value.item():.4g}" if not of and value.device.type == "cpu" else f"{dtype} {of}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, Scales):
        return f"({brief(value.alpha)}, {brief(value.sigma)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {brief(one)}" for name, one in value.items()) + "}"
    return repr(value)


def brief_fields(self: Any) -> str:
    """`__repr__` of a dataclass: its fields as `brief` shows them, without those that are None."""
    given = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
    parts = (f"{name}={brief(value)}" for name, value in given.items() if value is not None)
    return f"{type(self).__name__}({', '.join(parts)})"


def expand(value: Tensor | float, like: Tensor) -> Tensor:
    """Reshapes a per-sample `(B,)` (or scalar) tensor so that it broadcasts against `like` `(B, *)`.

    The dtype is kept; a zero-dimensional tensor stays as it is, so that it never forces a transfer.

    Example:
        >>> nd.expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """
    value = as_tensor("a number per sample", value)
    if value.ndim == 0:
        return value
    if value.ndim > 1 or len(value) not in (1, len(like)):
        raise ValueError(
            f"a number per sample has shape {tuple(value.shape)}; it must be ({len(like)},), or zero-dimensional."
        )
    return value.to(like.device).reshape(-1, *([1] * (like.ndim - 1)))


class Scales(NamedTuple):
    """The two coefficients of `x_t = alpha x0 + sigma eps`.

    Attributes:
        alpha: signal scale, `(B,)` or zero-dimensional, float64 where the device has it.
        sigma: noise scale, of the same shape.

    Example:
        >>> scales = nd.Scales(torch.tensor(0.6), torch.tensor(0.8))
        >>> scales.mix(torch.ones(1, 2), torch.zeros(1, 2)), scales.snr()
        (tensor([[0.6000, 0.6000]]), tensor(0.5625))
    """

    alpha: Tensor
    sigma: Tensor

    def mix(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Returns `alpha x0 + sigma noise` in `noise`'s dtype, shape `(B, *)`.

        Computed in float32 or wider. Where alpha is exactly 0 and sigma exactly 1 the result equals
        `noise` bit for bit.
        """
        check_floating("x0", x0)
        check_floating("noise", noise)
        if x0.shape != noise.shape:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)} and noise {tuple(noise.shape)}; they must be equal."
            )
        check_scales(self, noise.shape[0] if noise.ndim else None)
        dtype = torch.promote_types(noise.dtype, torch.float32)
        alpha, sigma = (expand(s, noise).to(dtype) for s in self)
        return (alpha * x0 + sigma * noise).to(noise.dtype)

    def snr(self) -> Tensor:
        """Returns alpha^2 / sigma^2, the signal-to-noise ratio; 0 at zero terminal SNR."""
        return self.alpha.square() / self.sigma.square()


@runtime_checkable
class NoiseSchedule(Protocol):
    """How much signal and noise a timestep means: the smallest interface that serves all families.

    Example:
        >>> isinstance(nd.RectifiedFlow(), nd.NoiseSchedule)
        True
    """

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the noise that sampling starts from (1, or sqrt(sigma_max^2 + 1) for EDM)."""
        ...

    def __call__(self, t: Tensor) -> Scales:
        """Scales at timesteps `t` (any shape, the network's unit)."""
        ...

    def timestep(self, u: Tensor) -> Tensor:
        """The timestep at fraction `u` in [0, 1] of the way from data to noise."""
        ...

    def fraction(self, t: Tensor) -> Tensor:
        """The fraction `u` in [0, 1] at timestep `t`; the inverse of `timestep` up to its grid."""
        ...

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The `(num_inference_steps,)` timesteps of a sampler, noisiest first ("trailing" spacing)."""
        ...


@dataclass(frozen=True)
class Condition:
    """What a denoiser is conditioned on: a frozen, batch-first bag of tensors.

    Attributes:
        tensors: name -> tensor with the batch first, under the names of the network's own arguments
            (`encoder_hidden_states`, `encoder_attention_mask`, ...). A name that ends in `mask`
            is a token mask `(B, L)`; sequences are padded with zeros, and so are masks.
        prompt_ids: `(B,)` int64 numbers that say which prompt a sample has, or None. Equal ids mean
            equal prompts.

    Example:
        >>> text = nd.Condition({"encoder_hidden_states": torch.zeros(2, 5, 16)})
        >>> text.index([1, 1, 0])
        Condition(tensors={encoder_hidden_states: float32 (3, 5, 16)})
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    prompt_ids: Tensor | None = None

    __repr__ = brief_fields

    def __post_init__(self) -> None:
        check_kind("tensors", self.tensors, Mapping, " from names to batch-first tensors")
        for name, value in self._items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise TypeError(
                    f"{name} of a Condition is {brief(value):.60}; it must be a tensor with the batch first."
                )
        sizes = {name: value.shape[0] for name, value in self._items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"a Condition's tensors must share their first dimension (the batch), got {sizes}."
            )

    def __len__(self) -> int:
        """The batch size; 0 for an empty bag."""
        return next((value.shape[0] for _, value in self._items()), 0)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise KeyError(
                f"this Condition has no {name!r}; it holds {', '.join(self.tensors) or 'nothing'}."
            )
        return self.tensors[name]

    def _items(self) -> Iterable[tuple[str, Tensor]]:
        yield from self.tensors.items()
        if self.prompt_ids is not None:
            yield "prompt_ids", self.prompt_ids

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        ids = None if self.prompt_ids is None else function(self.prompt_ids)
        return Condition({name: function(value) for name, value in self.tensors.items()}, ids)

    def index(self, rows: Tensor | slice | int | Sequence[int]) -> Condition:
        """The samples `rows`, in that order; one number is that sample alone."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows).reshape(-1)
        return self._map(
            lambda value: value[rows if isinstance(rows, slice) else rows.to(value.device)]
        )

    def roll(self, shift: int = 1) -> Condition:
        """The samples rotated by `shift` along the batch."""
        return self._map(lambda value: value.roll(shift, dims=0))

    def pad(self, lengths: Mapping[str, int]) -> Condition:
        """Pads the tensors named in `lengths` with zeros along dimension 1 to those lengths."""
        return replace(
            self,
            tensors={
                name: _pad_to(value, lengths.get(name, 0)) for name, value in self.tensors.items()
            },
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Condition:
        """Moves every tensor to `device`, and the floating-point ones to `dtype`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return self._map(move)

    def having(self, **tensors: Tensor) -> Condition:
        """The same with these tensors too, or in place of its own."""
        return replace(self, tensors={**self.tensors, **tensors})

    def null(self, empty: Condition, where: Tensor | None = None) -> Condition:
        """Replaces samples by the unconditional one, for guidance and for caption dropout.

        Args:
            empty: the unconditional Condition, of batch size one, with the same names.
            where: `(B,)` bool, True where a sample is replaced; None replaces all of them.
        """
        if len(empty) != 1 or empty.tensors.keys() != self.tensors.keys():
            raise ValueError(
                f"the unconditional Condition holds {len(empty)} samples of {sorted(empty.tensors)}; it must hold "
                f"one, of {sorted(self.tensors)}."
            )
        rows = empty.index([0] * len(self))
        if where is None:
            return rows
        length = {
            name: max(value.shape[1], rows.tensors[name].shape[1])
            for name, value in self.tensors.items()
            if value.ndim > 1
        }
        mine, rows = self.pad(length), rows.pad(length)

        def choose(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(expand(where, a), b, a)

        ids = self.prompt_ids
        if ids is not None and rows.prompt_ids is not None:
            ids = choose(ids, rows.prompt_ids)
        return Condition({n: choose(v, rows.tensors[n]) for n, v in mine.tensors.items()}, ids)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Joins conditions along the batch, padding sequences to the longest of each name."""
        if isinstance(conditions, Condition):
            return conditions
        conditions = [as_condition(one) for one in conditions]
        if not conditions:
            raise ValueError("Condition.cat got no conditions; give it at least one.")
        names = list(conditions[0].tensors)
        for other in conditions[1:]:
            if list(other.tensors) != names:
                raise ValueError(
                    f"Condition.cat needs the same names everywhere, got {names} and "
                    f"{list(other.tensors)}."
                )
        lengths = {
            n: max(c.tensors[n].shape[1] for c in conditions)
            for n in names
            if conditions[0].tensors[n].ndim > 1
        }
        padded = [c.pad(lengths) for c in conditions]
        ids = [c.prompt_ids for c in conditions if c.prompt_ids is not None]
        return Condition(
            {n: torch.cat([c.tensors[n] for c in padded]) for n in names},
            torch.cat(ids) if len(ids) == len(conditions) else None,
        )


def as_condition(value: Condition | Mapping[str, Tensor] | None) -> Condition:
    """A Condition as it is, one of a dict of tensors, and one that holds nothing for None.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Condition):
        return value
    way_out = ", such as `pipeline.encode_prompt` returns, or a dict of its tensors"
    check_kind("condition", value, Condition | Mapping | None, way_out)
    return Condition(value or {})


def _pad_to(value: Tensor, length: int) -> Tensor:
    if value.ndim < 2 or value.shape[1] >= length:
        return value
    missing = value.new_zeros(value.shape[0], length - value.shape[1], *value.shape[2:])
    return torch.cat([value, missing], dim=1)


@dataclass(frozen=True)
class Pairs:
    """What a teacher made, and from what.

    Attributes:
        x0: `(B, C, H, W)` the teacher's latents (the data).
        noise: `(B, C, H, W)` the noise that the teacher saw.
        condition: what the teacher was conditioned on.

    Example:
        >>> nd.Pairs(x0, noise, nd.Condition())
        Pairs(x0=float32 (2, 4, 8, 8), noise=float32 (2, 4, 8, 8), condition=Condition(tensors={}))
    """

    x0: Tensor
    noise: Tensor
    condition: Condition

    __repr__ = brief_fields

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Pairs:
        """Moves the data, and to `dtype`, if given."""
        x0, noise = self.x0.to(device, dtype), self.noise.to(device, dtype)
        return Pairs(x0, noise, self.condition.to(device, dtype))


@dataclass(frozen=True)
class Latents:
    """Data that no teacher made: encoded images with their captions.

    Attributes:
        x0: `(B, C, H, W)` the latents.
        condition: the captions, encoded.

    Example:
        >>> nd.Latents(x0, nd.Condition()).to("cpu", torch.float16).x0.dtype
        torch.float16
    """

    x0: Tensor
    condition: Condition

    __repr__ = brief_fields

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Latents:
        """Moves the data, and to `dtype`, if given."""
        return Latents(self.x0.to(device, dtype), self.condition.to(device, dtype))


Part = Literal["pairs", "real", "prompts"]
"""What a method may read: the parts of a Batch, and the stores of a recipe."""


@dataclass(frozen=True)
class Batch:
    """What a method trains on: the parts that it reads, the others None.

    Attributes:
        index: `(B,)` int64, the global number of each sample in the training stream; random draws
            are a function of it.
        pairs: what the teacher made.
        real: real latents with captions; row i has nothing to do with row i of the other parts.
        prompts: prompts alone, encoded.

    Example:
        >>> batch = nd.Batch(torch.arange(2), pairs=nd.Pairs(x0, noise, condition))
        >>> len(batch), list(batch.parts())
        (2, ['pairs'])
    """

    index: Tensor
    pairs: Pairs | None = None
    real: Latents | None = None
    prompts: Condition | None = None

    __repr__ = brief_fields

    def __post_init__(self) -> None:
        check_kind("index", self.index, Tensor)

    def __len__(self) -> int:
        return len(self.index)

    def parts(self) -> dict[Part, Pairs | Latents | Condition]:
        """The parts that are there, by name."""
        named: dict[Part, Pairs | Latents | Condition | None] = {
            "pairs": self.pairs,
            "real": self.real,
            "prompts": self.prompts,
        }
        return {name: part for name, part in named.items() if part is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Moves the data (and to `dtype`, if given); `index` stays on the CPU, where draws are."""
        parts: dict[str, Any] = {n: p.to(device, dtype) for n, p in self.parts().items()}
        return Batch(self.index, **parts)


class Terms(NamedTuple):
    """A loss with its named parts.

    Attributes:
        total: scalar, what backward is called on.
        parts: name -> detached tensor, for logging; scalar, or `(B,)` one value per sample.
        weighted: name -> scalar, not detached: what the total is the sum of. A trainer may ask each for the norm
            of its gradient; {} where a method does not say.

    Example:
        >>> loss = torch.tensor(2.0, requires_grad=True)
        >>> nd.Terms(loss, {"l1": loss.detach()}).parts
        {'l1': tensor(2.)}
    """

    total: Tensor
    parts: dict[str, Tensor]
    weighted: Mapping[str, Tensor] = MappingProxyType({})


@runtime_checkable
class Denoiser(Protocol):
    """`(x_t, t, condition) -> prediction`: the only thing that methods know of a network.

    Example:
        >>> isinstance(teacher.denoiser, nd.Denoiser), teacher.denoiser.prediction_type
        (True, 'v_prediction')
    """

    @property
    def module(self) -> nn.Module:
        """The network; an attribute that a trainer may replace by a prepared module."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule whose timesteps the network is conditioned on."""
        ...

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicts from `x_t` `(B, C, H, W)` at timesteps `t` `(B,)` or zero-dimensional."""
        ...


@runtime_checkable
class TakesInputs(Protocol):
    """A denoiser that takes one more number next to t: how far its step goes, or the scale of guidance."""

    @property
    def extra_inputs(self) -> Mapping[str, float]:
        """{"interval": ...} or {"guidance": ...}: its value where a Condition does not hold it; {} is neither."""
        ...


def check_denoiser(value: object, name: str = "denoiser") -> Denoiser:
    """Returns what is a Denoiser.

    Raises:
        TypeError: for anything else, such as a bare network or a pipeline; it says how one is made of them.
    """
    if not isinstance(value, Denoiser):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be a Denoiser, such as Pipeline.from_diffusers(pipe)"
            ".denoiser or DiffusersDenoiser(network, schedule, prediction_type)."
        )
    return value


def check_schedule(value: object) -> NoiseSchedule:
    """Returns what is a NoiseSchedule.

    Raises:
        TypeError: for anything else, such as a diffusers scheduler.
    """
    if not isinstance(value, NoiseSchedule):
        raise TypeError(
            f"schedule is a {type(value).__name__}; it must be a NoiseSchedule, such as RectifiedFlow(), "
            "KarrasSchedule() or DiscreteSchedule.from_scheduler(pipe.scheduler)."
        )
    return value
