from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels.layout import aligned, empty_aligned, flatten_mask, is_sample_dense


def test_dense_samples():
    x = torch.randn(2, 6, 4, 5)
    assert is_sample_dense(x)
    assert is_sample_dense(x.to(memory_format=torch.channels_last))
    assert is_sample_dense(x.permute(0, 3, 1, 2))
    assert is_sample_dense(x[:, :3])  # dense within a sample, a gap between samples
    assert is_sample_dense(x[:1].expand(4, -1, -1, -1))
    assert not is_sample_dense(x[:, ::2])
    assert not is_sample_dense(x[:, :, :, 1:])
    assert not is_sample_dense(x[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_aligned_copies_only_what_differs(layout):
    x = torch.randn(2, 6, 4, 5).to(memory_format=layout)
    y = torch.randn(2, 12, 4, 5).to(memory_format=layout)
    a, b = aligned(x, y.contiguous()[:, :6])
    assert a is x
    assert b.stride()[1:] == x.stride()[1:]
    assert torch.equal(b, y[:, :6])


def test_aligned_makes_a_sparse_first_tensor_dense():
    x, y = torch.randn(2, 6, 4, 5)[:, ::2], torch.randn(2, 3, 4, 5)
    a, b = aligned(x, y)
    assert is_sample_dense(a)
    assert torch.equal(a, x)
    assert b is y


def test_empty_aligned_puts_samples_next_to_each_other():
    x = torch.randn(2, 8, 4, 5)[:, :4]
    assert empty_aligned(x).stride() == (80, 20, 5, 1)
    last = x.to(memory_format=torch.channels_last)
    assert empty_aligned(last).stride() == last.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 4, 5),
        (2, 6, 4, 5),
        (1, 6, 1, 1),
        (2, 1, 1, 1),
        (2, 6, 1, 5),
        (4, 1),
        (1,),
        (2, 1, 4, 1),
    ],
)
def test_flat_mask_is_the_broadcast_mask_in_storage_order(shape, layout):
    data = torch.randn(2, 6, 4, 5).to(memory_format=layout)
    mask = torch.rand(shape)
    values, divisor = flatten_mask(mask, data)
    order = (0, 2, 3, 1) if layout is torch.channels_last else (0, 1, 2, 3)
    stored = mask.expand(data.shape).permute(order).reshape(2, -1)
    index = torch.arange(data[0].numel()) // divisor % values.shape[1]
    assert torch.equal(values[:, index].expand_as(stored), stored)
    assert values.numel() <= data.numel()
