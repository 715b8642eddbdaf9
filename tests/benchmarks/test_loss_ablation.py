"""The ablation of losses: equal gradients after matching, what is finished stays, what its tables say."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks._ablation import (
    MMD,
    NONE,
    REFERENCE,
    gradient_norms,
    losses_of,
    matched_weights,
    method_of,
    random_trunk,
    weighted,
)
from benchmarks._ablation_report import AXES, COST, CSV, STEPS, against, draw, table
from benchmarks._measure import as_lines, write_csv
from benchmarks.loss_ablation import Ablation, Cell, earlier_rows, read_options
from benchmarks.mmd import MMDLoss
from benchmarks.teachers.compare import RESULT
from nitrodistill.losses.named import named_loss


def maps(images: Tensor) -> list[Tensor]:
    """A network from outside."""
    return [images, avg_pool2d(images, 2)]


def decode(latents: Tensor) -> Tensor:
    """Pictures of twice the side."""
    return latents[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3).tanh()


@pytest.fixture
def pair(generator) -> tuple[Tensor, Tensor]:
    x0, target = torch.randn(2, 3, 4, 8, 8, generator=generator).unbind()
    return x0, target


def every(tmp_path: Path, latents: Tensor, side: int) -> dict[str, Any]:
    network = {"taps": [0.5], "u": 0.1}
    trunk = random_trunk(tmp_path / "random.safetensors", latents.shape[1])
    return losses_of(latents, (side, side), network, f"{__name__}:maps", "toy", trunk)


def test_gradients_are_equal_after_matching(pair, tmp_path):
    x0, target = pair
    specs = {name: spec for name, spec in every(tmp_path, target, 32).items() if spec}
    assert len(specs) == 14
    norms = gradient_norms(specs, x0, target, decode, lambda taps, u: maps)
    d = x0 - target
    assert norms["l1"] == pytest.approx(d.numel() ** -0.5, rel=1e-5)
    assert norms["l2"] == pytest.approx(2 * float(d.norm()) / d.numel(), rel=1e-5)
    weights = matched_weights(norms)
    assert weights[REFERENCE] == 1
    matched = {name: weighted(spec, weights[name]) for name, spec in specs.items()}
    again = gradient_norms(matched, x0, target, decode, lambda taps, u: maps)
    assert list(again.values()) == pytest.approx([norms[REFERENCE]] * 14, rel=6e-3)


def test_a_loss_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="l1 has a gradient of length 0"):
        matched_weights({REFERENCE: 1.0, "l1": 0.0})


def test_pixels_too_small_for_scales_leave_them_out(pair, tmp_path):
    found = every(tmp_path, pair[1], 8)
    assert "MS-SSIM, decoded" not in found
    assert "MS-SSIM, decoded" in every(tmp_path, pair[1], 32)


def test_the_adversarial_loss_alone_has_the_whole_batch():
    found = method_of({}, adversarial=True)
    assert (found["settings"]["fresh_fraction"], found["shares"]) == (1.0, {})
    with_loss = method_of({"l1": {"weight": 2.0}}, adversarial=True)
    assert with_loss["settings"]["reconstruction"] == {"l1": {"weight": 2.0}}


def test_mmd_is_its_double_sum(generator):
    x, y = torch.randn(2, 5, 4, 2, 2, generator=generator, dtype=torch.float64).unbind()

    def means(latents: Tensor) -> list[Tensor]:
        return [latents]

    loss = named_loss({MMD: {"network": {"taps": [0.5]}}}, features=lambda taps, u: means)
    a, b = (torch.nn.functional.normalize(z.float().mean((2, 3)), dim=1) for z in (x, y))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    scale = sum(float((b[i] - b[j]).square().sum()) for i, j in pairs) / 20

    def kernel(u: Tensor, v: Tensor) -> float:
        squares = float((u - v).square().sum())
        return sum(torch.tensor(-squares / (2 * s * scale)).exp().item() for s in (0.5, 1, 2)) / 3

    want = [
        kernel(a[i], a[j]) + kernel(b[i], b[j]) - kernel(a[i], b[j]) - kernel(a[j], b[i])
        for i, j in pairs
    ]
    assert float(loss(x, y)) == pytest.approx(sum(want) / 20, abs=1e-6)
    one = MMDLoss(means)
    assert float(one(x, x)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two samples"):
        one(x[:1], y[:1])


class Kept:
    """As much of a Place as cells look at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[tuple[str, int, int]] = []

    def cell_folder(self, name: str, method: Any, seed: int, seconds: float, steps: int) -> Path:
        return self.folder / name / str(seed) / str(steps)

    def cell(self, name: str, method: Any, seed: int, seconds: float, steps: int) -> dict[str, Any]:
        self.made.append((name, seed, steps))
        folder = self.cell_folder(name, method, seed, seconds, steps)
        folder.mkdir(parents=True)
        (folder / RESULT).write_text("{}")
        return {}


@pytest.fixture
def composed() -> list[Cell]:
    """The cells of three losses at faked costs; in milliseconds of a step."""
    ms = {
        "alone": {REFERENCE: 100.0, "l1": 109.0, "l2": 90.0},
        "adversarial": {NONE: 250.0, REFERENCE: 200.0, "l1": 219.0, "l2": 400.0},
    }
    ablation = object.__new__(Ablation)
    ablation.specs = {NONE: {}, "l1": {"l1": {}}, REFERENCE: {REFERENCE: {}}, "l2": {"l2": {}}}
    ablation.weights = {REFERENCE: 1.0, "l1": 0.5, "l2": 0.25}
    ablation.costs = {
        f"{block}/{name}": {"ms": each, "mib": None}
        for block, costs in ms.items()
        for name, each in costs.items()
    }
    words = ["--steps", "240", "--weights", "0.5", "1", "3", "--seeds", "0", "4"]
    return list(ablation._cells(read_options([*words, "--yardstick", "0", "1", "2"])))


def test_equal_cost_is_the_time_of_smooth_l1_or_the_same_within_a_tenth(composed):
    steps = {(c.block, c.loss): c.steps for c in composed if c.budget == COST}
    assert steps == {
        ("alone", REFERENCE): 240,
        ("alone", "l1"): 240,  # 9 % dearer
        ("alone", "l2"): 267,  # 240 * 100 / 90
        ("adversarial", NONE): 192,
        ("adversarial", REFERENCE): 240,
        ("adversarial", "l1"): 240,
        ("adversarial", "l2"): 120,
    }
    assert {c.steps for c in composed if c.budget == STEPS} == {240}
    budgets = Counter(c.row[:4] for c in composed)
    assert set(budgets.values()) == {2}


def test_multiples_are_of_the_matched_weight_and_with_the_adversarial_loss_alone(composed):
    many: dict[tuple[str, str], set[Any]] = {(c.block, c.loss): set() for c in composed}
    for cell in composed:
        spec = cell.method["settings"]["reconstruction"]
        many[cell.block, cell.loss].add((cell.multiple, spec.get(cell.loss, {}).get("weight")))
    assert many == {
        ("alone", REFERENCE): {(1.0, 1.0)},
        ("alone", "l1"): {(1.0, 0.5)},
        ("alone", "l2"): {(1.0, 0.25)},
        ("adversarial", NONE): {(1.0, None)},
        ("adversarial", REFERENCE): {(0.5, 0.5), (1.0, 1.0), (3.0, 3.0)},
        ("adversarial", "l1"): {(0.5, 0.25), (1.0, 0.5), (3.0, 1.5)},
        ("adversarial", "l2"): {(0.5, 0.125), (1.0, 0.25), (3.0, 0.75)},
    }
    weights = {(c.block, c.method["settings"]["adversarial_weight"]) for c in composed}
    assert weights == {("alone", 0.0), ("adversarial", 0.5)}


def test_the_yardstick_alone_has_more_seeds_and_at_its_own_weight(composed):
    seeds: dict[tuple[bool, bool], set[int]] = {}
    for cell in composed:
        seeds.setdefault((cell.loss == REFERENCE, cell.multiple == 1), set()).add(cell.seed)
    assert seeds.pop((True, True)) == {0, 1, 2}
    assert list(seeds.values()) == [{0, 4}] * 3


def test_finished_cells_are_kept_and_shared_ones_made_once(tmp_path):
    place: Any = Kept(tmp_path)
    ablation = object.__new__(Ablation)
    ablation.place, ablation.weights, ablation.earlier = place, {}, {}
    ablation.costs = {"alone/l1": {"ms": 1.0, "mib": None}, "alone/l2": {"ms": 1.0, "mib": None}}
    cells = [
        Cell("alone", loss, 1.0, 0, budget, 10 if loss == "l1" or budget == STEPS else 7, 1.0, {})
        for loss in ("l1", "l2")
        for budget in (STEPS, COST)
    ]
    ablation.cells = cells
    ablation.run(ablation.students[1::2])
    ablation.run(ablation.students)
    assert place.made == [("alone-l1-x1", 0, 10), ("alone-l2-x1", 0, 7), ("alone-l2-x1", 0, 10)]
    assert all(ablation.is_finished(cell) for cell in cells)


def test_it_goes_on_from_the_rows_of_another_run(tmp_path):
    place: Any = Kept(tmp_path / "runs")
    ablation = object.__new__(Ablation)
    ablation.place, ablation.weights = place, {}
    ablation.costs = {"alone/l1": {"ms": 1.0, "mib": None}}
    file, rows = tmp_path / "results.json", [row("alone", "l1", STEPS, 6.0)]
    file.write_text(as_lines({"settings": {"steps": 10, "seeds": [0]}, "rows": rows}))
    assert json.dumps(rows[0]) in file.read_text().splitlines()[-3]
    assert json.loads(file.read_text())["rows"] == rows
    ablation.earlier = earlier_rows(file, {"steps": 10, "seeds": [0]})
    cells = [Cell("alone", "l1", 1.0, 0, *at, 1.0, {}) for at in ((STEPS, 10), (COST, 7))]
    ablation.run(cells)
    assert place.made == [("alone-l1-x1", 0, 7)]
    assert ablation.result(cells[0]) == {**rows[0], "ms": 1.0, "mib": None}
    with pytest.raises(SystemExit, match="other steps"):
        earlier_rows(file, {"steps": 11, "seeds": [0]})


def row(block: str, loss: str, budget: str, fd: float, **more: Any) -> dict[str, Any]:
    metrics = {
        key: {"fd_real": [fd, fd - 1, fd + 1, 0.5]} for key in ("student", "teacher", "naive")
    }
    about = {"block": block, "loss": loss, "budget": budget, "metrics": metrics, "multiple": 1.0}
    row = {"teacher": "toy", "seed": 0, "steps": 10, "weight": 2.0, "ms": 5.0, "mib": 3.2}
    return {**row, "cpu_seconds": 1.0, **about, **more}


def test_the_table_the_csv_and_the_picture(tmp_path):
    rows = [
        row("alone", REFERENCE, STEPS, 4.0),
        row("alone", REFERENCE, COST, 4.0),
        row("alone", "l1", STEPS, 6.0),
        row("alone", "l1", COST, 3.0, steps=8),
        row("adversarial", REFERENCE, STEPS, 4.0),
        row("adversarial", REFERENCE, COST, 4.0),
        row("adversarial", NONE, STEPS, 8.0, weight=None),
        row("adversarial", NONE, COST, 8.0, weight=None),
    ]
    lines = table(rows).splitlines()
    assert (
        "| 2 | alone | l1 | 2 | 5 | 3 | 10 | 8 | 6.000 (5.000 to 7.000) | 3.000 (2.000 to 4.000) | "
        in (lines[5])
    )
    assert "| none |  | 5 | 3 | 10 | 10 | 8.000 (7.000 to 9.000) | the same |" in lines[7]
    ratios = against(rows, COST).splitlines()
    assert ratios[0] == "| FD to held-out over smooth L1's, at equal cost | alone | adversarial |"
    assert ratios[2:] == [
        "| l1 | 0.75 | - |",
        "| smooth_l1 | 1.00 | 1.00 |",
        "| none | - | 2.00 |",
    ]
    write_csv(rows, CSV, tmp_path / "rows.csv")
    read = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(read) == 8
    assert (read[3]["metric"], read[3]["value"]) == ("fd_real", "3.0")
    for axis, title in AXES.items():
        draw(rows, "alone", axis, tmp_path / "plot.svg")
        assert title in (tmp_path / "plot.svg").read_text()


def test_seeds_and_weights_have_ratios_of_their_own_seed_and_one_bar(tmp_path):
    students = {(REFERENCE, 1.0): (4, 5), ("l1", 1.0): (6, 5), ("l1", 3.0): (2, 10)}
    rows = [
        row("adversarial", loss, budget, fd, multiple=multiple, seed=seed)
        for (loss, multiple), fds in students.items()
        for seed, fd in enumerate(fds)
        for budget in (STEPS, COST)
    ]
    assert against(rows, STEPS).splitlines()[2:] == [
        "| smooth_l1 | 1.00 (1.00 1.00) | - |",
        "| l1 | 1.25 (1.50 1.00) | 1.25 (0.50 2.00) |",
    ]
    assert [line.split(" | ")[0] for line in table(rows).splitlines()[4:7]] == ["| 1", "| 2", "| 2"]
    draw(rows, "adversarial", "ms", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.count("student dot") == 1
    assert drawn.count("whisker") - drawn.count(".whisker") == 2


def test_quick_changes_defaults_and_nothing_that_is_given():
    quick = read_options(["--quick", "--steps", "7", "--taps", "0.25", "mid_block"])
    assert (quick.steps, quick.weights, quick.taps) == (7, [1.0], [0.25, "mid_block"])
    assert (quick.seeds, quick.yardstick) == ([0], [0, 1, 2])
    assert read_options([]).output != quick.output


def test_the_commands_of_the_page_are_understood():
    page = (Path(__file__).parents[2] / "docs" / "loss_ablation.md").read_text()
    commands = re.findall(r"^python -m benchmarks.loss_ablation (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        read_options(shlex.split(command))
