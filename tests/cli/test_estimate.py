from __future__ import annotations

import pytest

from nitrodistill.cli.main import main


def test_it_counts_a_recipe_and_says_what_fits(place, capsys):
    sizes = ["--memory", "1", "--text_length", "8", "--lora_rank", "1"]
    assert main(["estimate", "--config", str(place.recipe), *sizes]) == 0
    out = capsys.readouterr().out
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
