"""What the folder of a diffusers pipeline says of it, before any of it is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nitrodistill.models.adapters import PIPELINES


class UnsupportedPipeline(ValueError):
    """A pipeline that is whole and cannot be used."""


def check_kind(path: str | Path, kind: object) -> None:
    """Refuses the class of a pipeline, as its model_index.json names it, that is of no known family."""
    if kind not in PIPELINES:
        raise UnsupportedPipeline(
            f"{str(path)!r} is not a pipeline that can be distilled yet: its model_index.json says "
            f"{kind!r}, and {', '.join(PIPELINES)} are supported."
        )


def check_installed(path: str | Path, kind: object) -> None:
    """Refuses what `check_kind` does, and a family that the installed diffusers lacks."""
    import diffusers

    check_kind(path, kind)
    if not hasattr(diffusers, str(kind)):
        raise UnsupportedPipeline(
            f"{str(path)!r} is a {kind}, which the installed diffusers {diffusers.__version__} lacks; install a "
            "newer one (pip install -U diffusers)."
        )


def check_local(path: str | Path, revision: str | None = None) -> bool:
    """Whether `path` is a pipeline on this machine (else a name on the Hub), checked before it is loaded."""
    folder, text = Path(path), str(path)
    if not folder.exists():
        if (
            folder.is_absolute()
            or text.startswith(".")
            or text.count("/") != 1
            or folder.parent.is_dir()
        ):
            raise FileNotFoundError(
                f"no teacher at {text!r}; give the directory of a diffusers pipeline (with a "
                "model_index.json), or its name on the Hub (user/model)."
            )
        return False
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, and {text!r} is a directory here; leave revision out."
        )
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{text!r} is not a diffusers pipeline: it has no model_index.json. Save one there with "
            "pipe.save_pretrained(path)."
        )
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    check_kind(path, found.get("_class_name") if isinstance(found, dict) else None)
    return True


def absent_parts(path: str | Path, index: dict[str, Any]) -> dict[str, None]:
    """The parts that a model_index.json says are not there, as `from_pretrained` takes them."""
    adapter = PIPELINES[index["_class_name"]]
    absent = [name for name, entry in index.items() if entry in ([None, None], (None, None))]
    needed = [name for name in absent if name not in adapter.optional]
    if needed:
        raise UnsupportedPipeline(
            f"the pipeline {str(path)!r} has no {', '.join(needed)} (null in its model_index.json), and "
            "distillation needs it; save the pipeline with all of its parts."
        )
    return {name: None for name in absent if name not in adapter.load_arguments}


def only_variant(network: Path) -> str | None:
    """The variant ("fp16") of a network's weights in a folder that has no others.

    Raises:
        ValueError: if there are several, and none without a name.
    """
    whole = (re.sub(r"-\d+-of-\d+", "", path.name) for path in network.glob("*.safetensors"))
    variants = {".".join(name.split(".")[1:-1]) for name in whole}
    if "" in variants or not variants:
        return None
    if len(variants) == 1:
        return variants.pop()
    raise UnsupportedPipeline(
        f"{str(network)!r} has its weights in the variants {', '.join(sorted(variants))} only; keep the files of "
        "one."
    )


def dtype_argument() -> str:
    """What the installed diffusers calls the dtype of weights; newer ones have deprecated `torch_dtype`."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"
