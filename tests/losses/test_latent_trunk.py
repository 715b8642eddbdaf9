"""The published architecture against a replica that is written out, in both layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from nitrodistill.losses import LatentLPIPSLoss, winograd
from nitrodistill.losses.latent_trunk import fitted_trunk, read_latent_trunk

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
BEHIND = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
BEFORE = (0, 3, 6, 9, 12, 15, 18, 22, 25, 28, 32, 35, 38)
LAST = (1, 3, 6, 9, 12)  # the last convolution of each block


def weights(places, norm, name, head, dtype=torch.float64):
    """A random state dict; `name(i)` is the prefix of layer i."""
    generator, state, channels = torch.Generator().manual_seed(0), {}, 4

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    for i, width in zip(places, WIDTHS, strict=True):
        state[f"{name(i)}.weight"] = (rand(width, channels, 3, 3) - 0.5) * (6 / channels) ** 0.5 / 2
        state[f"{name(i)}.bias"] = rand(width) - 0.5
        if norm:
            state[f"{name(i + 1)}.weight"] = rand(width) + 0.5
            state[f"{name(i + 1)}.bias"] = rand(width) - 0.5
        if norm == "batch":
            state[f"{name(i + 1)}.running_mean"] = rand(width) - 0.5
            state[f"{name(i + 1)}.running_var"] = rand(width) + 0.5
            state[f"{name(i + 1)}.num_batches_tracked"] = torch.tensor(7)
        channels = width
    for k, i in enumerate(LAST):
        state[head(k)] = rand(1, WIDTHS[i], 1, 1)
    return state


def slice_of(places):
    ends = [places[i] + 3 for i in LAST]
    return lambda i: 1 + sum(i >= end for end in ends)


def replica(state, places, norm, name, head, x, y, pooled_taps):
    total = 0
    maps = [x, y]
    for n, i in enumerate(places):
        block = sum(n > last for last in LAST)
        if not pooled_taps and block >= 3 and n - 1 in LAST:
            maps = [F.max_pool2d(m, 2) for m in maps]
        out = []
        for m in maps:
            m = F.conv2d(m, state[f"{name(i)}.weight"], state[f"{name(i)}.bias"], padding=1)
            after = {
                k: state.get(f"{name(i + 1)}.{k}")
                for k in ("running_mean", "running_var", "weight", "bias")
            }
            if norm == "batch":
                m = F.batch_norm(m, **after)
            elif norm == "group":
                m = F.group_norm(m, 32, after["weight"], after["bias"])
            out.append(m.clamp_min(0))
        maps = out
        if n in LAST:
            if pooled_taps and block >= 3:
                maps = [F.max_pool2d(m, 2) for m in maps]
            a, b = (m / (m.square().sum(1, keepdim=True) + 1e-8).sqrt() for m in maps)
            total = total + ((a - b).square() * state[head(block)]).sum(1).mean((1, 2))
    return total


def layouts():
    inner = slice_of(BEHIND)
    yield (
        "elatentlpips",
        BEHIND,
        "batch",
        lambda i: f"net.slice{inner(i)}.{i}",
        lambda k: f"lin{k}.model.1.weight",
    )
    outer = slice_of(BEFORE)
    for norm in ("group", "batch"):
        yield (
            f"SNU {norm}",
            BEFORE,
            norm,
            lambda i: f"slice{outer(i)}.{i}",
            lambda k: f"linear{k + 1}.model.1.weight",
        )


@pytest.mark.parametrize("layout", layouts(), ids=lambda layout: layout[0])
def test_equal_to_a_replica(layout, tmp_path, monkeypatch):
    _, places, norm, name, head = layout
    if norm == "batch":  # with Winograd's convolutions, which so small a latent would not have
        monkeypatch.setattr(winograd, "_LEAST_POSITIONS", 1)
    state = weights(places, norm, name, head)
    save_file(state, tmp_path / "w.safetensors")
    loss = LatentLPIPSLoss(weights=tmp_path / "w.safetensors", reduction="none").double()
    x, y = torch.randn(
        2, 1, 4, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).unbind()
    x.requires_grad_()
    found, expected = loss(x, y), replica(state, places, norm, name, head, x, y, places == BEHIND)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    mine, theirs = (torch.autograd.grad(v.sum(), x)[0] for v in (found, expected))
    assert (mine - theirs).abs().max() < 1e-8 * theirs.abs().max()
    assert (found > 0).all()
    torch.testing.assert_close(found, loss(y, x))
    torch.testing.assert_close(loss(x, loss.target_features(y)), found)
    assert torch.equal(loss(y, y), torch.zeros(1, dtype=torch.float64))


def test_a_classifiers_checkpoint_with_heads_in_another_file(tmp_path):
    named = [lambda i: f"module.features.{i}", lambda k: f"lin{k}.model.1.weight"]
    state = weights(BEHIND, "batch", *named, dtype=torch.float32)
    heads = {k: state.pop(k) for k in list(state) if k.startswith("lin")}
    torch.save(
        {"state_dict": state | {"module.classifier.0.weight": torch.zeros(3, 3)}},
        tmp_path / "c.pth.tar",
    )
    torch.save(heads, tmp_path / "h.pth")
    with pytest.raises(ValueError, match=r"5 feature maps and 0 heads"):
        LatentLPIPSLoss(weights=tmp_path / "c.pth.tar")
    loss = LatentLPIPSLoss(weights=tmp_path / "c.pth.tar", heads=tmp_path / "h.pth")
    taps = loss.trunk(torch.zeros(1, 4, 16, 16))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (64, 16, 16), (128, 16, 16), (256, 16, 16), (512, 8, 8), (512, 4, 4)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"needs 4 channels and sides of 4 or more"):
        loss(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16))


def packages_names():
    """Further forms in which the two packages save their weights: names, and what stands beside them."""
    beside = {"module.model.classifier.0.weight": torch.zeros(3, 3)}
    names = (lambda i: f"module.model.features.{i}", lambda k: f"lin{k}.model.1.weight")
    yield "elatentlpips, its classifier", BEHIND, "batch", names, beside
    inner = slice_of(BEHIND)
    twice = {f"lins.{k}.model.1.weight": torch.ones(1, WIDTHS[i], 1, 1) for k, i in enumerate(LAST)}
    names = (lambda i: f"net.slice{inner(i)}.{i}", lambda k: f"lin{k}.model.1.weight")
    yield "elatentlpips, heads in a list too", BEHIND, "batch", names, twice
    beside = {"augment_pipe.Hz_geom": torch.ones(12), "classifier.0.weight": torch.zeros(3, 3)}
    names = (lambda i: f"features.{i}", lambda k: f"linear{k + 1}.model.0.weight")
    yield "SNU, its backbone, heads without dropout", BEFORE, "group", names, beside


@pytest.mark.parametrize("given", packages_names(), ids=lambda given: given[0])
def test_names_that_the_packages_give(given):
    _, places, norm, names, beside = given
    plain_names = ("features.{}".format, "heads.{}".format)
    plain = weights(places, norm, *plain_names, dtype=torch.float32)
    trunk, heads = read_latent_trunk(plain)
    same, own = read_latent_trunk(weights(places, norm, *names, dtype=torch.float32) | beside)
    assert [repr(block) for block in same.blocks] == [repr(block) for block in trunk.blocks]
    for name, value in trunk.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name
    assert [len(head) for head in own] == [64, 128, 256, 512, 512]
    assert all(torch.equal(a, b) for a, b in zip(own, heads, strict=True))


def damaged():
    fitted = fitted_trunk(3, [(8, 4)]).state_dict() | {"heads.0": torch.ones(4)}
    yield {k: v for k, v in fitted.items() if k != "blocks.0.0.bias"}, 'Missing key.* "blocks.0.0.b'
    yield fitted | {"blocks.0.2.weight": torch.ones(4, 7, 3, 3)}, "size mismatch for blocks.0.2"
    yield {"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, "no 'blocks.0.0.weight'"
    yield {3: torch.ones(3), "state_dict": 1}, r"convolutions stand at \[\]"
    named = [lambda i: f"features.{i}", lambda k: f"lin{k}.model.1.weight"]
    published = weights(BEHIND, "batch", *named, dtype=torch.float16)
    yield {k: v for k, v in published.items() if k != "features.0.bias"}, "no 'bias'"
    yield published | {"features.1.weight": torch.ones(3)}, "size of tensor"


def test_damaged_or_foreign_weights_are_named_in_one_line():
    for state, cause in damaged():
        with pytest.raises(
            ValueError, match=rf"^w.pth are of no latent trunk, or .*{cause}"
        ) as found:
            read_latent_trunk(state, "w.pth")
        assert "\n" not in str(found.value)


def test_a_fitted_trunk_is_read_as_it_was(tmp_path):
    trunk = fitted_trunk(3, [(8, 4), (5, 6)])
    state = trunk.state_dict() | {"heads.0": torch.ones(4), "heads.1": torch.ones(6)}
    read, heads = read_latent_trunk(state)
    z = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(trunk(z), read(z), strict=True))
    assert [len(head) for head in heads] == [4, 6]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_is_none_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"none")
    with pytest.raises(ValueError, match=rf"{name}' cannot be read .*; give a"):
        LatentLPIPSLoss(weights=tmp_path / name)
    torch.save({"conv.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"the weights in .*other.pth' are of no latent trunk"):
        LatentLPIPSLoss(weights=tmp_path / "other.pth")
    torch.save([1.0], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth' holds a list; a state dict is wanted"):
        LatentLPIPSLoss(weights=tmp_path / "list.pth")


def test_weights_in_half_precision_are_folded_without_rounding():
    named = [lambda i: f"features.{i}", lambda k: f"lin{k}.model.1.weight"]
    state = weights(BEHIND, "batch", *named, dtype=torch.float16)
    trunk, _ = read_latent_trunk(state)
    scale = (
        state["features.1.weight"].double()
        / (state["features.1.running_var"].double() + 1e-5).sqrt()
    )
    exact = state["features.0.weight"].double() * scale[:, None, None, None]
    torch.testing.assert_close(trunk.blocks[0][0].weight, exact.float(), rtol=1e-6, atol=0)
