from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from nitrodistill.losses import (
    L1Loss,
    LatentLPIPSLoss,
    LPIPSLoss,
    WeightedSum,
    check_losses,
    named_loss,
)
from nitrodistill.losses.latent_augmentation import augment_latents
from nitrodistill.losses.latent_trunk import LatentTrunk, fitted_trunk
from nitrodistill.method import Draws


def make_trunk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fitted_trunk(4, [(8, 8), (8, 8)])


def make_published():
    """The published blocks and pools, narrow and with one convolution each, as more take long to compile."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentTrunk(4, [(8,)] * 5)


def pair(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).unbind()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def value_and_gradient(loss, x, y):
    x = x.clone().requires_grad_()
    value = loss(x, y)
    value.backward()
    return value.detach(), x.grad


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
    assert torch.equal(again.get_buffer("table"), loss.get_buffer("table"))
    before = torch.get_rng_state()
    again(x, y)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("network", "augment"),
    [(make_published(), ""), (lambda z: [z], "bgco")],
    ids=["published", "augmented"],
)
def test_no_graph_break(network, augment, dtype):
    x, y = pair(2, 4, 8, 8)
    eager, compiled = (
        LatentLPIPSLoss(network, augment=augment, generator=seeded() if augment else None)
        for _ in range(2)
    )
    torch.compiler.reset()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # with other augmentations the second time
        found, expected = (
            value_and_gradient(loss, x.to(dtype), y.to(dtype)) for loss in (run, eager)
        )
        torch.testing.assert_close(found, expected)
        assert expected[1].abs().max() > 0


def test_no_graph_break_and_no_second_graph_where_a_method_draws():
    x, y = pair(2, 4, 8, 8)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    eager, compiled = (LatentLPIPSLoss(make_trunk(), augment="bgco") for _ in range(2))
    run = torch.compile(compiled, fullgraph=True, backend=count)
    for step in range(3):
        for loss in (eager, compiled):
            loss.draw(Draws(0, step, torch.arange(2)).uniform)
        torch.testing.assert_close(run(x, y), eager(x, y))
    assert len(graphs) == 1


def test_a_methods_draws_are_a_matter_of_step_and_sample_alone():
    x, y = pair(6, 4, 8, 8)
    plain = LatentLPIPSLoss(make_trunk(), reduction="none")
    inner = {"a": (1.0, LatentLPIPSLoss(make_trunk(), augment="bg", generator=seeded()))}
    inner["l1"] = (1.0, L1Loss())
    loss = WeightedSum(inner)

    def value(step, rows):
        draws = Draws(0, step, torch.arange(6)[rows])
        loss.draw(draws.uniform, "reconstruction")
        r = draws.uniform("reconstruction.losses.0", 14)
        found = loss.parts(x[rows], y[rows])["a"]
        by_hand = plain(augment_latents(x[rows], r), augment_latents(y[rows], r))
        torch.testing.assert_close(found, by_hand)
        return found

    whole, other = value(3, slice(6)), value(4, slice(6))
    assert (whole - other).abs().min() > 1e-4
    parts = torch.cat([value(3, rows) for rows in (slice(2), slice(2, 3), slice(3, 6))])
    torch.testing.assert_close(parts, whole)
    assert torch.equal(loss.eval().parts(x, y)["a"], plain(x, y))


def test_without_draws_or_with_those_of_another_batch_it_says_so():
    x, y = pair(3, 4, 8, 8)
    loss = LatentLPIPSLoss(make_trunk(), augment="b")
    with pytest.raises(
        ValueError, match="augment is 'b', and there is nothing to draw from; give a"
    ):
        loss(x, y)
    loss.draw(Draws(0, 0, torch.arange(2)).uniform)
    with pytest.raises(
        ValueError, match="pred has 3 samples, and draws were made for 2; call draw"
    ):
        loss(x, y)
    loss.eval()(x, y)


def test_what_cannot_be_together():
    x, y = pair(1, 4, 8, 8)
    loss = LatentLPIPSLoss(make_trunk(), augment="b", generator=seeded())
    with pytest.raises(ValueError, match="neither a mask nor features"):
        loss(x, y, mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="neither a mask nor features"):
        loss(x, loss.target_features(y))
    with pytest.raises(ValueError, match="got neither network nor weights; give either weights"):
        LatentLPIPSLoss()
    with pytest.raises(ValueError, match="got both network and weights; give either weights"):
        LatentLPIPSLoss(make_trunk(), weights="toy")
    with pytest.raises(FileNotFoundError, match="fit-latent-lpips"):
        LatentLPIPSLoss(weights="nothing.pth")


def test_heads_that_are_none_are_refused(tmp_path):
    save_file({"conv.weight": torch.ones(4)}, tmp_path / "h.safetensors")
    torch.save({"lin0.model.1.weight": torch.ones(1, 8, 1, 1)}, tmp_path / "h.pth")
    for trunk, empty in (
        ({"weights": "toy"}, "has 2 feature maps and 0 heads; give the file of the heads"),
        ({"network": make_trunk()}, "heads is empty; give one for each feature map, or"),
    ):
        with pytest.raises(
            ValueError, match=r"h.safetensors' holds no heads .*, or leave heads out"
        ):
            LatentLPIPSLoss(**trunk, heads=tmp_path / "h.safetensors")
        with pytest.raises(ValueError, match=empty):
            LatentLPIPSLoss(**trunk, heads=[])
    with pytest.raises(ValueError, match="has 2 feature maps and 1 heads; give the file"):
        LatentLPIPSLoss(weights="toy", heads=tmp_path / "h.pth")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"network": 3}, "network is 3; it must be a callable from latents to feature maps"),
        ({"network": "vgg"}, "network is 'vgg'; .* or give the file of a trunk, or 'toy', as weights="),
        ({"weights": 3}, "weights is 3; it must be a text or a Path of a file"),
        ({"weights": "toy", "heads": [1.0]}, r"heads is \[1.0\]; it must be a sequence, each a torch."),
        ({"weights": "toy", "heads": 3}, r"heads is 3; .* \(C_l,\), or a file of them"),
        ({"weights": "toy", "heads": [torch.ones(4).long()]}, "a head has dtype torch.int64"),
        ({"weights": "toy", "augment": "b", "generator": 1}, "generator is 1; it must be a Generator"),
        ({"weights": "toy", "generator": seeded()}, "a generator is given, and augment is '', which"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        LatentLPIPSLoss(**arguments)


def test_heads_of_another_number_than_the_networks_maps_are_refused():
    loss = LatentLPIPSLoss(make_trunk(), heads=[torch.ones(8)])
    with pytest.raises(
        ValueError, match="gives 2 feature maps, and there are 1 heads; give one for"
    ):
        loss(*pair(1, 4, 8, 8))


def test_by_name_as_recipes_say_it():
    spec = {"latent_lpips": {"weight": 0.5, "weights": "toy"}}
    check_losses(spec)
    x, y = pair(2, 4, 8, 8)
    assert torch.equal(named_loss(spec)(x, y), 0.5 * LatentLPIPSLoss(weights="toy")(x, y))
    augmented = named_loss({"latent_lpips": {"weights": "toy", "augment": "bg"}})
    draws = Draws(0, 0, torch.arange(2))
    augmented.draw(draws.uniform)
    r = draws.uniform("loss.losses.0", 14)
    by_hand = LatentLPIPSLoss(weights="toy")(augment_latents(x, r), augment_latents(y, r))
    torch.testing.assert_close(augmented(x, y), by_hand)
    with pytest.raises(ValueError, match="weights"):
        check_losses({"latent_lpips": {"wieghts": "toy"}})
    with pytest.raises(ValueError, match="heads"):
        check_losses({"latent_lpips": {"weights": "toy", "heads": [1.0]}})


def test_augmentations_of_a_loss_in_bfloat16_are_those_of_float32():
    x, y = pair(4, 4, 8, 8)
    loss = LatentLPIPSLoss(
        lambda z: [z.float()], augment="bgco", generator=seeded(), reduction="none"
    )
    expected = loss(x, y)
    loss.get_buffer("next_row").zero_()
    torch.testing.assert_close(loss.bfloat16()(x, y), expected)
