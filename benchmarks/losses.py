"""The losses against every peer: forward and backward, CPU time, peak memory.

    python benchmarks/losses.py            all, some minutes; writes results/losses.json, docs/losses.md
    python benchmarks/losses.py --quick    few rounds, writes nothing
    python benchmarks/losses.py --only ssim
    python benchmarks/losses.py --accuracy the table of rounding alone, seconds; writes docs/losses.md

A row is a case: our time, the best peer's, and how many times as fast we are (median and 20-80 % of the
per-round ratios). The prediction requires gradients, the target does not. Peers are called as their
users call them, torch's own losses as modules, like ours.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import torch
import torch.nn.functional as F
from torch import Tensor

import nitrodistill.losses as nl
from nitrodistill.types import Scales

Value = Callable[[Tensor, Tensor], Tensor]

DOCS = Path(__file__).parents[1] / "docs" / "losses.md"


@dataclass(frozen=True)
class Case:
    """One comparison: our loss and its peers on one shape.

    Attributes:
        name: what is compared.
        shape: of the prediction.
        ours: our loss, by name where there are several forms.
        peers: name -> the peer's loss.
        floor: the ratio to the best peer that we demand, or None.
    """

    name: str
    shape: tuple[int, ...]
    ours: dict[str, Value]
    peers: dict[str, Value]
    floor: float | None = None


@dataclass(frozen=True)
class Row:
    """One competitor's result on a case; `speedup` is the best peer's time over this one's."""

    case: str
    shape: tuple[int, ...]
    name: str
    ours: bool
    milliseconds: measure.Spread
    forward_milliseconds: measure.Spread
    peak_mib: float | None
    best_peer: str
    speedup: measure.Spread
    memory_ratio: float | None
    floor: float | None


def ssim_cases() -> list[Case]:
    """SSIM with an 11-tap window."""
    import kornia
    import piq
    import pytorch_msssim
    from torchmetrics.functional.image import structural_similarity_index_measure as metric

    cases = []
    for shape, floor in (
        ((8, 3, 256, 256), 2.0),
        ((8, 4, 64, 64), 2.5),
        ((8, 16, 64, 64), 1.3),
    ):
        peer = pytorch_msssim.SSIM(data_range=1.0, channel=shape[1])
        peers: dict[str, Value] = {
            "piq": piq.SSIMLoss(data_range=1.0),
            "pytorch-msssim": lambda x, y, peer=peer: torch.rsub(peer(x, y), 1),
            "kornia": kornia.losses.SSIMLoss(11),
            "torchmetrics": lambda x, y: 1 - torch.as_tensor(metric(x, y, data_range=1.0)),
        }
        ours: dict[str, Value] = {"SSIMLoss": nl.SSIMLoss(1.0)}
        cases.append(Case("SSIM", shape, ours, peers, floor))
    msssim = pytorch_msssim.MS_SSIM(data_range=1.0)
    peers = {
        "piq": piq.MultiScaleSSIMLoss(data_range=1.0),
        "pytorch-msssim": lambda x, y: 1 - msssim(x, y),
    }
    cases.append(Case("MS-SSIM", (4, 3, 256, 256), {"MSSSIMLoss": nl.MSSSIMLoss(1.0)}, peers))
    return cases


def laplacian_cases() -> list[Case]:
    """A pyramid of five levels."""
    from kornia.geometry import build_laplacian_pyramid as pyramid

    def two(x: Tensor, y: Tensor) -> Tensor:
        bands = zip(pyramid(x, 5), pyramid(y, 5), strict=True)
        return torch.stack([(a - b).abs().mean() for a, b in bands]).sum()

    def one(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([band.abs().mean() for band in pyramid(x - y, 5)]).sum()

    ours: dict[str, Value] = {
        "LaplacianPyramidLoss (kornia)": nl.LaplacianPyramidLoss(5, convention="kornia"),
        "LaplacianPyramidLoss": nl.LaplacianPyramidLoss(5),
    }
    peers: dict[str, Value] = {"kornia, two pyramids": two, "kornia, of the difference": one}
    shapes = ((8, 3, 256, 256), (8, 4, 64, 64))
    return [Case("Laplacian, 5 levels", shape, ours, peers, 2.5) for shape in shapes]


def elementwise_cases() -> list[Case]:
    """Against torch's own, and against what users write."""
    from kornia.losses import charbonnier_loss

    def lcm_huber(x: Tensor, y: Tensor) -> Tensor:
        return torch.mean(torch.sqrt((x.float() - y.float()) ** 2 + 1e-6) - 1e-3)

    weight = torch.rand(8)

    def weighted(x: Tensor, y: Tensor) -> Tensor:
        values = F.mse_loss(x, y, reduction="none")
        return (values.mean(dim=(1, 2, 3)) * weight).mean()

    alpha, sigma = torch.rand(8) + 0.1, torch.rand(8) + 0.1

    def v_prediction(x: Tensor, y: Tensor) -> Tensor:
        a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        values = F.smooth_l1_loss(a * y - s * x, y, reduction="none")
        return (values.mean(dim=(1, 2, 3)) * weight).mean()

    def ours_v(x: Tensor, y: Tensor) -> Tensor:
        scales = Scales(alpha, sigma)
        return nl.denoising_loss(x, y, y, scales, "v_prediction", loss="smooth_l1", weight=weight)

    l2, huber = nl.L2Loss(), nl.PseudoHuberLoss(1e-3)
    cases = []
    for shape in ((8, 3, 256, 256), (8, 4, 64, 64)):
        torch_peers: list[tuple[str, nl.Loss, Value, float | None]] = [
            ("smooth L1", nl.SmoothL1Loss(), torch.nn.SmoothL1Loss(), 0.95),
            ("L2", l2, torch.nn.MSELoss(), 0.95),
            ("L1", nl.L1Loss(), torch.nn.L1Loss(), None),
            ("Huber", nl.HuberLoss(), torch.nn.HuberLoss(), None),
        ]
        for name, loss, peer, floor in torch_peers:
            cases.append(Case(name, shape, {type(loss).__name__: loss}, {"torch": peer}, floor))
        formulas: dict[str, Value] = {
            "LCM's formula": lcm_huber,
            "kornia": lambda x, y: charbonnier_loss(x, y, reduction="mean"),
        }
        cases.append(Case("pseudo-Huber", shape, {"PseudoHuberLoss": huber}, formulas))
        ours: dict[str, Value] = {"L2Loss": lambda x, y: l2(x, y, weight=weight)}
        cases.append(Case("L2, weighted", shape, ours, {"torch, by hand": weighted}))
        ours = {"denoising_loss": ours_v}
        cases.append(Case("v to x0, smooth L1", shape, ours, {"torch, by hand": v_prediction}))
    return cases


def lpips_cases() -> list[Case]:
    """VGG with random weights, shared."""
    import lpips
    from torchmetrics.functional.image.lpips import _LPIPS

    shape = (1, 3, 256, 256)
    peer = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = peer.net.state_dict()
    weights = {"features." + name.split(".", 1)[1]: value for name, value in state.items()}
    ours = nl.LPIPSLoss("vgg", weights=weights)
    metric = _LPIPS(pretrained=True, net="vgg", pnet_rand=True, use_dropout=False)
    target = ours.target_features(_inputs(shape)[1])
    peers: dict[str, Value] = {
        "lpips": lambda x, y: peer(x, y).mean(),
        "torchmetrics": lambda x, y: metric(x, y).mean(),
    }
    return [
        Case("LPIPS, VGG", shape, {"LPIPSLoss": ours}, peers),
        Case(
            "LPIPS, VGG, target known",
            shape,
            {"LPIPSLoss, target_features": lambda x, y: ours(x, target)},
            peers,
            1.35,
        ),
    ]


SUITES = {
    "ssim": ssim_cases,
    "laplacian": laplacian_cases,
    "elementwise": elementwise_cases,
    "lpips": lpips_cases,
}


def run(case: Case, seconds: float) -> list[Row]:
    """Measures one case."""
    pred, target = _inputs(case.shape)
    losses = {**case.ours, **case.peers}

    def training(loss: Value) -> measure.Call:
        def call() -> None:
            pred.grad = None
            loss(pred, target).backward()

        return call

    def inference(loss: Value) -> measure.Call:
        def call() -> None:
            with torch.no_grad():
                loss(pred, target)

        return call

    full = measure.interleave({n: training(f) for n, f in losses.items()}, seconds=seconds)
    forward = measure.interleave({n: inference(f) for n, f in losses.items()}, seconds=seconds / 4)
    peaks = {n: measure.peak_mib(training(f)) for n, f in losses.items()}
    best = min(case.peers, key=lambda n: full[n].spread.median)
    rows = []
    for name in losses:
        mine, theirs = peaks[name], peaks[best]
        rows.append(
            Row(
                case.name,
                case.shape,
                name,
                name in case.ours,
                full[name].spread,
                forward[name].spread,
                mine,
                best,
                full[best].speedup_of(full[name]),
                None if mine is None or not theirs else mine / theirs,
                case.floor if name in case.ours else None,
            )
        )
    return rows


def tables(rows: list[Row]) -> str:
    """The summary, and every competitor."""
    header = ("case", "shape", "ours ms", "best peer", "its ms", "speed-up", "20-80 %")
    ours, all_rows = [], []
    by_name = {(row.case, row.shape, row.name): row for row in rows}
    for row in rows:
        shape, peak = "x".join(map(str, row.shape)), row.peak_mib
        time, spread = row.milliseconds, row.speedup
        all_rows.append(
            (
                row.case,
                shape,
                row.name,
                f"{time.median:.2f} ({time.low:.2f}-{time.high:.2f})",
                f"{row.forward_milliseconds.median:.2f}",
                "-" if peak is None else f"{peak:.1f}",
            )
        )
        if not row.ours:
            continue
        best = by_name[row.case, row.shape, row.best_peer].milliseconds.median
        floor = "-" if row.floor is None else f"{row.floor:g}"
        verdict = "" if row.floor is None or spread.median >= row.floor else " **missed**"
        losing = " (we lose)" if spread.median < 0.95 else ""
        ours.append(
            (
                f"{row.case}: `{row.name}`",
                shape,
                f"{time.median:.2f}",
                row.best_peer,
                f"{best:.2f}",
                f"**{spread.median:.2f}**{losing}",
                f"{spread.low:.2f}-{spread.high:.2f}",
                floor + verdict,
                "-" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
            )
        )
    summary = measure.markdown_table((*header, "floor", "memory ratio"), ours)
    columns = ("case", "shape", "who", "forward + backward ms", "forward ms", "peak MiB")
    return f"{summary}\n\nEvery competitor:\n\n{measure.markdown_table(columns, all_rows)}"


def accuracy() -> str:
    """1 - SSIM of two bright, nearly flat images, and how far everyone is off it in each dtype.

    The images are 0.9 plus noise of 0.01, and that plus noise of 0.002. The truth is float64 on the
    same rounded images; a peer is given the images in the dtype, as training under autocast would.
    """
    import piq
    import pytorch_msssim
    from torchmetrics.functional.image import structural_similarity_index_measure as metric

    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 1, 3, 64, 64, generator=generator)
    pred, target = 0.9 + 0.01 * image, 0.9 + 0.01 * image + 0.002 * noise
    who: dict[str, Value] = {
        "SSIMLoss": nl.SSIMLoss(1.0),
        "piq": piq.SSIMLoss(data_range=1.0),
        "pytorch-msssim": lambda x, y: 1 - pytorch_msssim.ssim(x, y, data_range=1.0),
        "torchmetrics": lambda x, y: 1 - torch.as_tensor(metric(x, y, data_range=1.0)),
    }
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, y = pred.to(dtype), target.to(dtype)
        values = []
        for loss in who.values():
            try:
                values.append(f"{float(loss(x, y)):.5f}")
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                values.append(type(error).__name__)
        truth = float(nl.SSIMLoss(1.0)(x.double(), y.double()))
        rows.append((str(dtype).removeprefix("torch."), f"{truth:.5f}", *values))
    return measure.markdown_table(("dtype", "true", *who), rows)


def _inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    pred = (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return pred.requires_grad_(), target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The losses against every peer.")
    parser.add_argument("--quick", action="store_true", help="few rounds; write nothing")
    parser.add_argument("--only", choices=SUITES, action="append", help="suites; write nothing")
    parser.add_argument("--accuracy", action="store_true", help="only the table of rounding")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not options.quick and not options.only:
        rounding = accuracy()
        print(rounding)
        measure.replace_between_markers(DOCS, "losses-accuracy", rounding)
    if options.accuracy:
        return
    rows: list[Row] = []
    for name in options.only or SUITES:
        for case in SUITES[name]():
            rows += run(case, seconds=1.0 if options.quick else 8.0)
            print(f"done: {case.name} {case.shape}", flush=True)
    text = tables(rows)
    print(text)
    if not options.quick and not options.only:
        about = ", ".join(f"{k} {v}" for k, v in measure.environment().items())
        measure.write_json("losses", rows)
        measure.replace_between_markers(
            DOCS, "losses-benchmark", f"Measured on: {about}.\n\n{text}"
        )


if __name__ == "__main__":
    main()
