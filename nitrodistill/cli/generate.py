"""`nitrodistill generate`: pairs from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from nitrodistill.cli.arguments import make_parser, parse

__all__ = ["main"]

ABOUT = """
Let a teacher draw pairs: noise, and the latent that the teacher makes of it in many steps, with the text
conditioning of its prompt. A student learns from them to do the same in one step. The pairs are written to a
folder with a manifest that says how they were made. The same command goes on with, or repairs, a folder that it
began; a finished one is left as it is.
"""

EXAMPLE = """
example:
  printf 'a small red circle on a black background\\na large blue ring on a gray background\\n' > prompts.txt
  nitrodistill generate --teacher toy --prompts prompts.txt --output runs/pairs --num_pairs 64
"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill generate --help`."""
    from nitrodistill.data import GenerateConfig, generate, read_prompts

    parser = make_parser("generate", ABOUT, EXAMPLE)
    parser.add_argument(
        "--teacher",
        type=str,
        default="toy",
        help='"toy" for the one that ships with the package, a directory with a diffusers pipeline, or a '
        "name on the Hub",
    )
    parser.add_argument(
        "--prompts", type=str, required=True, help="text file (UTF-8) with a prompt a line"
    )
    parser.add_argument("--output", type=str, required=True, help="folder of the pairs")
    parser.add_class_arguments(GenerateConfig)
    given = parse(parser, argv)
    config = GenerateConfig(**{field.name: given[field.name] for field in fields(GenerateConfig)})
    prompts = read_prompts(given.prompts)

    from nitrodistill.cli.teachers import load_teacher

    pipeline = load_teacher(given.teacher)
    store = generate(pipeline, prompts, given.output, config, teacher_name=given.teacher)
    print(f"{len(store)} pairs of {len(store.prompts)} prompts in {given.output}")
    return 0
