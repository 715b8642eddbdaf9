from __future__ import annotations

import pytest
import torch

from nitrodistill.models import Pipeline
from nitrodistill.models.skeleton import skeleton


def test_shapes_come_from_the_configs_alone(tiny_diffusers, tiny_scheduler, tmp_path):
    pipe = tiny_diffusers(tiny_scheduler)
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    found, whole = skeleton(tmp_path), Pipeline.from_diffusers(pipe)
    for name in ("unet", "vae", "text_encoder"):
        mine, theirs = (getattr(p.diffusers, name) for p in (found, whole))
        assert {n: p.shape for n, p in mine.named_parameters()} == {
            n: p.shape for n, p in theirs.named_parameters()
        }
        assert {p.device for p in mine.parameters()} == {torch.device("meta")}
    assert found.latent_shape == whole.latent_shape
    assert found.denoiser.prediction_type == whole.denoiser.prediction_type
    t = torch.arange(1000)
    assert torch.equal(found.denoiser.schedule(t).alpha, whole.denoiser.schedule(t).alpha)


def test_a_place_without_configs_is_told(tmp_path):
    with pytest.raises(ValueError, match="is not a diffusers pipeline"):
        skeleton(tmp_path)
    with pytest.raises(FileNotFoundError, match="no teacher at"):
        skeleton(tmp_path / "nowhere")
