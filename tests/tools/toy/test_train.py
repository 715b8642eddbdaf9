from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nitrodistill.toy.manifest import WEIGHTS
from nitrodistill.toy.oracle import Oracle, load_oracle
from nitrodistill.toy.pipeline import load_pipeline
from tools.toy.loop import build
from tools.toy.train import assemble, main, save_weights, train, write_manifest
from tools.toy.train_teacher import Teacher
from tools.toy.train_vae import make_vae, normalise_latents

STEPS = {"oracle": 2, "vae": 2, "teacher": 1}


def test_written_weights_load_as_their_fp16_rounding(tmp_path: Path):
    vae = normalise_latents(build(make_vae, 0).requires_grad_(False), seed=0, count=64)
    teacher, oracle = build(Teacher, 1), build(Oracle, 2)
    expected = [p.detach().half().float() for m in (vae, teacher, oracle) for p in m.parameters()]
    save_weights(assemble(vae, teacher), oracle, tmp_path)
    write_manifest(tmp_path)
    loaded = load_pipeline(tmp_path)
    parts = (loaded.vae, loaded.text_encoder, loaded.unet, load_oracle(tmp_path))
    found = [p.detach() for m in parts for p in m.parameters()]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert loaded.vae.config["scaling_factor"] == vae.config["scaling_factor"]


def test_text_encoder_is_written_with_names_that_transformers_4_reads():
    with safe_open(WEIGHTS / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 - not a dict
    vocabulary = json.loads((WEIGHTS / "tokenizer" / "vocab.json").read_text())
    assert vocabulary == load_pipeline().tokenizer.get_vocab()


def test_stages_run_up_to_the_one_asked_for(tmp_path: Path):
    train(tmp_path, "vae", 0, torch.device("cpu"), STEPS)
    assert {p.name for p in tmp_path.iterdir()} == {
        "oracle.checkpoint.safetensors",
        "vae.checkpoint.safetensors",
    }


def test_command_line_refuses_no_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "new"
    monkeypatch.setattr("sys.argv", ["train", "--output", str(output), "--oracle-steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "0 steps; give at least 1" in capsys.readouterr().err
    assert not output.exists()


def test_shipped_metrics_reach_their_targets():
    metrics = json.loads((WEIGHTS / "metrics.json").read_text())
    assert metrics["oracle"]["joint"] >= 0.995
    assert metrics["teacher"]["joint"] >= 0.96
