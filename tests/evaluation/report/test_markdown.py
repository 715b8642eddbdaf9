"""The model card's table: the verdict first, intervals for the student, no attribute by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nitrodistill.evaluation import Evaluation
from nitrodistill.evaluation.report import model_card_table, model_results


def test_the_verdict_and_a_table(evaluation: Callable[..., Evaluation]) -> None:
    lines = model_card_table(evaluation()).splitlines()
    assert lines[0].startswith("**The student matches its teacher in variety, but not in")
    assert "1 of 5 measures agrees" in lines[0]
    assert lines[2:6] == [
        "|  | student (95% interval) | teacher | teacher, 1 step | floor |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| alignment | 0.900 (0.882 to 0.918) | 0.990 | - | - |",
        "| FD to real | 12.0 (10.8 to 13.2) | 4.00 | 700 | 2.50 |",
    ]
    assert "| denoising, ms/image | 2.00 (1.90 to 2.20) | 50.0 | - | - |" in lines
    assert not any("colour" in line for line in lines)
    noted = replace(evaluation(), notes=("SSIM is left out: why.",))
    assert model_card_table(noted).splitlines() == [*lines, "", "- SSIM is left out: why."]


def test_times_name_the_machine(evaluation: Callable[..., Evaluation]) -> None:
    found = evaluation()
    assert "Times: Measured on cpu: warmed up" in model_card_table(found)
    on = {"machine": "EPYC", "device": "cpu", "num_threads": 4, "cost_batch_size": 8}
    text = model_card_table(replace(found, settings=on))
    assert "Times: Measured on EPYC with 4 threads, 8 pictures at a time" in text
    untimed = replace(found, models={"student": {"fd_real": found.models["student"]["fd_real"]}})
    assert "Times" not in model_card_table(untimed)


def test_results_for_a_model_index(evaluation: Callable[..., Evaluation]) -> None:
    found = {str(one["type"]): one for one in model_results(evaluation())}
    assert found["fd_real"] == {"type": "fd_real", "name": "FD to real", "value": 12.0}
    assert "denoise_ms" in found
    assert not {"pixel_distance", "alignment@colour"} & set(found)
