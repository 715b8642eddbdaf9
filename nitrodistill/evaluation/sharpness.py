"""Sharpness and texture: what an average of plausible pictures lacks.

    gradient magnitude      |grad I| of a pixel, forward differences, RMS over channels
    gradient energy         mean over pixels of |grad I|^2
    edge strength           98th percentile over pixels of |grad I|
    high-frequency energy   mean over channels of the power spectrum, summed above 0.25 cycles per pixel
    texture features        RMS responses of random zero-mean filters, at full and at half resolution

Energies and edge strength are compared as a ratio of means, student over teacher: below 1 is blur, above 1 is
noise or ringing. Texture features feed the Fréchet distance; as no filter has a mean, flat areas and colour
casts do not matter to them. Regression losses score well on paired distances and badly here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from nitrodistill.checks import check_tensor, check_whole

PERCENTILE = 0.98
CUTOFF_CYCLES_PER_PIXEL = 0.25


def gradient_magnitude(images: Tensor) -> Tensor:
    """The gradient's magnitude in each pixel of images `(B, C, H, W)`, H, W >= 2; `(B, H - 1, W - 1)`.

    In units of the images' range per pixel; float32 or wider.
    """
    _check_images(images)
    wide = images.float() if images.dtype.itemsize < 4 else images
    right = wide[:, :, :-1, 1:] - wide[:, :, :-1, :-1]
    down = wide[:, :, 1:, :-1] - wide[:, :, :-1, :-1]
    return (right.square() + down.square()).mean(1).sqrt()


def gradient_energy(images: Tensor) -> Tensor:
    """The mean square of the gradient's magnitude of each image `(B, C, H, W)`, H, W >= 2; `(B,)`.

    Example:
        >>> nd.evaluation.gradient_energy(torch.zeros(2, 3, 16, 16))
        tensor([0., 0.])
    """
    return gradient_magnitude(images).square().mean((-2, -1))


def edge_strength(images: Tensor) -> Tensor:
    """The 98th percentile of the gradient's magnitude of each image `(B, C, H, W)`, H, W >= 2; `(B,)`.

    NaN for an image with a pixel that is NaN or infinite.

    Example:
        >>> nd.evaluation.edge_strength(torch.zeros(2, 3, 16, 16))
        tensor([0., 0.])
    """
    magnitude = gradient_magnitude(images).flatten(1)
    rank = max(1, round(PERCENTILE * magnitude.shape[1]))
    found = magnitude.kthvalue(rank, dim=1).values  # quantile() refuses large images
    return found.masked_fill(~magnitude.isfinite().all(1), torch.nan)  # it sorts NaN to the end


def high_frequency_energy(images: Tensor) -> Tensor:
    """The energy of each image `(B, C, H, W)` above 0.25 cycles per pixel, in any direction; `(B,)`.

    By Parseval's theorem it is the part of the mean square pixel that those frequencies carry.

    Example:
        >>> nd.evaluation.high_frequency_energy(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2])
    """
    _check_images(images)
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, device=images.device)
    columns = torch.fft.fftfreq(width, device=images.device)
    high = torch.hypot(rows[:, None], columns[None, :]) > CUTOFF_CYCLES_PER_PIXEL
    spectrum = torch.fft.fft2(images.float(), norm="forward").abs().square().mean(1)
    return (spectrum * high).sum((-2, -1))


class TextureFeatures:
    """Features of local structure for a Fréchet distance: RMS responses of random zero-mean filters.

    Args:
        channels: of the images.
        num_filters: the features are twice as many, as the filters run at two resolutions.
        size: side of the filters in pixels.
        seed: of the filters, which are normal, each of zero mean in every channel and of unit norm.

    Example:
        >>> nd.evaluation.TextureFeatures()(torch.rand(2, 3, 32, 32)).shape[0]
        2
    """

    def __init__(
        self, channels: int = 3, num_filters: int = 32, size: int = 5, seed: int = 0
    ) -> None:
        for name, value in {"channels": channels, "num_filters": num_filters, "size": size}.items():
            check_whole(name, value, 2 if name == "size" else 1)
        generator = torch.Generator().manual_seed(seed)
        filters = torch.randn(num_filters, channels, size, size, generator=generator)
        filters = filters - filters.mean((-2, -1), keepdim=True)
        self._filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Features `(B, 2 * num_filters)` of images `(B, C, H, W)`, H and W at least `size`.

        Images of less than twice that have no second resolution, and half as many features.
        """
        _check_images(images)
        size, side = self._filters.shape[-1], min(images.shape[-2:])
        if side < size:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; texture features with filters of {size} pixels "
                f"need at least {size} pixels a side."
            )
        filters = self._filters.to(images.device)
        wide = images.float()
        scales = (wide, avg_pool2d(wide, 2)) if side >= 2 * size else (wide,)
        responses = [conv2d(scale, filters).square().mean((-2, -1)).sqrt() for scale in scales]
        return torch.cat(responses, dim=1)


def _check_images(images: Tensor) -> None:
    check_tensor("images", images)
    if images.ndim != 4 or min(images.shape[-2:]) < 2:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; they must be (B, C, H, W) with H, W >= 2."
        )
