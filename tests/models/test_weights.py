"""A fingerprint is of what acts: equal where nothing changed, another one where another network draws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nitrodistill.export.pipeline import without_lora
from nitrodistill.models import FeatureTaps, LoRAConfig, Pipeline, add_lora
from nitrodistill.models.lora import base_copy
from nitrodistill.models.weights import acting_weights, fingerprint
from tests.pipelines import make_pipeline


@pytest.fixture
def unet() -> Any:
    return make_pipeline("sd15").unet


def _lora(network: Any, name: str, seed: int = 0, **settings: Any) -> None:
    """Somebody else's LoRA, loaded and not fused."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(
            LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False, **settings), name
        )


def test_every_bit_any_dtype_shape_and_name_counts():
    module = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.BatchNorm1d(3))
    before = fingerprint(module)
    assert before == fingerprint(copy.deepcopy(module))
    with torch.no_grad():
        next(module.parameters())[0, 0] += 1
    assert fingerprint(module) != before
    zeros = nn.Linear(2, 3, bias=False)
    nn.init.zeros_(zeros.weight)
    other = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(other.weight)
    found = {fingerprint(zeros), fingerprint(other), fingerprint(copy.deepcopy(zeros).half())}
    found.add(fingerprint(nn.Sequential(zeros)))
    found.add(fingerprint(copy.deepcopy(zeros).to(torch.float8_e4m3fn)))
    assert len(found) == 5


def test_settings_that_act_count_and_defaults_of_newer_versions_do_not(unet: Any):
    before = fingerprint(unet)
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    other = type(unet).from_config({**config, "norm_eps": 1e-3})
    other.load_state_dict(unet.state_dict())
    assert fingerprint(other) != before
    unet.register_to_config(_name_or_path="elsewhere", mid_block_scale_factor=1)
    assert fingerprint(unet) == before


def test_lora_that_acts_counts_and_lora_that_does_not_act_does_not(unet: Any):
    plain, found = fingerprint(unet), {}
    _lora(unet, "one")
    found["one"] = fingerprint(unet)
    unet.disable_adapters()
    assert fingerprint(unet) == plain
    unet.enable_adapters()
    assert fingerprint(unet) == found["one"]
    unet.set_adapters("one", 0.5)
    found["half"] = fingerprint(unet)
    unet.set_adapters("one", 1.0)
    _lora(unet, "two", seed=1)
    found["two"] = fingerprint(unet)
    unet.set_adapters(["one", "two"])
    found["both"] = fingerprint(unet)
    unet.set_adapters("one")
    assert fingerprint(unet) == found["one"]
    unet.fuse_lora()
    found["fused"] = fingerprint(unet)
    unet.unload_lora()
    assert fingerprint(unet) == found["fused"]
    assert len({plain, *found.values()}) == 6


def test_dora_is_another_network_than_lora(unet: Any):
    other = copy.deepcopy(unet)
    _lora(unet, "one")
    _lora(other, "one", use_dora=True)
    assert fingerprint(unet) != fingerprint(other)


def test_an_adapter_is_known_by_what_it_does_and_not_by_its_name(unet: Any):
    other = copy.deepcopy(unet)
    _lora(unet, "one")
    _lora(other, "another")
    assert fingerprint(unet) == fingerprint(other)


def test_wrappers_change_no_fingerprint_and_no_name(unet: Any):
    import torch.distributed as dist

    before, names = fingerprint(unet), set(unet.state_dict())
    assert fingerprint(nn.DataParallel(unet)) == before
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert fingerprint(DistributedDataParallel(unet)) == before
    finally:
        dist.destroy_process_group()
    unet.mid_block = torch.compile(unet.mid_block, backend="eager")
    assert any("_orig_mod" in name for name in unet.state_dict())
    assert fingerprint(unet) == before
    assert set(acting_weights(unet)) == names
    assert set(without_lora(unet).state_dict()) == names


def test_taps_and_roles_know_compiled_parts_by_their_own_names(tiny_denoiser):
    plain = add_lora(tiny_denoiser.copy(), "student", LoRAConfig(rank=2))
    unet: Any = tiny_denoiser.network
    name = "mid_block.attentions.0.transformer_blocks.0"
    example = tiny_denoiser.example()
    expected = FeatureTaps(tiny_denoiser, [name]).features(*example)[0]
    unet.mid_block = torch.compile(unet.mid_block, backend="eager")
    taps = FeatureTaps(tiny_denoiser, [name])
    torch.testing.assert_close(taps.features(*example)[0], expected)
    role = add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    assert set(role.module.state_dict()) == set(plain.module.state_dict())


def test_a_compiled_network_loads_and_is_the_same_teacher():
    pipe = make_pipeline("sd15")
    before = Pipeline.from_diffusers(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipeline = Pipeline.from_diffusers(pipe)
    assert fingerprint(pipeline.denoiser.module) == fingerprint(before.denoiser.module)
    assert pipeline.latent_shape == before.latent_shape
    assert set(pipeline.denoiser.network.state_dict()) == set(before.denoiser.network.state_dict())


@torch.no_grad()
def test_a_students_copy_has_the_teachers_unfused_lora_in_its_weights(tiny_denoiser):
    _lora(tiny_denoiser.network, "theirs")
    example = tiny_denoiser.example()
    x_t = torch.randn(example[0].shape, generator=torch.Generator().manual_seed(0))
    expected = tiny_denoiser(x_t, *example[1:])
    copied = base_copy(tiny_denoiser)
    torch.testing.assert_close(copied(x_t, *example[1:]), expected, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in copied.network.named_parameters())
    assert all(p.requires_grad for p in copied.network.parameters())
    plain = without_lora(tiny_denoiser.network)
    assert fingerprint(plain) == fingerprint(copied.network) != fingerprint(tiny_denoiser.network)
