from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from nitrodistill.cli.evaluate import _trained_on
from nitrodistill.cli.main import main
from nitrodistill.training import load_recipe


def test_data_that_is_gone_leaves_memorisation_out(
    place, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(place.recipe)
    found = _trained_on(recipe)
    assert found is not None
    assert len(found) == 4
    gone = dataclasses.replace(recipe, pairs=str(place.root / "gone"))
    assert _trained_on(gone) is None
    assert "memorisation is not measured: no pair store at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_samples: 4\nnum_samples: 8\n", "'num_samples' stands twice in the names from line 1"),
        ("a: &x [*x]", "stands inside of what it names"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)),
            "holds more than 100000 values",
        ),
        (
            "num_samples: [" + "x" * 5000 + "]",
            f"num_samples is ['{'x' * 55}...; it must be an integer.",
        ),
        (None, "no file of options at"),
    ],
)
def test_a_file_of_options_is_checked_as_a_recipe_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    file = tmp_path / "options.yaml"
    if text is None:
        os.mkfifo(file)
    else:
        file.write_text(text)
    assert main(["evaluate", "--run", "none", "--config", str(file)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told) < 400
