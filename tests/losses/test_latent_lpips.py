from __future__ import annotations

import pytest
import torch

from nitrodistill.losses import LatentLPIPSLoss, LPIPSLoss, check_losses, named_loss
from nitrodistill.losses.latent_augmentation import augment_latents
from nitrodistill.losses.latent_trunk import fitted_trunk


def make_trunk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fitted_trunk(4, [(8, 8), (8, 8)])


def pair(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).unbind()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_negative_heads_count_as_zero():
    x, y = pair(2, 4, 8, 8)
    heads = [torch.tensor([1.0, -5.0] * 4), torch.full((8,), -1.0)]
    expected = LPIPSLoss(
        make_trunk(), heads=[torch.tensor([1.0, 0.0] * 4), torch.zeros(8)], eps=1e-8
    )
    found = LatentLPIPSLoss(make_trunk(), heads=heads)
    assert found(x, y) > 0
    assert torch.equal(found(x, y), expected(x, y))


def test_both_sides_are_augmented_alike_in_training_alone():
    x, y = pair(3, 4, 8, 8)
    plain = LatentLPIPSLoss(make_trunk(), reduction="none")
    loss = LatentLPIPSLoss(make_trunk(), augment="bgco", generator=seeded(), reduction="none")
    rows = torch.rand(4096, 14, generator=seeded())
    for start in (0, 3):
        r = rows[start : start + 3]
        expected = plain(augment_latents(x, r, "bgco"), augment_latents(y, r, "bgco"))
        torch.testing.assert_close(loss(x, y), expected)
    assert torch.equal(loss(x, x), torch.zeros(3))
    assert torch.equal(loss.eval()(x, y), plain(x, y))
    again = LatentLPIPSLoss(make_trunk(), augment="bgco", generator=seeded())
    assert torch.equal(again.get_buffer("draws"), loss.get_buffer("draws"))
    before = torch.get_rng_state()
    again(x, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_graph_break():
    x, y = pair(2, 4, 8, 8)
    for dtype in (torch.bfloat16,):
        eager, compiled = (
            LatentLPIPSLoss(make_trunk(), augment="bgco", generator=seeded()) for _ in range(2)
        )
        run = torch.compile(compiled, fullgraph=True, backend="eager")
        for _ in range(2):
            given = x.to(dtype).requires_grad_()
            torch.testing.assert_close(run(given, y.to(dtype)), eager(given, y.to(dtype)))


def test_what_cannot_be_together():
    x, y = pair(1, 4, 8, 8)
    loss = LatentLPIPSLoss(make_trunk(), augment="b", generator=seeded())
    with pytest.raises(ValueError, match="neither a mask nor features"):
        loss(x, y, mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="neither a mask nor features"):
        loss(x, loss.target_features(y))
    with pytest.raises(ValueError, match="no generator"):
        LatentLPIPSLoss(make_trunk(), augment="b")
    with pytest.raises(ValueError, match="give either weights"):
        LatentLPIPSLoss()
    with pytest.raises(FileNotFoundError, match="fit-latent-lpips"):
        LatentLPIPSLoss(weights="nothing.pth")


def test_by_name_as_recipes_say_it():
    spec = {"latent_lpips": {"weight": 0.5, "weights": "toy"}}
    check_losses(spec)
    x, y = pair(2, 4, 8, 8)
    assert torch.equal(named_loss(spec)(x, y), 0.5 * LatentLPIPSLoss(weights="toy")(x, y))
    with pytest.raises(ValueError, match="no generator"):
        named_loss({"latent_lpips": {"weights": "toy", "augment": "bg"}})
    with pytest.raises(ValueError, match="weights"):
        check_losses({"latent_lpips": {"wieghts": "toy"}})


def test_augmentations_of_a_loss_in_bfloat16_are_those_of_float32():
    x, y = pair(4, 4, 8, 8)
    loss = LatentLPIPSLoss(
        lambda z: [z.float()], augment="bgco", generator=seeded(), reduction="none"
    )
    expected = loss(x, y)
    loss.get_buffer("next_row").zero_()
    torch.testing.assert_close(loss.bfloat16()(x, y), expected)
