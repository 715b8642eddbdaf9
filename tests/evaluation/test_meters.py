"""Meters: what is kept of pictures in parts is what is kept of the whole, and goes to disk and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nitrodistill.evaluation import Extractor
from nitrodistill.evaluation.meters import Meter, latent_features
from nitrodistill.toy import scenes

PROMPTS = scenes.captions()[::10]
IDS = torch.arange(4 * len(PROMPTS)) % len(PROMPTS)
PLACES = torch.arange(len(IDS))


def layout(images: Tensor) -> Tensor:
    """Features: the colours of 4x4 cells."""
    return adaptive_avg_pool2d(images, 4).flatten(1)


def measured(images: Tensor, batch_size: int) -> Meter:
    meter = Meter(len(PROMPTS), [Extractor("layout", layout)])
    for rows in torch.arange(len(IDS)).split(batch_size):
        texts = [PROMPTS[i] for i in IDS[rows].tolist()]
        meter.update(images[rows], texts, PLACES[rows])
        meter.update_latents(adaptive_avg_pool2d(images[rows], 8), IDS[rows], PLACES[rows])
    return meter


def test_parts_add_up() -> None:
    images = scenes.render([PROMPTS[i] for i in IDS.tolist()], 0)
    parts, whole = measured(images, 7), measured(images, len(IDS))
    assert parts.count == len(IDS)
    for name in whole.columns.names():
        torch.testing.assert_close(parts.columns[name], whole.columns[name])
    assert abs(parts.features["layout"].distance(whole.features["layout"])) < 1e-9
    spreads = [(meter.spreads[0] + meter.spreads[1]).spread() for meter in (parts, whole)]
    torch.testing.assert_close(*spreads)


def test_a_meter_goes_to_disk_and_back() -> None:
    images = scenes.render([PROMPTS[i] for i in IDS.tolist()], 0)
    meter, extractors = measured(images, 50), [Extractor("layout", layout)]
    again = Meter.from_state(extractors, meter.state())
    assert again.count == meter.count
    assert again.features["layout"].floor() == meter.features["layout"].floor()
    assert again.texture.distance(meter.texture) < 1e-12
    assert torch.equal(again.columns["edge"], meter.columns["edge"])
    for mine, theirs in zip(
        again.columns.halves("edge"), meter.columns.halves("edge"), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_large_latents_are_averaged_over_cells() -> None:
    assert latent_features(torch.zeros(2, 4, 8, 8)).shape == (2, 256)
    assert latent_features(torch.zeros(2, 4, 64, 64)).shape == (2, 1024)
    assert latent_features(torch.zeros(2, 16, 128, 32)).shape == (2, 1024)
    ramp = torch.arange(64.0).expand(1, 4, 64, 64)
    assert latent_features(ramp)[0, :2].tolist() == [1.5, 5.5]
