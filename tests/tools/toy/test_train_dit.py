from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nitrodistill.models.pipeline import fingerprint
from nitrodistill.toy.manifest import DIT_WEIGHTS, verify
from nitrodistill.toy.oracle import load_oracle
from nitrodistill.toy.pipeline import load_dit_pipeline, load_pipeline
from tests.tools.toy.resuming import check_resumed_is_bit_equal
from tools.toy.loop import build, seeded
from tools.toy.measure import draw_images, joint_alignment, random_captions
from tools.toy.train import assemble_dit, evaluate_dit
from tools.toy.train_dit import (
    DiTTeacher,
    make_dit,
    make_dit_scheduler,
    make_masked_latents,
    tokenize_with_mask,
)
from tools.toy.train_vae import make_vae


def test_the_parts_have_the_stated_sizes():
    teacher = build(DiTTeacher, 0)
    assert sum(p.numel() for p in make_dit().parameters()) == 856_736
    assert sum(p.numel() for p in teacher.text_encoder.parameters()) == 90_112


def test_the_schedule_is_pixarts():
    """Linear betas from 1e-4 to 0.02: alpha and sigma at 400 and 999 as reference tables have them."""
    table = make_dit_scheduler().alphas_cumprod.double()
    assert table[400].sqrt().item() == pytest.approx(0.4400, abs=1e-4)
    assert table[999].sqrt().item() == pytest.approx(0.00635, abs=1e-5)


def test_what_the_mask_hides_changes_nothing():
    teacher = build(DiTTeacher, 0).eval()
    tokens, mask = tokenize_with_mask(
        load_pipeline().tokenizer, ["a small red ring on a blue background"]
    )
    assert mask.tolist() == [[1] * 10 + [0] * 2]
    x_t, t = torch.randn(1, 4, 8, 8, generator=seeded(0)), torch.tensor([500])
    with torch.no_grad():
        padded = teacher(x_t, t, tokens, mask)
        cut = teacher(x_t, t, tokens[:, :10], mask[:, :10])
    torch.testing.assert_close(padded, cut)


def test_an_ideal_prediction_has_no_loss():
    pool = make_masked_latents(build(make_vae, 0), 16, seed=0)

    def ideal(x_t: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Knows the pool: the noise of the x0 that explains x_t with the smallest one."""
        alpha, sigma = (scale.float().view(-1, 1, 1, 1) for scale in pool.schedule(t))
        candidates = (x_t[:, None] - alpha[:, None] * pool.x0[None]) / sigma[:, None]
        best = candidates.square().flatten(2).sum(-1).argmin(1)
        return candidates[torch.arange(len(t)), best]

    loss = pool.loss(ideal, 32, seeded(3))  # pyright: ignore[reportArgumentType] - a stand-in with its signature
    assert loss.item() < 0.01  # where noise is high, another x0 explains it as well


def test_killed_and_resumed_is_bit_equal(tmp_path: Path):
    """With a text encoder that ties two names to one weight."""
    pool = make_masked_latents(build(make_vae, 0), 16, seed=0)
    check_resumed_is_bit_equal(DiTTeacher, pool.loss, 2, tmp_path)


def test_written_weights_load_as_their_fp16_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    teacher, vae = build(DiTTeacher, 1), load_pipeline().vae
    expected = [p.detach().half().float() for p in teacher.parameters()]
    monkeypatch.setattr("tools.toy.train.measure_teacher", lambda *a: {"teacher": {"joint": 0.0}})
    evaluate_dit(assemble_dit(vae, teacher), load_oracle(), tmp_path, 0)
    monkeypatch.setattr("nitrodistill.toy.pipeline.DIT_WEIGHTS", tmp_path / "dit_weights")
    loaded = load_dit_pipeline()
    found = [p.detach() for m in (loaded.text_encoder, loaded.transformer) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert fingerprint(loaded.vae) == fingerprint(vae)


def test_weights_of_another_autoencoder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = build(make_vae, 3)
    monkeypatch.setattr("tools.toy.train.measure_teacher", lambda *a: {"teacher": {"joint": 0.0}})
    evaluate_dit(assemble_dit(other, build(DiTTeacher, 1)), load_oracle(), tmp_path, 0)
    monkeypatch.setattr("nitrodistill.toy.pipeline.DIT_WEIGHTS", tmp_path / "dit_weights")
    with pytest.raises(ValueError, match="trained on another autoencoder"):
        load_dit_pipeline()


def test_shipped_weights_are_whole_and_small():
    verify(DIT_WEIGHTS)
    files = [p for p in DIT_WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 2_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json"}


def test_the_teacher_draws_what_its_prompts_say():
    """As many as the shipped measurement says, less four standard deviations of 32 pictures."""
    metrics = json.loads((DIT_WEIGHTS / "metrics.json").read_text())
    joint = metrics["teacher"]["joint"]
    prompts = random_captions(32, seeded("prompts"))
    images = draw_images(load_dit_pipeline(), prompts, seeded("noise"))
    least = joint - 4 * (joint * (1 - joint) / 32) ** 0.5
    assert joint_alignment(load_oracle(), images, prompts)["joint"] >= least
