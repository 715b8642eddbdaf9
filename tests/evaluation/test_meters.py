"""Each way to fail is flagged by the metric meant for it, on captioned scenes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, pad

from nitrodistill.evaluation import TextureFeatures
from nitrodistill.evaluation.meters import Meter, Statistics, latent_features
from nitrodistill.toy import scenes

PROMPTS = scenes.captions()[::10]
IDS = torch.arange(8 * len(PROMPTS)) % len(PROMPTS)
HALVES = (torch.arange(len(IDS)) // len(PROMPTS)) % 2 == 0


def layout(images: Tensor) -> Tensor:
    """Features: the colours of 4x4 cells."""
    return adaptive_avg_pool2d(images, 4).flatten(1)


def measured(images: Tensor) -> Meter:
    meter = Meter(len(PROMPTS), layout, None, TextureFeatures())
    prompts = [PROMPTS[i] for i in IDS.tolist()]
    for rows in torch.arange(len(IDS)).split(100):
        meter.update(images[rows], [prompts[i] for i in rows.tolist()], HALVES[rows])
        meter.update_latents(avg_pool2d(images[rows], 4), IDS[rows], HALVES[rows])
    return meter


def scene(seed: int) -> Tensor:
    return scenes.render([PROMPTS[i] for i in IDS.tolist()], seed)


@pytest.fixture(scope="module")
def real() -> Meter:
    return measured(scene(0))


def test_other_noise_is_at_the_floor(real: Meter) -> None:
    again = measured(scene(1))
    for mine, other in (
        (again.features, real.features),
        (again.texture, real.texture),
        (again.latents, real.latents),
    ):
        floor = other.floor()
        assert floor is not None
        assert mine.distance(other) == pytest.approx(floor, rel=0.3)
    assert again.edge() / real.edge() == pytest.approx(1, abs=0.03)
    assert again.high_frequency() / real.high_frequency() == pytest.approx(1, abs=0.1)


def test_a_collapsed_set_has_no_diversity(real: Meter) -> None:
    one_each = scene(0)[: len(PROMPTS)]
    collapsed = measured(one_each[IDS])
    spread, reals = collapsed.spread(), real.spread()
    assert spread is not None
    assert reals is not None
    assert spread < 1e-3 * reals
    assert collapsed.edge() / real.edge() == pytest.approx(1, abs=0.1)


def test_a_blurred_set_loses_edges_and_texture(real: Meter) -> None:
    blurred = measured(avg_pool2d(pad(scene(1), (1, 1, 1, 1), mode="replicate"), 3, 1))
    assert blurred.edge() / real.edge() < 0.7
    assert blurred.high_frequency() / real.high_frequency() < 0.3
    assert blurred.texture.distance(real.texture) > 10 * (real.texture.floor() or 0)
    floor = real.features.floor() or 0
    assert blurred.features.distance(real.features) == pytest.approx(floor, rel=0.5), "blind to it"


def test_a_colour_shift_moves_the_features_alone(real: Meter) -> None:
    cast = torch.tensor([0.2, 0.0, -0.2])[:, None, None]
    shifted = measured(scene(0) + cast)
    expected = 2 * 16 * 0.2**2
    assert shifted.features.distance(real.features) == pytest.approx(expected, rel=1e-4)
    assert shifted.features.distance(real.features) > 5 * (real.features.floor() or 0)
    assert shifted.texture.distance(real.texture) < 1e-6
    assert shifted.edge() == pytest.approx(real.edge(), rel=1e-5)


def test_statistics_of_halves_are_those_of_the_whole() -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    one, two = Statistics(), Statistics()
    for rows in torch.arange(20).split(3):
        one.update(features[rows], rows % 2 == 0)
    two.update(features, torch.ones(20, dtype=torch.bool))
    assert one.distance(two) == pytest.approx(0, abs=1e-10)
    assert one.whole().count == 20
    assert two.floor() is None


def test_large_latents_are_averaged_over_cells() -> None:
    assert latent_features(torch.zeros(2, 4, 8, 8)).shape == (2, 256)
    assert latent_features(torch.zeros(2, 4, 64, 64)).shape == (2, 1024)
    assert latent_features(torch.zeros(2, 16, 128, 32)).shape == (2, 1024)
    ramp = torch.arange(64.0).expand(1, 4, 64, 64)
    assert latent_features(ramp)[0, :2].tolist() == [1.5, 5.5]
