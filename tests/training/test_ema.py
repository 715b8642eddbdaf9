from __future__ import annotations

import pytest
import torch
from torch import nn

from nitrodistill.training import EMA


def test_equals_the_closed_form():
    """After n updates: d^n w0 + (1 - d) sum_k d^(n - k) w_k."""
    module = nn.Linear(2, 1, dtype=torch.float64)
    decay, history = 0.7, []
    ema = EMA(module, decay)
    history.append(module.weight.detach().clone())
    for k in range(1, 6):
        module.weight.data.fill_(float(k * k))
        history.append(module.weight.detach().clone())
        ema.update()
    expected = decay**5 * history[0]
    expected += sum((1 - decay) * decay ** (5 - k) * history[k] for k in range(1, 6))
    torch.testing.assert_close(ema.state_dict()["weight"], expected, rtol=0, atol=1e-12)


def test_decay_zero_follows_the_weights():
    module = nn.Linear(3, 2)
    ema = EMA(module, 0.0)
    module.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    ema.update()
    assert torch.equal(ema.state_dict()["weight"], module.weight)


def test_applied_puts_the_averages_in_place_and_back_also_after_an_error():
    module = nn.Linear(3, 2)
    ema = EMA(module, 0.5)
    module.weight.data.add_(1)
    ema.update()
    before, average = module.weight.detach().clone(), ema.state_dict()["weight"].clone()

    def use():
        with ema.applied():
            assert torch.equal(module.weight, average)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert torch.equal(module.weight, before)
    assert torch.equal(ema.state_dict()["weight"], average)


def test_state_goes_round_and_another_networks_is_refused():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = EMA(one, 0.5), EMA(two, 0.5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state_dict()["bias"], one.bias)
    with pytest.raises(ValueError, match="another network"):
        second.load_state_dict({"weight": one.weight})


def test_decay_is_checked():
    with pytest.raises(ValueError, match="decay is 1"):
        EMA(nn.Linear(1, 1), 1)


def test_bfloat16_weights_are_averaged_as_in_float32():
    """2000 updates at 0.9999 towards w: w + (w0 - w) d^n, of which an average in bfloat16 would see nothing."""
    module = nn.Linear(16, 8, dtype=torch.bfloat16)
    module.weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    start = module.weight.detach().double()
    ema, rounded = EMA(module, 0.9999), module.weight.detach().clone()
    module.weight.data.mul_(1.5)
    end = module.weight.detach().double()
    for _ in range(2000):
        ema.update()
        rounded.lerp_(module.weight.detach(), 1 - 0.9999)
    average = ema.state_dict()["weight"]
    assert average.dtype == torch.float32
    expected = end + (start - end) * 0.9999**2000
    torch.testing.assert_close(average.double(), expected, rtol=1e-3, atol=0)
    assert torch.equal(rounded.double(), start), "why: it stands still"
    with ema.applied():
        assert torch.equal(module.weight, average.bfloat16())
    assert torch.equal(module.weight.double(), end)


def test_a_network_that_follows_becomes_the_average():
    """LCM's target: the averages are its own weights, and start where it is told to."""
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    average = EMA(module, 0.5, into=other)
    average.restart()
    assert torch.equal(other.weight, module.weight)
    start = module.weight.detach().clone()
    module.weight.data.add_(1)
    average.update()
    torch.testing.assert_close(other.weight, start + 0.5, rtol=0, atol=1e-6)
    for wrong in (nn.Linear(2, 2), nn.Linear(3, 2, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="of the same kind, in float32"):
            EMA(module, 0.5, into=wrong)
