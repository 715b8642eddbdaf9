"""What goes wrong in a long run: kills, damage, NaNs. A resumed run ends bit-equal, or there is a clear error."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.methods import LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.training import (
    State,
    StopSignals,
    Trainer,
    find_checkpoints,
    load_student,
    run_recipe,
)

TURNS = (("student", "critic"), ("critic",))


def _weights(tiny, trainer):
    found = [tiny.weights(role.module) for role in trainer.method.trainable().values()]
    return torch.cat(
        [*found, *(value.flatten() for value in trainer.averages["student"].state_dict().values())]
    )


def _kill_at_random(states: Callable[[], Iterator[State]], kills: int, seed: int) -> None:
    """Runs `states` in forked children; each is killed up to 0.1 s after its first step, but the last."""
    importlib.import_module("torch.utils.tensorboard")  # warm: once, and not in every child
    context, moments = multiprocessing.get_context("fork"), random.Random(seed)

    def train(started: Any) -> None:
        torch.set_num_threads(1)
        for _ in states():
            started.set()
            time.sleep(0.005)
        os._exit(0)

    for number in range(kills + 1):
        started = context.Event()
        child = context.Process(target=train, args=(started,))
        child.start()
        try:
            assert started.wait(300)
            if number < kills:
                time.sleep(moments.uniform(0, 0.1))
                child.kill()
            child.join(300)
            assert child.exitcode == (-signal.SIGKILL if number < kills else 0)
        finally:
            child.kill()
            child.join()


def _killed_ends_bit_equal(tiny, folder: Path, kills: int, seed: int) -> None:
    config = tiny.config(steps=20 * (kills + 1), accumulation=2, checkpoint_every=3, log_every=1)
    whole = tiny.train(config, tiny.Method(TURNS))

    def states() -> Iterator[State]:
        return Trainer(tiny.Method(TURNS), tiny.Stream(4), config, output=folder).fit()

    _kill_at_random(states, kills, seed)
    resumed = Trainer(tiny.Method(TURNS), tiny.Stream(4), config, output=folder)
    assert resumed.step == config.steps
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == config.steps


def test_six_kills_at_random_moments_end_bit_equal(tiny, tmp_path):
    _killed_ends_bit_equal(tiny, tmp_path, kills=6, seed=0)


@pytest.mark.soak
def test_28_kills_at_random_moments_end_bit_equal(tiny, tmp_path):
    _killed_ends_bit_equal(tiny, tmp_path, kills=28, seed=1)


@pytest.mark.soak
def test_twelve_kills_of_a_recipe_end_bit_equal(
    tiny, tiny_diffusers, tiny_scheduler, make_recipe, tmp_path
):
    """The whole of LADD on a store, in two stages, with a real UNet."""
    pipeline = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    recipe = make_recipe(LADDConfig(fresh_fraction=0.5), steps=100, checkpoint_every=2)
    (stage,) = recipe.stages
    stages = [stage, dataclasses.replace(stage, student="previous")]
    recipe = dataclasses.replace(recipe, stages=stages)
    list(run_recipe(recipe, pipeline))
    killed = tiny.changed(recipe, tmp_path / "killed")
    _kill_at_random(lambda: run_recipe(killed, pipeline), kills=12, seed=2)
    one, other = (load_student(r.output, pipeline).denoiser.module for r in (recipe, killed))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_two_kills_of_another_method_end_bit_equal(
    tiny, tiny_diffusers, tiny_scheduler, make_matching, tmp_path
):
    """Three roles at 1:3 on prompts alone, in two stages, with a network that follows the student."""
    pipeline = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    recipe = make_matching("recipe", "previous", steps=6, checkpoint_every=1)
    list(run_recipe(recipe, pipeline))
    killed = tiny.changed(recipe, tmp_path / "killed")
    _kill_at_random(lambda: run_recipe(killed, pipeline), kills=2, seed=3)
    for stage in (0, 1):
        one, other = (find_checkpoints(Path(r.output), stage)[0] for r in (recipe, killed))
        assert one.step == other.step == 6
        for file in sorted(one.path.glob("*.safetensors")):
            tensors, found = one.tensors(file.stem), other.tensors(file.stem)
            assert all(torch.equal(found[n], value) for n, value in tensors.items()), file.stem


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 64
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, os.unlink])
@pytest.mark.parametrize("name", ["critic.optimizer.safetensors", "student.ema.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_run_still_ends_bit_equal(
    tiny, tmp_path, damage, name
):
    config = tiny.config(checkpoint_every=2)
    whole = tiny.train(config, output=tmp_path)
    damage(find_checkpoints(tmp_path)[0].path / name)
    with pytest.warns(RuntimeWarning, match=f"is damaged: {name}"):
        resumed = Trainer(tiny.Method(), tiny.Stream(4), config, output=tmp_path)
    assert resumed.step == 4
    list(resumed.fit())
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))


def test_a_folder_that_cannot_be_written_is_an_error(tiny, tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OSError, match=r"log\.jsonl"):
        tiny.train(tiny.config(), output=tmp_path)


def test_a_nan_in_the_data_is_skipped_once_and_named(tiny):
    class Stream(tiny.Stream):
        def __call__(self, number):
            batch = super().__call__(number)
            batch.pairs.x0[batch.index == 9] = torch.nan
            return batch

    trainer = Trainer(tiny.Method(), Stream(4), tiny.config())
    with pytest.warns(RuntimeWarning, match="skipped step 3"):
        skipped = [state.skipped for state in trainer.fit()]
    assert [bool(text) for text in skipped] == [False, False, True, False, False, False]
    assert "student/fit (samples [9])" in skipped[2]
    assert "the data's pairs.x0 (samples [9])" in skipped[2]
    assert _weights(tiny, trainer).isfinite().all()


def test_a_nan_in_a_weight_stops_the_run_and_names_the_last_good_checkpoint(tiny, tmp_path):
    config, method = tiny.config(steps=20, checkpoint_every=2, max_skips=3), tiny.Method()
    trainer = Trainer(method, tiny.Stream(4), config, output=tmp_path)
    steps = []

    def train():
        for state in trainer.fit():
            steps.append((state.step, bool(state.skipped)))
            if state.step == 4:
                method.critic_network[2].bias.data.fill_(torch.inf)

    with (
        pytest.warns(RuntimeWarning, match="skipped step"),
        pytest.raises(FloatingPointError, match=r"after 3 non-finite.*step-00000004"),
    ):
        train()
    good_steps = [(1, False), (2, False), (3, False), (4, False)]
    assert steps == [*good_steps, (5, True), (6, True)]
    good = find_checkpoints(tmp_path)[0]
    good.verify()
    assert good.step == 4
    assert all(value.isfinite().all() for value in good.tensors("critic").values())


def test_a_nan_in_a_gradient_is_skipped_and_leaves_everything_as_it_was(tiny):
    method = tiny.Method()
    trainer = Trainer(method, tiny.Stream(4), tiny.config())
    weight = method.student_network[0].weight
    handle = weight.register_hook(
        lambda gradient: gradient.where(gradient != gradient[0, 0], torch.nan)
    )
    seen = []

    def train():
        for state in trainer.fit():
            handle.remove()
            seen.append((state.skipped, _weights(tiny, trainer)))

    with pytest.warns(RuntimeWarning, match="student's gradient"):
        train()
    assert [bool(skipped) for skipped, _ in seen] == [True, *[False] * 5]
    assert torch.equal(
        seen[0][1], _weights(tiny, Trainer(tiny.Method(), tiny.Stream(4), tiny.config()))
    )
    assert not torch.equal(seen[1][1], seen[0][1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_ends_and_resumes_bit_equal(tiny, tmp_path, number):
    config = tiny.config(accumulation=2)
    whole = tiny.train(config)
    with StopSignals() as stop:
        trainer = Trainer(tiny.Method(), tiny.Stream(4), config, output=tmp_path, stop=stop)
        states = []
        for state in trainer.fit():
            states.append((state.step, state.stopped))
            if state.step == 3:
                os.kill(os.getpid(), number)
    assert states == [(1, ""), (2, ""), (3, ""), (4, number.name)]
    assert [c.step for c in find_checkpoints(tmp_path)] == [4]
    resumed = tiny.train(config, output=tmp_path)
    assert torch.equal(_weights(tiny, resumed), _weights(tiny, whole))
