"""Heads on the disk: `heads.safetensors`, and `config.json` with what made them, their taps, and a hash of both.

There is no pickle in it, and nothing in it is imported: a head of your own is passed to whoever loads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from nitrodistill.discriminator.heads import HEADS, MakeHead, named_head
from nitrodistill.files import atomic, blake2, damage, read_text, record_of, write_json
from nitrodistill.named import snake_case
from nitrodistill.settings import build, to_plain

_WEIGHTS, _CONFIG, _FORMAT = "heads.safetensors", "config.json", 1


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


def maker(name: str, head: MakeHead | None) -> MakeHead:
    """The maker of heads of this name.

    Raises:
        ValueError: if it is neither known nor given.
    """
    if ":" not in name and head is None:
        return named_head(name)
    if head is None or name_of(head) != name:
        given = "nothing" if head is None else name_of(head)
        raise ValueError(
            f"these heads were made by {name}, and {given} was given; pass it as head=."
        )
    return head


def save(folder: Path, heads: nn.Module, settings: HeadSettings) -> None:
    """Writes heads, the weights first; what is half written cannot be loaded.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    from safetensors.torch import save_file

    strange = {file.name for file in folder.glob("*")} - {_WEIGHTS, _CONFIG}
    if strange:
        raise FileExistsError(
            f"{str(folder)!r} holds {min(strange)!r}, which is no discriminator's; choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()
    }
    with atomic(folder / _WEIGHTS) as temporary:
        save_file(tensors, temporary)
    plain = to_plain(settings)
    files = {_WEIGHTS: record_of(folder / _WEIGHTS)}
    content = {"format": _FORMAT, "settings": plain, "files": files, "blake2b": _hash(plain)}
    write_json(folder / _CONFIG, content)


def load(folder: Path) -> tuple[HeadSettings, dict[str, Tensor]]:
    """Settings and weights that `save` wrote, compared with their hashes.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are damaged, or of another format.
    """
    from safetensors.torch import load_file

    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(
            f"no discriminator's heads in {str(folder)!r}; it has no {_CONFIG}."
        )
    try:
        content = json.loads(read_text(folder / _CONFIG))
        version, plain, files = (content[key] for key in ("format", "settings", "files"))
        found = damage(folder, files) if content["blake2b"] == _hash(plain) else "its hash differs"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(folder / _CONFIG)!r} is damaged: {error!r}.") from error
    if version != _FORMAT:
        raise ValueError(
            f"the heads in {str(folder)!r} are of format {version}, and this version reads {_FORMAT}; save them "
            "with it, or read them with the version that wrote them."
        )
    if found is not None or _WEIGHTS not in files:
        raise ValueError(
            f"the heads in {str(folder)!r} are damaged: {found or 'no record of them'}."
        )
    return build(HeadSettings, plain, _CONFIG), load_file(folder / _WEIGHTS)


def _hash(plain: object) -> str:
    return blake2(json.dumps(plain, sort_keys=True)).hex()
