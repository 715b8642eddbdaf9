"""LADD and DMD2 on the embedded teacher: what each of their parts does, and how far one step of LADD can go.

    python -m benchmarks.demo_quality [--seeds 0 1 2] [--seconds 190] [--processes 2] [--groups NAME ...]
        [--arms NAME ...] [--write]
    python -m benchmarks.demo_quality --seeds --long 12000 [--write]

A row is a form of LADD, ours with one thing changed, or a form of DMD2 (ARMS), trained for equal CPU time on 600
pairs of its seed, or on prompts and rendered scenes, and evaluated on the same 1024 held-out noises and prompts.
The steps that take so much time come from a trial of all rows side by side. The long run is our form of LADD on
more pairs. Resumable: finished students are kept, a killed one goes on. Writes results.json into `--output`, and
with `--write` benchmarks/results/demo_quality.json, where rows that were not asked for stay, and the tables of
docs/demo_quality.md and docs/dmd2.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _parts
from benchmarks._measure import (
    RESULTS,
    as_lines,
    environment,
    markdown_table,
    merged,
    replace_between_markers,
)
from benchmarks._toy import scene_store
from benchmarks.methods import DMD2, LADD_NITRO, LADD_PAPER, in_steps
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.__main__ import default_cache, number, spread
from benchmarks.teachers.compare import METRICS, PACE, RESULT, Place
from benchmarks.teachers.methods import BOTH, DEPTHS, HEADS, METHODS, after_regression
from nitrodistill.demo.demo import SCENES
from nitrodistill.demo.recipes import TAPS
from nitrodistill.files import write_json
from nitrodistill.progress import progress_bar
from nitrodistill.training.stages import run_recipe

Method = dict[str, Any]

RESULT_FILE = RESULTS / "demo_quality.json"
DOCS = Path(__file__).parent.parent / "docs"
ALONE = {"learning_rate": 3e-4, "betas": [0.0, 0.999], "lr_decay_from": 0.5, "ema_decay": 0.98}
PAIRS, LONG_PAIRS, SAMPLES, TRIAL_STEPS = 600, 8000, 1024, 27


def but(**settings: Any) -> Method:
    """Our form of LADD with other settings."""
    return {**BOTH, "settings": {**BOTH["settings"], **settings}}


def matching(rate: float = 5e-4, **settings: Any) -> Method:
    """DMD2 with other settings; its critic learns twice as fast as the student.

    The student's average is over the same share of a run, however few of its updates that has.
    """
    settings = {**DMD2["settings"], **settings}
    optimizers = {
        role: {**optimizer, "learning_rate": rate * (2 if role == "critic" else 1)}
        for role, optimizer in DMD2["optimizers"].items()
    }
    optimizers["student"]["ema_decay"] **= settings["critic"]["updates"] / 2
    if "gan" in settings:
        optimizers["discriminator"] = {**HEADS, "learning_rate": 1e-3, "lr_decay_from": 0.6}
    return {**DMD2, "settings": settings, "optimizers": optimizers}


ADVERSARIAL = {
    **but(reconstruction={}, fresh_fraction=1.0),
    "optimizers": {**BOTH["optimizers"], "student": ALONE},
    "shares": {},
}
GAN: dict[str, Any] = {
    "weight": 0.15,
    "features": "teacher",
    "taps": DEPTHS,
    "head_width": 96,
    "adversarial": "hinge",
    "timesteps": {"uniform": {"ranges": [[0.0, 0.5]]}},
}
"""The demo's, on taps by depth; its real side are rendered scenes."""
RELATIVISTIC = {**GAN, "adversarial": "relativistic"}


def four_steps(**settings: Any) -> Method:
    """DMD2 in four steps with the GAN, and other settings."""
    return in_steps(matching(3e-4, **{"gan": GAN, **settings}), 4)


NITRO = {**LADD_NITRO, "settings": {**LADD_NITRO["settings"], "misaligned_negatives": True}}

ARMS: dict[str, dict[str, Method]] = {
    "forms": {
        "smooth L1 alone": METHODS["regression"],
        "adversarial alone": ADVERSARIAL,
        "Nitro's, as published": NITRO,
        "the paper's, 1 step": LADD_PAPER,
        "the paper's, 4 steps": in_steps(LADD_PAPER, 4),
        "ours": BOTH,
        "balanced": METHODS["balanced"],
    },
    "objective (hinge)": {
        name.replace("_", "-"): but(adversarial=name)
        for name in ("non_saturating", "least_squares", "relativistic")
    },
    "head (conv)": {name: but(head=name) for name in ("token", "mlp")},
    "conditioning (none)": {"timestep": but(conditioning=["timestep"])},
    "penalty (none)": {
        "approximate R1, each 4th": but(
            penalty={"approximate_r1": {"weight": 100.0, "scale": 0.01, "every": 4}}
        ),
    },
    "negatives (none)": {"misaligned": but(misaligned_negatives=True)},
    "augmentation (none)": {
        "translation .125": but(augmentation={"translation": 0.125}),
    },
    "fresh noise (2/3)": {"none": but(fresh_fraction=0.0)},
    "updates (shared)": {
        "alternating, as published": but(updates="alternating"),
        "shared pass": but(updates="shared_pass"),
    },
    "two changes": {
        "relativistic, translation .125": but(
            adversarial="relativistic", augmentation={"translation": 0.125}
        ),
    },
    "DMD2 in 1 step": {
        "alone": matching(),
        "GAN": matching(gan=GAN),
        "GAN, relativistic": matching(gan=RELATIVISTIC),
        "regression on a third": matching(regression={"share": 1 / 3}),
        "after regression": after_regression(matching(), 0.3),
        "GAN, after regression": after_regression(matching(gan=GAN), 0.3),
        "decoupled": matching(decoupled={}),
    },
    "DMD2 in 4 steps": {
        "alone": in_steps(matching(3e-4), 4),
        "GAN": in_steps(matching(3e-4, gan=GAN), 4),
        "GAN, relativistic": in_steps(matching(3e-4, gan=RELATIVISTIC), 4),
        "decoupled": in_steps(matching(3e-4, decoupled={}), 4),
        "GAN, decoupled": in_steps(matching(3e-4, gan=GAN, decoupled={}), 4),
        "regression on a third": in_steps(matching(3e-4, regression={"share": 1 / 3}), 4),
        "GAN, regression on a third": four_steps(regression={"share": 1 / 3}),
    },
    "DMD2, GAN, in 4 steps": {
        "3 critic updates": four_steps(critic={"updates": 3}),
        "5 critic updates": four_steps(critic={"updates": 5}),
        "guidance 2": four_steps(guidance=2.0),
        "5 critic updates, guidance 2": four_steps(critic={"updates": 5}, guidance=2.0),
    },
}
"""Group (in brackets: what our form has) -> arm -> method."""
OURS = ("forms", "ours")
BESIDE = (("forms", "smooth L1 alone"), OURS, ("objective (hinge)", "relativistic"))
"""What the table of DMD2 shows beside it."""


def folder_name(group: str, arm: str) -> str:
    """Of an arm's cells."""
    return "".join(c if c.isalnum() else "-" for c in f"{group.split(' (')[0]}-{arm}".lower())


def pairs_of(place: Place, seed: int) -> Place:
    """The place with pairs of the seed's own."""
    return replace(place, pairs=place.generated(place.num_pairs, seed))


def with_scenes(place: Place) -> Place:
    """The place with latents of the rendered scenes that the demo takes."""
    prompts = place.teacher.prompts()
    captions = [prompts[i % len(prompts)] for i in range(SCENES)]
    store = scene_store(place.pipeline, place.folder, captions, place.teacher.name)
    return replace(place, real=store)


def measure_paces(
    place: Place, wanted: Iterable[tuple[str, str]], known: float | None = None
) -> None:
    """CPU seconds a step of arms, which go forward side by side, a step each; kept where `Place.steps` looks.

    Arms that do the same work then have as many steps, however busy the machine is when their turn comes. An arm
    that is added later is measured beside our form, in whose seconds of before it is given: those of the trial
    that is kept, or `known`.
    """
    groups = {
        (group, arm): place.group(folder_name(group, arm), ARMS[group][arm])
        for group, arm in dict.fromkeys([*wanted, OURS])
    }
    missing = [key for key, folder in groups.items() if not (folder / PACE).is_file()]
    if not missing:
        return
    spent = paces_of(place, list(dict.fromkeys([*missing, OURS])))
    kept = groups[OURS] / PACE
    if kept.is_file():
        known = json.loads(kept.read_text())["cpu_seconds_per_step"]
    unit = 1.0 if known is None else known / spent[OURS]
    for key in missing:
        groups[key].mkdir(parents=True, exist_ok=True)
        write_json(groups[key] / PACE, {"cpu_seconds_per_step": unit * spent[key]})


def paces_of(place: Place, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """CPU seconds a step of arms, over a short run of each."""
    spent = dict.fromkeys(keys, 0.0)
    with tempfile.TemporaryDirectory() as home:
        runs = {
            (group, arm): run_recipe(
                place.recipe(ARMS[group][arm], TRIAL_STEPS, 0, Path(home) / str(i)), place.pipeline
            )
            for i, (group, arm) in enumerate(keys)
        }
        for step in progress_bar(range(TRIAL_STEPS - 1), desc="paces", unit="step"):
            for key, run in runs.items():
                start = time.process_time()
                next(run)
                # without the first step, which makes what is made once; the last one would write a checkpoint
                spent[key] += (time.process_time() - start) * (step > 0)
        for run in runs.values():
            run.close()
    return {key: seconds / (TRIAL_STEPS - 2) for key, seconds in spent.items()}


def shown(group: str, arm: str) -> str:
    """What the tables call an arm."""
    return arm if group in ("forms", "two changes") else f"{group}: {arm}"


def of_dmd2(row: Mapping[str, Any]) -> bool:
    """Whether a row is of its table."""
    return row["group"].startswith("DMD2")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds."""
    first = rows[:1]
    lines = [
        [model, "", "", *(spread(first, model, key) for key in METRICS)]
        for model in ("teacher", "naive")
    ]
    floors = [rows[0]["metrics"]["student"].get(key, [None] * 4)[3] for key in METRICS]
    lines.append(["floor", "", "", *("-" if f is None else number(f) for f in floors)])
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows):
        some = [row for row in rows if (row["group"], row["arm"]) == (group, arm)]
        seconds = number(statistics.mean(row["cpu_seconds"] for row in some))
        name = shown(group, arm)
        lines.append(
            [name, seconds, str(some[0]["steps"]), *(spread(some, "student", k) for k in METRICS)]
        )
    return markdown_table(["", "CPU s", "updates", *METRICS.values()], lines)


def against(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: FD to held-out over that of our form of LADD with the same seed and pairs."""
    fd = {(r["group"], r["arm"], r["seed"]): r["metrics"]["student"]["fd_real"][0] for r in rows}
    lines = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows):
        ratios = {
            seed: value / fd[(*OURS, seed)]
            for (g, a, seed), value in fd.items()
            if (g, a) == (group, arm) and (*OURS, seed) in fd
        }
        if ratios and (group, arm) != OURS:
            name = shown(group, arm)
            mean = statistics.geometric_mean(ratios.values())
            lines.append([name, f"{mean:.2f}", " ".join(f"{r:.2f}" for r in ratios.values())])
    return markdown_table(["FD to held-out over that of ours", "mean", "by seed"], lines)


Student = tuple[str, str, int]


def trained(place: Place, todo: Sequence[Student], options: argparse.Namespace) -> None:
    """Students that are not there yet."""
    for group, arm, seed in progress_bar(todo, desc="students", unit="student"):
        name, method = folder_name(group, arm), ARMS[group][arm]
        pairs_of(place, seed).cell(name, method, seed, options.seconds)


def rows_of(place: Place, todo: Sequence[Student], seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of finished students."""
    for group, arm, seed in todo:
        name, method = folder_name(group, arm), ARMS[group][arm]
        if (place.cell_folder(name, method, seed, seconds) / RESULT).is_file():
            yield {**place.cell(name, method, seed, seconds), "group": group, "arm": arm}


def with_others(rows: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The rows, and those committed of arms and seeds that were not asked for, of the same time a student."""
    committed = json.loads(RESULT_FILE.read_text()) if RESULT_FILE.is_file() else {}
    others = committed["rows"] if committed.get("seconds") == seconds else []
    order = [(group, arm) for group, arms in ARMS.items() for arm in arms]
    return merged(others, rows, ("group", "arm"), order)


def write_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """Into the docs: LADD's, and DMD2's with some of LADD's beside it."""
    for page, mine in (
        ("demo_quality.md", [row for row in rows if not of_dmd2(row)]),
        ("dmd2.md", [r for r in rows if of_dmd2(r) or (r["group"], r["arm"]) in BESIDE]),
    ):
        replace_between_markers(DOCS / page, "parts", table(mine) + "\n\n" + against(mine))


def committed_pace(seconds: float) -> float | None:
    """Of our form in the committed rows, which others are to stand beside; None if there are none of so long."""
    old = json.loads(RESULT_FILE.read_text()) if RESULT_FILE.is_file() else {}
    if old.get("seconds") != seconds:
        return None
    steps = (row["steps"] for row in old["rows"] if (row["group"], row["arm"]) == OURS)
    return next((seconds / count for count in steps), None)


def keep(options: argparse.Namespace, **found: Any) -> None:
    """Into the results file, which the parts and the long run share."""
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        old = json.loads(RESULT_FILE.read_text()) if RESULT_FILE.is_file() else {"rows": []}
        RESULT_FILE.write_text(as_lines({**old, "environment": environment(), **found}))


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = [arm for group in ARMS.values() for arm in group]
    found = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    found.add_argument("--groups", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    found.add_argument("--arms", nargs="+", choices=names, default=names, metavar="NAME")
    found.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    found.add_argument("--seconds", type=float, default=190.0, help="of CPU time a student")
    found.add_argument("--finished", action="store_true", help="the table of finished cells alone")
    found.add_argument("--long", type=int, default=0, help="steps of the long run; 0: none")
    _parts.add_options(found)
    found.add_argument("--output", type=Path, default=Path("runs/quality"))
    found.add_argument("--write", action="store_true", help="results and docs")
    return found


def main() -> None:
    options = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    place = Place.of(TEACHERS["toy"], default_cache(), options.output, PAIRS)
    place = with_scenes(replace(place, quality=replace(place.quality, num_samples=SAMPLES)))
    todo = [
        (group, arm, seed)
        for seed in options.seeds
        for group in options.groups
        for arm in ARMS[group]
        if arm in options.arms
    ]
    if todo and not options.part and not options.finished:
        known = committed_pace(options.seconds) if options.write else None
        measure_paces(place, [(group, arm) for group, arm, _ in todo], known)
    number_, count = options.part or (0, options.processes)
    own = partial(trained, place, todo[number_::count], options)
    if options.part:
        own()
        return
    if todo and not options.finished:
        _parts.side_by_side("benchmarks.demo_quality", options.processes, own)
    rows = list(rows_of(place, todo, options.seconds))
    if options.write:
        rows = with_others(rows, options.seconds)
    if rows:
        print(table(rows), against(rows), sep="\n\n")
        keep(options, seconds=options.seconds, rows=rows)
    if options.write and rows:
        write_tables(rows)
    if options.long:
        more = replace(place, num_pairs=LONG_PAIRS, pairs=place.generated(LONG_PAIRS, 77))
        average = {**BOTH["optimizers"]["student"], "ema_decay": 0.998}
        method = {**but(taps=TAPS), "optimizers": {**BOTH["optimizers"], "student": average}}
        row = {**more.cell("long", method, 77, 0, options.long), "group": "forms", "arm": "long"}
        print(table([row]))
        keep(options, long=row)
        if options.write:
            replace_between_markers(DOCS / "demo_quality.md", "long", table([row]))


if __name__ == "__main__":
    main()
