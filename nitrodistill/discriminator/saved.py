"""What heads on the disk say of themselves; `nitrodistill.pretrained` writes and reads them.

Nothing in it is imported: a head of your own is passed to whoever loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nitrodistill.discriminator.heads import HEADS, MakeHead, named_head
from nitrodistill.named import snake_case


@dataclass(frozen=True)
class HeadSettings:
    """What heads were made of.

    Attributes:
        taps: names of the submodules they see.
        channels: of each map.
        head: "conv", "token", "mlp", or what the callable that made them is called.
        width: as given.
        conditioning: what they know next to the features.
        pooled: the name of the pooled text, or None.
        text_channels: of the pooled text; 0 without.
    """

    taps: tuple[str, ...]
    channels: tuple[int, ...]
    head: str
    width: int | None
    conditioning: tuple[Literal["timestep", "text"], ...]
    pooled: str | None
    text_channels: int


def name_of(head: MakeHead) -> str:
    """What a maker of heads is called in a config."""
    if isinstance(head, type) and head in HEADS:
        return snake_case(head, "Head")
    return f"{head.__module__}:{getattr(head, '__qualname__', type(head).__qualname__)}"


def maker(name: str, head: str | MakeHead | None) -> MakeHead:
    """The maker of heads of this name.

    Raises:
        ValueError: if it is neither known nor given.
    """
    if ":" not in name and head is None:
        return named_head(name)
    if isinstance(head, str):
        head = named_head(head)
    if head is None or name_of(head) != name:
        given = "nothing" if head is None else name_of(head)
        raise ValueError(
            f"these heads were made by {name}, and {given} was given; pass it as head=."
        )
    return head
