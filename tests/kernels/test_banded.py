"""Banded matrices against dense ones."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels.banded import (
    banded,
    filter_leading,
    filter_trailing,
    plane_chunks,
    rows_first,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 1), (30, 40), (40, 30), (17, 50)])
def test_both_axes_equal_dense_products(shape):
    rows, columns = shape
    distance = torch.arange(rows)[:, None] * columns / rows - torch.arange(columns)
    matrix = torch.where(distance.abs() < 4, torch.randn(shape, dtype=torch.float64), 0.0)
    matrix[:, 0] += 1  # every row reaches something, and one column is reached by all
    tiles = banded(matrix, torch.float64, CPU)
    x = torch.randn(columns, 3, 5, dtype=torch.float64)
    expected = torch.einsum("rc,cpw->rpw", matrix, x)
    torch.testing.assert_close(filter_leading(x, tiles), expected)
    trailing = x.permute(1, 2, 0).contiguous()
    torch.testing.assert_close(filter_trailing(trailing, tiles), expected.permute(1, 2, 0))


def test_planes_between_rows_and_columns():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(rows_first(x)[3, 1 * 3 + 2], x[1, 2, 3])


def test_chunks_cover_all_planes_once():
    chunks = plane_chunks(10, 1 << 17, CPU)
    assert [p for chunk in chunks for p in range(10)[chunk]] == list(range(10))
    assert len(chunks) > 1
    assert plane_chunks(10, 1 << 40, torch.device("cuda")) == [slice(0, 10)]
