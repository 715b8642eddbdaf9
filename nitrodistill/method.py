"""The contract between a distillation method and whatever trains it, and the draws that methods use.

A method knows nothing of optimizers, devices or processes. It is built from its `Cast`: the teacher, the student
and what else it asks for. It names what it trains, says which roles are active at a step, and yields one loss a
role from a generator. The trainer calls backward *while the generator is suspended*:

    for role, terms in method.losses(batch, method.active(step), Draws(seed, step, batch.index)):
        terms.total.backward()

so that freeze - forward - backward - unfreeze is the only order there is, and what two roles share (one
student sample) is a local variable.

Several processes train one model on parts of a micro-batch. Their networks meet in collective operations, so a
method must do the same in each of them: yield every active role for every micro-batch, and call the same networks
in the same order, whatever rows its part holds. A role that one process left out would wait for ever, or, with
accumulation, go its own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from nitrodistill.checks import check_fields, check_kind
from nitrodistill.files import blake2
from nitrodistill.models.latent_features import DecoderFeatures
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.sampling import StepPlan
from nitrodistill.types import Batch, Condition, Denoiser, Part, Terms, brief_fields, check_denoiser


@dataclass(frozen=True)
class Role:
    """Where a trained module lives: `getattr(owner, attribute)`.

    A trainer may replace the module by a prepared one (DDP, FSDP) with `bind`; the method reads it anew
    each time, so its gradients are synchronised. A method that kept the raw module would train
    without synchronisation, silently.

    Attributes:
        owner: the object that uses the module, for example a denoiser.
        attribute: its name there, for example "module".
        follows: name of a role of the same kind of network that this one, which is trained too, is drawn to after
            each update of that role: `weights <- decay weights + (1 - decay) theirs`. The trainer does it; in a
            loop of your own it is `training.EMA(theirs, decay, into=module).update()`.
        decay: of that, in [0, 1); 0 copies.
        follows_average: it is drawn to the moving average of that role's weights instead.

    Example:
        >>> role = nd.Role(teacher.denoiser)
        >>> role.module is teacher.denoiser.module
        True
    """

    owner: object
    attribute: str = "module"
    follows: str = ""
    decay: float = 0.97
    follows_average: bool = False

    __repr__ = brief_fields

    @property
    def module(self) -> nn.Module:
        """The module in use now."""
        module = getattr(self.owner, self.attribute, None)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{type(self.owner).__name__}.{self.attribute} is {type(module).__name__}; a Role "
                "points at an nn.Module: owner is the object that uses it, such as a denoiser."
            )
        return module

    def bind(self, module: nn.Module) -> None:
        """Replaces the module by a prepared one."""
        setattr(self.owner, self.attribute, module)


@dataclass(frozen=True)
class Frozen:
    """A network that a method uses and does not train; what runs the method places it, in place.

    Attributes:
        module: the network. With bf16 it is cast to bfloat16, and with `parallel: fsdp` shared out by the
            processes; one that follows a role is kept as that role's own network is.
        taps: names of its submodules whose features get a gradient.
        follows: name of the role whose moving average it is (LCM's target network); "" follows none. The trainer
            sets it to the role's weights at the start and moves it after each of the role's updates; a loop of
            your own does it by `training.EMA(role.module, decay, into=module)`.
        decay: of that average, in [0, 1), an update of the role.
        as_it_is: it is moved to the device and not cast: a small network, such as LPIPS. A `Loss` in it keeps its
            train mode.

    Example:
        >>> nd.Frozen(teacher.denoiser.module).module is teacher.denoiser.module
        True
    """

    module: nn.Module
    taps: tuple[str, ...] = ()
    follows: str = ""
    decay: float = 0.95
    as_it_is: bool = False

    __repr__ = brief_fields

    def __post_init__(self) -> None:
        check_kind("module", self.module, nn.Module, ", such as denoiser.module")


class Cast:
    """The networks that a method is built from.

    Args:
        make: name -> a denoiser: "teacher" is frozen; "student" is trainable, and any other name is one more
            trainable network that starts as the teacher.
        empty: the unconditional Condition for guidance, of batch size one; None where there is none.
        decode: latents `(B, C, H, W)` -> images `(B, 3, h, w)` in [-1, 1], through which gradients flow; None
            where there is none.
        vae: the frozen autoencoder; None where there is none.

    Attributes:
        empty: see above.
        decode: see above.
        vae: see above.
        tapped: names of the teacher's submodules that `features` was asked for; name them in `frozen()`.

    Example:
        >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy(), empty=teacher.null_condition())
        >>> cast.student.prediction_type
        'v_prediction'
    """

    def __init__(
        self,
        make: Callable[[str], Denoiser],
        empty: Condition | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        vae: Any = None,
    ) -> None:
        self.empty: Condition | None = empty
        self.decode: Callable[[Tensor], Tensor] | None = decode
        self.vae: Any = vae
        self.tapped: tuple[str, ...] = ()
        self._make = make
        self._taken: dict[str, Denoiser] = {}

    def __repr__(self) -> str:
        return f"Cast({', '.join(f'{name}={one!r}' for name, one in self._taken.items())})"

    @classmethod
    def of(
        cls,
        teacher: Denoiser,
        student: Denoiser,
        others: Mapping[str, Denoiser] | None = None,
        empty: Condition | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        vae: Any = None,
    ) -> Cast:
        """A cast of networks that are there already, for a loop of your own."""
        made = {"teacher": teacher, "student": student, **(others or {})}
        return cls(made.__getitem__, empty, decode, vae)

    @property
    def teacher(self) -> Denoiser:
        """The teacher; name it in `frozen()`."""
        return self._take("teacher")

    @property
    def student(self) -> Denoiser:
        """The student; name its module in `trainable()`."""
        return self._take("student")

    def another(self, role: str) -> Denoiser:
        """One more trainable network that starts as the teacher: a copy, or a LoRA role where the student is one.

        Name it in `trainable()` or in `frozen()`.

        Args:
            role: its name; the same name is the same network.

        Raises:
            ValueError: if the name is "teacher" or "student", which have their own attributes.
        """
        if role in ("teacher", "student"):
            raise ValueError(f"another({role!r}): write cast.{role} instead.")
        return self._take(role)

    def features(
        self, taps: str | Sequence[str | float], u: float = 0.0
    ) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The teacher's feature maps of latents, a trunk for `LatentLPIPSLoss`; gradients flow to the latents.

        The latents get no noise, and the teacher no prompt: losses do not know of it.

        Args:
            taps: see `FeatureTaps`; "decoder" are `DecoderFeatures` of the VAE.
            u: in [0, 1], the fraction of noise whose timestep the teacher is told.

        Raises:
            ValueError: for "decoder" where there is no VAE, and what `FeatureTaps` raises.

        Example:
            >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy(), empty=teacher.null_condition())
            >>> loss = nd.LatentLPIPSLoss(cast.features([0.5], u=0.1))
            >>> loss(x0, x0).item()
            0.0
        """
        if taps == "decoder":
            if self.vae is None:
                raise ValueError(
                    "the network of a loss is decoder, and there is no VAE (the teacher draws pixels?); give taps "
                    "of the teacher, {taps: [0.25, 0.5], u: 0.1}."
                )
            return DecoderFeatures(self.vae)
        found = FeatureTaps(self.teacher, taps)
        self.tapped = tuple(dict.fromkeys((*self.tapped, *found.names)))

        def trunk(latents: Tensor) -> tuple[Tensor, ...]:
            count = len(latents)
            t = self.teacher.schedule.timestep(torch.full((count,), u)).to(latents.device)
            empty = Condition() if self.empty is None else self.empty.index([0] * count)
            return found.features(latents, t, empty.to(latents.device))

        return trunk

    @property
    def taken(self) -> Mapping[str, Denoiser]:
        """What the method has asked for, by name."""
        return dict(self._taken)

    def _take(self, name: str) -> Denoiser:
        if name not in self._taken:
            self._taken[name] = check_denoiser(self._make(name), name)
        return self._taken[name]


class DistillationMethod(ABC):
    """What a trainer, or a plain loop, needs to know of a method: derive yours from it.

    A recipe finds it by name, `method: ladd` or `method: package.module:Class`, makes its `Config` of the recipe's
    `settings`, and calls `build`.

    Attributes:
        Config: the frozen dataclass of its settings, checked when it is made.
        plan: how the student samples.
        reads: the parts of a Batch that it trains on.

    Example:
        >>> isinstance(method, nd.DistillationMethod), list(method.trainable())
        (True, ['student'])
    """

    Config: ClassVar[type[Any]]
    plan: StepPlan
    reads: frozenset[Part] = frozenset({"pairs"})

    def __repr__(self) -> str:
        roles = ", ".join(f"{name}={role.owner!r}" for name, role in self.trainable().items())
        return f"{type(self).__name__}({roles}, plan={self.plan!r})"

    @classmethod
    @abstractmethod
    def build(cls, config: Any, cast: Cast) -> DistillationMethod:
        """The method with these settings on these networks.

        Raises:
            ValueError: if the settings do not fit the networks.
        """

    @abstractmethod
    def trainable(self) -> Mapping[str, Role]:
        """Role name -> where its module lives. The order is the order of preparation."""

    def frozen(self) -> Mapping[str, Frozen]:
        """Name -> a network that is used and not trained."""
        return {}

    def active(self, step: int) -> Sequence[str]:
        """The roles that are updated at `step`, a pure function; by default all of them."""
        return tuple(self.trainable())

    @abstractmethod
    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields `(role, terms)` once for each active role; call backward before resuming it."""


def check_build(
    config: object,
    kind: type[Any],
    cast: Cast | None = None,
    plan: StepPlan | None = None,
    **networks: Denoiser,
) -> None:
    """Refuses what a method cannot be built from: settings of another kind, networks that are no Cast or Denoiser.

    Raises:
        TypeError: otherwise.
    """
    check_kind("config", config, kind)
    check_kind("cast", cast, Cast | None, ": Cast.of(teacher, student)")
    check_kind("plan", plan, StepPlan | None, ": StepPlan.from_schedule(student.schedule)")
    for name, network in networks.items():
        check_denoiser(network, name)


@runtime_checkable
class Halving(Protocol):
    """Settings of a method whose next stage has half the steps, as `halvings` in a recipe asks for."""

    @property
    def num_inference_steps(self) -> int:
        """Steps of the student."""
        ...

    def halved(self) -> Halving:
        """The settings of the next stage, whose teacher is this one's student.

        Raises:
            ValueError: if the steps have no half.
        """
        ...


@contextmanager
def frozen_within(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` asks for a gradient inside of the block; each has its own flag again after it.

    Put the forward pass *and* the `yield` inside: the backward pass must be over when the flags return. The
    other orders fail silently under FSDP.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> with nd.frozen_within(layer):
        ...     layer.weight.requires_grad
        False
    """
    for module in modules:
        check_kind("module", module, nn.Module, ", such as denoiser.module")
    asking = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _alone(value: Tensor) -> Tensor:
    return value


_EVERYBODY = torch.tensor([-1])
"""The index of what all samples share: no sample has it."""


@dataclass(frozen=True)
class Draws:
    """Random draws that are a function of (purpose, seed, stage, step, sample index, name), and of nothing else.

    One process or eight, accumulation or not, killed and resumed or not: the same draws. They come from
    numpy's counter-based Philox generator on the CPU, one stream a sample and name, and are then
    moved, so that they do not depend on the device either. What is drawn for another purpose or in another stage
    has nothing in common with them, whatever the seed.

    Attributes:
        seed: the run's seed.
        step: the optimizer step.
        index: `(B,)` int64 global sample numbers.
        gather: joins `(B, *)` of every process that shares the micro-batch, in the order of its samples; for
            losses that look at other samples. All processes must call it alike. One process: identity.
        stage: number of the stage in its recipe.
        purpose: what is drawn for: "training", "pairs", "previews", "evaluation", ...

    Example:
        >>> import torch
        >>> one = Draws(seed=0, step=7, index=torch.tensor([3, 5])).normal("noise", (2,))
        >>> two = Draws(seed=0, step=7, index=torch.tensor([5])).normal("noise", (2,))
        >>> torch.equal(one[1:], two)
        True
    """

    seed: int
    step: int
    index: Tensor
    gather: Callable[[Tensor], Tensor] = field(default=_alone, repr=False)
    stage: int = 0
    purpose: str = "training"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.index.ndim != 1 or self.index.is_floating_point():
            raise ValueError(f"index is {self.index!r:.80}; it must be (B,) whole numbers.")

    @property
    def shared(self) -> Draws:
        """Draws that all samples, micro-batches and processes of a step have in common: `(1, *shape)` each."""
        return replace(self, index=_EVERYBODY)

    def take(self, rows: Tensor) -> Draws:
        """The draws of some samples: `rows` is `(b,)` int64, places in this micro-batch."""
        return replace(self, index=self.index[rows.to(self.index.device)])

    def normal(
        self, name: str, shape: int | Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal draws `(B, *shape)`, float32."""
        return self._drawn(name, shape, device, np.random.Generator.standard_normal)

    def uniform(
        self, name: str, shape: int | Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Uniform draws in [0, 1), `(B, *shape)`, float32."""
        return self._drawn(name, shape, device, np.random.Generator.random)

    def _drawn(
        self,
        name: str,
        shape: int | Sequence[int],
        device: torch.device | str,
        draw: Callable[..., object],
    ) -> Tensor:
        """A row a sample, each from the start of a stream of its own."""
        # pairs have the key that stores were drawn with before there were purposes
        prefix = "" if self.purpose == "pairs" else f"{self.purpose}/{self.stage}/"
        key = int.from_bytes(blake2(f"{prefix}{self.seed}/{self.step}/{name}", 8), "little")
        sizes = (shape,) if isinstance(shape, int) else shape
        rows = np.empty((len(self.index), *sizes), np.float32)
        philox = np.random.Philox(key=np.array([key, 0], np.uint64))
        generator, start = np.random.Generator(philox), philox.state
        for i, index in enumerate(self.index.tolist()):
            # one generator, set to each stream's start: to make one a sample costs several times the draw
            start["state"]["key"][1] = index % 2**64
            philox.state = start
            draw(generator, dtype=np.float32, out=rows[i, ...])
        return torch.from_numpy(rows).to(device)
