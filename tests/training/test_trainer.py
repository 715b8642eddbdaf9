from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nitrodistill.method import Draws, Role
from nitrodistill.training import OptimizerConfig, Trainer, find_checkpoints
from nitrodistill.training.parallel import check_launch

ALTERNATING = (("student",), ("critic",))


def _weights(tiny, trainer):
    roles = trainer.method.trainable().values()
    return torch.cat([tiny.weights(role.module) for role in roles])


def _optimizers(config, **changes):
    """The settings with other ones of every role's optimizer."""
    optimizers = {n: dataclasses.replace(o, **changes) for n, o in config.optimizers.items()}
    return dataclasses.replace(config, optimizers=optimizers)


def _averages(trainer):
    return torch.cat(
        [value.flatten() for value in trainer.averages["student"].state_dict().values()]
    )


def test_equals_a_plain_loop(tiny):
    """An independent loop in plain PyTorch: clip, decay of the rate, AdamW, average. Bit for bit."""
    config = _optimizers(
        tiny.config(), lr_decay_from=0.5, lr_warmup_updates=2, max_grad_norm=0.3, ema_decay=0.9
    )
    trainer = tiny.train(config)

    method, stream = tiny.Method(), tiny.Stream(4)
    networks = {"student": method.student_network, "critic": method.critic_network}
    optimizers = {
        name: torch.optim.AdamW(network.parameters(), 1, o.betas, o.eps, o.weight_decay, fused=True)
        for name, network in networks.items()
        for o in [config.optimizers[name]]
    }
    average = tiny.weights(networks["student"])
    for step, factor in enumerate([0.5, 1, 1, 1, 2 / 3, 1 / 3]):
        batch = stream(step)
        draws = Draws(0, step, batch.index)
        for _, terms in method.losses(batch, ("student", "critic"), draws):
            terms.total.backward()
        for name, network in networks.items():
            nn.utils.clip_grad_norm_(network.parameters(), 0.3)
            optimizers[name].param_groups[0]["lr"] = config.optimizers[name].learning_rate * factor
            optimizers[name].step()
            optimizers[name].zero_grad()
        average = average.lerp(tiny.weights(networks["student"]), 1 - 0.9)
    assert torch.equal(
        tiny.weights(trainer.method.student_network), tiny.weights(networks["student"])
    )
    assert torch.equal(
        tiny.weights(trainer.method.critic_network), tiny.weights(networks["critic"])
    )
    torch.testing.assert_close(_averages(trainer), average, rtol=0, atol=1e-7)


def test_an_average_that_will_hold_much_of_its_start_is_told(tiny, caplog):
    """Six steps in turns are three updates, after which .9^3 of the first weights is left."""
    for decay in (0.9, 0.4):  # .4^3 is little
        tiny.train(_optimizers(tiny.config(), ema_decay=decay), tiny.Method(ALTERNATING))
    told = [r.getMessage() for r in caplog.records if "average" in r.getMessage()]
    assert len(told) == 2  # of student and critic
    assert told[0].startswith(
        "the average of student will be 73% its first weights after all 3 updates (ema_decay 0.9)"
    )


@pytest.mark.parametrize("turns", [(("student", "critic"),), ALTERNATING])
def test_accumulating_two_batches_of_4_equals_a_batch_of_8(tiny, turns):
    large = tiny.train(tiny.config(batch_size=8), tiny.Method(turns))
    small = tiny.train(tiny.config(accumulation=2), tiny.Method(turns))
    torch.testing.assert_close(_weights(tiny, small), _weights(tiny, large), rtol=0, atol=1e-6)
    torch.testing.assert_close(_averages(small), _averages(large), rtol=0, atol=1e-6)


def test_roles_change_only_when_they_are_active_and_the_average_only_with_the_student(tiny):
    method = tiny.Method(ALTERNATING)
    trainer = Trainer(method, tiny.Stream(4), tiny.config())

    def look():
        networks = (method.student_network, method.critic_network)
        return [*(tiny.weights(n) for n in networks), _averages(trainer).clone()]

    before = look()
    for state in trainer.fit():
        after = look()
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        is_student = state.active == ("student",)
        assert changed == [is_student, not is_student, is_student]
        assert set(state.learning_rates) == set(state.active)
        before = after


def test_gradients_are_clipped_per_role(tiny, monkeypatch):
    """AdamW with beta1 0 ignores a common scale, so the norms are looked at where they are applied."""
    seen = {}

    method = tiny.Method()
    trainer = Trainer(method, tiny.Stream(4), _optimizers(tiny.config(steps=1), max_grad_norm=0.05))
    for name, role in method.trainable().items():
        network = role.module
        trained = trainer._trained[name]
        step = trained.optimizer.step

        def spy(closure=None, name=name, network=network, step=step):
            grads = [p.grad.flatten() for p in network.parameters()]
            seen[name] = float(torch.cat(grads).norm())
            step()

        monkeypatch.setattr(trained.optimizer, "step", spy)
    (state,) = trainer.fit()
    assert state.metrics()["student/grad_norm"] > 0.05
    assert seen == {
        "student": pytest.approx(0.05, rel=1e-4),
        "critic": pytest.approx(0.05, rel=1e-4),
    }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("turns", [(("student", "critic"),), ALTERNATING])
def test_stopped_and_resumed_ends_bit_equal(tiny, tmp_path, accumulation, turns, caplog):
    caplog.set_level("INFO", "nitrodistill")
    config = tiny.config(steps=9, accumulation=accumulation, checkpoint_every=2)
    config = _optimizers(config, lr_decay_from=0.5)
    whole = tiny.train(config, tiny.Method(turns))
    stopped = Trainer(tiny.Method(turns), tiny.Stream(4), config, output=tmp_path)
    for state in stopped.fit():
        if state.step == 5:
            break
    stream = tiny.Stream(4)
    resumed = Trainer(tiny.Method(turns, seed=1), stream, config, output=tmp_path)
    assert resumed.step == 4
    assert re.findall(r"stage 0 goes on from .*-0*(\d+)", caplog.text) == ["4"]
    assert [state.step for state in resumed.fit()] == [5, 6, 7, 8, 9]
    assert stream.asked[0] == 4 * accumulation
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))
    assert torch.equal(_averages(resumed), _averages(whole))


def _train_and_die(tiny, config, output, step, during_save):
    torch.set_num_threads(1)

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    trainer = Trainer(tiny.Method(), tiny.Stream(4), config, output=output)
    for state in trainer.fit():
        if state.step == step:
            if not during_save:
                die()
            pytest.MonkeyPatch().setattr("nitrodistill.training.checkpoint._write_json", die)


@pytest.mark.parametrize(("step", "during_save"), [(1, False), (5, False), (5, True)])
def test_killed_and_resumed_ends_bit_equal(tiny, tmp_path, step, during_save):
    config = tiny.config(checkpoint_every=2, accumulation=2, log_every=1)
    whole = tiny.train(config, output=tmp_path / "whole")
    arguments = (tiny, config, tmp_path / "killed", step, during_save)
    child = multiprocessing.get_context("fork").Process(target=_train_and_die, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    resumed = tiny.train(config, output=tmp_path / "killed")
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))
    assert torch.equal(_averages(resumed), _averages(whole))
    lines = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_convolutions_on_two_threads_resume_bit_equal(tiny, tmp_path):
    torch.set_num_threads(2)

    class Conv(tiny.Method):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.student_network = nn.Sequential(
                    nn.Unflatten(1, (1, 2, 2)),
                    nn.Conv2d(1, 64, 3, padding=1),
                    nn.GroupNorm(8, 64),
                    nn.SiLU(),
                    nn.Conv2d(64, 1, 3, padding=1).to(memory_format=torch.channels_last),
                    nn.Flatten(),
                )

    config = tiny.config(steps=4, batch_size=16, checkpoint_every=2)
    whole = tiny.train(config, Conv())
    stopped = Trainer(Conv(), tiny.Stream(16), config, output=tmp_path)
    for state in stopped.fit():
        if state.step == 3:
            break
    resumed = tiny.train(config, Conv(), output=tmp_path)
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))


def test_a_finished_run_does_nothing_more(tiny, tmp_path):
    config = tiny.config()
    done = tiny.train(config, output=tmp_path)
    again = Trainer(tiny.Method(), tiny.Stream(4), config, output=tmp_path)
    assert list(again.fit()) == []
    assert torch.equal(_weights(tiny, again), _weights(tiny, done))


def test_resuming_with_other_settings_is_refused(tiny, tmp_path):
    config = tiny.config()
    tiny.train(config, output=tmp_path)
    other = dataclasses.replace(config, seed=5)
    with pytest.raises(ValueError, match=r"other settings \(seed 0 -> 5\)"):
        tiny.train(other, output=tmp_path)
    longer = dataclasses.replace(config, steps=8, log_every=3)
    assert tiny.train(longer, output=tmp_path).step == 8


def test_a_non_finite_step_is_skipped_and_named(tiny):
    method = tiny.Method()
    method.poison = {2: "student"}
    trainer = Trainer(method, tiny.Stream(4), tiny.config())
    with pytest.warns(RuntimeWarning, match="skipped step 3"):
        seen = [(state.skipped, _weights(tiny, trainer)) for state in trainer.fit()]
    assert [bool(skipped) for skipped, _ in seen] == [False, False, True, False, False, False]
    assert "student/fit (samples [9])" in seen[2][0]
    assert torch.equal(seen[2][1], seen[1][1])
    assert seen[-1][1].isfinite().all()


def test_a_gradient_that_is_not_finite_is_named(tiny):
    class Steep(tiny.Method):
        def losses(self, batch, active, draws):
            for role, terms in super().losses(batch, active, draws):
                zero = next(self.student_network.parameters()).flatten()[0] * 0
                steep = zero.sqrt() if draws.step == 0 else zero
                yield role, terms._replace(total=terms.total + steep)

    with pytest.warns(RuntimeWarning, match="student's gradient"):
        tiny.train(tiny.config(steps=2), Steep((("student",),)))


def test_too_many_non_finite_steps_stop_the_run_and_name_the_last_checkpoint(tiny, tmp_path):
    method = tiny.Method()
    method.poison = {1: "student", 4: "student", 5: "student"}
    config = tiny.config(max_skips=2, checkpoint_every=2)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(FloatingPointError, match=r"after 2 non-finite.*student/fit.*step-00000004"),
    ):
        tiny.train(config, method, output=tmp_path)
    assert torch.isfinite(_weights(tiny, Trainer(method, tiny.Stream(4), config))).all()


def test_the_log_averages_between_lines(tiny, tmp_path):
    trainer = Trainer(tiny.Method(), tiny.Stream(4), tiny.config(log_every=3), output=tmp_path)
    metrics = [state.metrics() for state in trainer.fit()]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    for name in ("student/fit", "critic/total", "student/grad_norm"):
        mean = sum(m[name] for m in metrics[3:]) / 3
        assert lines[1][name] == pytest.approx(mean, rel=1e-6)
    assert lines[1]["student/learning_rate"] == 1e-2


def test_the_roles_must_have_optimizers_and_something_to_train(tiny):
    some = OptimizerConfig()
    for optimizers, words in [
        ({"student": some}, r"lacks settings for \['critic'\]"),
        ({"student": some, "critics": some, "critic": some}, "'critics'.*did you mean 'critic'"),
    ]:
        with pytest.raises(ValueError, match=words):
            tiny.train(tiny.config(optimizers=optimizers))
    method = tiny.Method()
    method.critic_network.requires_grad_(False)
    with pytest.raises(ValueError, match="'critic' has no parameter that requires a gradient"):
        tiny.train(tiny.config(), method)


def test_a_batch_of_another_size_is_refused(tiny):
    trainer = Trainer(tiny.Method(), tiny.Stream(3), tiny.config())
    with pytest.raises(ValueError, match=r"3 samples, but batch_size is 4"):
        next(trainer.fit())


def test_frozen_weights_stay_and_are_saved(tiny, tmp_path):
    method = tiny.Method()
    method.student_network[0].requires_grad_(False)
    before = method.student_network[0].weight.detach().clone()
    tiny.train(tiny.config(), method, output=tmp_path)
    saved = find_checkpoints(tmp_path)[0]
    assert torch.equal(saved.tensors("student")["0.weight"], before)
    assert not any("0.weight" in name for name in saved.tensors("student.optimizer"))


def test_two_trainers_with_different_accumulation_do_not_disturb_each_other(tiny):
    configs = [tiny.config(accumulation=n) for n in (1, 2)]
    alone = [_weights(tiny, tiny.train(config)) for config in configs]
    trainers = [Trainer(tiny.Method(), tiny.Stream(4), config) for config in configs]
    for _ in zip(*(trainer.fit() for trainer in trainers), strict=True):
        pass
    for trainer, expected in zip(trainers, alone, strict=True):
        assert torch.equal(_weights(tiny, trainer), expected)


def test_a_role_is_rebound(tiny):
    class Holder:
        def __init__(self):
            self.module = nn.Linear(1, 1)

    holder, other = Holder(), nn.Linear(1, 1)
    role = Role(holder, "module")
    role.bind(other)
    assert role.module is other
    assert holder.module is other


CADENCE = (("student", "critic"), ("critic",), ("critic",))  # 1:3


def test_rates_are_counted_in_a_roles_own_updates(tiny, tmp_path):
    """12 steps at 1:3: N = 4 updates of the student and 12 of the critic; the same after a resumption."""
    config = tiny.config(steps=12, checkpoint_every=1)
    config = _optimizers(config, lr_warmup_updates=2, lr_decay_from=0.5)
    rates: dict[str, list[float]] = {"student": [], "critic": []}
    for last in (5, 12):
        method = tiny.Method(CADENCE)
        for state in Trainer(method, tiny.Stream(4), config, output=tmp_path).fit():
            for name, rate in state.learning_rates.items():
                rates[name].append(rate / config.optimizers[name].learning_rate)
            if state.step == last:
                break
    assert rates["student"] == [0.5, 1, 1, 0.5]
    expected = [0.5, 1, 1, 1, 1, 1, 1, *(n / 6 for n in (5, 4, 3, 2, 1))]
    assert rates["critic"] == pytest.approx(expected)


def test_a_role_that_rests_is_neither_stepped_nor_decayed(tiny):
    """AdamW decays a weight even where its gradient is 0; its own counter says how often it was stepped."""
    method = tiny.Method(CADENCE)
    config = _optimizers(tiny.config(steps=7), weight_decay=0.5, max_grad_norm=None)
    trainer = Trainer(method, tiny.Stream(4), config)
    role, seen = trainer._trained["student"], []
    for state in trainer.fit():
        moments = [role.optimizer.state[w] for w in role.weights.values()]
        steps = {float(moment["step"]) for moment in moments}
        values = [m["exp_avg"].flatten() for m in moments] + [tiny.weights(role.module)]
        seen.append(("student" in state.active, steps, torch.cat(values)))
    assert [steps for _, steps, _ in seen] == [{1.0}] * 3 + [{2.0}] * 3 + [{3.0}]
    for (_, _, before), (is_active, _, after) in itertools.pairwise(seen):
        assert torch.equal(before, after) == (not is_active)


def test_any_role_may_have_an_average_counted_in_its_updates(tiny, tmp_path):
    """d^n w0 + (1 - d) sum_k d^(n - k) w_k over the critic's own updates; the student keeps none."""
    config = tiny.config(steps=5)
    decays = {"student": 0.0, "critic": 0.6}
    optimizers = {
        n: dataclasses.replace(o, ema_decay=decays[n]) for n, o in config.optimizers.items()
    }
    method = tiny.Method(ALTERNATING)
    config = dataclasses.replace(config, optimizers=optimizers)
    trainer = Trainer(method, tiny.Stream(4), config, output=tmp_path)
    assert list(trainer.averages) == ["critic"]
    history = [tiny.weights(method.critic_network)]
    for state in trainer.fit():
        if "critic" in state.active:
            history.append(tiny.weights(method.critic_network))
    first, second = history[1:]
    expected = 0.36 * history[0] + 0.4 * (0.6 * first + second)
    average = torch.cat([a.flatten() for a in trainer.averages["critic"].state_dict().values()])
    torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)
    names = {path.stem for path in find_checkpoints(tmp_path)[0].path.glob("*.safetensors")}
    assert names == {"student", "student.optimizer", "critic", "critic.optimizer", "critic.ema"}


def test_nothing_is_saved_or_pruned_while_steps_are_skipped(tiny, tmp_path):
    method = tiny.Method()
    method.poison = {2: "student", 3: "student"}
    config = tiny.config(checkpoint_every=1, keep_checkpoints=1)
    kept = []
    trainer = Trainer(method, tiny.Stream(4), config, output=tmp_path)

    def train():
        for state in trainer.fit():
            kept.append((bool(state.skipped), [c.step for c in find_checkpoints(tmp_path)]))

    with pytest.warns(RuntimeWarning, match="skipped step"):
        train()
    assert kept == [
        (False, [1]),
        (False, [2]),
        (True, [2]),
        (True, [2]),
        (False, [5]),
        (False, [6]),
    ]


def test_a_run_whose_last_step_was_skipped_is_an_error_and_goes_on_from_the_last_good_one(
    tiny, tmp_path
):
    method = tiny.Method()
    method.poison = {5: "student"}
    config = tiny.config(checkpoint_every=2)
    with (
        pytest.warns(RuntimeWarning, match="skipped step 6"),
        pytest.raises(FloatingPointError, match=r"after 1 non-finite.*step-00000004"),
    ):
        tiny.train(config, method, output=tmp_path)
    assert [c.step for c in find_checkpoints(tmp_path)] == [4, 2]
    resumed = tiny.train(config, output=tmp_path)
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, tiny.train(config)))


def test_a_signal_in_a_skipped_step_is_heard_at_the_next_good_one(tiny, tmp_path):
    """Only what can be saved is stopped: a stopped run has saved all."""
    method = tiny.Method()
    method.poison = {2: "student"}
    asked: list[int] = []

    def stop():
        asked.append(1)
        return "SIGTERM" if len(asked) >= 3 else ""

    trainer = Trainer(
        method, tiny.Stream(4), tiny.config(checkpoint_every=0), output=tmp_path, stop=stop
    )
    with pytest.warns(RuntimeWarning, match="skipped step 3"):
        told = [(state.step, state.stopped) for state in trainer.fit()]
    assert told == [(1, ""), (2, ""), (3, ""), (4, "SIGTERM")]
    assert [c.step for c in find_checkpoints(tmp_path)] == [4]


def test_resuming_under_other_settings_of_the_method_or_other_data_is_refused(tiny, tmp_path):
    config = tiny.config()
    fixed = {
        "method": "tiny",
        "settings": {"weight": 1.0, "taps": ("a",)},
        "data": {"pairs": "f00"},
    }
    tiny.train(config, output=tmp_path, fixed=fixed)
    assert tiny.train(config, output=tmp_path, fixed=fixed).step == 6
    for changed, words in [
        ({"settings": {"weight": 2.0, "taps": ("a",)}}, "settings.weight was 1.0, now 2.0"),
        ({"settings": {"weight": 1.0, "taps": ("b",)}}, "settings.taps.0 was 'a', now 'b'"),
        ({"data": {"pairs": "f01"}}, "data.pairs was 'f00', now 'f01'"),
        ({"method": "other"}, "method was 'tiny', now 'other'"),
    ]:
        with pytest.raises(ValueError, match=rf"other settings \({words}\); resume with the same"):
            tiny.train(config, output=tmp_path, fixed={**fixed, **changed})


def test_what_is_shown_has_every_roles_last_value(tiny, tmp_path):
    method = tiny.Method(CADENCE)
    trainer = Trainer(method, tiny.Stream(4), tiny.config(log_every=1), output=tmp_path)
    known, seen = {}, []
    for state in trainer.fit():
        known |= {n: state.metrics()[f"{n}/total"] for n in state.active}
        assert state.totals() == pytest.approx(known)
        seen.append(dict(known))
    assert seen[1]["student"] == seen[0]["student"] != seen[3]["student"]
    assert seen[1]["critic"] != seen[0]["critic"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for line, expected in zip(lines, seen, strict=True):
        for name, total in expected.items():
            assert line[f"{name}/total"] == pytest.approx(total, rel=1e-6)


def _in_fp16(tiny, tmp_path, scale, method=None, **changes):
    config = tiny.config(mixed_precision="fp16", **changes)
    trainer = Trainer(method or tiny.Method(), tiny.Stream(4), config, output=tmp_path)
    trainer._scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return trainer


def test_fp16_is_near_float32_and_computes_in_float16(tiny, tmp_path):
    dtypes = []

    class Watched(tiny.Method):
        def __init__(self):
            super().__init__()
            self.student_network[1].register_forward_hook(
                lambda m, i, out: dtypes.append(out.dtype)
            )

    half = _in_fp16(tiny, tmp_path, 4.0, Watched(), steps=9)
    assert not [state.skipped for state in half.fit() if state.skipped]
    assert set(dtypes) == {torch.float16}
    assert {p.dtype for p in half.method.student_network.parameters()} == {torch.float32}
    gap = _weights(tiny, half) - _weights(tiny, tiny.train(tiny.config(steps=9)))
    assert 0 < gap.abs().max() < 5e-3


def test_fp16_steps_that_overflow_are_left_out_and_halve_the_scale(tiny, tmp_path, recwarn):
    """2**40 lies far above what float16 holds: more steps in a row than max_skips, and the run goes on."""
    trainer = _in_fp16(tiny, tmp_path, 2.0**40, steps=60, max_skips=2)
    states = list(trainer.fit())
    left_out = [state.skipped for state in states if state.skipped]
    assert len(left_out) > 2
    assert left_out[0] == "step 1: the gradients overflow float16 at a loss scale of 1.09951e+12"
    assert not [w for w in recwarn if "skipped" in str(w.message)]
    assert not states[-1].skipped
    assert trainer._scaler.get_scale() < 2.0**40


def test_fp16_stopped_and_resumed_ends_bit_equal_with_its_scale(tiny, tmp_path):
    changes = {"steps": 9, "checkpoint_every": 2, "accumulation": 2}
    whole = _in_fp16(tiny, tmp_path / "whole", 4.0, **changes)
    list(whole.fit())
    stopped = _in_fp16(tiny, tmp_path / "stopped", 4.0, **changes)
    for state in stopped.fit():
        if state.step == 5:
            break
    config = tiny.config(mixed_precision="fp16", **changes)
    resumed = Trainer(tiny.Method(seed=1), tiny.Stream(4), config, output=tmp_path / "stopped")
    assert resumed.step == 4
    assert resumed._scaler.state_dict() == {
        "scale": 8.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3, "_growth_tracker": 1,
    }  # fmt: skip
    list(resumed.fit())
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))
    assert resumed._scaler.state_dict() == whole._scaler.state_dict()


def test_a_loss_that_overflows_float16_is_no_matter_of_the_scale(tiny, tmp_path):
    trainer = _in_fp16(tiny, tmp_path, 4.0, steps=9, max_skips=2)
    trainer.method.poison = {1: "student", 2: "student"}
    with pytest.warns(RuntimeWarning, match="not finite"), pytest.raises(FloatingPointError):
        list(trainer.fit())


def test_an_accelerator_that_scales_the_loss_itself_is_refused():
    alone = SimpleNamespace(value="NO")
    accelerator = SimpleNamespace(mixed_precision="fp16", distributed_type=alone, num_processes=1)
    with pytest.raises(ValueError, match="the trainer scales the loss itself"):
        check_launch(accelerator, 4)
