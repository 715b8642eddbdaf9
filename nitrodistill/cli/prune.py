"""`nitrodistill prune`: a pipeline with fewer blocks.

Take blocks out of a pipeline's network and write the pipeline, which plain diffusers loads. Nothing is trained:
such a network draws badly until it is distilled (method feature_kd; `prune:` in its stage does both). What stays
is a published spec, what a YAML file says below `keep:`, or what matters most: with --latents, each part is left
out in turn and the rest is measured on a few latents of a store (of `generate` or `encode`), and parts go until
the share of --parameters, --flops or --latency is met. The ranking is kept as a table and a plot; a search that
was stopped goes on. Parameters, operations and time of a forward pass are said before and after.

example:
  nitrodistill prune --teacher path/to/sd15 --spec bk-small --output runs/pruned
  nitrodistill prune --latents runs/pairs --parameters 0.7 --output runs/pruned
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nitrodistill.checks import check_fields, check_positive
from nitrodistill.cli.arguments import (
    DeviceOption,
    Parser,
    TeacherOption,
    parse,
    read_config,
    refuse,
)
from nitrodistill.cli.terminal import results, say
from nitrodistill.models import DiffusersDenoiser, Pipeline, PruneSpec
from nitrodistill.models.pruning import PRESETS, parse_spec, prune, weight_map
from nitrodistill.settings import read_yaml, to_plain

if TYPE_CHECKING:
    from nitrodistill.evaluation.importance import Budget, NetworkCost

_SHARES: dict[str, Budget] = {"parameters": "parameters", "flops": "flops", "latency": "ms"}


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        spec: bk-base, bk-small, bk-tiny, ssd-1b, vega, or a YAML file with `keep:`.
        output: folder of the pipeline; null writes none.
        latents: store for the search: pairs or real latents.
        parameters: share of the parameters that may be left.
        flops: share of the operations that may be left.
        latency: share of the time of a forward pass that may be left.
        num_samples: latents that the search reads.
        batch_size: of the search.
        distil_steps: updates of each candidate, towards the whole network's prediction, before the search measures
            it: what training mends is then not held against a part. Half of the batches are for it.
        learning_rate: of these updates.
        seed: of the search's timesteps and noise.
        ranking: folder of the search's table and plot, and of what it goes on from.
        map: print which weight each weight is a copy of.
    """

    spec: str | None = None
    output: str | None = None
    latents: str | None = None
    parameters: float | None = None
    flops: float | None = None
    latency: float | None = None
    num_samples: int = 64
    batch_size: int = 16
    distil_steps: int = 0
    learning_rate: float = 1e-4
    seed: int = 0
    ranking: str = "importance"
    map: bool = False

    def __post_init__(self) -> None:
        check_fields(self, num_samples=1, batch_size=1, distil_steps=0, seed=0)
        check_positive("learning_rate", self.learning_rate)
        if (self.spec is None) == (self.latents is None):
            raise ValueError("give either --spec, or --latents to search with.")
        if self.latents is not None and len(self.budgets) != 1:
            raise ValueError(
                "a search needs one budget: --parameters, --flops or --latency, such as --parameters 0.7."
            )
        for share in self.budgets.values():
            if not 0 < share < 1:
                raise ValueError(
                    f"the share that may be left is {share}; it must be between 0 and 1."
                )

    @property
    def budgets(self) -> dict[str, float]:
        """Those that are given, by name."""
        shares = {name: getattr(self, name) for name in _SHARES}
        return {name: share for name, share in shares.items() if share is not None}


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill prune --help`."""
    parser = Parser("prune", __doc__, TeacherOption, _Options, DeviceOption)
    given = parse(parser, argv)
    options = read_config(given, _Options)
    if options.spec is not None:
        search = {one.name for one in fields(_Options)} - {"spec", "output", "map"}
        refuse(given, sorted(search), "it is of a search, and --spec says already what goes")

    from nitrodistill.export.folder import check_target
    from nitrodistill.export.pipeline import save_with
    from nitrodistill.processes import place
    from nitrodistill.teachers import load_teacher

    if options.output is not None:
        check_target(options.output)
    pipeline = load_teacher(given.teacher)
    pipeline.diffusers.to(place().device(given.device))
    whole = pipeline.denoiser
    spec = _spec(options.spec) if options.spec else _searched(pipeline, options, given.quiet)
    student = prune(whole, spec)
    if options.map:
        for name, before in weight_map(whole.network, spec).items():
            say(f"{name} <- {before}")
    before, after = _costs(pipeline, student)
    results(before=before, after=after, keep=to_plain(spec), output=options.output)
    say("\n".join(_lines(before, after)), lines=True)
    if options.output is not None:
        save_with(pipeline, student.network, options.output)
        say(f"the pipeline is in {Path(options.output)}; it draws badly until it is distilled")
    return 0


def _spec(text: str) -> str | PruneSpec:
    """A published spec's name, or what a YAML file says."""
    is_file = text not in PRESETS and Path(text).suffix in (".yaml", ".yml")
    return parse_spec(read_yaml(text, "spec") if is_file else text)


def _searched(pipeline: Pipeline, given: _Options, quiet: bool) -> PruneSpec:
    from nitrodistill.data import LatentStore
    from nitrodistill.evaluation.importance import importance, propose

    assert given.latents is not None
    store, size = LatentStore.open(given.latents), given.batch_size
    rows = range(min(given.num_samples, len(store)))
    batches = [
        store.read(list(rows[i : i + size])).to(pipeline.device) for i in range(0, len(rows), size)
    ]
    found = importance(
        pipeline.denoiser,
        batches,
        output=given.ranking,
        seed=given.seed,
        distil_steps=given.distil_steps,
        learning_rate=given.learning_rate,
        progress=not quiet,
    )
    found.save(given.ranking)
    say(found.markdown(), lines=True)
    ((name, share),) = given.budgets.items()
    spec = propose(pipeline.denoiser, found, share, _SHARES[name])
    say(f"keep: {to_plain(spec)['keep']}")
    say(f"the ranking is in {given.ranking}", sys.stderr)
    return spec


def _costs(pipeline: Pipeline, student: DiffusersDenoiser) -> tuple[NetworkCost, NetworkCost]:
    """Of both networks, at the pipeline's own size, for one latent."""
    from nitrodistill.evaluation.importance import network_cost

    whole = pipeline.denoiser
    x_t = torch.zeros(1, *pipeline.latent_shape, device=pipeline.device)
    t = whole.schedule.timesteps(1).to(pipeline.device)
    condition = (
        pipeline.null_condition()
        if pipeline.adapter.has_null
        else whole.adapter.example_condition(x_t)
    )
    before, after = (network_cost(d, (x_t, t, condition)) for d in (whole, student))
    return before, after


def _lines(before: NetworkCost, after: NetworkCost) -> list[str]:
    rows = [
        ("parameters", ",", before.parameters, after.parameters),
        ("GFLOPs", ".4g", before.flops / 1e9, after.flops / 1e9),
        ("milliseconds", ".4g", before.ms, after.ms),
    ]
    lines = [f"{'one forward pass':<18}{'before':>16}{'after':>16}{'left':>8}"]
    for name, shown, whole, left in rows:
        lines.append(f"{name:<18}{whole:>16{shown}}{left:>16{shown}}{left / whole:>8.1%}")
    return lines
