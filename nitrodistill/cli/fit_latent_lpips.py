"""`nitrodistill fit-latent-lpips`: a perceptual distance of latents for your VAE.

Fit a small network on latents so that its distance ranks pairs as a distance of the decoded pictures does: LPIPS
(VGG), where its weights are on this machine, or LPIPS' formula on a feature extractor of yours. It takes a VAE,
from a folder of its own or a pipeline's, and images without captions. The distance is as good as that of the
pictures at best, and is not calibrated on BAPPS. The same command goes on with a fit that was stopped. Rank
correlations on pairs of held-out images are printed. In a recipe:
latent_lpips: {weights: OUTPUT/latent_lpips.safetensors}.

example:
  nitrodistill fit-latent-lpips --teacher ./my-pipeline --images photos --output runs/latent-lpips
  nitrodistill fit-latent-lpips --vae ./my-vae --images photos --size "[256, 256]" --output runs/latent-lpips
  nitrodistill fit-latent-lpips --images scenes --features nitrodistill.toy:oracle_maps --output runs/latent-lpips
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nitrodistill.cli.arguments import (
    DeviceOption,
    Parser,
    TeacherOption,
    parse,
    read_config,
    refuse,
)
from nitrodistill.cli.terminal import results, say


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        images: folder of images, of any depth.
        output: folder of the weights.
        vae: folder of a VAE alone, or its name on the Hub, in the place of a teacher; null takes the teacher's.
        size: height and width of the images, which are scaled to cover it and cut; null takes the teacher's
            resolution, or with a VAE alone the images as they are.
        features: module:callable, from images (B, 3, H, W) in [-1, 1] to a list of feature maps; null is LPIPS
            (VGG).
    """

    images: str
    output: str
    vae: str | None = None
    size: tuple[int, int] | None = None
    features: str | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill fit-latent-lpips --help`."""
    from nitrodistill.training.latent_lpips import FitConfig, fit_latent_lpips

    kinds = (TeacherOption, _Options, FitConfig, DeviceOption)
    given = parse(Parser("fit-latent-lpips", __doc__, *kinds), argv)
    config = read_config(given, FitConfig)

    from nitrodistill.data.images import image_files
    from nitrodistill.losses import DecodedLoss, LPIPSLoss
    from nitrodistill.named import import_object
    from nitrodistill.processes import place

    if Path(given.output).is_file():
        raise FileExistsError(f"{given.output!r} is a file; choose a folder for the weights.")
    if not Path(given.images).is_dir():
        raise FileNotFoundError(f"no images at {given.images!r}; give a folder of images.")
    files = image_files(Path(given.images))
    if len(files) < config.held_out + 2:
        raise ValueError(
            f"{given.images!r} holds {len(files)} images and {config.held_out} are held out; give more of them, "
            "or a smaller --held_out."
        )
    network = import_object(given.features, "feature extractor") if given.features else "vgg"
    if network != "vgg" and not callable(network):
        raise ValueError(f"there is no function at {given.features!r}; give module:callable.")
    try:
        distance = LPIPSLoss(network)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        fetching = str(error).removesuffix(", or pass weights=path.")
        raise FileNotFoundError(f"{fetching}, or give features of yours by --features.") from error
    device = place().device(given.device)
    encode, decode, size = _autoencoder(given, files, device)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(config.seed))
    latents = torch.cat(
        [
            encode(_images([files[i] for i in chunk], size).to(device))
            for chunk in order.split(64)  # in a random order, as the last ones are held out
        ]
    )
    decoded = DecodedLoss(distance.to(device), decode, None)
    fit = fit_latent_lpips(
        latents, decoded.per_sample, given.output, config, progress=not given.quiet
    )
    results(weights=fit.weights, correlation=fit.correlation, l2_correlation=fit.l2_correlation)
    say(
        f"rank correlation on held-out pairs: {fit.correlation:.3f} (latent L2: {fit.l2_correlation:.3f})"
    )
    say(f"{fit.weights} is for this VAE, and not calibrated on human judgements (BAPPS)")
    return 0


_Coder = Callable[[Tensor], Tensor]


def _autoencoder(
    given: argparse.Namespace, files: Sequence[Path], device: torch.device
) -> tuple[_Coder, _Coder, tuple[int, int]]:
    """Pictures to latents, latents to pictures, and the pictures' size."""
    from nitrodistill.models.autoencoder import (
        decode_latents,
        encode_images,
        load_vae,
        pixels_a_latent,
    )
    from nitrodistill.models.denoiser import frozen
    from nitrodistill.models.folders import dtype_argument
    from nitrodistill.teachers import load_teacher

    if given.vae is None:
        pipeline = load_teacher(given.teacher)
        pipeline.diffusers.to(device)
        vae, size = pipeline.vae, given.size or pipeline.resolution
        encode, decode = pipeline.encode_image, pipeline.decode
    else:
        refuse(given, ["teacher"], "the VAE is that of --vae")
        vae = frozen(load_vae(given.vae, dtype_argument(), torch.float32)).to(device)
        size = given.size or _size_of(files)
        encode = partial(encode_images, vae, batch_size=64)
        decode = partial(decode_latents, vae, batch_size=64)
    step = 1 if vae is None else pixels_a_latent(vae)
    if any(side < 1 or side % step for side in size):
        raise ValueError(f"size is {list(size)}; this VAE takes multiples of {step}.")
    return encode, decode, size


def _size_of(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of images that all have the same."""
    from nitrodistill.data.images import read_image

    def size_of(file: Path) -> tuple[int, int]:
        width, height = read_image(file.read_bytes(), str(file)).size
        return height, width

    size = size_of(files[0])
    for file in files[1:]:
        if (other := size_of(file)) != size:
            raise ValueError(
                f"the images have several sizes: {str(files[0])!r} is {list(size)} and {str(file)!r} "
                f"{list(other)}; give --size."
            )
    return size


def _images(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """`(B, 3, H, W)` in [-1, 1]."""
    from nitrodistill.data.images import fitted, read_image

    return torch.stack([fitted(read_image(file.read_bytes(), str(file)), size) for file in files])
