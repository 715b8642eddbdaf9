"""Pruned networks: published sizes, weights by name, and the answers of a network that was cut by hand."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from nitrodistill.models import (
    DiffusersDenoiser,
    FeatureTaps,
    LoRAConfig,
    PruneSpec,
    add_lora,
    prune,
)
from nitrodistill.models.adapters import Adapter
from nitrodistill.models.pruning import module_map, parse_spec, pruned_network, spec_for, weight_map
from tests.models.families import FAMILIES, inputs

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""What the published config.json differ in from diffusers' defaults."""

SMALL: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 12, "attention_head_dim": 2, "norm_num_groups": 4},
    "sd21": {"cross_attention_dim": 12, "attention_head_dim": (1, 2, 4, 4), "norm_num_groups": 4},
    "sdxl": {
        "cross_attention_dim": 12,
        "attention_head_dim": (1, 2, 4),
        "norm_num_groups": 4,
        "block_out_channels": (8, 12, 16),
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 30,
    },
}

SKIPPED = {
    "dit": "transformer_blocks",
    "pixart-alpha": "transformer_blocks",
    "pixart-sigma": "transformer_blocks",
    "sd3": "transformer_blocks",
    "flux-dev": "transformer_blocks",
    "sana": "transformer_blocks",
    "lumina2": "layers",
}


def published(name: str) -> Any:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**CONFIGS[name])


@cache
def unet(name: str) -> Any:
    """The structure of the published one, in small; nobody changes it."""
    widths = {} if name == "sdxl" else {"block_out_channels": (8, 12, 16, 16)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = diffusers.UNet2DConditionModel(**CONFIGS[name] | widths | SMALL[name])
    return made.eval().requires_grad_(False)


def answer(network: Any, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 4, side, side, generator=generator)
    added = {"text_embeds": torch.randn(2, 6, generator=generator), "time_ids": torch.ones(2, 6)}
    text = torch.randn(2, 5, 12, generator=generator)
    with torch.no_grad():
        return network(x_t, 500, text, added_cond_kwargs=added).sample


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("teacher", "spec", "parameters"),
    [
        ("sd15", "bk-base", 579_384_964),
        ("sd15", "bk-small", 482_346_884),
        ("sd15", "bk-tiny", 323_384_964),
        ("sd21", "bk-base", 583_480_964),
        ("sdxl", "ssd-1b", 1_331_334_404),
        ("sdxl", "vega", 745_225_604),
    ],
)
def test_published_sizes_from_the_real_configs(teacher, spec, parameters):
    student: Any = prune(published(teacher), spec)
    assert {p.device.type for p in student.parameters()} == {"meta"}
    assert count(student) == parameters
    if spec == "vega":
        parts = [
            count(part) for part in (student.down_blocks, student.mid_block, student.up_blocks)
        ]
        assert parts == [246_838_080, 31_138_560, 459_928_960]


def surgery(teacher: Any, spec: str) -> Any:
    """BK-SDM's cuts made by hand on the modules of a copy, which diffusers' forward then runs."""
    cut = copy.deepcopy(teacher)
    for down in cut.down_blocks:
        down.resnets = down.resnets[:1]
        if hasattr(down, "attentions"):
            down.attentions = down.attentions[:1]
    for up in cut.up_blocks:
        up.resnets = nn.ModuleList([up.resnets[0], up.resnets[2]])
        if hasattr(up, "attentions"):
            up.attentions = nn.ModuleList([up.attentions[0], up.attentions[2]])
    if spec != "bk-base":
        cut.mid_block = None
    if spec == "bk-tiny":
        cut.down_blocks, cut.up_blocks = cut.down_blocks[:3], cut.up_blocks[1:]
        cut.down_blocks[2].downsamplers = None
        cut.num_upsamplers -= 1
    return cut


@pytest.mark.parametrize("spec", ["bk-base", "bk-small", "bk-tiny"])
@pytest.mark.parametrize("teacher", ["sd15", "sd21"])
def test_equals_the_surgery_by_hand(teacher, spec):
    whole = unet(teacher)
    student = prune(whole, spec)
    torch.testing.assert_close(answer(student), answer(surgery(whole, spec)), rtol=1e-5, atol=1e-5)


def test_sdxl_equals_the_surgery_by_hand():
    whole = unet("sdxl")
    cut = copy.deepcopy(whole)
    depths = {
        "down_blocks.1": (2, 2),
        "down_blocks.2": (4, 4),
        "up_blocks.0": (4, 4, 10),
        "up_blocks.1": (2, 1, 1),
    }
    for name, kept in depths.items():
        for attention, depth in zip(cut.get_submodule(name).attentions, kept, strict=True):
            attention.transformer_blocks = attention.transformer_blocks[:depth]
    cut.mid_block.attentions, cut.mid_block.resnets = nn.ModuleList(), cut.mid_block.resnets[:1]
    student: Any = prune(whole, "ssd-1b")
    torch.testing.assert_close(answer(student), answer(cut), rtol=0, atol=0)
    assert student.config.reverse_transformer_layers_per_block == [[4, 4, 10], [2, 1, 1], 1]


@pytest.mark.parametrize(
    ("teacher", "spec"),
    [("sd15", "bk-tiny"), ("sd21", "bk-small"), ("sdxl", "ssd-1b"), ("sdxl", "vega")],
)
def test_saved_and_loaded_by_diffusers(teacher, spec, tmp_path):
    whole = unet(teacher)
    student: Any = prune(whole, spec)
    student.save_pretrained(tmp_path)
    loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert isinstance(loaded, nn.Module)
    assert dict(loaded.config) | {"_name_or_path": ""} == dict(student.config) | {
        "_name_or_path": ""
    }
    assert torch.equal(answer(loaded), answer(student))
    check_weights(whole, student, weight_map(whole, spec))


def check_weights(whole: nn.Module, student: nn.Module, names: dict[str, str]) -> None:
    """Every weight is the whole network's, a copy of its own, and named as the map says."""
    before, after = whole.state_dict(), student.state_dict()
    assert after.keys() <= names.keys()
    assert len(set(names.values())) == len(names)
    for name, value in after.items():
        assert torch.equal(value, before[names[name]]), name
        assert value.data_ptr() != before[names[name]].data_ptr()


class Skip(nn.Module):
    """What a block does that is skipped: it hands on what it got."""

    def forward(
        self, hidden_states: Any, encoder_hidden_states: Any = None, *args: Any, **more: Any
    ) -> Any:
        return (encoder_hidden_states, hidden_states) if self.joint else hidden_states

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self.joint = joint


@pytest.mark.parametrize("name", SKIPPED)
@torch.no_grad()
def test_transformers_equal_the_network_that_skips(name):
    denoiser, _ = FAMILIES[name].make()
    sides = {"flux-dev": ("transformer_blocks", "single_transformer_blocks")}
    keep = dict.fromkeys(sides.get(name, (SKIPPED[name],)), (1,) if name == "flux-dev" else (0, 3))
    student = prune(denoiser, PruneSpec(keep))
    x_t, t, condition = inputs(denoiser)
    found = student(x_t, t, condition)
    names = weight_map(denoiser.network, PruneSpec(keep))
    check_weights(denoiser.network, student.network, names)
    assert not student.network.training
    assert all(p.requires_grad for p in student.network.parameters())

    skipping = denoiser.copy()
    for attribute, kept in keep.items():
        blocks = skipping.network.get_submodule(attribute)
        assert isinstance(blocks, nn.ModuleList)
        for i in range(len(blocks)):
            if i not in kept:
                blocks[i] = Skip(joint=name in ("sd3", "flux-dev"))
    torch.testing.assert_close(found, skipping(x_t, t, condition), rtol=0, atol=0)
    assert not torch.equal(found, denoiser(x_t, t, condition))


def test_sd3_moves_dual_attention_with_its_blocks():
    denoiser, _ = FAMILIES["sd3"].make()
    with torch.device("meta"):
        kind: Any = type(denoiser.network)
        whole = kind.from_config({**denoiser.network.config, "dual_attention_layers": (1, 2)})
    student: Any = prune(whole, PruneSpec({"transformer_blocks": (0, 2, 3)}))
    assert list(student.config.dual_attention_layers) == [1]


@pytest.mark.parametrize("name", ["unet2d", "unet2d-classes", "unet2d-edm"])
def test_unet2d(name):
    denoiser, _ = FAMILIES[name].make()
    spec = PruneSpec(
        {"mid_block": (), "down_blocks.1.attentions": (), "up_blocks.0.attentions": ()}
    )
    student = prune(denoiser, spec)
    network: Any = student.network
    assert network.mid_block is None
    assert list(network.config.down_block_types) == ["DownBlock2D", "DownBlock2D"]
    x_t, t, condition = inputs(denoiser)
    assert student(x_t, t, condition).shape == x_t.shape
    check_weights(denoiser.network, network, weight_map(denoiser.network, spec))


def test_taps_lora_and_checkpointing_work_on_it():
    denoiser = DiffusersDenoiser(unet("sd15"), FAMILIES["sd15"].make()[0].schedule, "epsilon")
    student = prune(denoiser, "bk-tiny")
    names = FeatureTaps(student, [0.5, 1.0]).names
    assert names == ("down_blocks.2", "up_blocks.2")
    assert add_lora(student, "student", LoRAConfig(rank=2)).module is not None
    student = prune(denoiser, "bk-tiny")
    x_t, t, condition = student.example()
    grads = []
    for _ in range(2):
        student(x_t + 1, t, condition).square().mean().backward()
        grads.append([p.grad.clone() for p in student.module.parameters() if p.grad is not None])
        student.module.zero_grad()
        student.enable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def test_the_dropout_of_labels_stays_off():
    denoiser, _ = FAMILIES["dit"].make()
    student = prune(denoiser, PruneSpec({"transformer_blocks": (0, 1)}))
    embeddings = [m for m in student.module.modules() if type(m).__name__ == "LabelEmbedding"]
    assert embeddings
    assert {m.dropout_prob for m in embeddings} == {0.0}


def test_without_and_maps():
    whole = unet("sd15")
    gone = [
        "mid_block",
        "up_blocks.1.attentions",
        "down_blocks.0.resnets.1",
        "up_blocks.3.resnets.1",
    ]
    spec = PruneSpec.without(whole, gone)
    assert spec.keep == {
        "mid_block": (),
        "up_blocks.1.attentions": (),
        "down_blocks.0.resnets": (0,),
        "up_blocks.3.resnets": (0, 2),
    }
    moved = module_map(whole, spec)
    assert moved["up_blocks.3.attentions.2"] == "up_blocks.3.attentions.1"
    assert (
        not {"mid_block", "up_blocks.1.attentions.0", "down_blocks.0.attentions.1"} & moved.keys()
    )
    shared = pruned_network(whole, spec, copy=False)
    theirs, ours = whole.get_parameter("conv_in.weight"), shared.get_parameter("conv_in.weight")
    assert theirs.data_ptr() == ours.data_ptr()
    assert not ours.requires_grad


BAD: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("dit", {"transformer_blocks": ()}, "keeps no block"),
    ("dit", {"transformer_blocks": (0, 9)}, r"has 4 blocks, counted from 0"),
    ("dit", {"transformer_block": (0,)}, "'transformer_block', which the network lacks; did you mean"),
    ("dit", {"pos_embed": ()}, "keep names 'pos_embed'; of a DiTTransformer2DModel"),
    ("sd3", {"transformer_blocks": (0, 1)}, "'transformer_blocks.3' is the last block"),
    ("sd15", {"down_blocks": (), "up_blocks": ()}, "keeps no level"),
    ("sd15", {"conv_in": ()}, "keep names 'conv_in'; of a UNet"),
    ("sd15", {"down_blocks.0.resnets": ()}, "nothing leads round a level's layers"),
    ("sd15", {"down_blocks.0.resnets": (0,)}, r"keeps 1 layers and up_blocks.3 3.*keep 2 up"),
    ("sd15", {"down_blocks": (0, 1, 2)}, r"keep \[1, 2, 3\] up"),
    ("sd15", {"down_blocks.1.resnets": (1,), "up_blocks.2.resnets": (0, 2)}, "has shape .* takes another width"),
    ("sd15", {"down_blocks.0.attentions": (0,)}, "behind all layers of a block or behind none"),
    ("sd15", {"mid_block.resnets": (0,)}, "keep all of it, its first resnet alone"),
    ("sdxl", {"mid_block.attentions.0.transformer_blocks": (0, 1)}, "one number for both"),
    ("sd15", {"down_blocks": (1, 2, 3), "up_blocks": (0, 1, 2)}, "has shape .* takes another width"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keep", "message"), BAD)
def test_specs_that_do_not_fit(name, keep, message):
    whole = unet(name) if name in CONFIGS else FAMILIES[name].make()[0].network
    with pytest.raises(ValueError, match=message):
        prune(whole, PruneSpec(keep))


def test_specs_that_are_none():
    with pytest.raises(ValueError, match="did you mean 'bk-small'"):
        parse_spec("bk-smal")
    with pytest.raises(ValueError, match="prune is 3; give one of bk-base"):
        parse_spec(3)
    with pytest.raises(ValueError, match=r"keeps \[2, 1\]; give indices from 0, ascending"):
        parse_spec({"keep": {"transformer_blocks": [2, 1]}})
    with pytest.raises(ValueError, match="keep is empty"):
        PruneSpec({})
    with pytest.raises(ValueError, match="the network has no 'mid_blok'; did you mean 'mid_block'"):
        PruneSpec.without(unet("sd15"), ["mid_blok"])
    with pytest.raises(ValueError, match="bk-base is for UNets of four levels"):
        spec_for(unet("sdxl"), "bk-base")
    with pytest.raises(ValueError, match="vega is for SDXL's UNet"):
        spec_for(unet("sd15"), "vega")
    network = diffusers.UNet2DModel(
        block_out_channels=(4, 4), norm_num_groups=2, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="UNet2DModel has as many in each"):
        prune(network, PruneSpec({"down_blocks.0.resnets": (0,), "up_blocks.1.resnets": (0, 2)}))


def test_networks_that_cannot_be_pruned():
    denoiser, _ = FAMILIES["sd15"].make()

    class Other(type(denoiser.adapter)):
        pass

    other = Other(denoiser.network)
    with pytest.raises(TypeError, match="family without pruning"):
        Adapter.pruned(other, denoiser.network, {"down_blocks": (0,)})
    with pytest.raises(TypeError, match="Linear is not a known family"):
        prune(nn.Linear(2, 2), "bk-base")
    add_lora(denoiser, "student", LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="carries LoRA; merge it first"):
        prune(denoiser, PruneSpec({"mid_block": ()}))
