"""The contract that every loss keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nitrodistill import losses as nl
from nitrodistill.losses.base import expand_frames, to_frames

SHAPE = (3, 3, 14, 13)


def gradients(loss, *tensors, **options):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    value = loss(*tensors, **options)
    return value.detach(), torch.autograd.grad(value.sum(), tensors)


def test_reductions_and_weights(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    per_sample = make_loss(reduction="none")(x, y)
    assert per_sample.shape == (3,)
    torch.testing.assert_close(make_loss()(x, y), per_sample.mean())
    torch.testing.assert_close(make_loss(reduction="sum")(x, y), per_sample.sum())
    weight = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(make_loss()(x, y, weight=weight), (per_sample * weight).mean())


class Noisy(nl.Loss):
    """A loss from outside that draws: the first of its numbers."""

    num_draws = 2

    def per_sample(self, pred, target, mask=None):
        assert self.drawn is not None
        return self.drawn[:, 0]


def test_losses_that_draw_get_draws_of_their_own_wherever_they_are():
    asked = []

    def uniform(name, count):
        asked.append((name, count))
        return torch.full((3, count), float(len(asked)))

    x = torch.zeros(3, 3, 8, 8)
    loss = nl.WeightedSum(
        {
            "l1": (1.0, nl.L1Loss()),
            "one": (1.0, Noisy()),
            "two": (1.0, nl.MultiScaleLoss(Noisy(), [1.0, 1.0])),
        }
    )
    loss.draw(uniform, "task")
    assert asked == [("task.losses.1", 2), ("task.losses.2.loss", 2)]
    parts = {name: value.tolist() for name, value in loss.parts(x, x).items()}
    assert parts == {"l1": [0.0] * 3, "one": [1.0] * 3, "two": [4.0] * 3}


def test_a_sample_does_not_see_the_others(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    loss = make_loss(reduction="none")
    alone = torch.cat([loss(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(x, y), alone)


def test_mask_of_ones_is_no_mask(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    loss = make_loss(reduction="none")
    for shape in (SHAPE, (3, 1, 14, 13), (1, 1, 1, 1), (1, 3, 14, 1)):
        torch.testing.assert_close(loss(x, y, mask=torch.ones(shape)), loss(x, y))


def test_mask_scale_does_not_matter(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    mask = torch.rand(3, 1, 14, 13, generator=torch.Generator().manual_seed(1)).double()
    loss = make_loss(reduction="none")
    torch.testing.assert_close(loss(x, y, mask=mask), loss(x, y, mask=3 * mask))


def test_all_zero_mask_is_zero_with_zero_gradient(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    mask = torch.ones(3, 1, 14, 13, dtype=torch.bool)
    mask[1] = False
    value, grads = gradients(make_loss(reduction="none"), x, y, mask=mask)
    assert value[1] == 0
    assert value[0] > 0
    for grad in grads:
        assert torch.count_nonzero(grad[1]) == 0
        assert torch.count_nonzero(grad[0]) > 0


def test_video_is_judged_frame_by_frame(make_loss, make_pair):
    x, y = make_pair(2, 3, 4, 14, 13)
    loss = make_loss(reduction="none")
    video = loss(x, y)
    assert video.shape == (2,)
    if isinstance(loss, nl.PseudoHuberLoss) and loss.dim == "sample":
        torch.testing.assert_close(video, loss(x.flatten(1, 2), y.flatten(1, 2)))
        return
    frames = torch.stack([loss(x[:, :, t], y[:, :, t]) for t in range(4)]).mean(0)
    torch.testing.assert_close(video, frames)
    mask = torch.zeros(2, 1, 4, 1, 1)
    mask[:, :, 0] = 1
    first = loss(x[:, :, 0], y[:, :, 0])
    torch.testing.assert_close(loss(x, y, mask=mask), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("picture", ["ordinary", "bright and flat"])
def test_half_precision_is_as_good_as_its_inputs(make_loss, make_pair, dtype, picture):
    x, y = make_pair(2, 3, 24, 22)
    if picture == "bright and flat":
        x, y = 0.9 + 0.01 * (x - 0.5), 0.9 + 0.01 * (y.flip(-1) - 0.5)
    x, y = x.to(dtype), y.to(dtype)
    value, grads = gradients(make_loss(), x, y)
    true_value, true_grads = gradients(make_loss(), x.double(), y.double())
    assert value.dtype == torch.float32
    assert true_value.dtype == torch.float64
    torch.testing.assert_close(value.double(), true_value, rtol=1e-6, atol=1e-6)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        assert grad.dtype == dtype
        rounding = (true_grad.to(dtype).double() - true_grad).norm()
        assert (grad.double() - true_grad).norm() <= 1.05 * rounding + 1e-12


def test_float32_is_near_float64(make_loss, make_pair):
    x, y = make_pair(2, 3, 24, 22, dtype=torch.float32)
    value, grads = gradients(make_loss(), x, y)
    true_value, true_grads = gradients(make_loss(), x.double(), y.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), true_value, rtol=1e-6, atol=1e-7)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        assert (grad.double() - true_grad).abs().max() <= 3e-6 * true_grad.abs().max()


def test_gradients_of_both_arguments(make_loss, make_pair):
    x, y = make_pair(2, 3, 14, 13)
    mask = torch.rand(2, 1, 14, 13, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)
    tensors = (x.requires_grad_(), y.requires_grad_())
    for options in ({"mask": mask, "weight": weight}, {}):

        def value(a, b, options=options):
            return make_loss()(a, b, **options)

        assert torch.autograd.gradcheck(value, tensors, fast_mode=True)


class NoLook(TorchDispatchMode):
    """Refuses the operations that make a device wait for the host."""

    waits = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.waits:
            raise AssertionError(f"{func} looks at values")
        return func(*args, **(kwargs or {}))


def test_no_value_is_looked_at(make_loss, make_pair):
    x, y = (t.requires_grad_() for t in make_pair(2, 3, 24, 22, dtype=torch.float32))
    loss, mask, weight = make_loss(), torch.ones(2, 1, 24, 22), torch.ones(2)
    with NoLook():
        for options in ({"mask": mask, "weight": weight}, {}):
            loss(x, y, **options).backward()
        with pytest.raises(AssertionError, match="looks at values"):
            x.sum().item()


def test_gradient_of_one_argument_is_that_of_both(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    _, (of_x, of_y) = gradients(make_loss(), x, y)
    _, (only_x,) = gradients(lambda a: make_loss()(a, y), x)
    _, (only_y,) = gradients(lambda b: make_loss()(x, b), y)
    torch.testing.assert_close(only_x, of_x, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(only_y, of_y, rtol=1e-10, atol=1e-14)


def test_bitwise_equal_over_three_runs(make_loss, make_pair):
    x, y = make_pair(2, 3, 24, 22, dtype=torch.float32)
    runs = [gradients(make_loss(), x, y) for _ in range(3)]
    for value, grads in runs[1:]:
        assert torch.equal(value, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, runs[0][1], strict=True))


@pytest.mark.parametrize("content", ["equal", "zero", "constant", "opposite"])
def test_gradients_are_finite_where_they_might_not_be(make_loss, make_pair, content):
    x, y = make_pair(*SHAPE, dtype=torch.float32)
    x, y = {
        "equal": (x, x),
        "zero": (torch.zeros_like(x), torch.zeros_like(x)),
        "constant": (torch.full_like(x, 0.9), torch.full_like(x, 0.2)),
        "opposite": (x, 1 - x),
    }[content]
    value, grads = gradients(make_loss(), x, y)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 1, 5, 7), (0, slice(None))], ids=["a pixel", "a picture"])
@pytest.mark.parametrize("argument", [0, 1])
def test_a_sample_that_is_not_finite_has_no_finite_loss(
    make_loss, make_pair, value, place, argument
):
    pair = make_pair(2, 3, 14, 13, dtype=torch.float32)
    pair[argument][place] = value
    for mask in (None, torch.ones(2, 1, 14, 13)):
        loss = make_loss(reduction="none")(*pair, mask=mask)
        assert not loss[0].isfinite()
        assert loss[1].isfinite()
    assert not make_loss()(*pair).isfinite()


def test_layouts_give_the_same_answer(make_loss, make_pair):
    x, y = make_pair(*SHAPE)
    expected, (grad, _) = gradients(make_loss(), x, y)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (x.contiguous(memory_format=torch.channels_last), strided):
        value, (other_grad, _) = gradients(make_loss(), other, y)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other_grad, grad, rtol=1e-9, atol=1e-13)


def test_mixed_dtypes_use_the_wider(make_loss, make_pair):
    x, y = make_pair(*SHAPE, dtype=torch.float32)
    expected = make_loss()(x.bfloat16().float(), y)
    torch.testing.assert_close(make_loss()(x.bfloat16(), y), expected)
    assert make_loss()(x, y.double()).dtype == torch.float64


def test_autocast_changes_nothing(make_loss, make_pair):
    x, y = make_pair(*SHAPE, dtype=torch.float32)
    expected = gradients(make_loss(), x, y)
    with torch.autocast("cpu", torch.bfloat16):
        value, grads = gradients(make_loss(), x, y)
    assert torch.equal(value, expected[0])
    assert torch.equal(grads[0], expected[1][0])


def test_compiles_into_one_graph(make_loss, make_pair):
    x, y = make_pair(*SHAPE, dtype=torch.float32)
    loss = make_loss()
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, grads = gradients(compiled, x, y)
    expected, expected_grads = gradients(loss, x, y)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grads[0], expected_grads[0], rtol=1e-4, atol=1e-7)


BAD = {
    "unequal shapes": (lambda x: (x, x[:, :, 1:]), {}, ValueError, "must be equal"),
    "silent broadcast": (lambda x: (x, x[:1]), {}, ValueError, "never broadcasts"),
    "integers": (lambda x: (x, x.int()), {}, TypeError, "floating-point"),
    "no tensor": (lambda x: (x, 1.0), {}, TypeError, "torch.Tensor"),
    "empty batch": (lambda x: (x[:0], x[:0]), {}, ValueError, "not empty"),
    "mask of wrong size": (
        lambda x: (x, x),
        {"mask": torch.ones(3, 1, 7, 13)},
        ValueError,
        "mask has shape",
    ),
    "mask of wrong rank": (
        lambda x: (x, x),
        {"mask": torch.ones(14, 13)},
        ValueError,
        "same number of dimensions",
    ),
    "complex mask": (
        lambda x: (x, x),
        {"mask": torch.ones(3, 1, 14, 13, dtype=torch.complex64)},
        TypeError,
        "mask is",
    ),
    "weight per element": (
        lambda x: (x, x),
        {"weight": torch.ones(3, 1)},
        ValueError,
        "one factor per sample",
    ),
    "no weight tensor": (lambda x: (x, x), {"weight": 2.0}, TypeError, "weight is"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_sentence(make_loss, make_pair, case):
    tensors, options, error, sentence = BAD[case]
    x, _ = make_pair(*SHAPE)
    with pytest.raises(error, match=sentence):
        make_loss()(*tensors(x), **options)


def test_unknown_reduction(make_loss):
    with pytest.raises(ValueError, match="reduction is 'average'; it must be one of 'mean', 'sum'"):
        make_loss(reduction="average")


def test_frames_are_channels():
    video = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6)
    assert torch.equal(to_frames(video)[:, 4], video[:, 1, 0])
    mask = torch.rand(2, 1, 4, 1, 1)
    frames = expand_frames(mask, video)
    assert frames.shape == (2, 12, 5, 6)
    assert torch.equal(frames[:, 6, 0, 0], mask[:, 0, 2, 0, 0])
    assert expand_frames(torch.rand(1, 1, 1, 5, 1), video).shape == (2, 1, 5, 6)
    with pytest.raises(ValueError, match="images"):
        to_frames(video[0, 0])


def test_losses_say_what_they_are(make_loss):
    assert "reduction='sum'" in repr(make_loss(reduction="sum"))
