from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nitrodistill.method import Cast
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import DiffusersDenoiser, FeatureTaps, LoRAConfig, add_lora, merged
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.types import Batch, Pairs


@pytest.fixture
def inputs(tiny_condition, generator):
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(400), tiny_condition


def _randomised(denoiser: DiffusersDenoiser) -> DiffusersDenoiser:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.module.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return denoiser


def test_a_role_is_the_formula(tiny_denoiser, inputs):
    """W + (alpha / rank) B A on each target, by hand on a copy of the network."""
    by_hand = tiny_denoiser.copy()
    config = LoRAConfig(rank=4, alpha=2.0, targets=("to_q",))
    student = _randomised(add_lora(tiny_denoiser, "student", config))
    weights = student.module.state_dict()
    with torch.no_grad():
        for name, module in by_hand.network.named_modules():
            if name.endswith(".to_q"):
                a, b = (weights[f"{name}.lora_{side}.weight"] for side in "AB")
                assert a.shape[0] == 4
                module.weight += 2.0 / 4 * b @ a  # type: ignore[union-attr]
        torch.testing.assert_close(student(*inputs), by_hand(*inputs), rtol=1e-4, atol=1e-5)


def test_the_initial_weights_are_the_seeds_and_draw_nothing_globally(tiny_denoiser):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = add_lora(tiny_denoiser, "one", LoRAConfig(rank=2, seed=3)).module.state_dict()
    two = add_lora(tiny_denoiser, "two", LoRAConfig(rank=2, seed=3)).module.state_dict()
    other = add_lora(tiny_denoiser, "other", LoRAConfig(rank=2, seed=4)).module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_weights_go_out_and_in_by_state_dict(tiny_denoiser, inputs):
    one = _randomised(add_lora(tiny_denoiser, "one", LoRAConfig(rank=2)))
    two = add_lora(tiny_denoiser, "two", LoRAConfig(rank=2))
    two.module.load_state_dict(one.module.state_dict())
    assert torch.equal(one(*inputs), two(*inputs))
    copied = one.copy()
    assert torch.equal(copied(*inputs), one(*inputs))
    with torch.no_grad():
        for parameter in copied.module.parameters():
            parameter.zero_()
    assert not torch.allclose(copied(*inputs), one(*inputs))


def test_half_precision_bases_have_float32_roles(tiny_denoiser, inputs):
    tiny_denoiser.module.to(torch.bfloat16)
    student = add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    assert {p.dtype for p in student.module.parameters()} == {torch.float32}
    assert student(*inputs).dtype == torch.float32
    assert {p.dtype for n, p in student.network.named_parameters() if "lora_" not in n} == {
        torch.bfloat16
    }


def test_taps_and_exceptions_leave_no_role_behind(tiny_denoiser, inputs):
    before = tiny_denoiser(*inputs)
    student = _randomised(add_lora(tiny_denoiser, "student", LoRAConfig(rank=2)))
    of_student, of_base = (
        FeatureTaps(d, ["mid_block"]).features(*inputs)[0] for d in (student, tiny_denoiser)
    )
    assert not torch.allclose(of_student, of_base)
    with pytest.raises(TypeError, match="missing 2 required"):
        student.module(torch.zeros(1))
    assert torch.equal(tiny_denoiser(*inputs), before)


def test_a_forward_recorded_before_another_roles_keeps_its_gradients(tiny_denoiser, inputs):
    student = _randomised(add_lora(tiny_denoiser, "student", LoRAConfig(rank=2)))
    critic = _randomised(add_lora(tiny_denoiser, "critic", LoRAConfig(rank=2)))
    drawn = student(*inputs)
    with torch.no_grad():
        critic(*inputs)
        tiny_denoiser(*inputs)
    drawn.square().mean().backward()
    gradients = [p.grad for p in student.module.parameters()]
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients)
    assert all(p.grad is None for p in critic.module.parameters())


def test_the_fingerprint_is_the_bases(tiny_denoiser):
    before = fingerprint(tiny_denoiser.network)
    _randomised(add_lora(tiny_denoiser, "student", LoRAConfig(rank=2)))
    assert fingerprint(tiny_denoiser.network) == before


def test_ddp_sees_the_role_alone(tiny_denoiser, inputs):
    import torch.distributed as dist

    student = _randomised(add_lora(tiny_denoiser, "student", LoRAConfig(rank=2)))
    role, alone = student.module, student(*inputs)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        student.module = DistributedDataParallel(role)
        assert torch.equal(student(*inputs), alone)
        student(*inputs).square().mean().backward()
        assert all(p.grad is not None for p in role.parameters())
        assert torch.equal(merged(student).copy()(*inputs), merged(student)(*inputs))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"alpha": 0.0}, r"alpha is 0\.0; it must be finite and > 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)


def test_bad_roles_and_targets(tiny_denoiser):
    with pytest.raises(ValueError, match=r"target 'to_qq' names no .* nearest are .*to_q"):
        add_lora(tiny_denoiser, "student", LoRAConfig(targets=("to_qq",)))
    with pytest.raises(ValueError, match="Python identifier"):
        add_lora(tiny_denoiser, "the student")
    with pytest.raises(TypeError, match="no LoRA role"):
        merged(tiny_denoiser)
    add_lora(tiny_denoiser, "student")
    with pytest.raises(ValueError, match="plays 'student' already"):
        add_lora(tiny_denoiser, "student")


def test_a_model_without_targets():
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=16,
    )
    denoiser = DiffusersDenoiser(unet, RectifiedFlow(), "epsilon")
    with pytest.raises(ValueError, match="target 'to_q' names no linear or convolutional layer"):
        add_lora(denoiser, "student")
    assert not any("lora_" in name for name, _ in unet.named_parameters())


def test_somebody_elses_lora_is_refused(tiny_denoiser):
    from peft import LoraConfig

    tiny_denoiser.network.add_adapter(LoraConfig(target_modules=["to_q"]), "theirs")
    with pytest.raises(ValueError, match="not added here; merge it first"):
        add_lora(tiny_denoiser, "student")


def test_what_peft_refuses_leaves_the_network_as_it_was(tiny_denoiser, inputs):
    """peft has put layers in by the time it finds one that it cannot take."""
    network, before = tiny_denoiser.network, tiny_denoiser(*inputs)
    network.mid_block.attentions[0].norm.requires_grad_(True)
    network.register_module("late", nn.ModuleDict({"to_q": nn.Identity()}))
    names = {n: p.requires_grad for n, p in network.named_parameters()}
    with pytest.raises(ValueError, match=r"peft cannot put LoRA of rank 2 on .*Identity"):
        add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    assert {n: p.requires_grad for n, p in network.named_parameters()} == names
    assert not hasattr(network, "peft_config")
    del network.late
    critic = _randomised(add_lora(tiny_denoiser, "critic", LoRAConfig(rank=2)))
    drawn = critic(*inputs)
    network.register_module("late", nn.ModuleDict({"to_q": nn.Identity()}))
    with pytest.raises(ValueError, match="peft cannot put LoRA"):
        add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    assert not any("student" in name for name, _ in network.named_parameters())
    assert torch.equal(critic(*inputs), drawn)
    assert torch.equal(tiny_denoiser(*inputs), before)
    assert all(p.requires_grad for p in critic.module.parameters())


@pytest.mark.parametrize("role", ["attn1", "to_q", "weight", "lora_A"])
def test_a_role_named_like_a_part_of_the_network_is_refused(role, tiny_denoiser):
    add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    with pytest.raises(ValueError, match=f"role is '{role}', which is the name of a part"):
        add_lora(tiny_denoiser, role, LoRAConfig(rank=2))


def test_a_role_named_like_the_beginning_of_a_part_owns_its_own(tiny_denoiser):
    other = set(add_lora(tiny_denoiser, "student", LoRAConfig(rank=2)).module.state_dict())
    assert set(add_lora(tiny_denoiser, "atten", LoRAConfig(rank=2)).module.state_dict()) == other


def test_the_trainer_trains_a_role_and_nothing_else(tiny_denoiser, tiny_condition, generator):
    """A LoRA student, its teacher and the discriminator's backbone are one network, checkpointed."""
    student = add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    base, count = fingerprint(tiny_denoiser.network), len(student.module.state_dict())
    config = LADDConfig(taps=("down_blocks.1",), updates="shared")
    method = LADD.build(config, Cast.of(tiny_denoiser, student))
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    batch = Batch(torch.arange(3), Pairs(0.5 * noise, noise, tiny_condition))
    optimizers = {name: OptimizerConfig() for name in method.trainable()}
    settings = TrainerConfig(
        steps=2, batch_size=3, gradient_checkpointing=True, optimizers=optimizers
    )
    trainer = Trainer(method, lambda number: batch, settings)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    losses = [state.parts["student/reconstruction"] for state in trainer.fit()]
    assert float(losses[1]) != float(losses[0])
    assert tiny_denoiser.network.is_gradient_checkpointing
    after = student.module.state_dict()
    assert len(after) == count
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert fingerprint(tiny_denoiser.network) == base
