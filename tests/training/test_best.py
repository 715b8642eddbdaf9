from __future__ import annotations

import json
import math
import time

import pytest

from nitrodistill.training import Best, Trainer, best_checkpoint, find_checkpoints


def test_the_better_is_kept_the_earlier_if_equal_and_what_is_not_finite_never():
    best = None
    for step, value in enumerate([math.nan, 3.0, 2.0, 2.0, -math.inf, 2.5]):
        best = Best.after(best, "fid", "lowest", step, {"fid": value})
    assert best == Best("fid", 2.0, 2)
    for step, value in enumerate([1.0, 4.0, 3.0]):
        best = Best.after(best if step else None, "clip", "highest", step, {"clip": value})
    assert best == Best("clip", 4.0, 1)


def test_a_metric_that_is_not_there_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"'fdi', which the evaluation does not return.*'fid'"):
        Best.after(None, "fdi", "lowest", 1, {"clip": 1.0, "fid": 2.0})
    with pytest.raises(ValueError, match="known are none"):
        Best.after(None, "fid", "lowest", 1, {})


def test_plain_data_goes_round_and_another_metric_is_none():
    best = Best("fid", 2.0, 7)
    assert Best.from_plain(json.loads(json.dumps(best.to_plain())), "fid") == best
    assert Best.from_plain(best.to_plain(), "clip") is None
    assert Best.from_plain(None, "fid") is None


SCORES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 1.5}


def _trainer(tiny, output, **options):
    config = tiny.config(
        steps=10, evaluate_every=2, best_metric="score", checkpoint_every=1, keep_checkpoints=2
    )
    return Trainer(
        tiny.Method(), tiny.Stream(4), config, output=output,
        evaluate=lambda state: {"score": SCORES[state.step], "other": 0.0}, **options,
    )  # fmt: skip


def test_the_best_checkpoint_is_kept_beside_the_newest_and_remembered(tiny, tmp_path):
    found = {}
    for state in _trainer(tiny, tmp_path).fit():
        found[state.step] = dict(state.evaluation)
        if state.step == 7:
            break
    assert found == {
        n: {"score": SCORES[n], "other": 0.0} if n in SCORES else {} for n in range(1, 8)
    }
    resumed = _trainer(tiny, tmp_path)
    assert (resumed.step, resumed.best) == (7, Best("score", 1.0, 4))
    list(resumed.fit())
    assert resumed.best == Best("score", 1.0, 4)
    assert [c.step for c in find_checkpoints(tmp_path)] == [10, 9, 4]
    best = best_checkpoint(tmp_path, 0)
    assert best is not None
    assert best.step == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["evaluation/score"] for line in lines if "evaluation/score" in line] == [
        *SCORES.values()
    ]


def test_a_new_best_is_saved_at_once(tiny, tmp_path):
    config = tiny.config(
        evaluate_every=2, best_metric="score", checkpoint_every=0, best_is="highest"
    )
    options = {"output": tmp_path, "evaluate": lambda state: {"score": -abs(state.step - 4)}}
    list(Trainer(tiny.Method(), tiny.Stream(4), config, **options).fit())
    assert [c.step for c in find_checkpoints(tmp_path)] == [6, 4]


def test_no_evaluation_no_best(tiny, tmp_path):
    assert best_checkpoint(tmp_path, 0) is None
    tiny.train(tiny.config(), output=tmp_path)
    assert best_checkpoint(tmp_path, 0) is None
    with pytest.raises(ValueError, match="nothing to evaluate with"):
        tiny.train(tiny.config(evaluate_every=2))


def test_evaluations_in_two_processes_count_as_the_main_ones(tiny, tmp_path):
    def act(rank, world):
        config = tiny.config(evaluate_every=2, best_metric="score", parallel="fsdp")
        trainer = Trainer(
            tiny.Method(), tiny.Stream(4, rank, world), config, output=tmp_path,
            evaluate=lambda state: {"score": float(state.step if rank == 0 else -state.step)},
        )  # fmt: skip
        evaluations = [state.evaluation for state in trainer.fit()]
        return evaluations[-1], trainer.best

    assert tiny.in_processes(act) == [({"score": 6.0}, Best("score", 2.0, 2))] * 2
    # sharded weights are saved before each evaluation, and the newest three and the best are kept
    assert [c.step for c in find_checkpoints(tmp_path)] == [6, 4, 2]


def test_an_evaluation_that_fails_takes_no_step_with_it(tiny, tmp_path):
    def fail(state):
        raise ValueError("these pictures cannot be measured")

    config = tiny.config(evaluate_every=3, checkpoint_every=0)
    with pytest.raises(ValueError, match="cannot be measured"):
        tiny.train(config, output=tmp_path, evaluate=fail)
    assert [found.step for found in find_checkpoints(tmp_path)] == [3]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_evaluation_that_fails_in_one_of_two_processes_ends_both_and_takes_no_step(
    tiny, tmp_path, parallel, failing
):
    """The same command then measures what is owed, and goes on."""
    config = tiny.config(evaluate_every=3, checkpoint_every=0, parallel=parallel)

    def train(rank, world, fails):
        def measured(state):
            if fails and rank == failing:
                raise ValueError("these pictures cannot be measured")
            return {"score": float(state.step)}

        return Trainer(
            tiny.Method(), tiny.Stream(4, rank, world), config, output=tmp_path, evaluate=measured
        )

    def fail(rank, world):
        started = time.monotonic()
        with pytest.raises((ValueError, RuntimeError)) as error:
            list(train(rank, world, True).fit())
        return str(error.value), time.monotonic() - started < 20

    found = tiny.in_processes(fail)
    told = "these pictures cannot be measured"
    assert found[failing] == (told, True)
    assert found[1 - failing] == (f"the evaluation failed in process {failing}: {told}", True)
    assert [found.step for found in find_checkpoints(tmp_path)] == [3]
    steps = tiny.in_processes(lambda r, w: [s.step for s in train(r, w, False).fit()])
    assert steps == [[4, 5, 6], [4, 5, 6]]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = {
        line["step"]: line["evaluation/score"] for line in lines if "evaluation/score" in line
    }
    assert scores == {3: 3.0, 6: 6.0}


def test_the_last_evaluation_is_owed_where_it_failed(tiny, tmp_path):
    config = tiny.config(evaluate_every=6, best_metric="score")
    with pytest.raises(KeyError):
        tiny.train(config, output=tmp_path, evaluate=lambda state: {}["absent"])
    trainer = Trainer(
        tiny.Method(), tiny.Stream(4), config, output=tmp_path, evaluate=lambda s: {"score": 2.0}
    )
    assert list(trainer.fit()) == []
    assert trainer.best == Best("score", 2.0, 6)
    assert find_checkpoints(tmp_path)[0].state()["best"]["step"] == 6
