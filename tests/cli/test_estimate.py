from __future__ import annotations

import json
import shutil

import pytest

from nitrodistill.cli.main import main


def test_it_counts_a_recipe_and_says_what_fits(place, capsys):
    sizes = ["--memory", "1", "--text_length", "8", "--lora_rank", "1"]
    assert main(["estimate", "--config", str(place.recipe), *sizes]) == 0
    out = capsys.readouterr().out
    out, times = out.split("\n\ntime of 2 steps")
    assert "measured here, by 2 steps" in times, "the weights are here, and small"
    assert "MI325X, MI300X, by arithmetic" in times
    assert "arithmetic, not measured" in times
    roles, switches = out.split("what helps")
    assert [line.split()[0] for line in roles.splitlines()[1:6]] == [
        *("teacher", "vae", "text_encoder", "student", "discriminator"),
    ]
    assert "peak with micro-batches of 2" in roles
    assert "largest micro-batch in 1 GiB" in switches
    fits = [int(line.split()[-1]) for line in switches.splitlines()[1:]]
    assert min(fits) == fits[0] > 2, "every switch leaves room for as many or more"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stage", "1"), "stage is 1; the recipe has 1"),
        (("--memory", "0"), "memory is 0"),
        (("--teacher", "/no/such/place"), "no teacher at"),
    ],
)
def test_mistakes_are_told_in_a_sentence(place, capsys, options, message):
    assert main(["estimate", "--config", str(place.recipe), *options]) == 2
    assert message in capsys.readouterr().err


def test_json_has_what_the_tables_have(place, capsys):
    assert main(["estimate", str(place.recipe), "--json", "--text_length", "8"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["roles"]["student"]["parameters"] > 0
    assert found["peak_bytes"]["as it is"] > found["peak_bytes"]["gradient checkpointing"]
    assert found["measured_seconds"] > 0
    assert found["flops"] / (0.4 * 19.5e12) == pytest.approx(found["arithmetic_seconds"]["A100"])
    assert "counting the recipe as it is" in told.err


def test_without_weights_nothing_is_measured(place, capsys):
    configs = place.root / "configs"
    shutil.copytree(place.teacher, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["estimate", str(place.recipe), "--teacher", str(configs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_seconds"] is None
