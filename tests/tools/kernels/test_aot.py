"""Every kernel compiles for MI200 and for Hopper, and takes no more than its gates allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.kernels import aot, aot_cases, aot_report
from tools.kernels.aot_report import Figures

KEPT = json.loads((Path(__file__).parent / "aot_figures.json").read_text())["figures"]
SUBSET = [case.name for case in aot_cases.CASES if case.subset]
GOOD: Figures = {
    "registers": 100,
    "shared_bytes": 1024,
    "scratch_bytes": 0,
    "spills": 0,
    "waves": 4,
    "wide_loads": 1.0,
    "float_atomics": 0,
}


@pytest.mark.parametrize("name", SUBSET)
@pytest.mark.parametrize("architecture", ["gfx90a", "sm_90"])
def test_gates_and_kept_figures(name: str, architecture: str):
    found = aot.figures(aot.Build(name, architecture, pointer_range=True))
    assert found
    assert aot.failures(found, KEPT) == []


def test_the_subset_has_every_kernel():
    compiled = {
        launch.name.rstrip("_0123456789")
        for case in aot_cases.CASES
        if case.subset
        for launch in aot_cases.record(case, "gfx90a")
    }
    every = {f"{op}.{name[1:]}" for op, (_, names) in aot_cases.KERNELS.items() for name in names}
    assert compiled == every


def test_kept_figures_cover_the_whole_matrix_and_pass():
    cases = {build.case for build in aot.builds(aot.ARCHITECTURES, subset=False)}
    for case in cases:
        for architecture in aot.ARCHITECTURES:
            assert any(key.startswith(case + "/") and f"/{architecture}" in key for key in KEPT)
    assert aot.failures(KEPT, KEPT) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scratch_bytes": 68}, "scratch"),
        ({"spills": 2}, "spills"),
        ({"shared_bytes": 65536}, "shared memory"),
        ({"waves": 2}, "waves"),
        ({"wide_loads": 0.5}, "128-bit"),
        ({"float_atomics": 1}, "atomics"),
    ],
)
def test_each_gate_closes(change: dict[str, int], words: str):
    key = "x0_loss/bf16/x0_loss.forward_kernel/gfx90a"
    worse: Figures = {**GOOD, **change}  # type: ignore[typeddict-item]
    assert aot.failures({key: GOOD}, None) == []
    (problem,) = aot.failures({key: worse}, None)
    assert words in problem


def test_a_figure_ten_percent_worse_fails():
    key = "x0_loss/bf16/x0_loss.forward_kernel/gfx90a"
    assert aot.failures({key: {**GOOD, "registers": 108}}, {key: GOOD}) == []
    (problem,) = aot.failures({key: {**GOOD, "registers": 120}}, {key: GOOD})
    assert "from 100 to 120" in problem
    assert "no kept figures" in aot.failures({key: GOOD}, {})[0]


def test_only_stencils_are_exempt_from_wide_loads():
    exempt = [reason for reason in aot_report.NARROW.values() if "no bulk loads" not in reason]
    assert all("stencil" in reason or "strided" in reason for reason in exempt)
    narrow: Figures = {**GOOD, "wide_loads": 0.1}
    assert aot.failures({"ssim/fp32/ssim.rows_kernel/gfx90a": narrow}, None) == []
    assert aot.failures({"ssim/fp32/ssim.columns_kernel/gfx90a": narrow}, None) != []


def test_marked_source_lines_are_no_bulk_loads(tmp_path: Path):
    source = tmp_path / "kernel.py"
    source.write_text("a = load(x)\nw = load(weight)  # not bulk: one per channel\n")
    amd = f'.file 1 "{tmp_path}" "kernel.py"\n.loc 1 1 5\nfirst\n.loc 1 2 5\nsecond\n.loc 1 1 9\nthird'
    nvidia = f'.loc 1 1 5\nfirst\n.loc 1 2 5\nsecond\n.loc 1 0 0\nthird\n.file\t1 "{source}"'
    for text in (amd, nvidia):
        kept = aot_report._bulk(text)
        assert kept.count("first") == kept.count("third") == 1
        assert "second" not in kept
    source.unlink()
    with pytest.raises(FileNotFoundError):
        aot_report._bulk(nvidia)


@pytest.mark.parametrize(
    ("case", "launches"),
    [
        ("x0_loss/bf16", 3),
        ("lpips_head/bf16/nchw/64", 3),
        ("dmd/bf16", 3),
        ("ssim/fp32", 6),
        ("laplacian/fp32", 2 * 3 + 1),
    ],
)
def test_launches_of_a_forward_and_backward_pass(case: str, launches: int):
    (found,) = [each for each in aot_cases.CASES if each.name == case]
    assert len(aot_cases.record(found, "gfx90a")) == launches
