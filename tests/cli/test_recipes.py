from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nitrodistill.cli.main import main
from nitrodistill.training.recipe import load_recipe, shipped_recipes

STATUS = {
    "run here, on an embedded teacher",
    "published settings, not run here",
    "published in part, not run here",
    "our settings, not run here",
}


def test_each_recipe_has_one_line_below_what_is_proven_of_it(capsys):
    assert main(["recipes"]) == 0
    parts = capsys.readouterr().out.strip().split("\n\n")
    status = {part.splitlines()[0].removesuffix(":"): part.splitlines()[1:] for part in parts}
    assert set(status) == STATUS
    assert next(iter(status)).startswith("run here")
    lines = [line for part in status.values() for line in part]
    assert sorted(line.split()[0] for line in lines) == sorted(shipped_recipes())
    assert all(len(line) <= 115 and len(line.split()) > 3 for line in lines)
    assert any("nitro-sd21" in line for line in status["published settings, not run here"])


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_that_is_shown_and_saved_is_the_one_of_that_name(name, capsys, tmp_path):
    assert main(["recipes", "show", name]) == 0
    (tmp_path / "my.yaml").write_text(text := capsys.readouterr().out)
    assert load_recipe(tmp_path / "my.yaml") == load_recipe(name)
    assert load_recipe(name).stages
    told = re.findall(r"(?:train|estimate) --config (\S+)", text)
    assert set(told) == {name}, "what its comments say is a command for this recipe"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "nitro-sd2"], "no recipe at 'nitro-sd2', .* did you mean 'nitro-sd21'?"),
        (["show", "xyzzy"], "`nitrodistill recipes` lists those that do"),
        (["show"], "`nitrodistill recipes show` needs NAME"),
        (["nitro-sd21"], "'nitro-sd21' is not expected"),
    ],
)
def test_mistakes_are_told_in_a_sentence(argv, message, capsys):
    assert main(["recipes", *argv]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_show_leaves_files_of_that_name_alone(capsys, tmp_path, monkeypatch):
    """`recipes show toy > toy`: the shell has made the file before the verb runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").touch()
    assert main(["recipes", "show", "toy"]) == 0
    assert "teacher: toy" in capsys.readouterr().out


def test_json_has_every_recipe_with_its_file(capsys):
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert found == {name: str(file) for name, file in shipped_recipes().items()}
    assert main(["recipes", "show", "toy", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == Path(shown["file"]).read_text()
