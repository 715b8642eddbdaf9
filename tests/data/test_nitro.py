from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nitrodistill.data import NitroConfig, NitroImport, PairStore, complete
from nitrodistill.data.nitro import is_nitro

TEACHER = ("pixart", "fingerprint", "epsilon")
PROMPTS = ["a cat", "", "two dogs", "a cat", "sun"]
NUMBERS = (0, 2, 3, 10)
LINES = [*PROMPTS, *["x"] * 5, "ten"]


class Runs:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "nitro"
    generator = torch.Generator().manual_seed(0)
    for name in ("latents", "noises", "txt_embs"):
        (root / name).mkdir(parents=True)
    for n in NUMBERS:
        for name in ("latents", "noises"):
            value = torch.randn(4, 8, 8, generator=generator).half()
            torch.save(value, root / name / f"{n}.pth")
        words = len(LINES[n].split()) + 1
        mask = (torch.arange(6) < words).long()
        text = torch.randn(6, 32, generator=torch.Generator().manual_seed(len(LINES[n]))).half()
        inner = {"text_embeds": text[0], "time_ids": torch.tensor([64, 64])}
        data = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        torch.save({**data, "added_cond_kwargs": inner}, root / "txt_embs" / f"{n}.pth")
    return root


def load(folder: Path, out: Path, prompts: list[str] | None = None, **options: object) -> PairStore:
    config = NitroConfig(batch_size=2, shard_size=3, **options)  # type: ignore[arg-type]
    return complete(NitroImport(folder, out, config, TEACHER, prompts), progress=False)


def test_samples_come_over_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    assert is_nitro(folder)
    assert not is_nitro(tmp_path)
    store = load(folder, tmp_path / "p", LINES)
    store.verify()
    assert store.prompts == ("a cat", "two dogs", "ten")
    batch = store.read(range(4), dtype=None)
    for row, n in enumerate(NUMBERS):
        for name, value in (("latents", batch.x0), ("noises", batch.noise)):
            assert torch.equal(value[row], torch.load(folder / name / f"{n}.pth"))
    for row, n in ((0, 0), (1, 2), (3, 10)):
        there = torch.load(folder / "txt_embs" / f"{n}.pth")
        words = int(there["encoder_attention_mask"].sum())
        one = store.read([row], dtype=None).condition
        assert torch.equal(one["encoder_hidden_states"][0], there["encoder_hidden_states"][:words])
        assert one["encoder_attention_mask"].tolist() == [[1] * words]
        assert torch.equal(one["text_embeds"][0], there["added_cond_kwargs"]["text_embeds"])
        assert one["time_ids"].tolist() == [[64, 64]]
    store.check_teacher("fingerprint")
    assert store.paired
    [source] = store.manifest.teachers
    assert (source.kind, source.num_inference_steps, source.guidance) == ("imported", 50, 3.0)


def test_without_the_prompt_file_the_texts_are_lost_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    store = load(folder, tmp_path / "p", embeddings="int8")
    assert store.prompts[3] == "(prompt 10 of an import)"
    assert len(store.prompts) == 4
    assert store.manifest.conditions["encoder_hidden_states"].encoding == "int8"
    assert store.manifest.conditions["time_ids"].encoding == "raw"


def test_pickled_code_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (folder / "noises/2.pth").write_bytes(pickle.dumps(Runs(trap)))
    with pytest.raises(ValueError, match=r"noises/2.pth cannot be read"):
        load(folder, tmp_path / "p")
    torch.save({"encoder_hidden_states": Runs(trap)}, folder / "txt_embs/2.pth")
    with pytest.raises(ValueError, match=r"txt_embs/2.pth cannot be read"):
        load(folder, tmp_path / "q")
    assert not trap.exists()


def test_a_torn_sample_is_named_and_what_was_done_stays(folder: Path, tmp_path: Path) -> None:
    path = folder / "latents/10.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"latents/10.pth cannot be read: it is torn"):
        load(folder, tmp_path / "p")
    assert (tmp_path / "p/shards/000000.arrow").exists()
    path.write_bytes(whole)
    assert len(load(folder, tmp_path / "p")) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe(folder: Path, tmp_path: Path) -> None:
    (folder / "latents/10.pth").unlink()
    os.mkfifo(folder / "latents/10.pth")
    with pytest.raises(FileNotFoundError, match=r"sample 10 .* lacks one of its three files"):
        load(folder, tmp_path / "p")


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample 10 has no line in the prompt file, which has 5"):
        load(folder, tmp_path / "p", PROMPTS)
    torch.save(torch.zeros(4, 8, 9), folder / "latents/3.pth")
    with pytest.raises(ValueError, match=r"the latents 3 to 3 have shapes \[\(4, 8, 9\)\]"):
        load(folder, tmp_path / "p")
    torch.save([1], folder / "latents/3.pth")
    with pytest.raises(ValueError, match=r"latents/3.pth holds list and not a tensor"):
        load(folder, tmp_path / "p")
    torch.save(torch.full((4, 8, 8), torch.inf), folder / "latents/3.pth")
    with pytest.raises(ValueError, match=r"x0 of the samples \[2\] is not finite"):
        load(folder, tmp_path / "p")
    torch.save([1], folder / "txt_embs/0.pth")
    with pytest.raises(ValueError, match=r"txt_embs/0.pth holds list and not a dict"):
        load(folder, tmp_path / "q")
    (folder / "noises/0.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample 0 .* lacks one of its three"):
        load(folder, tmp_path / "q")
    with pytest.raises(FileNotFoundError, match="no folder of Nitro's"):
        load(tmp_path, tmp_path / "q")
    assert not (tmp_path / "q").exists()
