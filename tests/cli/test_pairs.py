from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from nitrodistill.cli.main import main
from nitrodistill.cli.pairs import ACTIONS
from nitrodistill.data import PairStore

push_module = "nitrodistill.data.push"


@pytest.mark.parametrize("action", list(ACTIONS))
def test_help_has_a_paragraph_options_and_an_example(action, capsys):
    assert main(["pairs", action, "--help"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.split("options:")[0]) > 200
    assert f"nitrodistill pairs {action}" in printed.split("example:")[1]


def test_the_actions_are_listed_and_a_wrong_one_is_a_mistake(capsys):
    assert main(["pairs", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {action} " in printed for action in ACTIONS)
    assert main(["pairs"]) == 2
    capsys.readouterr()
    assert main(["pairs", "verfy"]) == 2
    assert "did you mean 'verify'?" in capsys.readouterr().err
    assert main(["pairs", "xyzzy"]) == 2
    assert "known are verify, stats, merge, import, push" in capsys.readouterr().err


def test_what_is_missing_is_named_as_it_is_given(capsys):
    for action, needed in (
        ("verify", "STORE"),
        ("import", "PATH, --output"),
        ("push", "STORE, REPO"),
    ):
        assert main(["pairs", action]) == 2
        assert f"`nitrodistill pairs {action}` needs {needed}." in capsys.readouterr().err


def test_verify_says_whole_or_names_the_damage(place, capsys):
    store = PairStore.open(place.pairs)
    assert main(["pairs", "verify", str(place.pairs)]) == 0
    assert "is whole: 4 samples of 2 prompts." in capsys.readouterr().out
    copied = place.root / "copied"
    assert main(["pairs", "merge", str(place.pairs), "--output", str(copied), "--quiet"]) == 0
    shard = copied / "shards/000000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.index(store.pair_bytes(2)["x0"])] ^= 4
    shard.write_bytes(data)
    capsys.readouterr()
    assert main(["pairs", "verify", str(copied), "--quiet"]) == 2
    assert "000000.arrow is damaged" in capsys.readouterr().err
    assert main(["pairs", "verify", str(place.root / "none")]) == 2
    assert "no pair store at" in capsys.readouterr().err


def test_stats_for_people_and_for_programs(place, capsys):
    assert main(["pairs", "stats", str(place.pairs)]) == 0
    printed = capsys.readouterr().out
    assert "samples     4 of 2 prompts in 2 files" in printed
    assert "teacher tiny, num_inference_steps 2, guidance 2.0, seed 0" in printed
    assert main(["pairs", "stats", str(place.pairs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    noise = PairStore.open(place.pairs).read(range(4)).noise
    assert found["values"]["noise"]["std"] == pytest.approx(
        float(noise.std(correction=0)), rel=1e-5
    )
    assert found["sources"][0]["kind"] == "generated"


def test_stats_tell_what_the_options_lose(place, capsys):
    asked = ["generate", "--teacher", str(place.teacher), "--prompts", str(place.prompts)]
    asked += [
        "--output",
        str(place.root / "small"),
        "--num_pairs",
        "2",
        "--num_inference_steps",
        "1",
        "--quiet",
    ]
    assert main([*asked, "--embeddings", "int8", "--noise", "drawn"]) == 0
    capsys.readouterr()
    assert main(["pairs", "stats", str(place.root / "small")]) == 0
    printed = capsys.readouterr().out
    assert "int8        encoder_hidden_states: relative error 0." in printed
    assert "drawn noise differs by 0 from what was seen" in printed


def test_a_merge_that_cannot_be(place, capsys):
    asked = ["pairs", "merge", str(place.pairs), str(place.pairs)]
    assert main([*asked, "--output", str(place.root / "all")]) == 2
    assert "name each once" in capsys.readouterr().err
    assert not (place.root / "all").exists()


def test_import_of_nitro_s_folders_trains(place, capsys):
    folder = place.root / "nitro"
    pairs = PairStore.open(place.pairs)
    batch = pairs.read(range(4), dtype=None)
    for name, value in (("latents", batch.x0), ("noises", batch.noise)):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            torch.save(value[i].clone(), folder / name / f"{i}.pth")
    (folder / "txt_embs").mkdir()
    for i in range(4):
        text = {"encoder_hidden_states": batch.condition["encoder_hidden_states"][i].clone()}
        torch.save(text, folder / "txt_embs" / f"{i}.pth")
    lines = place.root / "lines.txt"
    lines.write_text("\n".join(pairs.prompts * 2))
    out = place.root / "imported"
    asked = ["pairs", "import", str(folder), "--teacher", str(place.teacher), "--output", str(out)]
    assert main([*asked, "--prompts", str(lines), "--quiet"]) == 0
    assert "4 samples of 2 prompts" in capsys.readouterr().out
    store = PairStore.open(out)
    assert torch.equal(store.read(range(4), dtype=None).x0, batch.x0)
    command = ["train", "--config", str(place.recipe), "--pairs", str(out), "--quiet"]
    assert main([*command, "--num_inference_steps", "1"]) == 0


def test_import_of_images_is_encode(place, capsys):
    folder = place.root / "images"
    folder.mkdir()
    Image.new("RGB", (20, 16)).save(folder / "a.png")
    (folder / "a.txt").write_text("a small red circle on a black background")
    asked = ["pairs", "import", str(folder), "--teacher", str(place.teacher)]
    asked += ["--output", str(place.root / "real"), "--quiet"]
    assert main([*asked, "--prompts", str(place.prompts)]) == 2
    assert "--prompts means nothing" in capsys.readouterr().err
    assert main(asked) == 0
    assert "1 images with 1 captions" in capsys.readouterr().out


def test_push_hands_over_the_store(place, monkeypatch, capsys):
    import nitrodistill.data.push  # noqa: F401

    seen = {}

    def push_store(store, repo, *, private):
        seen.update(path=store.path, repo=repo, private=private)
        return "address"

    monkeypatch.setattr(sys.modules[push_module], "push_store", push_store)
    assert main(["pairs", "push", str(place.pairs), "me/pairs", "--public"]) == 0
    assert capsys.readouterr().out == "address\n"
    assert seen == {"path": place.pairs, "repo": "me/pairs", "private": False}
