"""Which reconstruction loss: each alone and with the adversarial loss, at equal steps and at equal cost.

    python -m benchmarks.loss_ablation --quick [--processes 2]            a quarter of an hour on two CPU cores
    python -m benchmarks.loss_ablation [--teacher toy toy-dit digits]     the full form, two hours on two cores
    python -m benchmarks.loss_ablation --teacher ./my-pipeline --pairs runs/pairs --features my.features:vectors \
        [--maps my.features:maps] [--latent-lpips runs/latent-lpips/latent_lpips.safetensors] [--real photos]

Students are those of `python -m benchmarks.teachers` (its methods `regression` and `both`) with another loss
between their latents and the teacher's, matched in weight (benchmarks/_ablation.py); with the adversarial loss
also at other multiples of that (`--weights`), alone not: Adam does not see the scale of a loss. *Equal steps* are
`--steps` for all; *equal cost* is as many as take the time of smooth L1's, by times of a step that were measured
side by side, and the same student where that differs by less than 10 %.

Resumable: finished students are kept, a killed one goes on; `--onto results.json` takes those of another run with
the same settings, whose folder need not be there. Writes results.json, results.csv and pareto_*.svg into
the folder of each teacher, and with `--write` benchmarks/results/loss_ablation.*, the table and the plots in
docs/loss_ablation.md, of the first teacher.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _parts
from benchmarks._ablation import (
    NONE,
    REFERENCE,
    Bench,
    Spec,
    losses_of,
    matched_weights,
    method_of,
    random_trunk,
    weighted,
)
from benchmarks._ablation_report import (
    AXES,
    BLOCKS,
    COST,
    CSV,
    STEPS,
    against,
    draw,
    table,
    yardstick,
)
from benchmarks._measure import RESULTS, as_lines, environment, replace_between_markers, write_csv
from benchmarks.teachers.__main__ import default_cache
from benchmarks.teachers.compare import RESULT, Place
from benchmarks.teachers.given import Given, add_options, places
from nitrodistill.data import PairStore
from nitrodistill.files import blake2, write_json
from nitrodistill.progress import progress_bar

DOCS = Path(__file__).parents[1] / "docs"
QUICK = {
    "pairs": "400",
    "batch": 16,
    "samples": 256,
    "steps": 120,
    "seeds": [0],
    "weights": [1.0],
}
EVALUATION_SECONDS = 5.0
TAPS, FRACTION = ["0.25", "0.5"], 0.1


@dataclass(frozen=True)
class Cell:
    """One student.

    Attributes:
        block: alone or adversarial.
        loss: its name in the table.
        multiple: of its matched weight.
        seed: of all draws.
        budget: equal steps, or equal cost.
        steps: of training.
        ms: that a step takes.
        method: as `Place.cell` takes it.
    """

    block: str
    loss: str
    multiple: float
    seed: int
    budget: str
    steps: int
    ms: float
    method: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        words = "".join(c if c.isalnum() else "-" for c in self.loss)
        return f"{self.block}-{words}-x{self.multiple:g}"

    @property
    def row(self) -> tuple[str, str, float, int, str]:
        """What is different in every row."""
        return self.block, self.loss, self.multiple, self.seed, self.budget

    @property
    def seconds(self) -> float:
        """That it will take, about."""
        return 1e-3 * self.ms * self.steps + EVALUATION_SECONDS


def kept(file: Path, about: object, make: Any) -> Any:
    """What `make` returns, kept in a file as long as it is about the same."""
    digest = blake2(json.dumps(about, sort_keys=True)).hex()
    if file.is_file():
        found = json.loads(file.read_text())
        if found["about"] == digest:
            return found["value"]
    value = make()
    write_json(file, {"about": digest, "value": value})
    return value


class Ablation:
    """The cells of one teacher.

    Args:
        place: the teacher.
        options: of the command line.

    Attributes:
        place: see above.
        specs: the losses, by name.
        weights: with which their gradients are equal.
        costs: block/loss -> ms and MiB of a step.
        cells: the students.
        earlier: rows of another run, by `Cell.row`.
    """

    def __init__(self, place: Place, options: argparse.Namespace) -> None:
        self.place = place
        pipeline, folder = place.pipeline, place.folder
        teacher = place.teacher
        named = teacher.path if isinstance(teacher, Given) else teacher.name
        embedded = named in ("toy", "toy-dit", "scenes", "classes")
        store = PairStore.open(place.pairs)
        latents = store.read(range(min(256, len(store)))).x0
        specs = losses_of(
            latents,
            pipeline.resolution,
            {"taps": options.taps, "u": options.u},
            options.maps or ("nitrodistill.toy:oracle_maps" if embedded else None),
            options.latent_lpips or ("toy" if embedded else None),
            random_trunk(folder / "random_trunk.safetensors", latents.shape[1]),
        )
        if unknown := set(options.losses or ()) - set(specs):
            raise SystemExit(
                f"--losses {', '.join(sorted(unknown))}: of this teacher there are {', '.join(specs)}."
            )
        wanted = {NONE, REFERENCE, *(options.losses or specs)}
        self.specs: dict[str, Spec] = {name: specs[name] for name in specs if name in wanted}
        bench = Bench(place)
        real = {name: spec for name, spec in self.specs.items() if spec}
        norms = kept(
            folder / "gradients.json", [real, place.batch_size], lambda: bench.gradient_norms(real)
        )
        self.weights: dict[str, float] = matched_weights(norms)
        methods = {
            f"{block}/{name}": method_of(weighted(spec, self.weights.get(name, 1.0)), adversarial)
            for block, adversarial in BLOCKS.items()
            for name, spec in self.specs.items()
            if spec or adversarial
        }
        self.costs: dict[str, dict[str, float | None]] = kept(
            folder / "costs.json",
            [methods, place.batch_size],
            lambda: bench.costs(methods, options.cost_seconds),
        )
        self.cells: list[Cell] = list(self._cells(options))
        self.earlier: dict[tuple[Any, ...], dict[str, Any]] = {}
        if options.onto:
            self.earlier = earlier_rows(options.onto, self.settings(options))

    def _cells(self, options: argparse.Namespace) -> Iterator[Cell]:
        for block, adversarial in BLOCKS.items():
            reference = self._ms(block, REFERENCE)
            for name, spec in self.specs.items():
                if not spec and not adversarial:
                    continue
                ms = self._ms(block, name)
                ratio = reference / ms
                equal = options.steps if abs(ratio - 1) < 0.1 else round(options.steps * ratio)
                many = options.weights if spec and adversarial else [1.0]
                seeds = options.yardstick if name == REFERENCE else options.seeds
                for multiple in many:
                    weight = multiple * self.weights.get(name, 1.0)
                    method = method_of(weighted(spec, weight), adversarial)
                    for seed in seeds if multiple == 1 else options.seeds:
                        for budget, steps in ((STEPS, options.steps), (COST, equal)):
                            yield Cell(block, name, multiple, seed, budget, steps, ms, method)

    def _ms(self, block: str, name: str) -> float:
        ms = self.costs[f"{block}/{name}"]["ms"]
        assert ms is not None
        return ms

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """What rows of two runs must have alike."""
        found = {
            name: getattr(options, name) for name in ("steps", "seeds", "weights", "taps", "u")
        }
        found |= {"pairs": self.place.num_pairs, "batch": self.place.batch_size}
        if isinstance(self.place.teacher, Given):
            found["teacher"] = self.place.folder.name
        return found | {"samples": self.place.quality.num_samples, "losses": self.specs}

    def is_finished(self, cell: Cell) -> bool:
        """Whether its result is there."""
        folder = self.place.cell_folder(cell.name, cell.method, cell.seed, 0, cell.steps)
        return cell.row in self.earlier or (folder / RESULT).is_file()

    @property
    def students(self) -> list[Cell]:
        """A cell for each student, smooth L1 first and then the shortest; some serve both budgets."""
        found = {(cell.name, cell.seed, cell.steps): cell for cell in self.cells}
        first = (REFERENCE, 0)
        return sorted(found.values(), key=lambda c: ((c.loss, c.seed) != first, c.seconds))

    def run(self, students: Sequence[Cell]) -> None:
        """Trains and measures what is not finished."""
        todo = [cell for cell in students if not self.is_finished(cell)]
        total = sum(cell.seconds for cell in todo)
        with progress_bar(total=round(total), desc=f"{len(todo)} students", unit="s") as bar:
            for cell in todo:
                bar.set_postfix_str(f"{cell.name}, seed {cell.seed}, {cell.steps} steps")
                self.result(cell)
                bar.update(round(cell.seconds))

    def result(self, cell: Cell) -> dict[str, Any]:
        """What became of a cell, which is made where it is not there."""
        cost = self.costs[f"{cell.block}/{cell.loss}"]
        if cell.row in self.earlier:
            return {**self.earlier[cell.row], **cost}  # all costs are measured side by side
        found = self.place.cell(cell.name, cell.method, cell.seed, 0, cell.steps)
        about = {"block": cell.block, "loss": cell.loss, "multiple": cell.multiple}
        weight = self.weights.get(cell.loss)
        return {**found, **about, "budget": cell.budget, "weight": weight, **cost}


def earlier_rows(file: Path, settings: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a results.json, by `Cell.row`; refused if it was made with other settings."""
    found = json.loads(file.read_text())
    differs = [key for key, value in settings.items() if found["settings"].get(key) != value]
    if differs:
        raise SystemExit(f"{file} was made with other {', '.join(differs)}; leave --onto out.")
    keys = ("block", "loss", "multiple", "seed", "budget")
    return {tuple(row[key] for key in keys): row for row in found["rows"]}


def report(ablation: Ablation, options: argparse.Namespace, write: bool) -> None:
    """Table, CSV and plots of all that is finished."""
    place = ablation.place
    cells = [cell for cell in ablation.cells if ablation.is_finished(cell)]
    budgets = Counter((cell.name, cell.seed) for cell in cells)
    rows = [ablation.result(cell) for cell in cells if budgets[cell.name, cell.seed] == 2]
    if not {REFERENCE} <= {row["loss"] for row in rows if row["block"] == "alone"}:
        return
    known = environment()
    found = {"environment": known, "settings": ablation.settings(options), "rows": rows}
    (place.folder / "results.json").write_text(as_lines(found))
    write_csv(rows, CSV, place.folder / "results.csv")
    pictures = {
        f"{block}_{axis}": (block, axis)
        for block in BLOCKS
        for axis in AXES
        if (some := [row for row in rows if row["block"] == block])
        and all(row[axis] is not None for row in some)
    }
    for name, (block, axis) in pictures.items():
        draw(rows, block, axis, place.folder / f"pareto_{name}.svg")
    about = (
        f"Teacher {place.teacher.name}; {place.num_pairs} pairs, batches of {place.batch_size}, "
        f"{place.quality.num_samples} pictures each, seeds {', '.join(map(str, options.seeds))} (smooth L1: "
        f"{', '.join(map(str, options.yardstick))}); one thread of {known['cpu']} (torch {known['torch']}), "
        "shared with other work. Made by `python -m benchmarks.loss_ablation`."
    )
    shown = {(row["block"], row["loss"]) for row in rows}
    missing = {(c.block, c.loss): c.ms for c in ablation.cells if (c.block, c.loss) not in shown}
    if missing:
        parts = [f"{loss}, {block} ({ms:.0f} ms a step)" for (block, loss), ms in missing.items()]
        about = f"Not finished: {'; '.join(parts)}.\n\n{about}"
    lines = [against(rows, STEPS), against(rows, COST), yardstick(rows), about]
    text = "\n\n".join([table(rows), *lines])
    print(text)
    if write:
        for name in ("json", "csv"):
            shutil.copy(place.folder / f"results.{name}", RESULTS / f"loss_ablation.{name}")
        for name, (block, axis) in pictures.items():
            picture = f"loss_ablation_{name}.svg"
            shutil.copy(place.folder / f"pareto_{name}.svg", DOCS / "images" / picture)
            text += f"\n\n![quality against {AXES[axis]}, {block}](images/{picture})"
        replace_between_markers(DOCS / "loss_ablation.md", "loss-ablation", text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_options(found, ["toy"])
    found.set_defaults(batch=16)
    found.add_argument("--quick", action="store_true", help=f"short: {QUICK}")
    found.add_argument("--steps", type=int, default=240)
    found.add_argument("--weights", type=float, nargs="+", default=[1 / 3, 1.0, 3.0])
    found.add_argument("--yardstick", type=int, nargs="+", help="seeds of smooth L1")
    found.add_argument("--losses", nargs="+", help="some of the table's names")
    found.add_argument(
        "--maps", help="module:callable, pictures -> feature maps, for decoded LPIPS"
    )
    found.add_argument("--latent-lpips", help="file of nitrodistill fit-latent-lpips")
    found.add_argument("--taps", nargs="+", default=TAPS, help="of the teacher's features")
    found.add_argument("--u", type=float, default=FRACTION, help="noise that it is told of")
    found.add_argument("--cost-seconds", type=float, default=30.0)
    _parts.add_options(found)
    found.add_argument("--finished", action="store_true", help="report what is finished alone")
    found.add_argument("--onto", type=Path, help="results.json of another run, to go on from")
    found.add_argument("--output", type=Path)
    found.add_argument("--cache", type=Path, default=default_cache())
    found.add_argument("--write", action="store_true", help="results and docs")
    return found


def read_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `--quick` changes the defaults alone."""
    reader = parser()
    if reader.parse_known_args(argv)[0].quick:
        reader.set_defaults(**QUICK, cost_seconds=12.0)
    options = reader.parse_args(argv)
    options.output = options.output or Path(
        f"runs/loss_ablation{'-quick' if options.quick else ''}"
    )
    options.yardstick = options.yardstick or sorted({*options.seeds, 0, 1, 2})
    options.taps = [float(t) if t.replace(".", "", 1).isdigit() else t for t in options.taps]
    return options


def main() -> None:
    options = read_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    for rank, place in enumerate(places(options, options.cache)):
        ablation = Ablation(place, options)
        if options.part:
            part, parts = options.part
            ablation.run(ablation.students[part::parts])
            continue
        if options.processes > 1 and not options.finished:
            own = ablation.students[:: options.processes]
            _parts.side_by_side(
                "benchmarks.loss_ablation", options.processes, partial(ablation.run, own)
            )
        if not options.finished:
            ablation.run(ablation.students)
        report(ablation, options, options.write and rank == 0)


if __name__ == "__main__":
    main()
