from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from nitrodistill.models import DiffusersDenoiser, Guided, LoRAConfig
from nitrodistill.models.adapters import first_tensor
from nitrodistill.models.denoiser import check_wide, dtype_of
from nitrodistill.models.lora import check_lora
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.types import Condition, Denoiser
from tests.models.families import FAMILIES, inputs


def test_it_equals_a_hand_written_call(tiny_denoiser, tiny_condition, generator):
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    t = torch.tensor([1, 500, 999])
    text = tiny_condition["encoder_hidden_states"]
    theirs = tiny_denoiser.module(x_t, t, encoder_hidden_states=text).sample
    assert torch.equal(tiny_denoiser(x_t, t, tiny_condition), theirs)
    assert tiny_denoiser.latent_shape() == (4, 8, 8)
    assert isinstance(tiny_denoiser, Denoiser)


def test_inputs_are_cast_to_the_network_and_back(tiny_denoiser, tiny_condition, generator):
    tiny_denoiser.module.to(torch.bfloat16)
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    assert tiny_denoiser(x_t, torch.tensor(5), tiny_condition).dtype == torch.float32


def test_a_copy_shares_nothing(tiny_denoiser, tiny_condition, generator):
    student = tiny_denoiser.copy()
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.zero_()
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    assert float(tiny_denoiser(x_t, torch.tensor(5), tiny_condition).abs().sum()) > 0


@pytest.mark.parametrize("t", [torch.tensor(300), torch.tensor([1, 500, 999])])
def test_guidance_is_its_formula(tiny_denoiser, tiny_condition, generator, t):
    null = Condition({"encoder_hidden_states": torch.randn(1, 5, 16, generator=generator)})
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    guided = Guided(tiny_denoiser, 3.0, null)
    low = tiny_denoiser(x_t, t, tiny_condition.null(null))
    high = tiny_denoiser(x_t, t, tiny_condition)
    torch.testing.assert_close(
        guided(x_t, t, tiny_condition), low + 3 * (high - low), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(Guided(tiny_denoiser, 1.0, null)(x_t, t, tiny_condition), high)
    assert guided.prediction_type == "v_prediction"
    assert guided.module is tiny_denoiser.module


def test_bad_guidance(tiny_denoiser, tiny_condition):
    with pytest.raises(ValueError, match=r"scale is 0\.5"):
        Guided(tiny_denoiser, 0.5, tiny_condition.index([0]))
    with pytest.raises(ValueError, match="holds 3 samples"):
        Guided(tiny_denoiser, 3.0, tiny_condition)


def test_unknown_families_are_told_what_an_adapter_must_say(tiny_denoiser):
    with pytest.raises(TypeError, match=r"module, schedule, prediction_type and __call__"):
        DiffusersDenoiser(nn.Linear(1, 1), RectifiedFlow(), "epsilon")
    with pytest.raises(ValueError, match="'velocity'"):
        DiffusersDenoiser(tiny_denoiser.module, RectifiedFlow(), "velocity")  # type: ignore[arg-type]
    kandinsky = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        encoder_hid_dim_type="text_proj",
        encoder_hid_dim=8,
        cross_attention_dim=16,
    )
    with pytest.raises(ValueError, match="encoder_hid_dim_type='text_proj'"):
        DiffusersDenoiser(kandinsky, RectifiedFlow(), "epsilon")


@pytest.mark.parametrize(("given", "predicted"), [(8, 4), (9, 4), (4, 3)])
def test_networks_with_channels_beside_the_latents_are_refused(given, predicted):
    editing = UNet2DConditionModel(
        sample_size=8,
        in_channels=given,
        out_channels=predicted,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
    )
    with pytest.raises(ValueError, match=f"takes {given} channels and predicts {predicted}: the"):
        DiffusersDenoiser(editing, RectifiedFlow(), "epsilon")


def test_first_tensor():
    x = torch.zeros(1)
    assert first_tensor((x, (x,))) is x
    with pytest.raises(TypeError, match="tap a module"):
        first_tensor({"a": x})


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_float8_storage_computes_in_the_networks_own_dtype(name):
    """diffusers' layerwise casting draws what a network with the rounded weights draws."""
    denoiser = FAMILIES[name].make()[0]
    network: Any = denoiser.network
    network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    rounded = type(network).from_config(network.config).eval()
    rounded.load_state_dict({n: v.float() for n, v in network.state_dict().items()})
    assert torch.float8_e4m3fn in {p.dtype for p in network.parameters()}
    x_t, t, condition = inputs(denoiser, size=FAMILIES[name].sizes[0])
    expected = denoiser.with_module(rounded)(x_t, t, condition)
    torch.testing.assert_close(denoiser(x_t, t, condition), expected)
    assert denoiser.example()[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"stored as torch.float8_e4m3fn .* cannot be trained"):
        denoiser.copy()


def test_weights_of_a_packed_kind_are_not_trained_though_they_say_float32():
    """As torchao's and quanto's int8 weights do."""
    packed = nn.Linear(2, 2)
    packed.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(
        ValueError, match=r"of this Linear are stored as TwoTensor \(weight\), so they X\."
    ):
        check_wide(packed, "X")


def test_float8_storage_takes_no_lora():
    """Its backward pass would meet weights that were cast back to float8."""
    denoiser = FAMILIES["sd15"].make()[0]
    network: Any = denoiser.network
    network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match=r"stored as torch.float8_e4m3fn .* no gradient flows"):
        check_lora(denoiser, LoRAConfig(rank=2))


def test_the_dtype_is_no_integers():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            packed = torch.zeros(2, dtype=torch.int8)
            self.packed = nn.Parameter(packed, requires_grad=False)
            self.norm = nn.LayerNorm(2).bfloat16()

    assert dtype_of(Packed()) == torch.bfloat16


def test_latents_are_as_large_as_the_config_says_or_else_as_diffusers_draws_by_default():
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    assert DiffusersDenoiser(network, RectifiedFlow(), "flow_prediction").latent_shape() == (
        4,
        128,
        128,
    )
    network.register_to_config(sample_size=(8, 24))
    assert DiffusersDenoiser(network, RectifiedFlow(), "flow_prediction").latent_shape() == (
        4,
        8,
        24,
    )
