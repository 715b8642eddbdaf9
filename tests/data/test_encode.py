from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nitrodistill.data import BatchStream, Captioned, EncodeConfig, PairStore, encode, open_images
from nitrodistill.data.images import fitted
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from tests.pipelines import make_pipeline

CONFIG = EncodeConfig(seed=3, batch_size=2, shard_size=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Captioned:
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        pixels = torch.randint(0, 256, (9, 12, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(["one dog", "a cat"][i % 2])
    return open_images(folder)


@pytest.fixture(scope="module")
def encoded(
    pipeline: Pipeline, images: Captioned, tmp_path_factory: pytest.TempPathFactory
) -> PairStore:
    path = tmp_path_factory.mktemp("encoded") / "real"
    return encode(pipeline, images, path, CONFIG, teacher_name="tiny", progress=False)


def test_latents_are_the_vae_s_and_text_the_encoder_s(
    encoded: PairStore, pipeline: Pipeline, images: Captioned
) -> None:
    batch = encoded.read(range(5))
    assert encoded.prompts == ("one dog", "a cat")
    assert batch.condition.prompt_ids is not None
    assert batch.condition.prompt_ids.tolist() == [0, 1, 0, 1, 0]
    pixels = torch.stack([fitted(images.image(i), (8, 8)) for i in range(5)])
    vae = pipeline.diffusers.vae
    with torch.no_grad():
        x0 = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(batch.x0, x0, rtol=2**-10, atol=1e-4)
    text = pipeline.encode_prompt(["a cat"])["encoder_hidden_states"][0]
    stored = batch.condition["encoder_hidden_states"][3]
    torch.testing.assert_close(stored, text, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_space_pipelines_take_the_pixels(
    channels: int, images: Captioned, tmp_path: Path
) -> None:
    pipeline = Pipeline.from_diffusers(make_pipeline("ddpm" if channels == 1 else "ddpm-rgb"))
    nameless = replace(images, captions=("",) * 5)
    store = encode(pipeline, nameless, tmp_path / "p", CONFIG, teacher_name="t", progress=False)
    batch = store.read(range(5))
    pixels = torch.stack([fitted(images.image(i), (8, 8)) for i in range(5)])
    if channels == 1:
        red, green, blue = pixels.split(1, dim=1)
        pixels = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.testing.assert_close(batch.x0, pixels, rtol=2**-10, atol=1e-3)
    assert store.prompts == ("",)


def test_noise_is_drawn_and_the_store_says_that_it_is_no_pair(encoded: PairStore) -> None:
    encoded.verify()
    batch = BatchStream(encoded, seed=0, batch_size=5)(0)
    order = [BatchStream(encoded, 0, 5).row(n) for n in range(5)]
    noise = (
        Draws(3, 0, torch.tensor(order), purpose="pairs").normal("noise", (2, 4, 4)).half().float()
    )
    assert batch.pairs is not None
    assert torch.equal(batch.pairs.noise, noise)
    assert not encoded.paired
    with pytest.raises(ValueError, match="holds encoded images, which no teacher made"):
        encoded.check_teacher("f")


def test_two_workers_write_the_bytes_of_one(
    encoded: PairStore,
    pipeline: Pipeline,
    images: Captioned,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    def work(rank: int) -> None:
        torch.set_num_threads(1)
        encode(
            pipeline, images, tmp_path / "p", CONFIG, teacher_name="tiny",
            rank=rank, world_size=2, progress=False,
        )  # fmt: skip

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "p") == contents(encoded.path)


def test_other_images_in_the_same_folder_are_refused(
    encoded: PairStore, pipeline: Pipeline, images: Captioned
) -> None:
    other = replace(images, captions=("one dog",) * 5)
    with pytest.raises(FileExistsError, match=r"hash is .* there and .* here"):
        encode(pipeline, other, encoded.path, CONFIG, teacher_name="tiny", progress=False)


def test_a_broken_image_is_named_and_none_takes_its_place(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"broken")
    (folder / "a.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"'a.png' in .* cannot be read"):
        encode(
            pipeline,
            open_images(folder),
            tmp_path / "out",
            CONFIG,
            teacher_name="t",
            progress=False,
        )
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"embeddings": "int4"}, "embeddings is 'int4'"),
    ],
)
def test_config_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EncodeConfig(), **changes)  # type: ignore[arg-type]
