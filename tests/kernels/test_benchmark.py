from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    import kernels as module

    return module


def row(implementation: str, ms: float, peak: int = 100, **changes: Any) -> dict[str, Any]:
    return {
        "operation": "dmd", "case": "DMD", "shape": [1, 2], "dtype": "float32",
        "channels_last": False, "of_record": True, "implementation": implementation,
        "ms": ms, "ms_20": ms, "ms_80": ms, "gb_s": 100.0, "peak_bytes": peak, "host_us": 10.0,
    } | changes  # fmt: skip


def test_the_kill_rule(benchmark):
    eager, compiled = row("eager", 4.0), row("compile", 2.0)
    best = row("compile, max-autotune", 1.5)
    assert benchmark.proven([eager, compiled, best, row("ours", 1.3)]) == ["dmd"]
    assert benchmark.proven([eager, compiled, best, row("ours", 1.4)]) == []
    assert benchmark.proven([eager, compiled, best, row("ours", 1.4, peak=80)]) == ["dmd"]
    assert benchmark.proven([eager, compiled, best, row("ours", 4.1, peak=80)]) == []
    assert benchmark.proven([eager, row("ours", 1.0)]) == []  # torch.compile failed: no verdict
    second = [row(r["implementation"], 1.0, shape=[3]) for r in (eager, compiled)]
    lost = [*second, row("ours", 1.0, shape=[3])]
    assert benchmark.proven([eager, compiled, row("ours", 1.0), *lost]) == []
    beside = [{**r, "of_record": False} for r in lost]
    assert benchmark.proven([eager, compiled, row("ours", 1.0), *beside]) == ["dmd"]


def test_the_table_shows_every_row_also_failures(benchmark):
    failed = {**row("piq", 1.0), "failed": "ValueError: too small"}
    document = {
        "gpu": "GPU", "architecture": "sm_90", "torch": "2", "triton": "3", "date": "today",
        "copy_gb_s": 200.0, "correctness": {"summary": "9 passed"}, "proven": [],
        "rows": [row("eager", 4.0), row("ours", 2.0), failed],
    }  # fmt: skip
    text = benchmark.markdown(document)
    assert "| eager | 4.0000 (4.0000-4.0000) | 2.00 | 50% |" in text
    assert "failed: ValueError: too small" in text
    assert "run by default: none" in text


def test_committed_results_stand_in_the_docs(benchmark):
    page = (ROOT / "docs" / "kernels.md").read_text()
    found = [json.loads(path.read_text()) for path in (BENCHMARKS / "results").glob("*.json")]
    measured = [each for each in found if "architecture" in each]
    for document in measured:
        assert benchmark.markdown(document) in page
    assert ("MI250 run pending" in page) == all(d["architecture"] != "gfx90a" for d in measured)


def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels.py"])
    assert benchmark.main() == 2
    assert "no GPU here" in capsys.readouterr().err


def test_it_runs_in_the_interpreter_and_implementations_agree():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "kernels.py"), "--try", "--operations"]
    result = subprocess.run(
        [*command, "x0_loss", "dmd"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "13 implementations ran and agree; 0 do not" in result.stdout
