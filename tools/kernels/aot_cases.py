"""The shapes at which every kernel is compiled ahead of time, and the launches that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nitrodistill.kernels import finish, launch
from nitrodistill.kernels.dmd import triton as dmd
from nitrodistill.kernels.laplacian import triton as laplacian
from nitrodistill.kernels.launch import Options
from nitrodistill.kernels.lpips_head import triton as lpips_head
from nitrodistill.kernels.ssim import triton as ssim
from nitrodistill.kernels.x0_loss import triton as x0_loss

KERNELS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "finish": (finish, ("_finish_kernel",)),
    "x0_loss": (x0_loss, ("_forward_kernel", "_backward_kernel")),
    "lpips_head": (lpips_head, ("_forward_kernel", "_backward_kernel")),
    "dmd": (dmd, ("_partial_kernel", "_finish_kernel", "_backward_kernel")),
    "ssim": (
        ssim,
        (
            "_centre_kernel",
            "_rows_kernel",
            "_columns_kernel",
            "_columns_adjoint_kernel",
            "_rows_adjoint_kernel",
        ),
    ),
    "laplacian": (laplacian, ("_forward_kernel", "_backward_kernel")),
}
"""Operation -> its module and the kernels in it."""


class Launch(NamedTuple):
    """A kernel and what it was called with."""

    name: str
    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Case(NamedTuple):
    """A call of an operation's launchers on tensors without storage."""

    name: str
    operation: str
    run: Callable[[Options], object]
    subset: bool


def record(case: Case, architecture: str) -> list[Launch]:
    """The distinct launches of a case with the launch table of an architecture."""
    launches: list[Launch] = []
    with _recording(launches):
        case.run(launch.table(architecture)[case.operation])
    distinct: dict[str, Launch] = {}
    for index, one in enumerate(launches):
        name = one.name if one.name not in distinct else f"{one.name}_{index}"
        distinct[name] = one._replace(name=name)
    return list(distinct.values())


class _Recorder:
    def __init__(self, name: str, kernel: Any, launches: list[Launch]) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def call(*arguments: Any, **keywords: Any) -> None:
            self.launches.append(Launch(self.name, self.kernel, arguments, keywords))

        return call


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    swapped: list[tuple[ModuleType, str, Any]] = []
    try:
        for operation, (module, names) in KERNELS.items():
            for name in names:
                kernel = vars(module)[name]
                swapped.append((module, name, kernel))
                setattr(module, name, _Recorder(f"{operation}.{name[1:]}", kernel, launches))
        yield
    finally:
        for module, name, kernel in swapped:
            setattr(module, name, kernel)


def _meta(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _x0_loss(dtype: torch.dtype, masked: bool, mean: bool) -> Callable[[Options], object]:
    def run(options: Options) -> object:
        x, y, z = (_meta(64, 16, 128, 128, dtype=dtype) for _ in range(3))
        alpha, sigma = (_meta(64, dtype=torch.float64) for _ in range(2))
        mask = _meta(64, 128 * 128) if masked else None
        call = x0_loss.Call(
            x, y, z, alpha, sigma, mask, 1, _meta(64), "v_prediction", "smooth_l1", 1.0
        )
        if mean:
            _, gradient = x0_loss.forward_mean(call, options)
            return x0_loss.backward_mean(_meta(), call, gradient, options)
        _, inverse = x0_loss.forward(call, options)
        return x0_loss.backward(_meta(64), call, inverse, (True, False, False), options)

    return run


def _lpips_head(
    dtype: torch.dtype, channels: int, side: int, channels_last: bool, masked: bool
) -> Callable[[Options], object]:
    def run(options: Options) -> object:
        fx, fy = (
            _meta(8, channels, side, side, dtype=dtype, channels_last=channels_last)
            for _ in range(2)
        )
        mask = _meta(8, side * side) if masked else None
        call = lpips_head.Call(fx, fy, _meta(channels), mask, 1e-10)
        _, inverse, saved = lpips_head.forward(call, True, options)
        assert saved is not None
        return lpips_head.backward(_meta(8), call, inverse, saved, (True, False), options)

    return run


def _dmd(dtype: torch.dtype) -> Callable[[Options], object]:
    def run(options: Options) -> object:
        x0, real, fake = (_meta(16, 16, 128, 128, dtype=dtype) for _ in range(3))
        _, factor = dmd.forward(x0, real, fake, None, options)
        return dmd.backward(_meta(16), x0, real, fake, factor, options)

    return run


def _ssim(
    dtype: torch.dtype, structure: bool, reflect: bool, both: bool
) -> Callable[[Options], object]:
    def run(options: Options) -> object:
        x, y = (_meta(8, 3, 512, 512, dtype=dtype) for _ in range(2))
        call = ssim.Call(x, y, _meta(11), None, None, 1e-4, 9e-4, 0.0, structure, reflect)
        _, slopes, centre = ssim.forward(call, True, both, options)
        assert slopes is not None
        return ssim.backward(_meta(8), call, slopes, centre, True, both, options)

    return run


def _laplacian(dtype: torch.dtype, masked: bool) -> Callable[[Options], object]:
    def run(options: Options) -> object:
        x, y = (_meta(16, 4, 128, 128, dtype=dtype) for _ in range(2))
        maps = [_meta(16, 1, 128 >> j, 128 >> j) for j in range(3)] if masked else []
        call = laplacian.Call(x, y, [1.0, 1.0, 1.0], maps)
        _, signs = laplacian.forward(call, True, options)
        return laplacian.backward(_meta(16), call, signs, True, False, options)

    return run


def _cases() -> Iterator[Case]:
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for short, dtype in types.items():
        bf16 = short == "bf16"
        yield Case(f"x0_loss/{short}", "x0_loss", _x0_loss(dtype, False, False), bf16)
        yield Case(f"x0_loss/{short}/masked", "x0_loss", _x0_loss(dtype, True, False), False)
        yield Case(f"x0_loss/{short}/mean", "x0_loss", _x0_loss(dtype, False, True), False)
        yield Case(f"dmd/{short}", "dmd", _dmd(dtype), bf16)
        for channels_last in (False, True):
            layout = "channels_last" if channels_last else "nchw"
            for channels, side in ((64, 512), (128, 256), (256, 128), (512, 64), (1024, 32)):
                yield Case(
                    f"lpips_head/{short}/{layout}/{channels}",
                    "lpips_head",
                    _lpips_head(dtype, channels, side, channels_last, False),
                    bf16 and channels in (64, 512),
                )
        yield Case(
            f"lpips_head/{short}/masked/64", "lpips_head", _lpips_head(dtype, 64, 512, False, True), False
        )  # fmt: skip
        yield Case(f"ssim/{short}", "ssim", _ssim(dtype, False, False, False), not bf16)
        yield Case(f"ssim/{short}/reflect", "ssim", _ssim(dtype, False, True, True), False)
        yield Case(f"ssim/{short}/structure", "ssim", _ssim(dtype, True, False, True), False)
        yield Case(f"laplacian/{short}", "laplacian", _laplacian(dtype, False), not bf16)
        yield Case(f"laplacian/{short}/masked", "laplacian", _laplacian(dtype, True), False)


CASES = tuple(_cases())
