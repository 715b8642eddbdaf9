from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.data import GenerateConfig, Generation, PairStore, generate
from nitrodistill.data.arrow import ArrowFile, Layout
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition
from tests.pipelines import make_pipeline


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_manifest_says_how(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig
) -> None:
    [source] = made.manifest.generated
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    assert (source.num_samples, source.num_inference_steps, source.guidance, source.seed) == (
        11,
        2,
        3.0,
        5,
    )
    assert (source.teacher, source.prediction_type, source.sampler) == (
        "tiny",
        "v_prediction",
        "ode",
    )
    assert (source.batch_size, source.num_prompts, made.manifest.shard_size) == (3, 7, 4)
    assert source.grid.t == (999, 499)
    assert source.grid.alpha == tuple(float(step.output.alpha) for step in plan.steps)
    assert [file.rows for file in made.manifest.shards] == [4, 4, 3]
    assert [file.rows for file in made.manifest.prompts] == [4, 2]
    assert set(contents(made.path)) == {
        "manifest.json",
        *(f"prompts/00000{k}.arrow" for k in range(2)),
        *(f"shards/00000{k}.arrow" for k in range(3)),
    }


def test_noise_is_the_draw_rounded(made: PairStore) -> None:
    index = torch.arange(11)
    draws = Draws(5, 0, index, purpose="pairs").normal("noise", (2, 4, 4))
    assert torch.equal(made.read(range(11), dtype=None).noise, draws.half())


def test_stored_noise_and_text_give_the_stored_latent(made: PairStore, pipeline: Pipeline) -> None:
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    for rows in ([0, 1, 2], [3], [8, 9, 10]):  # the batches that the teacher saw
        batch = made.read(rows)
        with torch.no_grad():
            x0 = sample(pipeline.guided(3.0), plan, batch.noise, batch.condition)
        assert torch.equal(x0.half().float(), batch.x0)


def test_the_latents_are_diffusers_own(made: PairStore, pipeline: Pipeline) -> None:
    batch = made.read(range(11))
    text = batch.condition["encoder_hidden_states"]
    null = pipeline.null_condition()["encoder_hidden_states"].expand_as(text)
    pipeline.diffusers.set_progress_bar_config(disable=True)
    x0 = pipeline.diffusers(
        prompt_embeds=text,
        negative_prompt_embeds=null,
        latents=batch.noise,
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(batch.x0, x0, rtol=2**-10, atol=2e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_stored_is_exact_in_every_dtype(
    pipeline: Pipeline, prompts: list[str], tmp_path: Path, dtype: str
) -> None:
    config = GenerateConfig(num_pairs=2, num_inference_steps=2, batch_size=2, dtype=dtype)  # type: ignore[arg-type]
    store = generate(pipeline, prompts, tmp_path, config, teacher_name="t", progress=False)
    batch = store.read([0, 1])
    assert store.read([0], dtype=None).x0.dtype == getattr(torch, dtype)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    with torch.no_grad():
        x0 = sample(pipeline.guided(3.0), plan, batch.noise, batch.condition)
    assert torch.equal(x0.to(getattr(torch, dtype)).float(), batch.x0)


def test_with_the_options_the_teacher_saw_what_is_stored(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    small = replace(config, embeddings="int8", noise="drawn")
    store = generate(pipeline, prompts, tmp_path, small, teacher_name="t", progress=False)
    store.verify()
    assert store.manifest.columns["noise"].encoding == "draws"
    assert store.manifest.conditions["encoder_hidden_states"].encoding == "int8"
    for rows in ([0, 1, 2], [3], [8, 9, 10]):
        batch, exact = (s.read(rows) for s in (store, made))
        assert torch.equal(batch.noise, exact.noise)
        text, full = (b.condition["encoder_hidden_states"] for b in (batch, exact))
        assert 0 < (text - full).norm() / full.norm() < 0.01
        plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
        with torch.no_grad():
            x0 = sample(pipeline.guided(3.0), plan, batch.noise, batch.condition)
        assert torch.equal(x0.half().float(), batch.x0)


def test_a_teacher_may_compute_in_bfloat16(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    lower = replace(config, compute="bfloat16")
    store = generate(pipeline, prompts, tmp_path, lower, teacher_name="t", progress=False)
    store.check_teacher(made.manifest.generated[0].fingerprint)
    low, full = (s.read(range(11)) for s in (store, made))
    assert torch.equal(low.noise, full.noise)
    assert 0 < (low.x0 - full.x0).norm() / full.x0.norm() < 0.05


def test_a_dry_run_is_near_what_is_made_and_writes_nothing(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    found = Generation(pipeline, prompts, tmp_path / "p", config, "tiny").dry_run()
    assert not (tmp_path / "p").exists()
    assert (found.pairs, found.missing, found.prompts) == (11, 11, 6)
    assert found.seconds > 0
    sizes = {}
    for kind in ("shards", "prompts"):  # what the rows hold, without Arrow's headers
        files = [ArrowFile(f, Layout(made.manifest, kind)) for f in (made.path / kind).iterdir()]
        sizes[kind] = sum(
            sum(len(b) for b in file.tensors(row).values())
            for file in files
            for row in range(len(file))
        )
    known = sum(sizes.values()) + sum(len(p) for p in made.prompts) + 20 * 11
    assert found.size_bytes == pytest.approx(known, rel=1e-6)
    done = Generation(pipeline, prompts, made.path, config, "tiny").dry_run()
    assert (done.missing, done.seconds) == (0, 0)


def test_files_in_any_order_by_anybody_give_the_same_bytes(
    made: PairStore,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    tmp_path: Path,
) -> None:
    workers = [Generation(pipeline, prompts, tmp_path / "p", config, "tiny") for _ in range(2)]
    for worker in workers:
        worker.prepare()
    for k in reversed(workers[0].prompt_files):
        assert workers[k % 2].write_prompts(k)
    for k in reversed(workers[0].shards):
        assert workers[k % 2].write_pairs(k)
        assert not workers[(k + 1) % 2].write_pairs(k)
    workers[1].finish()
    assert contents(tmp_path / "p") == contents(made.path)


def test_finish_needs_every_file(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    work = Generation(pipeline, prompts, tmp_path / "p", config, "tiny")
    work.prepare()
    work.write_prompts(0)
    with pytest.raises(FileNotFoundError, match=r"000001.arrow is missing"):
        work.finish()
    with pytest.raises(FileNotFoundError, match="no pair store"):
        PairStore.open(tmp_path / "p")


class _Masked(Pipeline):
    """A pipeline whose text has a mask: as many tokens as the prompt has words."""

    def encode_prompt(self, prompts: list[str]) -> Condition:  # type: ignore[override]
        text = super().encode_prompt(prompts)["encoder_hidden_states"]
        words = torch.tensor([len(prompt.split()) for prompt in prompts])
        mask = (torch.arange(16) < words[:, None]).long()
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})

    def null_condition(self, negative_prompt: str | None = None) -> Condition:
        return self.encode_prompt(["none"])


def test_text_is_trimmed_to_its_mask(
    pipeline: Pipeline, prompts: list[str], tmp_path: Path, config: GenerateConfig
) -> None:
    masked = _Masked(pipeline.diffusers, pipeline.denoiser)
    store = generate(masked, prompts, tmp_path, config, teacher_name="t", progress=False)
    full = masked.encode_prompt(list(store.prompts))
    for k, prompt in enumerate(store.prompts):
        one = store.condition([k])
        words = len(prompt.split())
        text = full["encoder_hidden_states"][k : k + 1, :words].half().float()
        assert torch.equal(one["encoder_hidden_states"], text)
        assert one["encoder_attention_mask"].tolist() == [[1] * words]
    together = store.condition([2, 0])  # 1 and 3 words
    assert together["encoder_attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert together["encoder_attention_mask"].dtype == torch.int64
    assert together["encoder_hidden_states"][0, 1:].abs().max() == 0
    assert store.manifest.conditions["encoder_hidden_states"].shape == (None, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_pairs": 0}, "num_pairs is 0; it must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"embeddings": "int4"}, "embeddings is 'int4'; it must be one of 'exact', 'int8'"),
        ({"noise": "none"}, "noise is 'none'; it must be one of 'stored', 'drawn'"),
        ({"compute": "int8"}, "compute is 'int8'"),
        ({"dtype": "float64"}, "dtype is 'float64'; it must be one of 'float16'"),
    ],
)
def test_config_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GenerateConfig(), **changes)


def test_what_cannot_be_made_is_refused_before_the_folder_is(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    def refuse(prompt: str) -> None:
        if "moon" in prompt:
            raise ValueError(f"unknown word in {prompt!r}")

    picky = Pipeline(pipeline.diffusers, pipeline.denoiser, check_prompt=refuse)
    for pipe, texts, changed, message in (
        (picky, prompts, config, "unknown word in 'green moon'"),
        (pipeline, [], config, "at least one text"),
        (pipeline, "a cat", config, "at least one text"),
        (
            pipeline,
            prompts,
            replace(config, num_inference_steps=1001),
            "num_inference_steps is 1001",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Generation(pipe, texts, tmp_path / "p", changed, "t")
        assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("family", "prompts", "labels"),
    [
        ("ddpm", [""], None),
        ("ddpm-classes", ["3", "0", "1"], [3, 0, 1]),
        ("dit", ["goldfish", "2", ""], [1, 2, 3]),
    ],
)
def test_teachers_without_text_make_pairs(
    family: str, prompts: list[str], labels: list[int] | None, tmp_path: Path
) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline(family))
    config = GenerateConfig(
        num_pairs=5, num_inference_steps=2, guidance=1, batch_size=2, shard_size=3
    )
    work = Generation(pipeline, prompts, tmp_path / "p", config, "t")
    assert work.dry_run().prompts == len(prompts)
    store = generate(pipeline, prompts, tmp_path / "p", config, teacher_name="t", progress=False)
    store.verify()
    assert store.prompts == tuple(prompts)
    batch = store.read(range(5))
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    told = Condition()
    if labels is not None:
        told = Condition({"class_labels": torch.tensor([labels[i % 3] for i in range(5)])})
        assert batch.condition["class_labels"].tolist() == told["class_labels"].tolist()
    with torch.no_grad():
        x0 = sample(pipeline.denoiser, plan, batch.noise, told)
    torch.testing.assert_close(batch.x0, x0.half().float(), rtol=2**-9, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "prompts", "guidance", "message"),
    [
        ("ddpm", ["a red cat"], 1, 'is unconditional: give the empty prompt, ""'),
        ("ddpm", [""], 3, "is unconditional, so there is nothing to guide it by"),
        (
            "ddpm-classes",
            ["1", "4"],
            1,
            "'4' is no class of this network; give a number from 0 to 3",
        ),
        ("ddpm-classes", [""], 1, "'' is no class"),
        ("ddpm-classes", ["1"], 3, "no class that stands for none"),
        ("dit", ["1", "goldfsh"], 1, "'goldfsh' is no class .* such as goldfish"),
    ],
)
def test_what_is_no_prompt_of_theirs_is_told_before_any_work(
    family: str, prompts: list[str], guidance: float, message: str, tmp_path: Path
) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline(family))
    config = GenerateConfig(num_pairs=2, num_inference_steps=1, guidance=guidance)
    with pytest.raises(ValueError, match=message):
        generate(pipeline, prompts, tmp_path / "p", config, teacher_name="t", progress=False)
    assert not (tmp_path / "p").exists()
