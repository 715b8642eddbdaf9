"""What an adapter must say of a family of networks, and of a family of pipelines.

An **Adapter** translates one diffusers network into the library's nouns: which tensors of a Condition it
needs, how they become its arguments, which part of its answer is the prediction, and which part of a
block's answer is the image. A **PipelineAdapter** does the same for prompts. Everything else (checks,
examples, taps, LoRA, guidance) is written once, on top of these. docs/extending.md shows one.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.layout import first_tensor, on_grid
from nitrodistill.types import Condition

RescaleBy = Literal["deviation", "norm", "row", "token"]
"""What of a guided prediction is drawn back to the conditional one's."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a Condition.

    Attributes:
        shape: behind the batch; None is any length.
        integer: whether it holds numbers such as class labels.

    Example:
        >>> teacher.denoiser.adapter.entries()
        {'encoder_hidden_states': Entry(shape=(None, 64), integer=False)}
    """

    shape: tuple[int | None, ...] = ()
    integer: bool = False


def masked_text(width: int) -> dict[str, Entry]:
    """The entries of text that a mask goes with."""
    return {
        "encoder_hidden_states": Entry((None, width)),
        "encoder_attention_mask": Entry((None,), integer=True),
    }


class Adapter(ABC):
    """What one family of networks takes, and how its outputs are read.

    Args:
        network: the bare network; only its config is kept.

    Raises:
        ValueError: if it takes channels next to the latents: those of a mask, or of a picture to be edited.

    Attributes:
        config: the network's config.
        patch: latent pixels a token is wide (1 for networks of maps).
        multiple: latents must be divisible by this many pixels.
        default_side: height and width of latents where the config says none: what diffusers draws by default.
        timestep_scale: the network's timestep over that of its diffusers scheduler.
        block_lists: attributes that hold the blocks, in the order in which they run.
        depths: lists of blocks that `prune` may shorten -> the config's setting that counts them.
        lora_targets: names, or ends of names, of the layers that LoRA adapts unless a LoRAConfig names others.
        unused: how the names of weights begin that the prediction does not depend on, and that are not trained.
        embeds_guidance: whether the scale of guidance is an input, `guidance` (Flux-dev).
        pooled_text: the entry that holds the text as one vector a prompt, if there is one.

    Example:
        >>> type(teacher.denoiser.adapter).__name__, list(teacher.denoiser.adapter.entries())
        ('UNetAdapter', ['encoder_hidden_states'])
    """

    patch: int = 1
    multiple: int = 1
    default_side: int | None = None
    timestep_scale: float = 1.0
    block_lists: tuple[str, ...] = ("transformer_blocks",)
    depths: Mapping[str, str] = {}
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    unused: tuple[str, ...] = ()
    embeds_guidance: bool = False
    pooled_text: str | None = None

    def __init__(self, network: nn.Module) -> None:
        self.config: Any = network.config
        given, predicted = getattr(self.config, "in_channels", None), self.predicted_channels()
        # twice: a learned sigma
        if given is not None and predicted not in (None, given, 2 * given):
            raise ValueError(
                f"this {type(network).__name__} takes {given} channels and predicts {predicted}: the others hold "
                "a mask, or a picture to be edited or followed, which its adapter does not pass. Distil from the "
                "text-to-image network of its family, or write an adapter of your own (docs/extending.md)."
            )

    @abstractmethod
    def entries(self) -> Mapping[str, Entry]:
        """The tensors that a Condition must hold for this network."""

    @abstractmethod
    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """The arguments of the network's forward.

        Args:
            x_t: `(B, C, H, W)` in the network's dtype.
            t: `(B,)` in the network's unit, int64 or float32.
            condition: checked; its floating-point tensors in the network's dtype.
        """

    def unpacked(self, latents: Tensor, x_t: Tensor) -> Tensor:
        """Latents as the family's pipeline hands them to its scheduler, as the network returns them, as maps."""
        return latents

    def prediction(self, output: Any, x_t: Tensor) -> Tensor:
        """The prediction, shaped like `x_t`, in the network's first output; channels behind it go."""
        return self.unpacked(output, x_t)[:, : x_t.shape[1]]

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The image's feature map `(B, D, h, w)` in what a submodule returned.

        Args:
            output: a map `(B, D, h, w)`, tokens `(B, N, D)`, or a tuple or list with one.
            grid: `(h, w)`, the tokens of the whole latent.
        """
        return on_grid(first_tensor(output), grid)

    def predicted_channels(self) -> int | None:
        """Channels that the network predicts for its config's `in_channels`; None: the config does not say."""
        return getattr(self.config, "out_channels", None)

    def channels(self) -> int:
        """C of the latents."""
        return self.config.in_channels

    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the latents that the network was made for.

        Raises:
            ValueError: if its config does not say.
        """
        size = getattr(self.config, "sample_size", None) or self.default_side
        if size is None:
            raise ValueError(
                "the network's config has no sample_size; give the Pipeline a resolution, or register one "
                "with network.register_to_config(sample_size=...)."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return self.channels(), height, width

    def example_side(self) -> int:
        """Height and width of the smallest latent that runs every block."""
        return 2 * max(self.patch, self.multiple)

    def blocks(self, network: nn.Module) -> tuple[str, ...]:
        """The names of the network's blocks in the order in which they run: what depths count."""
        names: list[str] = []
        for attribute in self.block_lists:
            part = getattr(network, attribute, None)
            if isinstance(part, nn.ModuleList):
                names += [f"{attribute}.{i}" for i in range(len(part))]
            elif part is not None:
                names.append(attribute)
        return tuple(names)

    def pruned(
        self, network: nn.Module, keep: Mapping[str, tuple[int, ...]]
    ) -> tuple[Mapping[str, tuple[int, ...]], dict[str, Any]]:
        """What `keep` means for the network: all that it implies, and the settings of the smaller one's config.

        Args:
            network: the whole network.
            keep: name of a list of blocks -> the indices that stay; checked to be in the list.

        Raises:
            TypeError: if the family cannot be pruned.
            ValueError: if what would be left is no network that diffusers builds.
        """
        name = type(network).__name__
        if not self.depths:
            raise TypeError(
                f"{name} is of a family without pruning: its adapter's `depths` does not say which setting of the "
                "config counts which list of blocks (docs/pruning.md)."
            )
        strange = [key for key in keep if key not in self.depths]
        if strange:
            raise ValueError(
                f"keep names {strange[0]!r}; of a {name}, blocks of {' and '.join(self.depths)} can go."
            )
        left = {key: len(keep.get(key, getattr(network, key))) for key in self.depths}
        if not any(left.values()):
            raise ValueError(f"the spec keeps no block of the {name}; keep at least one.")
        return keep, {setting: left[key] for key, setting in self.depths.items()}

    def removable(self, network: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Names of modules that `prune` can take out, each with those that go with it."""
        lists = {key: len(getattr(network, key)) for key in self.depths}
        return tuple((f"{key}.{i}",) for key, count in lists.items() for i in range(count))

    def grid(self, x_t: Tensor) -> tuple[int, int]:
        """`(h, w)`: the tokens, or the map, of a latent."""
        return x_t.shape[-2] // self.patch, x_t.shape[-1] // self.patch

    def check(self, name: str, x_t: Tensor, condition: Condition) -> None:
        """Refuses latents and conditions that do not fit, by their shapes alone.

        Args:
            name: of the network's class, for the messages.
            x_t: the latents.
            condition: what they are conditioned on.

        Raises:
            ValueError: naming the shape, the rule and the way out.
        """
        channels = self.channels()
        if x_t.ndim != 4 or x_t.shape[1] != channels:
            raise ValueError(
                f"x_t has shape {tuple(x_t.shape)}, but this {name} takes latents (B, {channels}, H, W); use "
                "those of its own VAE."
            )
        if any(side % self.multiple for side in x_t.shape[-2:]):
            raise ValueError(
                f"latents of {x_t.shape[-2]}x{x_t.shape[-1]} do not fit this {name}: height and width must be "
                f"divisible by {self.multiple}."
            )
        for key, entry in self.entries().items():
            _check_entry(name, key, entry, condition, len(x_t))

    def example_condition(self, like: Tensor, length: int = 2) -> Condition:
        """A Condition of zeros (masks: ones) of batch size one, on `like`'s device, in its dtype."""

        def make(key: str, entry: Entry) -> Tensor:
            shape = (1, *(length if side is None else side for side in entry.shape))
            if key.endswith("mask"):
                return torch.ones(shape, dtype=torch.long, device=like.device)
            return like.new_zeros(shape, dtype=torch.long if entry.integer else None)

        return Condition({key: make(key, entry) for key, entry in self.entries().items()})

    def with_guidance_baked(self, network: nn.Module, guidance: float) -> nn.Module:
        """A network that draws at one scale of embedded guidance without that input, for export.

        Where no scale is embedded that is the network itself. A family with `embeds_guidance` must say how.

        Args:
            network: stays as it is; its weights may be shared.
            guidance: the scale.

        Raises:
            TypeError: if the family embeds guidance and does not say how.
        """
        if self.embeds_guidance:
            raise TypeError(
                f"{type(self).__name__} has embeds_guidance, so it must define with_guidance_baked too; "
                "without it a student cannot be exported."
            )
        return network


JOINT_TARGETS: tuple[str, ...] = (
    *Adapter.lora_targets,
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
"""The projections of joint attention: the image's, and the text's."""


class PatchAdapter(Adapter):
    """Networks whose tokens are square patches of the latent, as wide as their config says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.patch: int = self.config.patch_size
        self.multiple: int = self.patch

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """By default the Condition's tensors go in under their own names."""
        tensors = {name: condition[name] for name in self.entries()}
        return {"hidden_states": x_t, "timestep": t, **tensors}


class PipelineAdapter(ABC):
    """How one family of diffusers pipelines turns prompts into Conditions.

    Attributes:
        network: the pipeline's attribute that holds the denoising network.
        load_arguments: further arguments of `from_pretrained`.
        optional: parts that a saved pipeline may lack (`null` in its model_index.json).
        call_settings: further arguments of the pipeline's call, without which it would encode prompts differently.
        has_null: whether there is a condition that stands for none, for guidance without a negative prompt.
        rescale_by: what of the guided prediction the pipeline draws back to the conditional one's, if it does so
            by default; see `Guided`.

    Example:
        >>> teacher.adapter.network
        'unet'
    """

    network: str = "transformer"
    load_arguments: Mapping[str, Any] = {}
    optional: tuple[str, ...] = ("safety_checker", "feature_extractor", "image_encoder")
    call_settings: Mapping[str, Any] = {}
    has_null: bool = True
    rescale_by: RescaleBy | None = None

    @abstractmethod
    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """The Condition of prompts, for pictures of `size` (height, width) in pixels."""

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """Guidance's unconditional side, of batch size one; None is what diffusers takes by default.

        By default the negative prompt, or the empty one, is encoded as any other.
        """
        return self.encode(pipe, [negative_prompt or ""], size)

    def check(self, pipe: Any, prompt: str) -> None:
        """Refuses what is no prompt of the pipeline, before anything is encoded; by default nothing.

        Raises:
            ValueError: naming the prompt, the rule and the way out.
        """
        return None

    def call(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        """The arguments of the pipeline's own call that ask for prompts, in JSON's types.

        Raises:
            ValueError: if the pipeline cannot be asked.
        """
        return {"prompt": prompts}

    def exported_as(self, pipe: Any) -> str | None:
        """diffusers' class of pipeline that draws its students; None, the default, is its own."""
        return None

    def saved_settings(self, pipe: Any) -> dict[str, Any]:
        """What a pipeline was made with, is not in its config, and has to be saved with it."""
        return {}

    def shift_mu(self, pipe: Any, num_tokens: int) -> float | None:
        """The `mu` of a dynamic shift, where the pipeline does not take it from its scheduler's line.

        Args:
            pipe: the pipeline.
            num_tokens: image tokens.
        """
        return None

    def call_sigmas(self, num_inference_steps: int) -> list[float] | None:
        """The sigmas that the pipeline's call hands to its scheduler if its user gives none.

        None, the default, leaves them to the scheduler.
        """
        return None


class SigmaLinePipelineAdapter(PipelineAdapter):
    """Pipelines whose call hands its scheduler a line from 1 to 1/N, which the scheduler then shifts."""

    def call_sigmas(self, num_inference_steps: int) -> list[float]:
        return [1 - i / num_inference_steps for i in range(num_inference_steps)]


def call_default(pipe: Any, argument: str) -> Any:
    """What a pipeline's call takes for an argument that its user does not give."""
    return inspect.signature(type(pipe).__call__).parameters[argument].default


def names_of(entries: Mapping[str, Entry] | Sequence[str]) -> str:
    """A list of names for a message."""
    return ", ".join(repr(key) for key in entries) or "nothing"


def _check_entry(name: str, key: str, entry: Entry, condition: Condition, batch: int) -> None:
    value = condition.tensors.get(key)
    if value is None:
        raise ValueError(
            f"this {name} needs {key!r} in its Condition, which holds {names_of(list(condition.tensors))}; "
            "encode the prompts with the network's own pipeline (Pipeline.encode_prompt)."
        )
    wanted = tuple("L" if side is None else side for side in entry.shape)
    fits = value.ndim == 1 + len(entry.shape) and all(
        side is None or side == found
        for side, found in zip(entry.shape, value.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{key!r} has shape {tuple(value.shape)}, but this {name} takes (B, "
            f"{', '.join(map(str, wanted))}): it was encoded for another model; encode the prompts with the "
            "network's own pipeline."
        )
    if len(value) != batch:
        raise ValueError(
            f"{key!r} holds {len(value)} samples for {batch} latents; index or repeat the Condition."
        )
    if key.endswith("mask"):
        text = condition.tensors.get("encoder_hidden_states")
        if text is not None and text.shape[1] != value.shape[1]:
            raise ValueError(
                f"{key!r} covers {value.shape[1]} tokens, but 'encoder_hidden_states' holds "
                f"{text.shape[1]}; pad or cut both alike (Condition.pad takes both names)."
            )
