from __future__ import annotations

import subprocess
import sys

import torch

from nitrodistill.cli.main import main
from nitrodistill.models import Pipeline, PruneSpec, prune

PLAIN = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
prompt = "a small red circle on a black background"
image = pipe(prompt, num_inference_steps=2, guidance_scale=0, generator=generator, output_type="pt").images
assert "nitrodistill" not in sys.modules
print(pipe.unet.config.mid_block_type, sum(p.numel() for p in pipe.unet.parameters()), float(image.mean()))
"""


def test_a_pruned_pipeline_draws_in_plain_diffusers(place, capsys):
    spec, output = place.root / "cut.yaml", place.root / "pruned"
    spec.write_text("keep: {mid_block: [], up_blocks.0.attentions: []}\n")
    asked = [
        "prune",
        "--teacher",
        str(place.teacher),
        "--spec",
        str(spec),
        "--output",
        str(output),
        "--map",
    ]
    assert main(asked) == 0
    said = capsys.readouterr().out
    teacher = Pipeline.load(place.teacher)
    student = prune(teacher.denoiser, PruneSpec({"mid_block": (), "up_blocks.0.attentions": ()}))
    before, after = (
        sum(p.numel() for p in d.module.parameters()) for d in (teacher.denoiser, student)
    )
    (line,) = [line for line in said.splitlines() if line.startswith("parameters")]
    assert line.split() == ["parameters", f"{before:,}", f"{after:,}", f"{after / before:.1%}"]
    assert "GFLOPs" in said
    assert "milliseconds" in said
    assert "up_blocks.0.resnets.1.conv1.weight <- up_blocks.0.resnets.1.conv1.weight" in said
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(output)], capture_output=True, text=True, check=True
    )
    kind, count, mean = done.stdout.split()
    assert (kind, int(count)) == ("None", after)
    assert torch.isfinite(torch.tensor(float(mean)))
    loaded = Pipeline.load(output).denoiser.module.state_dict()
    assert all(torch.equal(loaded[name], v) for name, v in student.module.state_dict().items())
    assert main(asked) == 2
    assert "holds something that is not an earlier export" in capsys.readouterr().err


def test_a_search_proposes_within_the_budget(place, capsys):
    pairs, ranking = place.root / "pairs", place.root / "ranking"
    make = ["generate", "--teacher", str(place.teacher), "--prompts", str(place.prompts)]
    assert main([*make, "--output", str(pairs), "--num-pairs", "3", "--num-inference-steps=2"]) == 0
    search = ["prune", "--teacher", str(place.teacher), "--latents", str(pairs), "--quiet"]
    search += ["--ranking", str(ranking)]
    capsys.readouterr()
    assert main([*search, "--parameters", "0.8"]) == 0
    first = capsys.readouterr().out
    assert "keep: {" in first
    (line,) = [line for line in first.splitlines() if line.startswith("parameters")]
    assert float(line.split()[-1].rstrip("%")) <= 80
    assert (ranking / "importance.md").read_text().startswith("| left out |")
    assert (ranking / "importance.svg").read_text().startswith("<svg ")
    assert main([*search, "--flops", "0.9"]) == 0
    assert capsys.readouterr().out.split("keep")[0] == first.split("keep")[0]  # not measured anew
    assert main([*search, "--flops", "0.9", "--seed", "1"]) == 2
    assert "is of another search" in capsys.readouterr().err


def test_mistakes_are_one_sentence(place, capsys):
    teacher = ["prune", "--teacher", str(place.teacher)]
    for more, words in (
        ([], "give either --spec, or --latents"),
        (["--spec", "bk-small", "--latents", "x"], "give either --spec, or --latents"),
        (["--spec", "bk-small", "--flops", "0.5"], "--flops means nothing here: it is of a search"),
        (["--latents", "x"], "a search needs one budget"),
        (["--latents", "x", "--flops", "1.5"], "it must be between 0 and 1"),
        (["--spec", "bk-smal"], "did you mean 'bk-small'"),
        (["--spec", "bk-small"], "bk-small is for UNets of four levels"),
        (["--spec", "nowhere.yaml"], "nowhere.yaml"),
        (["--latents", "x", "--flops", "0.5", "--batch-size", "0"], "batch_size is 0"),
    ):
        assert main([*teacher, *more]) == 2
        assert words in capsys.readouterr().err
