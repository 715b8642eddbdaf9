from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.data import GenerateConfig, PairStore, generate, merge, statistics
from nitrodistill.models import Pipeline

Rewrite = Callable[[PairStore, str, Callable[[dict[str, list[Any]]], None]], None]


@pytest.fixture(scope="module")
def drawn(
    pipeline: Pipeline, config: GenerateConfig, tmp_path_factory: pytest.TempPathFactory
) -> list[PairStore]:
    """Two stores of drawn noise and int8 text with other seeds and some prompts in common."""
    stores = []
    for seed, prompts in ((5, ["sun", "blue", "ten"]), (6, ["moon", "blue"])):
        path = tmp_path_factory.mktemp("drawn") / str(seed)
        made = replace(config, seed=seed, num_pairs=5, noise="drawn", embeddings="int8")
        stores.append(generate(pipeline, prompts, path, made, teacher_name="t", progress=False))
    return stores


def test_a_merged_store_holds_the_rows_of_all(drawn: list[PairStore], tmp_path: Path) -> None:
    store = merge(drawn, tmp_path / "p", progress=False)
    store.verify()
    assert len(store) == 10
    assert store.prompts == ("sun", "blue", "ten", "moon")
    assert [source.seed for source in store.manifest.generated] == [5, 6]
    for start, part in ((0, drawn[0]), (5, drawn[1])):
        for i in range(5):
            here = store.read([start + i], dtype=None)
            there = part.read([i], dtype=None)
            assert torch.equal(here.x0, there.x0)
            assert torch.equal(here.noise, there.noise)  # drawn from its own source's seed
            name = "encoder_hidden_states"
            assert torch.equal(here.condition[name], there.condition[name])
            assert here.condition.prompt_ids is not None
            assert there.condition.prompt_ids is not None
            text = store.prompts[int(here.condition.prompt_ids)]
            assert text == part.prompts[int(there.condition.prompt_ids)]
    merge(drawn, tmp_path / "p", progress=False)  # again: nothing to do
    third = merge([store], tmp_path / "q", progress=False)  # a merged store is a store
    assert torch.equal(third.read([7]).noise, store.read([7]).noise)


def test_what_does_not_go_together_is_refused(
    made: PairStore, drawn: list[PairStore], pipeline: Pipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no stores"):
        merge([], tmp_path / "p")
    with pytest.raises(ValueError, match="hold the same pairs; name each once"):
        merge([made, made], tmp_path / "p")
    with pytest.raises(ValueError, match=r"store their columns differently \(noise: "):
        merge([made, drawn[0]], tmp_path / "p")
    encoder = pipeline.diffusers.text_encoder
    with torch.no_grad():
        parameter = next(encoder.parameters())
        saved = parameter.clone()
        parameter.add_(1)
    try:
        config = GenerateConfig(num_pairs=1, num_inference_steps=2, seed=9)
        other = generate(
            pipeline, ["sun"], tmp_path / "o", config, teacher_name="t", progress=False
        )
    finally:
        with torch.no_grad():
            parameter.copy_(saved)
    with pytest.raises(ValueError, match=r"another conditioning for the prompt 'sun'"):
        merge([made, other], tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_merge_verifies_what_it_reads(
    copied: Path, drawn: list[PairStore], rewritten: Rewrite, tmp_path: Path
) -> None:
    store, manifest = PairStore.open(copied), (copied / "manifest.json").read_text()
    for kind in ("shards", "prompts"):  # rows that are whole, in a file that is not the manifest's
        shutil.copy(copied / kind / "000000.arrow", tmp_path / "saved")
        rewritten(store, kind, lambda rows: None)
        (copied / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match=rf"{kind}.000000.arrow is damaged: its hash is not"):
            merge([store], tmp_path / kind, progress=False)
        assert not (tmp_path / kind / kind / "000000.arrow").exists()
        (tmp_path / "saved").replace(copied / kind / "000000.arrow")
    merged = merge(drawn, tmp_path / "q", progress=False)  # indices 0 to 4, twice
    assert merged.read([9]).x0.shape == (1, 2, 4, 4)
    shutil.copy(tmp_path / "q/shards/000000.arrow", tmp_path / "q/shards/000001.arrow")
    with pytest.raises(ValueError, match=r"000001.arrow does not hold the rows"):
        merge([PairStore(merged.path, merged.manifest)], tmp_path / "r", progress=False)


def test_a_prompt_that_there_is_not_is_told(
    copied: Path, rewritten: Rewrite, tmp_path: Path
) -> None:
    rewritten(PairStore.open(copied), "shards", lambda rows: rows.update(prompt_id=[0, 1, 2, 9]))
    with pytest.raises(ValueError, match=r"000000.arrow is damaged: it names a prompt that is not"):
        merge([PairStore.open(copied)], tmp_path / "p", progress=False)


def test_a_number_that_is_none_stays_none(copied: Path, rewritten: Rewrite) -> None:
    def change(rows: dict[str, list[Any]]) -> None:
        nan = torch.tensor(float("nan"), dtype=torch.float16).numpy().tobytes()
        rows["x0"][0] = nan + rows["x0"][0][2:]

    rewritten(PairStore.open(copied), "shards", change)
    values = statistics(PairStore.open(copied)).values
    assert all(math.isnan(value) for value in dataclasses.astuple(values["x0"]))
    assert not any(math.isnan(value) for value in dataclasses.astuple(values["noise"]))


def test_statistics_are_those_of_the_tensors(made: PairStore, drawn: list[PairStore]) -> None:
    found = statistics(made)
    batch = made.read(range(11))
    for name, value in (("x0", batch.x0), ("noise", batch.noise)):
        values = found.values[name]
        assert values.mean == pytest.approx(float(value.double().mean()), rel=1e-9)
        assert values.std == pytest.approx(float(value.double().std(correction=0)), rel=1e-9)
        assert (values.low, values.high) == (float(value.min()), float(value.max()))
    assert (found.samples, found.prompts, found.files, found.looked_at) == (11, 6, 5, 11)
    sizes = [p.stat().st_size for p in made.path.rglob("*.arrow")]
    assert found.size_bytes == sum(sizes)
    assert (found.tokens, found.int8_error, found.noise_error) == ({}, {}, None)
    lossy = statistics(drawn[0], most=2)
    assert lossy.looked_at == 2
    assert lossy.noise_error == 0
    mean, largest = lossy.int8_error["encoder_hidden_states"]
    assert 0 < mean <= largest < 0.01
