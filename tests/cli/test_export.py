"""A LoRA run on the command line: train with an option, then export both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from nitrodistill.cli.main import main
from nitrodistill.models import Pipeline
from nitrodistill.sampling import sample
from nitrodistill.teachers import load_teacher
from nitrodistill.toy.manifest import WEIGHTS
from nitrodistill.training import find_checkpoints, load_recipe, load_student

PROMPT = "a small red circle on a black background"
FAST = (
    "--stages.trainer.optimizers.student.learning_rate",
    "0.1",
    "--stages.trainer.optimizers.student.ema_decay",
    "0.5",
)


def _run(place, *options: str) -> str:
    output = place.root / "run"
    arguments = ["--config", str(place.recipe), "--output", str(output), "--quiet", *options]
    assert main(["train", *arguments]) == 0
    return str(output)


def _exporting(seen: dict[str, object]):
    """Stands in for an export: keeps its options, writes a card."""

    def export(pipeline, student, plan, output, **options):
        seen.update(options)
        Path(output).mkdir()
        (Path(output) / "README.md").write_text("```python\npipe()\n```\n")

    return export


def _drawn(pipe, **size) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "latent"}
    return pipe(PROMPT, **call, **size, generator=generator).images


@pytest.mark.usefixtures("here")
def test_a_lora_run_is_exported_merged_and_as_a_file(place, capsys):
    run = _run(place, "--stages.lora.rank", "2", "--stages.lora.alpha", "3", *FAST)
    lora = load_recipe(f"{run}/recipe.yaml").stages[0].lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (2, 3.0)

    merged, file = place.root / "merged", place.root / "lora"
    assert main(["export", "--run", run, "--output", str(merged)]) == 0
    assert "num_inference_steps=1, guidance_scale=0" in capsys.readouterr().out
    assert main(["export", "--run", run, "--output", str(file), "--lora"]) == 0
    assert f'  pipe.load_lora_weights("{file}")\n' in capsys.readouterr().out
    for folder in (merged, file):
        test = json.loads((folder / "nitrodistill.json").read_text())["self_test"]
        assert max(test["latents"], test["images"]) <= 1e-5
    card = (file / "README.md").read_text()
    assert f'from_pretrained("{place.teacher}")' in card

    average = find_checkpoints(place.root / "run")[0].tensors("student.ema")
    written = load_file(file / "pytorch_lora_weights.safetensors")
    assert {f"unet.{name}": 0 for name in average}.keys() == written.keys()
    assert all(torch.equal(written[f"unet.{name}"], value) for name, value in average.items())

    base = DiffusionPipeline.from_pretrained(place.teacher)
    base.scheduler = type(base.scheduler).from_pretrained(file, subfolder="scheduler")
    teachers = _drawn(base)
    base.load_lora_weights(file)
    ours, theirs = _drawn(base), _drawn(DiffusionPipeline.from_pretrained(merged))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, teachers, rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("here")
def test_a_lora_run_of_the_embedded_transformer_is_exported_merged(place, capsys):
    """Its pipeline loads no LoRA, and knows resolution bins for other sizes than its own."""
    pairs = str(place.root / "pairs")
    arguments = ["--prompts", str(place.prompts), "--num_pairs", "4", "--num_inference_steps", "1"]
    assert main(["generate", "--teacher", "toy-dit", *arguments, "--output", pairs]) == 0
    settings = {"adversarial": "hinge", "updates": "shared", "head": "token", "timestep": 400}
    data = yaml.safe_load(place.recipe.read_text()) | {"teacher": "toy-dit", "pairs": pairs}
    data["stages"][0]["settings"] = {**settings, "taps": ["transformer_blocks.2"]}
    place.recipe.write_text(yaml.safe_dump(data))
    run = _run(place, "--stages.lora.rank", "2", *FAST)

    output = str(place.root / "pipeline")
    assert main(["export", "--run", run, "--output", output, "--lora"]) == 2
    assert "PixArtSigmaPipeline cannot load LoRA weights" in capsys.readouterr().err
    assert main(["export", "--run", run, "--output", output]) == 0
    size = "height=32, width=32, use_resolution_binning=False"
    assert f"num_inference_steps=1, clean_caption=False, guidance_scale=0, {size})" in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(output)
    student = load_student(run, load_teacher("toy-dit"))
    call = {"height": 32, "width": 32, "use_resolution_binning": False}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = load_teacher("toy-dit").encode_prompt([PROMPT])
        x0 = sample(student.denoiser, student.plan, noise, condition)
    torch.testing.assert_close(_drawn(pipe, **call), x0, rtol=1e-4, atol=1e-4)


def test_a_lora_run_is_evaluated_and_its_numbers_go_into_the_card(place, monkeypatch):
    run = _run(place, "--stages.lora.rank", "2")
    numbers = ["--num_samples", "4", "--num_inference_steps", "2", "--cost_repeats", "0"]
    assert main(["evaluate", "--run", run, *numbers]) == 0
    seen = {}
    monkeypatch.setattr("nitrodistill.export.export", _exporting(seen))
    assert main(["export", "--run", run, "--output", str(place.root / "out")]) == 0
    assert seen["metrics"] is not None, "evaluate measured the student that export writes"


def test_an_embedded_teacher_is_named_by_its_folder_in_the_lora_card(place, tmp_path, monkeypatch):
    from nitrodistill.data import GenerateConfig, generate
    from nitrodistill.toy import check_prompt, load_pipeline

    teacher = Pipeline.from_diffusers(load_pipeline(), check_prompt=check_prompt)
    config = GenerateConfig(num_pairs=4, num_inference_steps=1)
    generate(teacher, [PROMPT], tmp_path / "toys", config, teacher_name="toy", progress=False)
    data = yaml.safe_load(place.recipe.read_text()) | {"teacher": "toy"}
    place.recipe.write_text(yaml.safe_dump(data | {"pairs": str(tmp_path / "toys")}))
    run = _run(place, "--stages.lora.rank", "1")
    seen = {}
    monkeypatch.setattr("nitrodistill.export.export_lora", _exporting(seen))
    assert main(["export", "--run", run, "--output", str(place.root / "out"), "--lora"]) == 0
    assert seen["base_model"] == str(WEIGHTS)


def test_a_run_of_a_whole_network_has_no_lora_file(place, capsys):
    run = _run(place)
    assert main(["export", "--run", run, "--output", str(place.root / "out"), "--lora"]) == 2
    assert "is a whole network; leave it out, or train with `lora`" in capsys.readouterr().err
    assert not (place.root / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--stages.lora.rnak", "2"), "'stages.0.lora.rnak'; did you mean 'rank'?"),
        (("--stages.lora.rank", "0"), "rank is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_lora_are_told_in_a_sentence(place, capsys, options, sentence):
    output = str(place.root / "run")
    assert main(["train", "--config", str(place.recipe), "--output", output, *options]) == 2
    assert sentence in capsys.readouterr().err
