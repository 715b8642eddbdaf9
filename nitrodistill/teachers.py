"""Teachers by name: the embedded one, a directory, or a name on the Hub."""

from __future__ import annotations

from nitrodistill.models.pipeline import Pipeline
from nitrodistill.models.skeleton import skeleton

EMBEDDED = ("toy", "toy-dit")
"""The teachers that ship with the package."""


def load_teacher(name: str) -> Pipeline:
    """Loads a teacher, in float32 on the CPU.

    Args:
        name: "toy" is the teacher that ships with the package, a small Stable Diffusion, and "toy-dit" its
            sibling, a small PixArt; else a directory with a diffusers pipeline (write `./toy` for a
            directory of that name), or a name on the Hub.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if it is no diffusers pipeline.
        TypeError: if it is one that is not supported.

    Example:
        >>> nd.load_teacher("toy").resolution
        (32, 32)
    """
    _quiet()
    if name not in EMBEDDED:
        return Pipeline.load(name)
    from nitrodistill import toy

    load = toy.load_pipeline if name == "toy" else toy.load_dit_pipeline
    return Pipeline.from_diffusers(load(), check_prompt=toy.check_prompt)


def teacher_shapes(name: str) -> Pipeline:
    """A teacher of which the shapes are enough: an embedded one as it is, another from its configs alone.

    Raises:
        FileNotFoundError, ValueError: as `skeleton`.
    """
    return load_teacher(name) if name in EMBEDDED else skeleton(name)


def _quiet() -> None:
    """Switches off the bars that diffusers and transformers draw while they load parts."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
