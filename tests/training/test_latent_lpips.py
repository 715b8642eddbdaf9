"""The fit of a latent trunk: what is distributed, and a short one that is stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from nitrodistill import toy
from nitrodistill.losses import DecodedLoss, LatentLPIPSLoss, LPIPSLoss
from nitrodistill.losses.latent_trunk import fitted_trunk
from nitrodistill.method import Cast, Draws
from nitrodistill.models import DecoderFeatures, FeatureTaps, Pipeline
from nitrodistill.training.latent_lpips import (
    FitConfig,
    fit_latent_lpips,
    make_pairs,
    rank_correlation,
)

SHORT = FitConfig(pairs=256, held_out=8, widths=(4, 4), steps=5, batch_size=8)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_diffusers(toy.load_pipeline())


def latents(count=40):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def differences(x, y):
    return (x - y).abs().mean((1, 2, 3))


def test_what_is_distributed_ranks_new_scenes_as_their_pictures_do(pipeline):
    captions = toy.scenes.captions()[::5]
    z = pipeline.encode_image(toy.scenes.render(captions, torch.Generator().manual_seed(977)))
    pairs = make_pairs(z, Draws(977, 0, torch.arange(256), purpose="a test"))
    pixels = DecodedLoss(LPIPSLoss(toy.oracle_maps), pipeline.decode, None, reduction="none")
    loss = LatentLPIPSLoss(weights="toy", reduction="none")
    with torch.no_grad():
        wanted, mine = pixels(*pairs), loss(*pairs)
    plain = rank_correlation((pairs[0] - pairs[1]).square().mean((1, 2, 3)), wanted)
    untrained = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trunk = fitted_trunk(4, [(w, w) for w in FitConfig().widths])
        assert [p.shape for p in trunk.parameters()] == [p.shape for p in loss.trunk.parameters()]
        values = LatentLPIPSLoss(trunk, reduction="none")(*pairs)
        untrained.append(rank_correlation(values, wanted))
    found = rank_correlation(mine, wanted)
    assert found >= 0.95
    assert found >= plain + 0.025
    assert found >= max(untrained) + 0.01
    assert 0.5 < float(mine.mean() / wanted.mean()) < 2


def test_a_short_fit_ranks_better_than_its_start(tmp_path):
    def coarse(x, y):
        return F.avg_pool2d(x - y, 2).square().mean((1, 2, 3))

    config = replace(SHORT, pairs=1024, held_out=32, widths=(16,), batch_size=32, steps=100)
    start, end = (
        fit_latent_lpips(
            latents(96),
            coarse,
            tmp_path / "kept",
            replace(config, learning_rate=rate),
            progress=False,
        )
        for rate in (1e-12, 5e-3)
    )
    assert end.l2_correlation == start.l2_correlation  # of the same pairs
    assert end.correlation > start.correlation + 0.005


def test_rank_correlation_is_spearmans():
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(x, x.exp() + 1) == pytest.approx(1)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    with pytest.raises(ValueError, match="not finite"):
        rank_correlation(x, y * float("nan"))


def test_a_fit_that_was_stopped_gives_what_one_that_was_not_gives(tmp_path):
    calls = []

    def stopping(x, y):
        calls.append(len(x))
        if len(calls) == 33:  # after the pairs that are fitted on
            raise KeyboardInterrupt
        return differences(x, y)

    whole = fit_latent_lpips(latents(), differences, tmp_path / "a", SHORT, progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit_latent_lpips(latents(), stopping, tmp_path / "b", SHORT, progress=False)
    calls[:] = range(100)
    again = fit_latent_lpips(latents(), stopping, tmp_path / "b", SHORT, progress=False)
    assert len(calls) == 105  # 32 held-out pairs, 8 at a time, and as many known ones
    assert whole.weights.read_bytes() == again.weights.read_bytes()
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["correlation"] == whole.correlation
    assert "not on human judgements" in report["calibration"]
    assert LatentLPIPSLoss(weights=again.weights)(latents(2), latents(2).flip(0)) > 0
    with pytest.raises(ValueError, match="of another fit"):
        fit_latent_lpips(latents(41), differences, tmp_path / "b", SHORT, progress=False)
    with pytest.raises(ValueError, match="with another distance of pictures"):
        fit_latent_lpips(
            latents(),
            lambda x, y: differences(x, y).square(),
            tmp_path / "b",
            SHORT,
            progress=False,
        )


def test_what_cannot_be_fitted(tmp_path):
    with pytest.raises(ValueError, match="give more images"):
        fit_latent_lpips(latents(9), differences, tmp_path, SHORT)
    with pytest.raises(ValueError, match="not finite"):
        fit_latent_lpips(
            latents(), lambda x, y: differences(x, y) / 0, tmp_path, SHORT, progress=False
        )
    with pytest.raises(ValueError, match="widths"):
        FitConfig(widths=())
    with pytest.raises(ValueError, match="5 blocks need sides of 16 or more"):
        fit_latent_lpips(latents(), differences, tmp_path / "c", replace(SHORT, widths=(4,) * 5))
    assert not (tmp_path / "c").exists()


def test_pairs_go_from_barely_to_wholly_and_are_drawn_from_their_index():
    draws = Draws(0, 0, torch.arange(64), purpose="a test")
    one, other = make_pairs(latents(), draws)
    some = make_pairs(latents(), draws.take(torch.tensor([9, 3])))
    assert torch.equal(some[1], other[[9, 3]])
    changes = differences(one, other).view(-1, 4)
    assert (changes.min(0).values < 0.3 * changes.max(0).values).all()


def test_the_teachers_and_the_decoders_features(pipeline):
    x, y = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    taps = FeatureTaps(pipeline.denoiser, [0.25, 0.5])
    condition = pipeline.encode_prompt(["a small red circle on a black background"] * 3)
    teacher = LatentLPIPSLoss(taps.bind(torch.full((3,), 200), condition), reduction="none")
    decoder = LatentLPIPSLoss(DecoderFeatures(pipeline.diffusers.vae), reduction="none")
    for loss in (teacher, decoder):
        given = x.clone().requires_grad_()
        found = loss(given, y)
        found.sum().backward()
        assert given.grad is not None
        assert given.grad.abs().max() > 0
        assert (found > 0).all()
        torch.testing.assert_close(loss(y, x), found.detach())
        assert loss(y, y).max() < 1e-10
    seen = []
    decoder_module = pipeline.diffusers.vae.decoder
    hook = decoder_module.up_blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
    behind = decoder_module.conv_out.register_forward_hook(lambda *given: seen.append(None))
    maps = DecoderFeatures(pipeline.diffusers.vae)(x)
    hook.remove()
    behind.remove()
    assert len(seen) == 1
    assert torch.equal(maps[1], seen[0])
    both = [pipeline.denoiser, pipeline.denoiser]
    by_name = Cast.of(*both, vae=pipeline.vae).features("decoder")(x)
    assert all(torch.equal(a, b) for a, b in zip(by_name, maps, strict=True))
    with pytest.raises(ValueError, match="there is no VAE"):
        Cast.of(*both).features("decoder")
    with pytest.raises(ValueError, match="no submodule"):
        DecoderFeatures(pipeline.diffusers.vae, ["up_blocks.9"])
