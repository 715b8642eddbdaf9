"""Makes the embedded teachers from scratch: `python -m tools.toy.train --output DIR`.

Stages, in order: `oracle`, `vae`, `teacher` (denoiser and text encoder), `evaluate` (fp16 weights, their manifest
and metrics). The teacher is the UNet, whose weights go to DIR/weights with the parts that all share, or with
`--network dit` the transformer, whose weights go to DIR/dit_weights. Each stage is seeded, writes atomic
checkpoints to DIR and goes on where it was stopped. To use two cores, run

    torchrun --nproc-per-node 2 -m tools.toy.train --output DIR

Each process computes with one thread, because these networks are too small to share one between threads.

What the shipped weights took, in one run of the second command on two cores of an AMD EPYC that had other work too
(torch 2.15, float32): 37 minutes, of which oracle 40 s, autoencoder 10 min, UNet and text encoder 23 min,
evaluation 3 min; 67 CPU-minutes in all. The result (2048 prompts, 25 steps, guidance 3) is in
nitrodistill/toy/weights/metrics.json: joint alignment .998, Fréchet distance to renders 5.0 on a floor of 1.4,
edge ratio .98 (autoencoder alone: .98). The transformer took about 35 CPU-minutes on the same autoencoder: 9000
steps in two processes, the last 3000 in one. Its result is in nitrodistill/toy/dit_weights/metrics.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import distributed

from nitrodistill.models.pipeline import fingerprint
from nitrodistill.toy.manifest import DIT_WEIGHTS, MANIFEST, WEIGHTS, digest
from nitrodistill.toy.oracle import ORACLE_FILE, Oracle, load_oracle
from nitrodistill.toy.pipeline import AUTOENCODER, load_pipeline
from tools.toy.loop import LoopConfig, rank_and_size, save_atomic
from tools.toy.measure import measure_teacher
from tools.toy.text import make_tokenizer
from tools.toy.train_dit import DiTTeacher, make_dit_scheduler, train_dit
from tools.toy.train_oracle import train_oracle
from tools.toy.train_teacher import Teacher, make_scheduler, train_teacher
from tools.toy.train_vae import train_vae

STAGES: tuple[str, ...] = ("oracle", "vae", "teacher", "evaluate")
NETWORKS: tuple[str, ...] = ("unet", "dit")
STEPS: dict[str, int] = {"oracle": 2000, "vae": 8000, "teacher": 8000, "dit": 12_000}


def oracle_config(seed: int, steps: int) -> LoopConfig:
    """How the shipped oracle was trained."""
    return LoopConfig("oracle", steps, batch_size=64, learning_rate=2e-3, seed=seed)


def vae_config(seed: int, steps: int) -> LoopConfig:
    """How the shipped autoencoder was trained."""
    return LoopConfig("vae", steps, batch_size=24, learning_rate=2.5e-3, seed=seed)


def teacher_config(seed: int, steps: int) -> LoopConfig:
    """How the shipped UNet and text encoder were trained."""
    return LoopConfig(
        "teacher", steps, 64, learning_rate=1e-3, flat=0.4, ema_decay=0.998, seed=seed
    )


def dit_config(seed: int, steps: int) -> LoopConfig:
    """How the shipped transformer and its text encoder were trained."""
    return LoopConfig("dit", steps, 64, learning_rate=3e-3, flat=0.4, ema_decay=0.999, seed=seed)


def assemble(vae: AutoencoderKL, teacher: Teacher) -> StableDiffusionPipeline:
    """Puts the trained parts together."""
    # diffusers declares narrower types than it takes.
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=teacher.text_encoder,
        tokenizer=make_tokenizer(),
        unet=teacher.unet,
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def assemble_dit(vae: AutoencoderKL, teacher: DiTTeacher) -> PixArtSigmaPipeline:
    """Puts the trained parts of the transformer's pipeline together."""
    # diffusers declares narrower types than it takes.
    return PixArtSigmaPipeline(
        vae=vae,
        text_encoder=teacher.text_encoder,
        tokenizer=make_tokenizer(),  # pyright: ignore[reportArgumentType]
        transformer=teacher.transformer,
        scheduler=make_dit_scheduler(),  # pyright: ignore[reportArgumentType]
    )


def save_weights(pipeline: StableDiffusionPipeline, oracle: Oracle, root: Path) -> None:
    """Writes pipeline and oracle to `root` in fp16; the pipeline itself becomes fp16."""
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.half()
    pipeline.save_pretrained(root, safe_serialization=True)
    _write_for_every_transformers(root)
    (root / ORACLE_FILE).parent.mkdir(parents=True, exist_ok=True)
    save_atomic({k: v.half() for k, v in oracle.state_dict().items()}, root / ORACLE_FILE, {})


def _write_for_every_transformers(root: Path) -> None:
    """Adds what transformers 4 reads: names that start with `text_model.`, and the tokenizer's two tables.

    transformers 5 reads both forms, but writes only its own.
    """
    weights = root / "text_encoder" / "model.safetensors"
    state = {
        f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(weights).items()
    }
    save_atomic(state, weights, {"format": "pt"})
    model = json.loads((root / "tokenizer" / "tokenizer.json").read_text())["model"]
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]) + "\n")
    merges = [" ".join(pair) for pair in model["merges"]]
    (root / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def train(
    output: Path,
    until: str,
    seed: int,
    device: torch.device,
    steps: dict[str, int],
    network: str = "unet",
) -> None:
    """Runs the stages up to and with `until`; a stage that is done already is loaded.

    Args:
        output: folder of checkpoints and results; made if it is missing.
        until: last of `STAGES` to run.
        seed: seed of everything.
        device: where to train.
        steps: optimizer steps of `oracle`, `vae`, `teacher` (the UNet) and `dit`.
        network: the teacher, one of `NETWORKS`.
    """
    last = STAGES.index(until)
    configs = (
        oracle_config(seed, steps["oracle"]),
        vae_config(seed, steps["vae"]),
        teacher_config(seed, steps["teacher"])
        if network == "unet"
        else dit_config(seed, steps["dit"]),
    )
    output.mkdir(parents=True, exist_ok=True)
    oracle = train_oracle(configs[0], output, device)
    if last == 0:
        return
    vae = train_vae(configs[1], output, device)
    if last == 1:
        return
    make = train_teacher if network == "unet" else train_dit
    teacher = make(configs[2], vae, output, device)
    if last == 2 or rank_and_size()[0] > 0:
        return
    if isinstance(teacher, DiTTeacher):
        evaluate_dit(assemble_dit(vae, teacher), oracle, output, seed)
    else:
        evaluate(assemble(vae, teacher), oracle, output, seed)


def write_manifest(root: Path) -> None:
    """Writes the digests of all files under `root` to its manifest."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {p.relative_to(root).as_posix(): digest(p) for p in files}
    (root / MANIFEST).write_text(json.dumps({"sha256": entries}, indent=2) + "\n")


def evaluate(pipeline: StableDiffusionPipeline, oracle: Oracle, output: Path, seed: int) -> None:
    """Writes the weights in fp16 to `output/weights`, then measures what was written, as `metrics.json` in it."""
    root = output / WEIGHTS.name
    save_weights(pipeline, oracle, root)
    write_manifest(root)
    metrics = measure_teacher(load_pipeline(root), load_oracle(root), seed)
    (root / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_manifest(root)
    print(json.dumps(metrics, indent=2))


def evaluate_dit(pipeline: PixArtSigmaPipeline, oracle: Oracle, output: Path, seed: int) -> None:
    """Writes the transformer and its text encoder in fp16 to `output/dit_weights`, and measures what was written.

    Autoencoder, tokenizer and oracle are not written again; the autoencoder is named by its fingerprint.
    """
    root = output / DIT_WEIGHTS.name
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.half()
    pipeline.text_encoder.save_pretrained(root / "text_encoder")
    pipeline.transformer.save_pretrained(root / "transformer")
    pipeline.scheduler.save_pretrained(root / "scheduler")
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.float()
    (root / AUTOENCODER).write_text(json.dumps({"fingerprint": fingerprint(pipeline.vae)}) + "\n")
    pipeline.set_progress_bar_config(disable=True)
    metrics = {"teacher": measure_teacher(pipeline, oracle, seed)["teacher"]}
    (root / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_manifest(root)
    print(json.dumps(metrics, indent=2))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.toy.train", description=__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints and results"
    )
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    parser.add_argument("--network", choices=NETWORKS, default="unet", help="the teacher")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, default in STEPS.items():
        parser.add_argument(
            f"--{name}-steps", type=int, default=default, help=f"steps of the {name}"
        )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    steps = {name: getattr(options, f"{name}_steps") for name in STEPS}
    try:
        train(
            options.output,
            options.until,
            options.seed,
            torch.device(options.device),
            steps,
            options.network,
        )
    except ValueError as error:
        parser.error(str(error))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
