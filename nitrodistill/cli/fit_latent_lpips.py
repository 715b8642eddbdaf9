"""`nitrodistill fit-latent-lpips`: a perceptual distance of latents for your VAE.

Fit a small network on latents so that its distance ranks pairs as a distance of the decoded pictures does: LPIPS
(VGG), where its weights are on this machine, or LPIPS' formula on a feature extractor of yours. Of the pipeline
the VAE alone is used, and images without captions. The distance is as good as that of the pictures at best, and
is not calibrated on BAPPS. In a recipe: latent_lpips: {weights: OUTPUT/latent_lpips.safetensors}. The
same command goes on with a fit that was stopped. Rank correlations on pairs of held-out images are printed.

example:
  nitrodistill fit-latent-lpips --teacher ./my-pipeline --images photos --output runs/latent-lpips
  nitrodistill fit-latent-lpips --images scenes --features nitrodistill.toy:oracle_maps --output runs/latent-lpips
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nitrodistill.cli.arguments import DeviceOption, Parser, TeacherOption, parse, read_config
from nitrodistill.cli.terminal import results, say


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        images: folder of images, of any depth.
        output: folder of the weights.
        features: module:callable, from images (B, 3, H, W) in [-1, 1] to a list of feature maps; null is LPIPS
            (VGG).
    """

    images: str
    output: str
    features: str | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill fit-latent-lpips --help`."""
    from nitrodistill.training.latent_lpips import FitConfig, fit_latent_lpips

    kinds = (TeacherOption, _Options, FitConfig, DeviceOption)
    given = parse(Parser("fit-latent-lpips", __doc__, *kinds), argv)
    config = read_config(given, FitConfig)

    from nitrodistill.data.images import fitted, image_files, read_image
    from nitrodistill.losses import DecodedLoss, LPIPSLoss
    from nitrodistill.named import import_object
    from nitrodistill.processes import place
    from nitrodistill.teachers import load_teacher

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
    pipeline = load_teacher(given.teacher)
    pipeline.diffusers.to(place().device(given.device))
    chunks = [files[k : k + 64] for k in range(0, len(files), 64)]
    images = (
        torch.stack(
            [fitted(read_image(f.read_bytes(), str(f)), pipeline.resolution) for f in chunk]
        )
        for chunk in chunks
    )
    latents = torch.cat([pipeline.encode_image(batch) for batch in images])
    decoded = DecodedLoss(distance.to(latents.device), pipeline.decode, None)
    fit = fit_latent_lpips(
        latents, decoded.per_sample, given.output, config, progress=not given.quiet
    )
    results(weights=fit.weights, correlation=fit.correlation, l2_correlation=fit.l2_correlation)
    say(
        f"rank correlation on held-out pairs: {fit.correlation:.3f} (latent L2: {fit.l2_correlation:.3f})"
    )
    say(f"{fit.weights} is for this VAE, and not calibrated on human judgements (BAPPS)")
    return 0
