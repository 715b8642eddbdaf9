from __future__ import annotations

import math

import pytest
import torch

from nitrodistill.data import Column
from nitrodistill.data.codec import drawn, from_buffers, probe_error, relative_error, to_bytes
from nitrodistill.method import Draws


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("width", [16, 64, 100, 192])
def test_int8_is_within_half_a_step_of_each_block(dtype: str, width: int) -> None:
    column = Column(dtype, (None, width), "int8")
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(5, width, generator=generator) * torch.logspace(-3, 3, 5)[:, None]
    x = x.to(column.torch_dtype)
    data = to_bytes(x, column, "x")
    assert len(data) == 4 + 5 * column.stride_bytes
    [back] = from_buffers([data], column, "x")
    assert back.dtype == column.torch_dtype
    rounding = torch.finfo(column.torch_dtype).eps
    for start in range(0, width, 64):
        block, read = (v.float()[:, start : start + 64] for v in (x, back))
        largest = block.abs().amax(1, keepdim=True)
        bound = largest / 127 / 2 + rounding * largest
        assert bool(((read - block).abs() <= bound).all())
    error = float((back.float() - x.float()).norm() / x.float().norm())
    assert relative_error(data, column) == pytest.approx(error, rel=1e-5)


def test_int8_of_normal_data_loses_what_the_theory_says() -> None:
    """Uniform quantisation error: step / sqrt(12), with the step that a block's largest element sets."""
    column = Column("float32", (None, 4096), "int8")
    x = torch.randn(40, 4096, generator=torch.Generator().manual_seed(0))
    steps = x.reshape(-1, 64).abs().amax(1) / 127
    expected = math.sqrt(float(steps.square().mean()) / 12)
    assert relative_error(to_bytes(x, column, "x"), column) == pytest.approx(expected, rel=0.02)


def test_int8_keeps_zeros_and_pads_short_rows() -> None:
    column = Column("float16", (None, 64), "int8")
    rows = [torch.zeros(1, 64).half(), torch.ones(3, 64).half()]
    read = from_buffers([to_bytes(row, column, "x") for row in rows], column, "x")
    assert read.shape == (2, 3, 64)
    assert read[0].abs().max() == 0
    assert torch.equal(read[1], rows[1])
    assert relative_error(to_bytes(rows[0], column, "x"), column) == 0


@pytest.mark.parametrize("size", [0, 3, 4 + 67, 4 + 69])
def test_an_int8_row_of_another_size_is_refused(size: int) -> None:
    column = Column("float16", (64,), "int8")  # 4 + 4 + 64 bytes
    with pytest.raises(ValueError, match="which is no Column"):
        from_buffers([bytes(size)], column, "x")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_drawn_noise_is_the_draw_of_its_seed(dtype: str) -> None:
    column = Column(dtype, (2, 4, 4), "draws")
    seeds, indices = [3, 3, 7], [5, 0, 5]
    rows = [
        Draws(seed, 0, torch.tensor([i]), purpose="pairs")
        .normal("noise", (2, 4, 4))[0]
        .to(column.torch_dtype)
        for seed, i in zip(seeds, indices, strict=True)
    ]
    probes = [to_bytes(row, column, "noise") for row in rows]
    assert {len(probe) for probe in probes} == {8 * column.torch_dtype.itemsize}
    assert torch.equal(drawn(probes, column, seeds, indices), torch.stack(rows))


def test_a_generator_that_draws_otherwise_is_recognised_and_a_rounding_is_not() -> None:
    column = Column("float16", (2, 4, 4), "draws")
    noise = Draws(3, 0, torch.tensor([5]), purpose="pairs").normal("noise", (2, 4, 4))[0].half()
    near = noise + noise * 2**-10  # one unit in the last place
    assert torch.equal(drawn([to_bytes(near, column, "n")], column, [3], [5])[0], noise)
    with pytest.raises(ValueError, match=r"differs by .* from what the teacher saw"):
        drawn([to_bytes(noise, column, "n")], column, [3], [6])
    broken = to_bytes(torch.full_like(noise, torch.nan), column, "n")
    with pytest.raises(ValueError, match=r"differs by nan from what the teacher saw"):
        drawn([broken], column, [3], [5])


def test_probe_error_is_relative_to_large_values() -> None:
    probes = torch.tensor([[4.0, 0.5]])
    assert probe_error(torch.tensor([[4.4, 0.5, 9.0]]), probes) == pytest.approx(0.1)
    assert probe_error(torch.tensor([[4.0, 0.7, 9.0]]), probes) == pytest.approx(0.2)


def test_numpy_draws_what_it_drew_when_stores_were_made() -> None:
    """A store that holds seeds depends on it; two values of the stream, as written here in 2026."""
    draws = Draws(0, 0, torch.tensor([0]), purpose="pairs").normal("noise", (2,))[0].tolist()
    assert draws == pytest.approx([-0.003945234697312117, -0.6381266713142395], rel=1e-5)
