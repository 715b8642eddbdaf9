from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time

import pytest
import torch
from PIL import Image

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.export import export
from nitrodistill.files import temporary_of
from nitrodistill.methods import LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline, PruneSpec, prune
from nitrodistill.sampling import sample
from nitrodistill.teachers import TeacherSettings
from nitrodistill.training import (
    OptimizerConfig,
    Stage,
    find_checkpoints,
    load_recipe,
    load_run_recipe,
    load_student,
    run_recipe,
)
from nitrodistill.training.networks import StageNetworks, another_teacher
from nitrodistill.training.recipe import save_recipe
from tests.training.matching import Matching, MatchingConfig


@pytest.fixture(scope="module")
def pipeline(tiny_diffusers, tiny_scheduler):
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


@pytest.fixture
def recipe(make_recipe):
    method = LADDConfig(updates="shared", fresh_fraction=0.5, warmup_steps=1)
    return make_recipe(method, steps=4, checkpoint_every=2, log_every=1)


def _weights(student):
    return torch.cat([p.detach().flatten() for p in student.denoiser.module.parameters()])


def test_a_run_leaves_its_recipe_environment_log_previews_and_a_student(
    tiny, recipe, pipeline, tmp_path
):
    states = list(run_recipe(tiny.changed(recipe, preview_every=2), pipeline))
    run = tmp_path / "run"
    assert [state.active for state in states] == [("student",), *[("student", "discriminator")] * 3]
    assert load_recipe(run / "recipe.yaml") == tiny.changed(recipe, preview_every=2)
    (environment,) = json.loads((run / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert len((run / "log.jsonl").read_text().splitlines()) == 4
    previews = sorted((run / "previews").iterdir())
    assert [p.name for p in previews] == [f"stage-0-step-0000000{n}.png" for n in (2, 4)]
    with Image.open(previews[0]) as picture:
        assert picture.width >= 3 * 160  # teacher, student, average
        assert picture.height >= 2 * 160  # two prompts
    assert list(run.glob("logs/events*"))

    student, raw = load_student(run, pipeline), load_student(run, pipeline, average=False)
    assert (student.checkpoint.step, len(student.plan)) == (4, 1)
    assert not torch.equal(_weights(student), _weights(raw))
    x0 = sample(
        student.denoiser,
        student.plan,
        torch.randn(2, 4, 8, 8),
        pipeline.encode_prompt(tiny.prompts),
    )
    assert x0.isfinite().all()


def test_previews_leave_the_training_as_it_is(tiny, recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    plain = _weights(load_student(tmp_path / "run", pipeline))
    other = tiny.changed(recipe, tmp_path / "other", preview_every=1)
    list(run_recipe(other, pipeline))
    assert torch.equal(_weights(load_student(tmp_path / "other", pipeline)), plain)


def test_stopped_in_the_second_stage_and_resumed_ends_bit_equal(tiny, recipe, pipeline, tmp_path):
    settings = LADDConfig(
        reconstruction={"smooth_l1": 1.0, "latent_lpips": {"weights": "toy", "augment": "bg"}},
        adversarial_weight=0.0,
        num_inference_steps=2,
    )
    trainer = dataclasses.replace(
        recipe.stages[0].trainer,
        optimizers={"student": OptimizerConfig(1e-3, ema_decay=0.5)},
        accumulation=2,
    )
    second = Stage("ladd", trainer, settings, student="previous")
    recipe = dataclasses.replace(recipe, stages=[*recipe.stages, second])
    whole = tiny.changed(recipe, tmp_path / "whole")
    list(run_recipe(whole, pipeline))
    for state in run_recipe(recipe, pipeline):
        if (state.stage, state.step) == (1, 3):
            break
    resumed = list(run_recipe(recipe, pipeline))
    assert [(state.stage, state.step) for state in resumed] == [(1, 3), (1, 4)]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    every = [(stage, step) for stage in (0, 1) for step in (1, 2, 3, 4)]
    assert [(line["stage"], line["step"]) for line in log] == every
    one, other = (load_student(tmp_path / name, pipeline) for name in ("whole", "run"))
    assert torch.equal(_weights(one), _weights(other))
    assert (other.checkpoint.stage, len(other.plan)) == (1, 2)
    first = [c for c in find_checkpoints(tmp_path / "run") if c.stage == 0]
    assert first[0].step == 4
    assert list(run_recipe(recipe, pipeline)) == []


KEEP = {"mid_block": (), "up_blocks.0.attentions": ()}
BLOCKS = [[f"{side}_blocks.{i}"] * 2 for side in ("down", "up") for i in (0, 1)]


@pytest.fixture
def smaller_and_fewer(recipe):
    """Prune, then feature distillation, then LADD to one step."""
    trainer = dataclasses.replace(
        recipe.stages[0].trainer, optimizers={"student": OptimizerConfig(1e-3, ema_decay=0.5)}
    )
    settings = {"data": "pairs", "features": BLOCKS, "guidance": 2.0, "num_inference_steps": 4}
    first = Stage("feature_kd", trainer, settings, prune={"keep": KEEP})
    second = dataclasses.replace(recipe.stages[0], student="previous")
    return dataclasses.replace(recipe, stages=[first, second])


def test_a_pruned_student_is_distilled_in_two_stages_and_resumed_in_either(
    tiny, smaller_and_fewer, pipeline, tmp_path
):
    whole = tiny.changed(smaller_and_fewer, tmp_path / "whole")
    list(run_recipe(whole, pipeline))
    for stop in ((0, 3), (1, 1), (1, 3)):
        for state in run_recipe(smaller_and_fewer, pipeline):
            if (state.stage, state.step) == stop:
                break
    list(run_recipe(smaller_and_fewer, pipeline))
    one, other = (load_student(tmp_path / name, pipeline) for name in ("whole", "run"))
    assert torch.equal(_weights(one), _weights(other))
    network = other.denoiser.network
    small = prune(pipeline.denoiser.network, PruneSpec(KEEP))
    shapes = {name: tuple(value.shape) for name, value in small.state_dict().items()}
    assert {name: tuple(v.shape) for name, v in network.state_dict().items()} == shapes
    checkpoint = find_checkpoints(tmp_path / "run", stage=0)[0]
    states = json.loads((checkpoint.path / "state.json").read_text())
    assert states["networks"]["student"]["config"]["mid_block_type"] is None
    assert (len(states["student"]["plan"]["steps"]), len(other.plan)) == (4, 1)
    folder = export(
        pipeline,
        other.denoiser,
        other.plan,
        tmp_path / "export",
        base_model="tiny",
        prompts=tiny.prompts,
    )  # loads it in a fresh process and compares what that draws
    assert json.loads((folder / "unet" / "config.json").read_text())["mid_block_type"] is None


def test_the_student_of_the_stage_before_is_pruned_further_and_teaches(
    tiny, smaller_and_fewer, pipeline, tmp_path
):
    first, _ = smaller_and_fewer.stages
    again = dataclasses.replace(
        first,
        teacher="previous",
        student="previous",
        prune=PruneSpec({"down_blocks.1.attentions": ()}),
    )
    recipe = dataclasses.replace(smaller_and_fewer, stages=[first, again])
    list(run_recipe(tiny.changed(recipe, steps=1), pipeline))
    types = load_student(tmp_path / "run", pipeline).denoiser.adapter.config
    assert list(types.down_block_types) == ["DownBlock2D"] * 2
    assert list(types.up_block_types) == ["UpBlock2D"] * 2


def test_the_network_of_another_pipeline_teaches(tiny, recipe, pipeline, tmp_path):
    other = pipeline.diffusers.__class__(**pipeline.diffusers.components)
    own = other.unet
    try:
        other.unet = prune(own, PruneSpec(KEEP))
        other.save_pretrained(tmp_path / "other")
    finally:
        other.unet = own
    stage = dataclasses.replace(recipe.stages[0], teacher=str(tmp_path / "other"))
    stage = dataclasses.replace(
        stage, settings=dataclasses.replace(stage.settings, taps=("down_blocks.1",))
    )
    changed = dataclasses.replace(recipe, stages=[stage])
    list(run_recipe(tiny.changed(changed, steps=1), pipeline))
    student = load_student(tmp_path / "run", pipeline)
    assert student.denoiser.adapter.config.mid_block_type is None  # it starts as its teacher
    lora = dataclasses.replace(recipe.stages[0], lora=None)
    with pytest.raises(
        ValueError, match="but a LoRA role is on the network of the recipe's teacher"
    ):
        dataclasses.replace(lora, teacher="elsewhere", lora=LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="the stage has `lora` and `prune`"):
        dataclasses.replace(lora, prune={"keep": KEEP}, lora=LoRAConfig(rank=2))
    missing = dataclasses.replace(stage, teacher="./nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_recipe(dataclasses.replace(recipe, stages=[missing]), pipeline)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_teacher_has_the_precision_of_the_recipes(pipeline, dtype):
    own = pipeline.denoiser.copy()
    own.network.to(dtype)
    asked = []

    def load(name, settings):
        asked.append((name, settings))
        return pipeline

    other = another_teacher("user/other", load, own)
    assert asked == [("user/other", TeacherSettings(weights_dtype=str(dtype)[6:]))]
    assert other.network is pipeline.denoiser.network


def test_what_does_not_fit_the_pruned_student_is_refused_before_the_run(
    smaller_and_fewer, pipeline, tmp_path
):
    first, second = smaller_and_fewer.stages
    taps = [*BLOCKS, ["mid_block", "mid_block"]]
    settings = dataclasses.replace(first.settings, features=taps)
    for stages, words in (
        ([dataclasses.replace(first, settings=settings)], "'mid_block' of the student"),
        ([dataclasses.replace(first, prune="bk-small")], "bk-small is for UNets of four levels"),
        ([first, dataclasses.replace(second, prune={"keep": KEEP})], "the network lacks"),
    ):
        with pytest.raises(ValueError, match=words):
            run_recipe(dataclasses.replace(smaller_and_fewer, stages=stages), pipeline)
    assert not (tmp_path / "run").exists()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    tiny, recipe, pipeline, tmp_path
):
    whole = tiny.changed(recipe, tmp_path / "whole")
    list(run_recipe(whole, pipeline))
    list(run_recipe(recipe, pipeline))
    newest = find_checkpoints(tmp_path / "run")[0]
    (newest.path / "state.json").write_text('{"stage"')
    with pytest.warns(RuntimeWarning, match=r"state.json is not what was written.*an older one"):
        assert [state.step for state in run_recipe(recipe, pipeline)] == [3, 4]
    one, other = (load_student(tmp_path / name, pipeline) for name in ("whole", "run"))
    assert torch.equal(_weights(one), _weights(other))


def test_the_environment_of_the_start_is_kept_and_others_are_added(recipe, pipeline, tmp_path):
    next(run_recipe(recipe, pipeline))
    file = tmp_path / "run" / "environment.json"
    start = json.loads(file.read_text())
    next(run_recipe(recipe, pipeline))
    assert json.loads(file.read_text()) == start
    other = [start[0] | {"python": "2.7"}]
    file.write_text(json.dumps(other))
    next(run_recipe(recipe, pipeline))
    assert json.loads(file.read_text()) == other + start
    for text in ("[", "5", "[5]", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"environment.json is damaged .* remove it to go on"):
            run_recipe(recipe, pipeline)  # before anything is trained


CHANGED = [
    ("seed: 0", "seed: 7", r"stages\.0\.trainer\.seed was 0, now 7"),
    ("guidance: null", "guidance: 9.0", r"guidance was None, now 9\.0"),
    ("warmup_steps: 1", "warmup_steps: 2", r"stages\.0\.settings\.warmup_steps was 1, now 2"),
]


def test_a_recipe_that_was_changed_after_the_training_is_noticed(recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    run = tmp_path / "run"
    file = run / "recipe.yaml"
    text = file.read_text()
    for before, after, words in CHANGED:
        assert before in text
        file.write_text(text.replace(before, after, 1))
        told = rf"recipe.yaml' is not the recipe that this run was trained with \({words}\)"
        for read in (lambda: load_run_recipe(run), lambda: load_student(run, pipeline)):
            with pytest.raises(ValueError, match=told):
                read()
        for given in (recipe, load_recipe(file)):  # resumed with the first recipe, or with that one
            with pytest.raises(ValueError, match=told):
                run_recipe(given, pipeline)
    file.write_text(text)
    assert load_run_recipe(run) == recipe
    for checkpoint in find_checkpoints(run):
        assert load_run_recipe(run) == recipe  # by the one before
        state = checkpoint.path / "state.json"
        state.write_text(state.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(ValueError, match=r"is damaged: state\.json is not what was written"):
        load_run_recipe(run)


def test_what_may_change_may_stand_in_the_recipe(tiny, recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    more = tiny.changed(recipe, steps=6, log_every=2)
    more = dataclasses.replace(more, pairs="elsewhere", preview_prompts=("x",), trackers=())
    save_recipe(more, tmp_path / "run" / "recipe.yaml")
    assert load_run_recipe(tmp_path / "run") == more


def test_resuming_under_another_loss_is_refused_by_the_checkpoint(
    make_matching, pipeline, tmp_path
):
    """Even where the recipe in the folder was changed along with the one that is given."""
    recipe = make_matching("recipe", steps=4)
    list(run_recipe(recipe, pipeline))
    other = dataclasses.replace(recipe.stages[0], settings=MatchingConfig(adversarial_weight=0.2))
    changed = dataclasses.replace(recipe, stages=[other])
    save_recipe(changed, tmp_path / "run" / "recipe.yaml")
    with pytest.raises(ValueError, match=r"adversarial_weight was 0.1, now 0.2"):
        run_recipe(changed, pipeline)


def test_a_checkpoint_of_a_stage_that_the_recipe_lacks(recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    last = find_checkpoints(tmp_path / "run")[0].path
    last.rename(last.parent / "stage-7-step-00000004")
    with pytest.raises(
        ValueError, match=r"a checkpoint of stage 7, which this recipe does not have"
    ):
        run_recipe(recipe, pipeline)


def test_a_log_line_torn_in_two_is_left_out_with_a_word(recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], lines[1][:20] + "\n" + lines[1][20:], "5\n", *lines[2:]]))
    shutil.rmtree(find_checkpoints(tmp_path / "run")[0].path)  # that of step 4
    running = run_recipe(recipe, pipeline)
    with pytest.warns(RuntimeWarning, match=r"log.jsonl: what stands in line 2, 3, 4 is torn"):
        next(running)
    assert log.read_text().splitlines()[0] == lines[0].rstrip()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 3]


def test_what_a_killed_write_left_is_no_stranger(recipe, pipeline, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    name = temporary_of(run / "recipe.yaml").name
    left = run / name.replace(f"-{os.getpid()}-", "-999999999-")  # of a process that is no more
    left.write_text("teacher: ti")
    next(run_recipe(recipe, pipeline))
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == [".lock"]


def test_bf16_trains_float32_weights_and_leaves_the_teacher(tiny, recipe, pipeline, tmp_path):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the precision is a singleton of Accelerate's
    list(run_recipe(tiny.changed(recipe, mixed_precision="bf16"), pipeline))
    AcceleratorState._reset_state()
    student = load_student(tmp_path / "run", pipeline)
    assert _weights(student).dtype == torch.float32
    assert next(pipeline.denoiser.module.parameters()).dtype == torch.float32
    teacher = torch.cat([p.flatten() for p in pipeline.denoiser.module.parameters()])
    assert not torch.equal(_weights(student), teacher)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    other = tiny.changed(recipe, tmp_path / "other", gradient_checkpointing=True)
    list(run_recipe(other, pipeline))
    one, two = (_weights(load_student(tmp_path / name, pipeline)) for name in ("run", "other"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_another_recipe_is_refused_and_named(tiny, recipe, pipeline):
    next(run_recipe(recipe, pipeline))
    with pytest.raises(ValueError, match=r"another recipe \(stages.0.trainer.seed was 0, now 1\)"):
        run_recipe(tiny.changed(recipe, seed=1), pipeline)
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_recipe(recipe, pipeline, resume="never")


def test_pairs_may_move_but_not_change(tiny, recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    moved = tmp_path / "moved"
    shutil.copytree(recipe.pairs, moved)
    assert list(run_recipe(dataclasses.replace(recipe, pairs=str(moved)), pipeline)) == []
    others, config = tmp_path / "others", GenerateConfig(num_pairs=6, num_inference_steps=2, seed=1)
    generate(pipeline, tiny.prompts, others, config, teacher_name="tiny", progress=False)
    with pytest.raises(ValueError, match="trained on other pairs"):
        run_recipe(dataclasses.replace(recipe, pairs=str(others)), pipeline)


def test_nothing_is_written_before_everything_is_checked(
    tiny, recipe, pipeline, tiny_diffusers, tmp_path
):
    from diffusers import DDIMScheduler

    run = tmp_path / "run"
    taps = LADDConfig(taps=("down_blocks.7",))
    wrong_taps = dataclasses.replace(
        recipe, stages=[dataclasses.replace(recipe.stages[0], settings=taps)]
    )
    later_taps = dataclasses.replace(recipe, stages=[*recipe.stages, *wrong_taps.stages])
    no_optimizer = tiny.changed(recipe, optimizers={"student": OptimizerConfig(1e-3)})
    later_roles = dataclasses.replace(recipe, stages=[*recipe.stages, *no_optimizer.stages])
    no_pairs = dataclasses.replace(recipe, pairs=str(tmp_path / "nowhere"))
    for wrong, words in [
        (wrong_taps, "no submodule 'down_blocks.7'"),
        (no_pairs, "no pair store"),
        (tiny.changed(recipe, optimizers={}), "lacks settings"),
        (later_taps, "no submodule 'down_blocks.7'"),
        (later_roles, r"lacks settings for \['discriminator'\]"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            run_recipe(wrong, pipeline)
        assert not run.exists()
    other = Pipeline.from_diffusers(tiny_diffusers(DDIMScheduler(prediction_type="v_prediction")))
    with torch.no_grad():
        next(other.denoiser.module.parameters()).add_(1)
    with pytest.raises(ValueError, match="made by teacher 'tiny'"):
        run_recipe(recipe, other)
    assert not run.exists()


def test_previews_of_unknown_words_are_refused_at_once(recipe, pipeline, tmp_path):
    def check(prompt):
        raise ValueError(f"{prompt!r} holds a word that nobody knows.")

    teacher = Pipeline(pipeline.diffusers, pipeline.denoiser, check)
    recipe = dataclasses.replace(recipe, preview_prompts=("a circel",))
    with pytest.raises(ValueError, match="'a circel' holds a word"):
        run_recipe(recipe, teacher)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction_type": "epsilon"}, "type 'v_prediction', and this teacher's is 'epsilon'"),
        ({"rescale_betas_zero_snr": False}, r"scales \[0.0, 1.0\] at timestep 999"),
        ({"num_train_timesteps": 500}, r"at timestep 999, and this teacher's are .* at 499"),
    ],
)
def test_another_scheduler_than_the_pairs_is_refused(
    recipe, pipeline, tiny_diffusers, tmp_path, options, words
):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **options)
    with pytest.raises(ValueError, match=words):
        run_recipe(recipe, Pipeline.from_diffusers(tiny_diffusers(scheduler)))
    assert not (tmp_path / "run").exists()


def test_folders_that_are_taken_or_cannot_be(recipe, pipeline, tmp_path):
    run = tmp_path / "run"
    run.write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        run_recipe(recipe, pipeline)
    below = dataclasses.replace(recipe, output=str(run / "below"))
    with pytest.raises(OSError, match="cannot write the run"):
        list(run_recipe(below, pipeline))
    run.unlink()
    run.mkdir()
    (run / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"something else \(thesis.tex\)"):
        run_recipe(recipe, pipeline)


def test_a_folder_that_is_no_run_or_has_no_checkpoint(recipe, pipeline, tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        load_student(tmp_path, pipeline)
    next(run_recipe(recipe, pipeline))
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        load_student(tmp_path / "run", pipeline)


def test_a_student_brings_its_own_network(recipe, pipeline, tmp_path, tiny_denoiser):
    """It is built as its checkpoint says, whatever the teacher's network is now."""
    list(run_recipe(recipe, pipeline))
    other = Pipeline(pipeline.diffusers, tiny_denoiser)
    one, two = (load_student(tmp_path / "run", teacher) for teacher in (pipeline, other))
    assert torch.equal(_weights(one), _weights(two))
    assert list(two.denoiser.network.config.block_out_channels) == [8, 16]
    assert two.plan.steps == one.plan.steps


ROLES = ("student", "critic", "heads", "target")


def _ended(run, stage):
    """The tensors of every role of a stage, and of what follows one, in one vector each."""
    (newest, *_) = find_checkpoints(run, stage)
    names = (*ROLES, "student.ema")
    return {n: torch.cat([v.flatten() for v in newest.tensors(n).values()]) for n in names}


def test_the_student_of_the_stage_before_teaches(make_matching, pipeline, tmp_path):
    """All networks of the second stage start as it, and at a rate of nearly 0 stay."""
    recipe = make_matching("recipe", "previous", steps=4)
    first, second = recipe.stages
    still = {n: OptimizerConfig(1e-30, ema_decay=0.5) for n in ("student", "critic", "heads")}
    second = dataclasses.replace(
        second, trainer=dataclasses.replace(second.trainer, optimizers=still)
    )
    states = list(run_recipe(dataclasses.replace(recipe, stages=[first, second]), pipeline))
    assert [len(state.active) for state in states] == [3, 2, 2, 3] * 2
    before, after = (_ended(tmp_path / "run", stage) for stage in (0, 1))
    for name in ("student", "critic", "target"):
        assert torch.equal(after[name], before["student.ema"]), name
    own = torch.cat([p.flatten() for p in pipeline.denoiser.module.state_dict().values()])
    for name in ("student", "critic", "target", "student.ema"):
        assert not torch.equal(before[name], own), name
    assert not torch.equal(before["student"], before["student.ema"])


def test_with_the_same_teacher_a_stages_other_networks_go_on_too(make_matching, pipeline, tmp_path):
    """The student as its average, the critic as it was; what follows the student starts at it."""
    recipe = make_matching("recipe", "previous", steps=4)
    first, second = recipe.stages
    still = {n: OptimizerConfig(1e-30, ema_decay=0.5) for n in ("student", "critic", "heads")}
    trainer = dataclasses.replace(second.trainer, optimizers=still)
    second = dataclasses.replace(second, teacher="recipe", student="previous", trainer=trainer)
    list(run_recipe(dataclasses.replace(recipe, stages=[first, second]), pipeline))
    before, after = (_ended(tmp_path / "run", stage) for stage in (0, 1))
    for name, source in (
        ("student", "student.ema"),
        ("critic", "critic"),
        ("target", "student.ema"),
    ):
        assert torch.equal(after[name], before[source]), name
    assert not torch.equal(before["critic"], before["student.ema"])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_another_method_in_two_processes_equals_one(
    tiny, make_matching, pipeline, tmp_path, parallel
):
    """Whole networks of three roles, a frozen teacher that is the student before, a target that follows."""
    recipe = make_matching("recipe", "previous", steps=4)
    shared = tiny.changed(recipe, tmp_path / "shared", parallel=parallel)
    own = pipeline.denoiser

    def act(rank, world):
        told = [(state.stage, state.active) for state in run_recipe(shared, pipeline)]
        assert pipeline.denoiser is own
        return told

    one, other = tiny.in_processes(act)
    assert one == other
    list(run_recipe(recipe, pipeline))
    for stage in (0, 1):
        alone, found = (_ended(tmp_path / run, stage) for run in ("run", "shared"))
        for name, values in alone.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=1e-5, msg=name)


def test_a_bfloat16_teachers_student_is_float32(
    tiny, make_recipe, tiny_diffusers, tiny_scheduler, tmp_path
):
    half, data = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler)), tmp_path / "half"
    half.denoiser.module.to(torch.bfloat16)
    config = GenerateConfig(num_pairs=4, num_inference_steps=2)
    generate(half, tiny.prompts, data, config, teacher_name="tiny", progress=False)
    recipe = make_recipe(LADDConfig(adversarial_weight=0.0), steps=2)
    list(run_recipe(dataclasses.replace(recipe, pairs=str(data)), half))
    (newest,) = find_checkpoints(tmp_path / "run")
    for name in ("student", "student.ema", "student.optimizer"):
        kinds = {v.dtype for v in newest.tensors(name).values() if v.is_floating_point()}
        assert kinds == {torch.float32}, name
    assert {p.dtype for p in half.denoiser.module.parameters()} == {torch.bfloat16}
    saved = newest.tensors("student.ema")
    student = load_student(tmp_path / "run", half).denoiser.module.state_dict()
    assert all(torch.equal(student[name], value) for name, value in saved.items()), "loaded so"
    assert any(not torch.equal(v.bfloat16().float(), v) for v in saved.values())


def test_a_teacher_loaded_in_bfloat16_is_the_network_of_its_lora_roles(
    tiny, make_recipe, tiny_diffusers, tiny_scheduler, tmp_path
):
    """Without a copy: it draws the previews and teaches, and is what it was."""
    half, data = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler)), tmp_path / "half"
    own = half.denoiser.network.to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in own.state_dict().items()}
    config = GenerateConfig(num_pairs=4, num_inference_steps=2)
    generate(half, tiny.prompts, data, config, teacher_name="tiny", progress=False)
    settings = {"steps": 2, "mixed_precision": "bf16", "preview_every": 2}
    recipe = make_recipe(LADDConfig(updates="shared"), lora=LoRAConfig(rank=2), **settings)
    list(run_recipe(dataclasses.replace(recipe, pairs=str(data)), half))
    assert half.denoiser.network is own
    weights = {name.replace(".base_layer", ""): value for name, value in own.state_dict().items()}
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    trained = [value for name, value in weights.items() if ".lora_B.student" in name]
    assert trained
    assert all(value.dtype == torch.float32 and value.any() for value in trained)


def test_a_second_run_on_the_same_folder_is_refused(tiny, recipe, pipeline, tmp_path):
    """While the first one trains; when it has stopped, the second goes on."""
    running = run_recipe(recipe, pipeline)
    next(running)

    def act(rank, world):
        with pytest.raises(RuntimeError) as caught:
            next(run_recipe(recipe, pipeline))
        return str(caught.value)

    (told,) = tiny.in_processes(act, 1)
    folder = str(tmp_path / "run")
    assert told == (
        f"another process trains in {folder!r}; wait until it has ended, or choose another folder."
    )
    with pytest.raises(
        RuntimeError, match=r"this process trains in .* already; let that run end or"
    ):
        next(run_recipe(recipe, pipeline))
    (told,) = tiny.in_processes(act, 1)  # the refused one has not taken the first one's lock away
    assert told.startswith("another process trains in")
    running.close()
    assert [state.step for state in run_recipe(recipe, pipeline)][-1] == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_after_all_have_met_takes_the_other_one_with_it(
    tiny, recipe, pipeline, monkeypatch, failing
):
    """In making its networks, say; the other one waits for it in the first thing that they do together."""

    def act(rank, world):
        def fail(*_):
            raise MemoryError("no room for the teacher")

        def late(*given):
            time.sleep(2)  # nothing lies unread at the one that ends: its system closes in order
            return build(*given)

        build = StageNetworks.build
        monkeypatch.setattr(StageNetworks, "build", fail if rank == failing else late)
        started = time.monotonic()
        with pytest.raises((MemoryError, RuntimeError)) as error:
            list(run_recipe(recipe, pipeline))
        return str(error.value), time.monotonic() - started < 20

    found = tiny.in_processes(act)
    assert found[failing] == ("no room for the teacher", True)
    told, in_time = found[1 - failing]
    other = f"this is process {1 - failing} of 2 (counted from 0)"
    assert told.startswith(f"{other}, and another one has ended, or did not answer in time (")
    assert "Connection closed by peer" in told
    assert in_time


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            "pairs",
            r"'ladd' reads pairs, .*add `pairs: PATH`, as `nitrodistill generate` makes them",
        ),
        ("prompts", r"matching:Matching' reads prompts, which .* add `prompts: PATH`\.$"),
    ],
)
def test_a_method_that_reads_what_the_recipe_does_not_give(
    recipe, make_matching, pipeline, tmp_path, part, words
):
    given = recipe if part == "pairs" else make_matching("recipe", steps=2)
    with pytest.raises(ValueError, match=words):
        run_recipe(dataclasses.replace(given, **{part: None}), pipeline)
    assert not (tmp_path / "run").exists()


def test_a_cast_member_that_nobody_trains_is_told_before_anything_is_written(
    make_matching, pipeline, tmp_path, monkeypatch
):
    trained = Matching.trainable

    def without(self):
        return {n: r for n, r in trained(self).items() if n != "critic"}

    monkeypatch.setattr(Matching, "trainable", without)
    with pytest.raises(ValueError, match="Matching took 'critic' from its cast, but neither"):
        run_recipe(make_matching("recipe", steps=2), pipeline)
    assert not (tmp_path / "run").exists()


def test_resuming_under_other_settings_of_the_method_is_refused(make_matching, pipeline, tmp_path):
    recipe = make_matching("recipe", steps=2)
    list(run_recipe(recipe, pipeline))
    other = dataclasses.replace(recipe.stages[0], settings=MatchingConfig(adversarial_weight=0.2))
    words = r"stages.0.settings.adversarial_weight was 0.1, now 0.2"
    with pytest.raises(ValueError, match=words):
        run_recipe(dataclasses.replace(recipe, stages=[other]), pipeline)
    (tmp_path / "prompts.txt").write_text("a large blue ring on a gray background")
    with pytest.raises(ValueError, match="trained on other prompts than the recipe names now"):
        run_recipe(recipe, pipeline)
