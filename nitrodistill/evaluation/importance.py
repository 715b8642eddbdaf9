"""Which blocks a network does best without: each is left out in turn, and the rest is measured on a few batches.

    loss      mean of |p' - y|^2 - |p - y|^2    p, p' the predictions with and without, y what they should be
    features  mean of |f' - f| / |f| over what the other blocks return, and the prediction

at the same noised latents for all of them. A part (a block, a layer down with its layer up, the attention of a
level, the mid block: `Adapter.removable`) is left out as `prune` leaves it out, so what is measured is what a
student would start as; its weights are shared with the whole network. `propose` then takes parts out, those first
that cost the least for what they save, until a budget is met. That each part is measured alone is a
simplification: two that stand in for each other both look dispensable.

What a loss becomes at once says little of what training mends: without its last block a transformer is far off,
and comes back within a few steps. With `distil_steps` each candidate is distilled so long before it is measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_positive, check_whole
from nitrodistill.evaluation.cost import count_flops, measure
from nitrodistill.files import blake2, write_json, write_text
from nitrodistill.losses.functional import l2_loss
from nitrodistill.method import Draws
from nitrodistill.models import DiffusersDenoiser, FeatureTaps, PruneSpec
from nitrodistill.models.denoiser import device_of, evaluating
from nitrodistill.models.pruning import module_map, pruned_network
from nitrodistill.models.weights import fingerprint
from nitrodistill.prediction import prediction_target
from nitrodistill.settings import build
from nitrodistill.types import Condition, Latents

Budget = Literal["parameters", "flops", "ms"]

_FILE = "importance.json"
Batches = Sequence[Latents]


@dataclass(frozen=True)
class NetworkCost:
    """What one forward pass of a network takes.

    Attributes:
        parameters: of the network.
        flops: floating-point operations, for one sample.
        ms: median milliseconds for one batch.
    """

    parameters: int
    flops: int
    ms: float


@dataclass(frozen=True)
class PartScore:
    """What leaving a part out does.

    Attributes:
        names: modules that go together, in the whole network.
        loss: by how much the denoising loss rises; after the short distillation, if there is one.
        features: relative change of what the other blocks return, before it.
        cost: of the network without it.
    """

    names: tuple[str, ...]
    loss: float
    features: float
    cost: NetworkCost


@dataclass(frozen=True)
class Importance:
    """The ranking of a network's parts.

    Attributes:
        loss: denoising loss of the whole network.
        cost: of the whole network.
        scores: of each part that can go, the most dispensable first (by loss).
        refused: parts that cannot go -> why.
    """

    loss: float
    cost: NetworkCost
    scores: tuple[PartScore, ...]
    refused: dict[str, str]

    def markdown(self) -> str:
        """The ranking as a table."""
        lines = [
            "| left out | loss rises by | features change by | parameters left | FLOPs left | time left |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for score in self.scores:
            shares = (
                f"{_left(score.cost, self.cost, key):.1%}" for key in ("parameters", "flops", "ms")
            )
            lines.append(
                f"| {' + '.join(score.names)} | {score.loss:.4g} | {score.features:.4g} | {' | '.join(shares)} |"
            )
        notes = [f"- {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, "", *notes]).rstrip() + "\n"

    def svg(self) -> str:
        """The ranking as a bar chart: how much the loss rises without each part, in its own file."""
        row, left, width = 18, 420, 300
        most = max((abs(score.loss) for score in self.scores), default=0.0) or 1.0
        height = row * len(self.scores) + 30
        parts = [
            f'<text x="4" y="16" font-weight="bold">rise of the loss ({self.loss:.4g}) without</text>'
        ]
        for i, score in enumerate(self.scores):
            y, size = 26 + row * i, width * max(0.0, score.loss) / most
            label = escape(" + ".join(score.names))
            parts += [
                f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{label}</text>',
                f'<rect x="{left}" y="{y + 2}" width="{max(size, 1):.1f}" height="12" fill="#4c78a8"/>',
                f'<text x="{left + size + 6:.1f}" y="{y + 12}">{score.loss:.3g}</text>',
            ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 80} {height}" '
            f'font-family="sans-serif" font-size="11">{"".join(parts)}</svg>\n'
        )

    def save(self, folder: str | Path) -> None:
        """Writes `importance.md` and `importance.svg` into a folder that is there."""
        write_text(Path(folder) / "importance.md", self.markdown())
        write_text(Path(folder) / "importance.svg", self.svg())


def importance(
    denoiser: DiffusersDenoiser,
    batches: Batches,
    *,
    output: str | Path | None = None,
    seed: int = 0,
    repeats: int = 3,
    distil_steps: int = 0,
    learning_rate: float = 1e-4,
    progress: bool = True,
) -> Importance:
    """Leaves out each part in turn, and ranks them.

    Args:
        denoiser: the whole network; it stays as it is.
        batches: a few batches of latents with their captions, on its device.
        output: folder for the ranking; a search that was stopped goes on from what is there.
        seed: of timesteps and noise.
        repeats: runs of which the time is the median.
        distil_steps: updates of each candidate towards the whole network's prediction before its loss is measured.
            They need a copy of the network with AdamW's state. The second half of the batches trains, the first
            is measured.
        learning_rate: of these updates; linear to 0.
        progress: show a bar.

    Raises:
        TypeError: if the network's family cannot be pruned.
        ValueError: if there is no batch (with distil_steps: no two), the whole network's loss is not finite, or
            the folder holds another search.
    """
    from nitrodistill.progress import progress_bar

    check_whole("distil_steps", distil_steps, 0)
    check_positive("learning_rate", learning_rate)
    if not batches:
        raise ValueError("there is no batch to look at; give at least one.")
    if distil_steps and len(batches) < 2:
        raise ValueError(
            "one batch is given; a search with distil_steps needs two: one to distil with, one to measure."
        )
    parts = denoiser.adapter.removable(denoiser.network)
    if not parts:
        raise TypeError(
            f"{type(denoiser.network).__name__} is of a family without pruning (docs/pruning.md)."
        )
    search = _Search(denoiser, batches, seed, repeats, distil_steps, learning_rate)
    kept = _Kept(None if output is None else Path(output), search, parts)
    loss, cost = kept.whole()
    with evaluating(denoiser.module):
        for names in progress_bar(parts, desc="importance", unit="part", show=progress):
            kept.part(names)
    return Importance(loss, cost, kept.ranked(), kept.refused)


def network_cost(
    denoiser: DiffusersDenoiser, like: tuple[Tensor, Tensor, Condition], repeats: int = 5
) -> NetworkCost:
    """Parameters, operations and time of one forward pass.

    Args:
        denoiser: the network.
        like: the input `(x_t, t, condition)`.
        repeats: runs of which the time is the median.
    """
    task = partial(denoiser, *like)
    with torch.no_grad(), evaluating(denoiser.module):
        flops = count_flops(task) // len(like[0])
        ms = measure({"pass": task}, repeats, device=like[0].device)["pass"].median_ms
    return NetworkCost(sum(p.numel() for p in denoiser.network.parameters()), flops, ms)


def propose(
    denoiser: DiffusersDenoiser, found: Importance, share: float, budget: Budget = "parameters"
) -> PruneSpec:
    """A spec within a budget: parts go, those first that raise the loss least for what they save.

    Parameters are counted; what several parts save of FLOPs and of time is added up.

    Args:
        denoiser: the whole network.
        found: its ranking.
        share: of the whole network's parameters, FLOPs or time that may be left, in (0, 1).
        budget: which of them.

    Raises:
        ValueError: if the share is out of range, or no parts that can go together save so much.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that may be left is {share}; it must be between 0 and 1.")

    def price(score: PartScore) -> float:
        saved = 1 - _left(score.cost, found.cost, budget)
        if saved <= 0:
            return math.inf
        return score.loss / saved if score.loss > 0 else score.loss

    chosen: list[PartScore] = []
    left = 1.0
    for score in sorted(found.scores, key=price):
        if math.isinf(price(score)):
            break
        if any(_inside(score, other) for other in chosen):
            continue
        together = [other for other in chosen if not _inside(other, score)] + [score]
        try:
            spec = PruneSpec.without(denoiser.network, [n for s in together for n in s.names])
            network = pruned_network(denoiser.network, spec, denoiser.adapter, copy=False)
        except ValueError:  # it cannot go with those that went before
            continue
        chosen = together
        if budget == "parameters":
            left = sum(p.numel() for p in network.parameters()) / found.cost.parameters
        else:
            left = 1 - sum(1 - _left(other.cost, found.cost, budget) for other in chosen)
        if left <= share:
            return spec
    raise ValueError(
        f"without all parts that can go together {left:.1%} of the {budget} are left, and {share:.1%} are asked "
        "for; allow more, or give a PruneSpec."
    )


def _inside(part: PartScore, other: PartScore) -> bool:
    """Whether a part goes with another one anyhow."""
    return all(any(f"{name}.".startswith(f"{out}.") for out in other.names) for name in part.names)


def _left(cost: NetworkCost, whole: NetworkCost, budget: str) -> float:
    return getattr(cost, budget) / getattr(whole, budget)


class _Search:
    """One measurement: a network on all batches, compared with the whole one."""

    def __init__(
        self,
        denoiser: DiffusersDenoiser,
        batches: Batches,
        seed: int,
        repeats: int,
        distil_steps: int,
        learning_rate: float,
    ) -> None:
        self.denoiser, self.seed, self.repeats = denoiser, seed, repeats
        self.distil_steps, self.learning_rate = distil_steps, learning_rate
        measured = (len(batches) + 1) // 2 if distil_steps else len(batches)
        self._taught = batches[measured:]
        starts = [sum(len(b.x0) for b in batches[:i]) for i in range(measured)]
        self._inputs = [
            self._noised(batch, start, "importance")
            for batch, start in zip(batches[:measured], starts, strict=True)
        ]
        self._blocks = list(denoiser.adapter.blocks(denoiser.network))
        with evaluating(denoiser.module):
            taps = FeatureTaps(denoiser, self._blocks)
            self._wholes = [self._run(taps, *given) for given in self._inputs]

    def _noised(
        self, batch: Latents, start: int, purpose: str
    ) -> tuple[tuple[Tensor, Tensor, Condition], Tensor]:
        """The denoiser's input for these latents, numbered from `start`, and what it should predict."""
        schedule, device = self.denoiser.schedule, device_of(self.denoiser.network)
        x0 = batch.x0.to(device)
        draws = Draws(self.seed, 0, torch.arange(start, start + len(x0)), purpose=purpose)
        t = schedule.timestep(draws.uniform("t")).to(device)
        noise = draws.normal("noise", x0.shape[1:], device).to(x0.dtype)
        target = prediction_target(x0, noise, schedule(t), self.denoiser.prediction_type)
        return (schedule(t).mix(x0, noise), t, batch.condition.to(device)), target

    def identity(self, parts: Sequence[tuple[str, ...]]) -> str:
        """What a search depends on."""
        numbers = (self.seed, self.repeats, self.distil_steps, self.learning_rate)
        facts = [fingerprint(self.denoiser.module), str(numbers), str(parts)]
        tensors = [t for (x, t, c), y in self._inputs for t in (x, t, y, *c.tensors.values())]
        tensors += [t for b in self._taught for t in (b.x0, *b.condition.tensors.values())]
        data = [
            t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data for t in tensors
        ]
        return blake2([*(fact.encode() for fact in facts), *data]).hex()

    def whole(self) -> tuple[float, NetworkCost]:
        """The whole network's loss and cost."""
        losses = torch.cat([loss for loss, _ in self._wholes])
        return float(losses.mean()), network_cost(self.denoiser, self._inputs[0][0], self.repeats)

    def without(self, names: tuple[str, ...]) -> tuple[float, float, NetworkCost]:
        """The rise of the loss, the change of the features and the cost without a part."""
        whole = self.denoiser.network
        spec = PruneSpec.without(whole, names)
        copy = self.distil_steps > 0
        network = pruned_network(whole, spec, self.denoiser.adapter, copy=copy)
        cut, moved = self.denoiser.with_module(network), module_map(whole, spec)
        there = [i for i, block in enumerate(self._blocks) if block in moved]
        taps = FeatureTaps(cut, [moved[self._blocks[i]] for i in there])
        rises, changes = [], []
        for given, (before, features) in zip(self._inputs, self._wholes, strict=True):
            loss, mine = self._run(taps, *given)
            rises.append(loss - before)
            pairs = zip(mine, [*(features[i] for i in there), features[-1]], strict=True)
            changes += [(a - b).norm() / b.norm() for a, b in pairs]
        cost = network_cost(cut, self._inputs[0][0], self.repeats)
        if self.distil_steps:
            self._distil(cut)
            losses = [self._run(taps, *given)[0] for given in self._inputs]
            befores = [before for before, _ in self._wholes]
            rises = [loss - before for loss, before in zip(losses, befores, strict=True)]
        return float(torch.cat(rises).mean()), float(torch.stack(changes).mean()), cost

    def _distil(self, cut: DiffusersDenoiser) -> None:
        """Steps towards the whole network's prediction, on latents that are not measured."""
        cut.module.requires_grad_(True)
        optimizer = torch.optim.AdamW(cut.module.parameters(), self.learning_rate, weight_decay=0.0)
        seen = 0
        for step in range(self.distil_steps):
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.distil_steps)
            batch = self._taught[step % len(self._taught)]
            given, _ = self._noised(batch, seen, "importance/distil")
            seen += len(batch.x0)
            with torch.no_grad():
                target = self.denoiser(*given)
            optimizer.zero_grad()
            l2_loss(cut(*given), target).mean().backward()
            optimizer.step()
        cut.module.requires_grad_(False)

    @torch.no_grad()
    def _run(
        self, taps: FeatureTaps, example: tuple[Tensor, Tensor, Condition], target: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        prediction, features = taps.prediction_and_features(*example)
        loss = (prediction - target).float().square().flatten(1).mean(1)
        return loss, [feature.float() for feature in (*features, prediction)]


class _Kept:
    """What is measured already, in a file if there is a folder; the file appears anew after each part."""

    def __init__(
        self, folder: Path | None, search: _Search, parts: Sequence[tuple[str, ...]]
    ) -> None:
        self._file = None if folder is None else folder / _FILE
        self._search = search
        identity = search.identity(parts)
        self._data: dict[str, Any] = {"identity": identity, "parts": {}, "refused": {}}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if self._file is not None and self._file.is_file():
            before = json.loads(self._file.read_text(encoding="utf-8"))
            if before.get("identity") != identity:
                raise ValueError(
                    f"{str(self._file)!r} is of another search (other network, batches or seed); choose "
                    "another folder."
                )
            self._data = before
        self.refused: dict[str, str] = self._data["refused"]

    def whole(self) -> tuple[float, NetworkCost]:
        if "whole" not in self._data:
            loss, cost = self._search.whole()
            if not math.isfinite(loss):
                raise ValueError(
                    f"the whole network's loss is {loss}; nothing can be ranked by it."
                )
            self._data["whole"] = {"loss": loss, "cost": asdict(cost)}
            self._write()
        whole = self._data["whole"]
        return whole["loss"], NetworkCost(**whole["cost"])

    def part(self, names: tuple[str, ...]) -> None:
        key = " + ".join(names)
        if key in self._data["parts"] or key in self.refused:
            return
        try:
            loss, features, cost = self._search.without(names)
        except ValueError as error:
            self.refused[key] = str(error)
        else:
            if math.isfinite(loss) and math.isfinite(features):
                found = PartScore(names, loss, features, cost)
                self._data["parts"][key] = asdict(found)
            else:
                self.refused[key] = (
                    f"without it the loss is {loss} and the features' change {features}."
                )
        self._write()

    def ranked(self) -> tuple[PartScore, ...]:
        found = [build(PartScore, part) for part in self._data["parts"].values()]
        return tuple(sorted(found, key=lambda score: score.loss))

    def _write(self) -> None:
        if self._file is not None:
            write_json(self._file, self._data)
