"""A tiny text-to-image pipeline of real parts with random weights, built without a network."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nitrodistill.data import GenerateConfig, PairStore, generate
from nitrodistill.data.arrow import ArrowFile, Layout, write_rows
from nitrodistill.data.files import digest_of
from nitrodistill.files import temporary_of
from nitrodistill.models import Pipeline


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder."""

    def read(path: Path) -> dict[str, bytes]:
        return {
            p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()
        }

    return read


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, bytes], None]:
    """Flips a bit of the first byte of some content in a file."""

    def change(path: Path, content: bytes) -> None:
        data = bytearray(path.read_bytes())
        data[data.index(content)] ^= 1
        path.write_bytes(data)

    return change


@pytest.fixture
def left_by_the_dead() -> Callable[[Path], Path]:
    """The temporary name beside a path that a process had which has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass

    def name(path: Path) -> Path:
        mine = temporary_of(path).name
        return path.with_name(mine.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))

    return name


@pytest.fixture(scope="session")
def rewritten() -> Callable[[PairStore, str, Callable[[dict[str, list[Any]]], None]], None]:
    """Changes rows of the first file of a kind; checksums and the manifest's hash are right."""

    def change_rows(
        store: PairStore, kind: str, change: Callable[[dict[str, list[Any]]], None]
    ) -> None:
        layout, entry = Layout(store.manifest, kind), getattr(store.manifest, kind)[0]
        path = store.path / entry.name
        file = ArrowFile(path, layout)
        rows: dict[str, list[Any]] = {name: file.numbers(name).tolist() for name in layout.numbers}
        if kind == "prompts":
            rows["text"] = file.texts()
        for name in layout.tensors:
            rows[name] = [bytes(file.tensors(row)[name]) for row in range(len(file))]
        change(rows)
        write_rows(path, layout, iter([rows]))
        files = (digest_of(path, store.path, entry.rows), *getattr(store.manifest, kind)[1:])
        manifest = replace(store.manifest, **{kind: files})
        (store.path / "manifest.json").write_text(manifest.to_json())

    return change_rows


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], object]], multiprocessing.Process]]:
    """Starts a function in a forked child that has everything loaded; ends those that are left."""
    started: list[Any] = []

    def start(function: Callable[[], object]) -> Any:
        process = multiprocessing.get_context("fork").Process(target=function)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16
    )


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Seven prompts, six different ones."""
    return ["a red cat", "two dogs", "blue", "a red cat", "sun", "green moon", "ten"]


@pytest.fixture(scope="session")
def config() -> GenerateConfig:
    """Three shards of pairs (the last is short) and two files of prompts; batches that do not divide."""
    return GenerateConfig(num_pairs=11, num_inference_steps=2, seed=5, batch_size=3, shard_size=4)


@pytest.fixture(scope="session")
def made(
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> PairStore:
    """A finished store; tests must not change it."""
    path = tmp_path_factory.mktemp("made") / "pairs"
    return generate(pipeline, prompts, path, config, teacher_name="tiny", progress=False)


@pytest.fixture
def copied(made: PairStore, tmp_path: Path) -> Path:
    """A copy of the finished store, to be damaged."""
    return Path(shutil.copytree(made.path, tmp_path / "copied"))


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=16,
        )
        vae = AutoencoderKL(
            latent_channels=2,
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
            steps_offset=1,
        )
        diffusers = StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=words,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return Pipeline.from_diffusers(diffusers)
