from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.data import GenerateConfig, PairStore, generate, merge, statistics
from nitrodistill.models import Pipeline


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
        config = GenerateConfig(num_pairs=1, steps=2, seed=9)
        other = generate(
            pipeline, ["sun"], tmp_path / "o", config, teacher_name="t", progress=False
        )
    finally:
        with torch.no_grad():
            parameter.copy_(saved)
    with pytest.raises(ValueError, match=r"another conditioning for the prompt 'sun'"):
        merge([made, other], tmp_path / "p")
    assert not (tmp_path / "p").exists()


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
