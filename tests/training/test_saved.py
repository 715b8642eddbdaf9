from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from nitrodistill.training.saved import Autocast, Saved, SavedTensors


def counted(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Bytes that the module saves for inputs of these shapes."""
    module = module.to("meta")
    saved = SavedTensors(module)
    with saved.counting():
        module(*(x.to("meta") for x in inputs))
    return saved.take().plain


def test_the_count_is_that_of_a_real_forward_pass(tiny_denoiser, tiny_condition):
    """A whole UNet, on the CPU with memory and on the meta device without; no attention mask."""
    unet = tiny_denoiser.module
    text, x_t, t = tiny_condition["encoder_hidden_states"], torch.zeros(3, 4, 8, 8), torch.tensor(3)
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    real: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            real[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(x_t, t, encoder_hidden_states=text)
    expected = sum(tensor.untyped_storage().nbytes() for tensor in real.values())
    shapes = tiny_denoiser.copy().module.to("meta")
    saved = SavedTensors(shapes)
    with saved.counting():
        shapes(x_t.to("meta"), t, encoder_hidden_states=text.to("meta"))
    assert saved.take() == Saved(expected, expected, 0), "nothing was checkpointed"


def test_attention_saves_no_matrix_of_pairs():
    """q, k, v and the output, (2, 3, 50, 8) floats each, and a float for each of 2 x 3 x 50 queries."""

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    parts = [torch.zeros(2, 3, 50, 8, requires_grad=True) for _ in range(3)]
    assert counted(Attention(), *parts) == 4 * (4 * 2 * 3 * 50 * 8 + 2 * 3 * 50)


def test_a_loss_may_ask_for_gradients_of_shapes():
    """As LADD's `balanced` does inside of its losses."""
    parts = [torch.zeros(2, 3, n, 8, device="meta", requires_grad=True) for n in (50, 20, 20)]
    with SavedTensors(nn.Identity()).counting():
        found = torch.autograd.grad(F.scaled_dot_product_attention(*parts).sum(), parts)
    assert [gradient.shape for gradient in found] == [part.shape for part in parts]


def test_a_storage_is_counted_once_and_weights_never():
    """Two linear layers and a tanh: the first input, and the tanh's output, which both layers need."""
    network = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False))
    assert counted(network, torch.zeros(11, 5)) == 4 * 11 * (5 + 7)


def test_checkpointed_blocks_keep_their_inputs_and_one_blocks_own():
    first = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 4)).to("meta")
    second = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 4)).to("meta")
    saved = SavedTensors(first, second)
    with saved.counting():
        x = saved.checkpointed(first, torch.empty(6, 4, device="meta"))
        saved.checkpointed(second, x)
    plain = 4 * 6 * (4 + 30 + 4 + 50)
    assert saved.take() == Saved(plain, kept=4 * 6 * (4 + 4), block=4 * 6 * 50)
    assert saved.take() == Saved(0, 0, 0)


def test_autocast_casts_as_cuda_does_and_keeps_each_cast_weight_once():
    """x (float32) is cast for the layer; the layer saves that, and the weight's cast for x's gradient."""
    layer, norm = nn.Linear(8, 8, bias=False).to("meta"), nn.LayerNorm(8).to("meta")
    saved = SavedTensors(layer, norm)
    x = 2 * torch.empty(6, 8, device="meta", requires_grad=True)
    with saved.counting(), Autocast():
        y = layer(x)
        layer(x)
        assert norm(y).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    twice_x, weight, norm_input, norm_statistics = 2 * 2 * 6 * 8, 2 * 8 * 8, 4 * 6 * 8, 2 * 4 * 6
    assert saved.take().plain == twice_x + weight + norm_input + norm_statistics
