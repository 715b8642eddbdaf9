"""The data of a recipe: each part from its own store, in its own order, checked against the teacher."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nitrodistill.data import BatchStream, PairStore, together
from nitrodistill.methods import LADDConfig
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.prediction import Clamp
from nitrodistill.training.sources import Sources, recipe_prompts, teacher_draws
from tests.pipelines import make_pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_diffusers, tiny_scheduler):
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


@pytest.fixture
def recipe(make_recipe, make_matching, pairs):
    """One that has all three parts."""
    prompts = make_matching("recipe").prompts
    return dataclasses.replace(make_recipe(LADDConfig()), real=str(pairs), prompts=prompts)


def test_each_part_is_what_its_store_holds(recipe, pipeline, pairs, tiny):
    sources = Sources.open(recipe, pipeline)
    streams = [
        BatchStream(s, seed=0, batch_size=4) for s in sources.of({"prompts", "pairs", "real"})
    ]
    batch, store = together(streams)(1), PairStore.open(pairs)
    assert batch.index.tolist() == [4, 5, 6, 7]
    assert set(batch.parts()) == {"pairs", "real", "prompts"}
    rows = {stream.source.part: [stream.row(n) for n in batch.index.tolist()] for stream in streams}
    assert torch.equal(batch.pairs.x0, store.read(rows["pairs"]).x0)
    assert torch.equal(batch.pairs.noise, store.read(rows["pairs"]).noise)
    assert torch.equal(batch.real.x0, store.read_latents(rows["real"]).x0)
    assert batch.prompts.prompt_ids.tolist() == rows["prompts"]
    texts = [tiny.prompts[row] for row in rows["prompts"]]
    expected = pipeline.encode_prompt(texts)
    for name, value in expected.tensors.items():
        assert torch.equal(batch.prompts[name], value)
    assert [s.part for s in sources.of({"prompts"})] == ["prompts"]


def test_the_prompts_of_a_store_are_those_it_was_made_with(recipe, pipeline, pairs):
    """Encoded already: the same tensors as a text file gives, without the text encoder."""
    stored = Sources.open(dataclasses.replace(recipe, prompts=str(pairs)), pipeline).texts
    typed = Sources.open(recipe, pipeline).texts
    assert stored is not None
    assert typed is not None
    assert stored.prompts == typed.prompts
    assert stored.identity() == typed.identity()
    one, other = stored.read([1, 0, 1]), typed.read([1, 0, 1])
    assert one.prompt_ids.tolist() == other.prompt_ids.tolist() == [1, 0, 1]
    for name in one.tensors:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)  # kept in float16


def test_identities_name_every_part_and_see_a_changed_prompt(recipe, pipeline, tmp_path):
    before = Sources.open(recipe, pipeline).identities()
    assert set(before) == {"pairs", "real", "prompts"}
    (tmp_path / "prompts.txt").write_text("a small red circle on a black background")
    after = Sources.open(recipe, pipeline).identities()
    assert {n for n in before if before[n] != after[n]} == {"prompts"}


def test_prompts_of_a_recipe_without_a_teacher(recipe, tiny):
    assert recipe_prompts(recipe) == tiny.prompts
    alone = dataclasses.replace(recipe, pairs=None, real=None)
    assert recipe_prompts(alone) == tiny.prompts
    assert recipe_prompts(dataclasses.replace(alone, prompts=None)) == ()


def test_the_teacher_draws_as_it_drew_the_pairs_unless_the_recipe_says_otherwise(recipe):
    assert teacher_draws(recipe) == (2, 2.0)
    other = dataclasses.replace(recipe, num_inference_steps=7, guidance=1.0)
    assert teacher_draws(other) == (7, 1.0)
    alone = dataclasses.replace(recipe, pairs=None)
    assert teacher_draws(alone) == (25, 3.0)


def test_what_does_not_fit_the_teacher_is_refused(recipe, pipeline, tiny_diffusers, tiny_scheduler):
    small = tiny_diffusers(tiny_scheduler)
    small.unet.register_to_config(sample_size=4)
    real = dataclasses.replace(recipe, pairs=None)
    with pytest.raises(
        ValueError, match=r"have the shape \(4, 8, 8\), and this teacher's \(4, 4, 4\)"
    ):
        Sources.open(real, Pipeline.from_diffusers(small))

    def check(prompt):
        raise ValueError(f"{prompt!r} holds a word that nobody knows.")

    own = pipeline.denoiser
    clamped = DiffusersDenoiser(own.module, own.schedule, own.prediction_type, clamp=Clamp())
    with pytest.raises(
        ValueError, match=r"by teacher 'tiny' with clamp: None; .* are clamp: Clamp"
    ):
        Sources.open(recipe, Pipeline(pipeline.diffusers, clamped))
    strict = Pipeline(pipeline.diffusers, pipeline.denoiser, check)
    with pytest.raises(ValueError, match="holds a word that nobody knows"):
        Sources.open(recipe, strict)
    for name in ("pairs", "real", "prompts"):
        with pytest.raises(FileNotFoundError):
            Sources.open(dataclasses.replace(recipe, **{name: "nowhere"}), pipeline)


def test_the_empty_prompt_is_all_that_an_unconditional_teacher_is_told(recipe):
    pixels = Pipeline.from_diffusers(make_pipeline("ddpm"))
    alone = dataclasses.replace(recipe, pairs=None, real=None, prompts="")
    assert recipe_prompts(alone) == ("",)
    (source,) = Sources.open(alone, pixels).of({"prompts"})
    batch = BatchStream(source, seed=0, batch_size=4)(1)
    assert batch.prompts is not None
    assert batch.prompts.tensors == {}
    assert batch.prompts.prompt_ids.tolist() == [0] * 4
    assert batch.index.tolist() == [4, 5, 6, 7]


def test_prompts_may_be_a_column_of_a_table(recipe, pipeline, tmp_path):
    (tmp_path / "texts.csv").write_text(
        "n,caption\n1,a red circle\n2,a blue ring\n3,a red circle\n"
    )
    place = f"{tmp_path / 'texts.csv'}:caption"
    alone = dataclasses.replace(recipe, pairs=None, real=None, prompts=place)
    assert recipe_prompts(alone) == ("a red circle", "a blue ring")
    (source,) = Sources.open(alone, pipeline).of({"prompts"})
    assert source.prompts == recipe_prompts(alone)
