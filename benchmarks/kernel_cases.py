"""What `kernels.py` measures: every fused operation at its shapes of record, beside what people write.

"eager" is the usual code: diffusers' conversion and torch's loss, the heads of `lpips`, `pytorch-msssim`,
DMD2's gradient, a Burt-Adelson pyramid of convolutions. It runs in the dtype of its inputs, which for
bfloat16 is less exact than ours and moves fewer bytes; it is the harder opponent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.laplacian import laplacian_loss
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.ssim import ssim_loss
from nitrodistill.kernels.x0_loss import x0_loss, x0_loss_mean
from nitrodistill.losses.windows import gaussian_taps

Implementations = dict[str, Callable[[], Tensor]]

VGG = ((64, 1), (128, 2), (256, 4), (512, 8), (512, 16))
"""Channels of VGG's five taps, and by what the image's side is divided there."""


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        operation: its package under `nitrodistill.kernels`.
        name: what is measured, with the shape.
        dtype: of the data.
        shape: (B, C, H, W).
        of_record: whether the kill rule looks at it.
        passes: how often the data must move at least, reads and writes, forward and backward.
        channels_last: layout of the data.
    """

    operation: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int]
    of_record: bool
    passes: int
    channels_last: bool = False

    def minimal_bytes(self) -> int:
        """Each input read once, each gradient written once."""
        batch, channels, height, width = self.shape
        if self.operation == "lpips_head":
            elements = sum(c * (height // d) * (width // d) for c, d in VGG) * batch
        else:
            elements = batch * channels * height * width
        return elements * self.passes * self.dtype.itemsize

    def build(self, device: torch.device) -> tuple[list[Tensor], Implementations]:
        """The tensors that get a gradient, and name -> function that returns a scalar loss."""
        return BUILDERS[self.operation](self, device)


def cases() -> Iterator[Case]:
    """The shapes of record, and those where the host is the bottleneck."""
    fp32, bf16 = torch.float32, torch.bfloat16
    yield Case("x0_loss", "v + smooth-L1", fp32, (64, 16, 128, 128), True, 4)
    yield Case("x0_loss", "v + smooth-L1", bf16, (64, 16, 128, 128), True, 4)
    yield Case("x0_loss", "v + smooth-L1, launch-bound", fp32, (8, 4, 64, 64), False, 4)
    yield Case("dmd", "DMD", fp32, (16, 16, 128, 128), True, 4)
    yield Case("dmd", "DMD", bf16, (16, 16, 128, 128), False, 4)
    yield Case("lpips_head", "VGG heads at 512 px", bf16, (8, 3, 512, 512), True, 3)
    yield Case("lpips_head", "VGG heads at 512 px", bf16, (8, 3, 512, 512), True, 3, True)
    yield Case("lpips_head", "VGG heads at 512 px", fp32, (8, 3, 512, 512), False, 3)
    yield Case("ssim", "SSIM", fp32, (8, 3, 512, 512), True, 3)
    yield Case("ssim", "SSIM, 1080p", fp32, (8, 3, 1080, 1920), True, 3)
    yield Case("ssim", "SSIM on latents", fp32, (16, 4, 128, 128), False, 3)
    yield Case("laplacian", "3 levels", fp32, (16, 4, 128, 128), True, 3)
    yield Case("laplacian", "3 levels", fp32, (8, 3, 512, 512), False, 3)


def small(case: Case) -> Case:
    """The same case at a size that the interpreter can do."""
    side = 32 if case.operation == "lpips_head" else 16
    shape = (1, min(case.shape[1], 4), side, side)
    return Case(
        case.operation, case.name, case.dtype, shape, case.of_record, case.passes, case.channels_last
    )  # fmt: skip


def _random(case: Case, device: torch.device, count: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.rand(case.shape, device=device, generator=generator).to(case.dtype)
        for _ in range(count)
    ]


def _x0_loss(case: Case, device: torch.device) -> tuple[list[Tensor], Implementations]:
    output, x_t, target = _random(case, device, 3)
    output.requires_grad_()
    alpha = torch.linspace(0.2, 0.9, case.shape[0], device=device)
    sigma, weight = (1 - alpha**2).sqrt(), torch.rand(case.shape[0], device=device)

    def eager() -> Tensor:
        a, s = (scale.view(-1, 1, 1, 1) for scale in (alpha, sigma))
        x0 = a * x_t.float() - s * output.float()
        values = F.smooth_l1_loss(x0, target.float(), reduction="none")
        return (values.mean((1, 2, 3)) * weight).mean()

    def mean(function: Callable[..., Tensor]) -> Tensor:
        return function(
            output, x_t, target, alpha, sigma,
            prediction_type="v_prediction", loss="smooth_l1", weight=weight,
        ).mean()  # fmt: skip

    return [output], {
        "eager": eager,
        "ours": lambda: mean(x0_loss_mean),
        "ours, per sample": lambda: mean(x0_loss),
    }


def _lpips_head(case: Case, device: torch.device) -> tuple[list[Tensor], Implementations]:
    generator = torch.Generator(device).manual_seed(0)
    batch, _, height, width = case.shape
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    fx, fy, weights = [], [], []
    for channels, divisor in VGG:
        shape = (batch, channels, height // divisor, width // divisor)
        for maps in (fx, fy):
            features = torch.rand(shape, device=device, generator=generator).to(case.dtype)
            maps.append(features.to(memory_format=layout))
        weights.append(torch.rand(channels, device=device, generator=generator))
    for features in fx:
        features.requires_grad_()
    convolutions = [w.to(case.dtype).view(1, -1, 1, 1) for w in weights]

    def normalized(features: Tensor) -> Tensor:
        return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)

    def eager() -> Tensor:
        total = torch.zeros((), device=device)
        for x, y, w in zip(fx, fy, convolutions, strict=True):
            difference = (normalized(x) - normalized(y)) ** 2
            total = total + F.conv2d(difference, w).mean((1, 2, 3)).mean()
        return total

    def ours() -> Tensor:
        total = torch.zeros((), device=device)
        for x, y, w in zip(fx, fy, weights, strict=True):
            total = total + lpips_head(x, y, w).mean()
        return total

    return fx, {"eager": eager, "ours": ours}


def _dmd(case: Case, device: torch.device) -> tuple[list[Tensor], Implementations]:
    x0, real, fake = _random(case, device, 3)
    x0.requires_grad_()

    def eager() -> Tensor:
        with torch.no_grad():
            scale = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
            gradient = torch.nan_to_num((fake - real) / scale)
        return 0.5 * F.mse_loss(x0.float(), (x0 - gradient).detach().float())

    return [x0], {"eager": eager, "ours": lambda: dmd(x0, real, fake).mean()}


def _ssim(case: Case, device: torch.device) -> tuple[list[Tensor], Implementations]:
    x, y = _random(case, device, 2)
    x.requires_grad_()
    taps = gaussian_taps(11, 1.5)
    found: Implementations = {}
    if _installed("pytorch_msssim"):
        from pytorch_msssim import ssim as msssim

        found["eager"] = lambda: 1 - msssim(x, y, data_range=1.0)
    if _installed("piq"):
        from piq import ssim as piq_ssim

        found["piq"] = lambda: 1 - piq_ssim(x, y, data_range=1.0, downsample=False)
    if _installed("fused_ssim"):
        from fused_ssim import fused_ssim

        found["fused-ssim"] = lambda: 1 - fused_ssim(x, y, padding="valid")
    found["ours"] = lambda: ssim_loss(x, y, taps=taps, c1=1e-4, c2=9e-4).mean()
    return [x], found


def _laplacian(case: Case, device: torch.device) -> tuple[list[Tensor], Implementations]:
    x, y = _random(case, device, 2)
    x.requires_grad_()
    channels = case.shape[1]
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
    kernel = (line[:, None] * line).to(case.dtype).expand(channels, 1, 5, 5).contiguous()

    def blur(image: Tensor, factor: float = 1.0) -> Tensor:
        return F.conv2d(
            F.pad(image, (2, 2, 2, 2), mode="reflect"), factor * kernel, groups=channels
        )

    def bands(image: Tensor) -> Iterator[Tensor]:
        for _ in range(2):
            coarse = blur(image)[..., ::2, ::2]
            spread = torch.zeros_like(image)
            spread[..., ::2, ::2] = coarse
            yield image - blur(spread, 4.0)
            image = coarse
        yield image

    def eager() -> Tensor:
        pairs = zip(bands(x), bands(y), strict=True)
        return torch.stack([F.l1_loss(a, b) for a, b in pairs]).sum()

    return [x], {
        "eager": eager,
        "ours": lambda: laplacian_loss(x, y, weights=(1.0, 1.0, 1.0)).mean(),
    }


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


BUILDERS = {
    "x0_loss": _x0_loss,
    "lpips_head": _lpips_head,
    "dmd": _dmd,
    "ssim": _ssim,
    "laplacian": _laplacian,
}
