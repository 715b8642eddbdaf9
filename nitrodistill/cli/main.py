"""`nitrodistill VERB [options]`: finds the verb, and turns errors into one sentence and an exit code.

Exit codes: 0 done, 2 a mistake in what was asked (one sentence says which), 3 a run was stopped by an alarm,
130 interrupted by Ctrl-C, 141 nobody reads the output any more.
A verb's module is imported when it is called, so that nothing is loaded in vain.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from nitrodistill.cli.terminal import say, session
from nitrodistill.settings import nearest

VERBS = {
    "demo": "the whole road on the embedded teacher: data, distillation, numbers, export, pictures",
    "generate": "let a teacher draw the pairs of noise and latent that a student learns from",
    "encode": "turn real images with captions into latents, for methods that learn from data",
    "pairs": "verify, merge, describe, import or push stores of pairs",
    "fit-latent-lpips": "fit a perceptual distance of latents to your VAE",
    "prune": "take blocks out of a pipeline's network, by a published spec or by what they matter",
    "train": "distil a student from a recipe; goes on where a killed run stopped",
    "evaluate": "measure a run's student and its teacher",
    "draw": "draw prompts with a student, and with its teacher next to it",
    "compare": "put several evaluated students of one teacher on one page",
    "export": "write a run's student as a diffusers pipeline",
    "estimate": "count the parameters and the memory that a recipe needs, and what helps",
    "recipes": "list the recipes that come with the package, or show one",
    "doctor": "say what this machine can do, and what is missing",
    "completion": "print what makes bash or zsh complete verbs and options",
}

_HELP = """usage: nitrodistill VERB [options]

Distil a diffusion teacher into a student that draws in one step.

verbs:
{verbs}

`nitrodistill VERB --help` explains a verb, with every option and an example.

options:
  --help         show this and exit
  -V, --version  show the version and exit
  --traceback    anywhere: show where an error came from, not only its sentence

The road, on the teacher that ships with the package:
  nitrodistill demo

The same road by hand:
  nitrodistill generate --teacher toy --prompts prompts.txt --output runs/pairs
  nitrodistill train toy --pairs runs/pairs --output runs/student
  nitrodistill evaluate runs/student
  nitrodistill export runs/student --output runs/pipeline
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the program's name; None takes `sys.argv`.

    Returns:
        the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        with session():
            return _dispatch(arguments)
    except KeyboardInterrupt:
        print("nitrodistill: interrupted.", file=sys.stderr)
        return 130
    except SystemExit as leaving:  # argparse: --help is 0, a mistake 2
        return leaving.code if isinstance(leaving.code, int) else 2
    except BrokenPipeError:  # as of `| head`, which has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # is flushed at the end
        return 141
    except _expected() as error:  # asked only when something went wrong
        if show_traceback:
            raise
        say(f"nitrodistill: {str(error).strip() or type(error).__name__}", sys.stderr)
        return 2


def _expected() -> tuple[type[Exception], ...]:
    """The errors that are shown as one sentence; others are mistakes of ours and keep their traceback."""
    from safetensors import SafetensorError  # derives from none of the others

    known = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)
    return (*known, SafetensorError)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<16} {summary}" for verb, summary in VERBS.items())
        print(_HELP.format(verbs=verbs), end="")
        return 0 if arguments else 2
    verb = arguments[0]
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"nitrodistill {version('nitrodistill')}")
        return 0
    return find_verb(verb)(arguments[1:])


def find_verb(verb: str) -> Callable[[Sequence[str]], int]:
    """What runs a verb.

    Raises:
        ValueError: if there is none of that name.
    """
    if verb not in VERBS:
        raise ValueError(f"there is no verb {verb!r}; {nearest(verb, VERBS)}")
    return importlib.import_module(f"nitrodistill.cli.{verb.replace('-', '_')}").main
