"""The recipe for ImageNet, scaled down: a student of a tiny EDM network, trained and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import edm_digits
from benchmarks.edm_digits import RECIPE, claim, pictures, scaled, table
from nitrodistill.data import open_images
from nitrodistill.training.recipe import load_recipe


def test_the_scaled_recipe_is_the_published_one_but_for_its_size() -> None:
    published, mine = (
        recipe.stages[0] for recipe in (load_recipe(RECIPE), scaled("gan", 7, 3, Path("a/b/c")))
    )
    assert mine.settings == published.settings
    assert mine.trainer.optimizers.keys() == published.trainer.optimizers.keys()
    for role, optimizer in published.trainer.optimizers.items():
        found = mine.trainer.optimizers[role]
        kept = ("betas", "weight_decay", "max_grad_norm", "eps")
        assert [getattr(found, k) for k in kept] == [getattr(optimizer, k) for k in kept]
    without = scaled("none", 7, 3, Path("a/b/c"))
    assert without.stages[0].settings == replace(published.settings, gan=None)
    assert without.real is None
    assert "discriminator" not in without.stages[0].trainer.optimizers


def test_pictures_are_read_back_with_their_classes(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)
    pictures(tmp_path / "new", images, torch.tensor([7, 0]))
    found = open_images(tmp_path / "new")
    assert found.captions == ("7", "0")
    levels = torch.tensor(list(found.image(0).convert("L").getdata())) / 127.5 - 1
    torch.testing.assert_close(levels, images[0].flatten(), rtol=0, atol=1 / 255)


def test_table_and_claim_say_what_was_measured() -> None:
    teacher = {"fd_real": [10.0, 8.0, 12.0, 1.0], "alignment": [0.9, None, None, 1.0]}
    student = {**teacher, "fd_real": [5.0, 4.0, 6.0, 1.0]}
    metrics = {"teacher": teacher, "naive": teacher, "student": student}
    against = {name: [5.0, 10.0, -5.0, -6.0, -4.0] for name in ("held_out", "training")}
    about = {"seed": 0, "cpu_seconds": 9.0, "metrics": metrics, "against": against}
    rows = [{"student": name, **about} for name in edm_digits.STUDENTS]
    assert table(rows).splitlines()[4].startswith("| the recipe | 1 | 9 | 5.000 (4.000 to 6.000) |")
    assert "| without the GAN, seed 0 | 5.000 | 10.0 | -5.00 (-6.00 to -4.00) |" in claim(rows)
