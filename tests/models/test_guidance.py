from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from nitrodistill.models import Guided
from nitrodistill.models.guidance import EmbeddedGuidance
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.types import Condition, NoiseSchedule, PredictionType


@pytest.fixture
def null(generator) -> Condition:
    return Condition({"encoder_hidden_states": torch.randn(1, 5, 16, generator=generator)})


def test_the_rescale_is_diffusers(tiny_denoiser, tiny_condition, null, generator):
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(300)
    plain = Guided(tiny_denoiser, 5.0, null)(x_t, t, tiny_condition)
    conditional = tiny_denoiser(x_t, t, tiny_condition)
    found = Guided(tiny_denoiser, 5.0, null, rescale=0.7)(x_t, t, tiny_condition)
    theirs = rescale_noise_cfg(plain, conditional, guidance_rescale=0.7)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


def test_the_norm_of_tokens_of_a_video_is_that_of_its_frames(tiny_denoiser, null, generator):
    guided = Guided(tiny_denoiser, 5.0, null, rescale=0.7, rescale_by="token")
    one, other = torch.randn(2, 2, 4, 3, 8, 8, generator=generator)  # latents with three frames
    frames = [guided.combine(one[:, :, i], other[:, :, i], torch.tensor(0)) for i in range(3)]
    assert torch.equal(guided.combine(one, other, torch.tensor(0)), torch.stack(frames, 2))


def test_outside_of_the_interval_the_conditional_prediction_stands(
    tiny_denoiser, tiny_condition, null, generator
):
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([100, 500, 900])
    guided = Guided(tiny_denoiser, 5.0, null)(x_t, t, tiny_condition)
    conditional = tiny_denoiser(x_t, t, tiny_condition)
    found = Guided(tiny_denoiser, 5.0, null, interval=(0.3, 0.7))(x_t, t, tiny_condition)
    torch.testing.assert_close(found[1], guided[1])
    torch.testing.assert_close(found[[0, 2]], conditional[[0, 2]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided[0], conditional[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale": 1.5}, r"rescale is 1\.5; it must be in \[0, 1\]"),
        ({"rescale_by": "max"}, r"rescale_by is .max.; it must be one of"),
        ({"interval": (0.7, 0.3)}, r"interval is \(0\.7, 0\.3\); give \(low, high\)"),
    ],
)
def test_bad_settings(tiny_denoiser, null, settings, message):
    with pytest.raises(ValueError, match=message):
        Guided(tiny_denoiser, 2.0, null, **settings)


def test_embedded_guidance_replaces_the_conditions():
    class Spy:
        module: torch.nn.Module = torch.nn.Identity()
        schedule: NoiseSchedule = RectifiedFlow()
        prediction_type: PredictionType = "flow_prediction"

        def __call__(self, x_t, t, condition):
            return condition["guidance"]

    condition = Condition({"guidance": torch.tensor([3.5, 3.5])})
    guided = EmbeddedGuidance(Spy(), 2.0)
    assert guided(torch.zeros(2, 1), torch.tensor(1.0), condition).tolist() == [2.0, 2.0]
    assert condition["guidance"].tolist() == [3.5, 3.5]
    assert guided.prediction_type == "flow_prediction"
    with pytest.raises(ValueError, match=">= 0"):
        EmbeddedGuidance(Spy(), -1.0)


def test_the_norm_is_drawn_back_to_the_conditional_ones(
    tiny_denoiser, tiny_condition, null, generator
):
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(300)
    plain = Guided(tiny_denoiser, 5.0, null)
    own, conditional = plain.parts(x_t, t, tiny_condition)
    torch.testing.assert_close(conditional, tiny_denoiser(x_t, t, tiny_condition))
    guided = plain.combine(own, conditional, t)
    torch.testing.assert_close(guided, plain(x_t, t, tiny_condition))
    found = Guided(tiny_denoiser, 5.0, null, rescale=1.0, rescale_by="norm")(x_t, t, tiny_condition)
    sizes = [value.flatten(1).norm(dim=1) for value in (found, conditional)]
    torch.testing.assert_close(*sizes)
    ratio = found / guided
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-3, atol=0)
