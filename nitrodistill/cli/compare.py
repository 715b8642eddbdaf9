"""`nitrodistill compare`: several evaluated students of one teacher on one page.

Put several students of one teacher side by side: a page with a plot of quality against cost, the pictures that
all drew from the same noise, and every number with its interval. Each folder must hold an evaluation (what
`nitrodistill evaluate` leaves), made with the same teacher, prompts, noise and number of samples; nothing is drawn
or measured again. Prints the table too.

example:
  nitrodistill evaluate runs/ladd --cache runs/teacher
  nitrodistill evaluate runs/regression --cache runs/teacher
  nitrodistill compare runs/ladd runs/regression --output runs/comparison.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import one_line, results, say


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        runs: folders with an evaluation, two or more.
        names: what the page calls them; null takes the folders' names.
        output: the page; it is replaced.
        quality: metric of the plot, such as "fd_real"; null takes the first usual one that all have.
        cost: its cost, such as "denoise_ms"; null takes the first usual one that all have.
    """

    runs: list[str]
    names: list[str] | None = None
    output: str = "comparison.html"
    quality: str | None = None
    cost: str | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill compare --help`."""
    given = parse(Parser("compare", __doc__, _Options, words="runs"), argv)

    from nitrodistill.evaluation.report import compare, write_comparison
    from nitrodistill.evaluation.results import check_page, load_results

    output, folders = Path(given.output), [Path(run) for run in given.runs]
    check_page(output)
    names = [one_line(name) for name in _names(folders, given.names)]
    found = {name: load_results(folder) for name, folder in zip(names, folders, strict=True)}
    compared = compare({n: one for n, (one, _) in found.items()}, given.quality, given.cost)
    pictures = {name: kept for name, (_, kept) in found.items() if kept is not None}
    page = write_comparison(compared, output, pictures)
    results(page=page, models=compared.together().models)
    say(compared.together().text(), lines=True)
    say(f"written to {page}")
    return 0


def _names(folders: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """A name for each folder: the given ones, or its own with as much of its path as tells them apart."""
    if given is not None:
        if len(given) != len(folders) or len(set(given)) != len(given):
            raise ValueError(
                f"names is {given}; give {len(folders)} that differ, one for each of the runs."
            )
        return list(given)
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"runs names a folder twice ({', '.join(map(str, folders))}); give each once."
        )
    depth = next(
        d for d in range(1, max(map(len, paths)) + 1) if len({p[-d:] for p in paths}) == len(paths)
    )
    return ["/".join(path[-depth:]) for path in paths]
