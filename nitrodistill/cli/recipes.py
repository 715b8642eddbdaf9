"""`nitrodistill recipes [show NAME]`: the recipes that come with the package.

List the recipes that come with the package, by what is published and what was run of them. `train --config NAME`
and `estimate --config NAME` find one by its name. `nitrodistill recipes show NAME` prints one, to be changed.

example:
  nitrodistill recipes
  nitrodistill recipes show nitro-sd21 > my.yaml
  nitrodistill train --config my.yaml --teacher path/to/pipeline
"""

from __future__ import annotations

from collections.abc import Sequence

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import results, say


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill recipes --help`."""
    from nitrodistill.training.recipe import find_recipe, shipped_recipes

    if argv[:1] == ["show"]:
        parser = Parser("recipes show", "Print a recipe that comes with the package.")
        parser.add("name", "as `nitrodistill recipes` lists it")
        file = find_recipe(parse(parser, argv[1:]).name, shipped=True)
        text = file.read_text(encoding="utf-8")
        print(text, end="")
        results(name=file.stem, file=str(file), text=text)
        return 0
    parse(Parser("recipes", __doc__), argv)
    say(_listed(), lines=True)
    results(recipes={name: str(file) for name, file in shipped_recipes().items()})
    return 0


def _listed() -> str:
    """The recipes below what the second line of each says of its status."""
    from nitrodistill.training.recipe import shipped_recipes

    below: dict[str, list[str]] = {}
    for name, file in shipped_recipes().items():
        what, status = file.read_text(encoding="utf-8").splitlines()[:2]
        line = f"  {name:<30} {what.removeprefix('# ').rstrip('.')}"
        below.setdefault(status.removeprefix("# Status: ").rstrip("."), []).append(line)
    order = sorted(below, key=lambda status: "not run" in status)  # those that were run stand first
    return "\n\n".join("\n".join([f"{status}:", *below[status]]) for status in order)
