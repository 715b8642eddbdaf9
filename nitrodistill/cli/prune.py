"""`nitrodistill prune`: a pipeline with fewer blocks."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitrodistill.cli.arguments import add_device, add_quiet, add_teacher, make_parser, parse
from nitrodistill.cli.terminal import say

if TYPE_CHECKING:
    from nitrodistill.evaluation.importance import Budget, NetworkCost
    from nitrodistill.models import DiffusersDenoiser, Pipeline, PruneSpec

ABOUT = """
Take blocks out of a pipeline's network and write the pipeline, which plain diffusers loads. Nothing is trained:
such a network draws badly until it is distilled (method feature_kd; `prune:` in its stage does both). What stays
is a published spec, what a YAML file says below `keep:`, or what matters most: with --latents, each part is left
out in turn and the rest is measured on a few latents of a store (of `generate` or `encode`), and parts go until
the share of --parameters, --flops or --latency is met. The ranking is kept as a table and a plot; a search that
was stopped goes on. Parameters, operations and time of a forward pass are said before and after.
"""

EXAMPLE = """
example:
  nitrodistill prune --teacher path/to/sd15 --spec bk-small --output runs/pruned
  nitrodistill prune --latents runs/pairs --parameters 0.7 --output runs/pruned
"""

_SHARES: dict[str, Budget] = {"parameters": "parameters", "flops": "flops", "latency": "ms"}


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill prune --help`."""
    parser = make_parser("prune", ABOUT, EXAMPLE)
    add_teacher(parser)
    parser.add_argument(
        "--spec",
        type=str,
        default=None,
        help="bk-base, bk-small, bk-tiny, ssd-1b, vega, or a YAML file with `keep:`",
    )
    parser.add_argument(
        "--output", type=str, default=None, help="folder of the pipeline; null writes none"
    )
    parser.add_argument(
        "--latents", type=str, default=None, help="store for the search: pairs or real latents"
    )
    for name in _SHARES:
        parser.add_argument(
            f"--{name}", type=float, default=None, help=f"share of the {name} that may be left"
        )
    parser.add_argument("--num_samples", type=int, default=64, help="latents that the search reads")
    parser.add_argument("--batch_size", type=int, default=16, help="of the search")
    parser.add_argument("--seed", type=int, default=0, help="of the search's timesteps and noise")
    parser.add_argument(
        "--ranking",
        type=str,
        default="importance",
        help="folder of the search's table and plot, and of what it goes on from",
    )
    parser.add_argument(
        "--map", action="store_true", help="print which weight each weight is a copy of"
    )
    add_device(parser)
    add_quiet(parser)
    given = parse(parser, argv)
    asked = {name: given[name] for name in _SHARES if given[name] is not None}
    _check(given, asked)

    from nitrodistill.export.folder import check_target
    from nitrodistill.export.pipeline import save_with
    from nitrodistill.models.pruning import prune, weight_map
    from nitrodistill.processes import place
    from nitrodistill.teachers import load_teacher

    if given.output is not None:
        check_target(given.output)
    pipeline = load_teacher(given.teacher)
    pipeline.diffusers.to(place().device(given.device))
    whole = pipeline.denoiser
    spec = _spec(given.spec) if given.spec else _searched(pipeline, given, asked)
    student = prune(whole, spec)
    if given.map:
        for name, before in weight_map(whole.network, spec).items():
            say(f"{name} <- {before}")
    say(_costs(pipeline, student))
    if given.output is not None:
        save_with(pipeline, student.network, given.output)
        say(f"the pipeline is in {Path(given.output)}; it draws badly until it is distilled")
    return 0


def _check(given: Any, asked: dict[str, float]) -> None:
    for name in ("num_samples", "batch_size"):
        if given[name] < 1:
            raise ValueError(f"{name} is {given[name]}; it must be at least 1.")
    if (given.spec is None) == (given.latents is None):
        raise ValueError("give either --spec, or --latents to search with.")
    if given.spec is not None and asked:
        raise ValueError(f"--{next(iter(asked))} is for a search; --spec says already what goes.")
    if given.latents is not None and len(asked) != 1:
        raise ValueError(
            "a search needs one budget: --parameters, --flops or --latency, such as --parameters 0.7."
        )
    if given.latents is None:
        return
    share = next(iter(asked.values()))
    if not 0 < share < 1 or math.isnan(share):
        raise ValueError(f"the share that may be left is {share}; it must be between 0 and 1.")


def _spec(text: str) -> str | PruneSpec:
    """A published spec's name, or what a YAML file says."""
    from nitrodistill.models.pruning import PRESETS, parse_spec
    from nitrodistill.settings import read_yaml

    is_file = text not in PRESETS and Path(text).suffix in (".yaml", ".yml")
    return parse_spec(read_yaml(text, "spec") if is_file else text)


def _searched(pipeline: Pipeline, given: Any, asked: dict[str, float]) -> PruneSpec:
    from nitrodistill.data import LatentStore
    from nitrodistill.evaluation.importance import importance, propose
    from nitrodistill.settings import to_plain

    store, size = LatentStore.open(given.latents), given.batch_size
    rows = range(min(given.num_samples, len(store)))
    batches = [
        store.read(list(rows[i : i + size])).to(pipeline.device) for i in range(0, len(rows), size)
    ]
    found = importance(
        pipeline.denoiser, batches, output=given.ranking, seed=given.seed, progress=not given.quiet
    )
    found.save(given.ranking)
    say(found.markdown())
    ((name, share),) = asked.items()
    spec = propose(pipeline.denoiser, found, share, _SHARES[name])
    say(f"keep: {to_plain(spec)['keep']}")
    say(f"the ranking is in {given.ranking}", sys.stderr)
    return spec


def _costs(pipeline: Pipeline, student: DiffusersDenoiser) -> str:
    """Both networks, at the pipeline's own size, for one latent."""
    import torch

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
    return "\n".join(_lines(before, after))


def _lines(before: NetworkCost, after: NetworkCost) -> list[str]:
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", before.parameters, after.parameters),
        ("GFLOPs", f"{before.flops / 1e9:.4g}", f"{after.flops / 1e9:.4g}", before.flops, after.flops),
        ("milliseconds", f"{before.ms:.4g}", f"{after.ms:.4g}", before.ms, after.ms),
    ]  # fmt: skip
    lines = [f"{'one forward pass':<18}{'before':>16}{'after':>16}{'left':>8}"]
    lines += [f"{n:<18}{b:>16}{a:>16}{y / x:>8.1%}" for n, b, a, x, y in rows]
    return lines
