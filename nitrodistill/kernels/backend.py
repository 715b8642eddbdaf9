"""Which implementation of a fused operation runs: the switch, the default and the fallback.

The reference runs unless all of these hold: the tensors are on a GPU, none of them is float64, Triton
works there, and either `use("triton")` was called or the GPU's architecture has a committed
measurement in which this operation wins (see `launch`). The choice is made at every call, on the host,
without looking at data. A graph that `torch.compile` has traced keeps the choice it was traced with.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from nitrodistill.kernels import launch

Backend = Literal["triton", "reference"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""True where Triton kernels run in its interpreter, on CPU tensors; Triton reads it at its import."""

_forced: list[Backend | None] = [None]


class use:
    """Choose the implementation, from here on or for a `with` block.

        use("reference")              # from here on
        with use("triton"): ...       # and back afterwards

    "triton" still runs the reference where Triton cannot: on a CPU, in float64, where it is missing.

    Args:
        backend: "triton", "reference", or None for the default (what is measured to win).

    Raises:
        ValueError: for any other value.

    Example:
        >>> with nd.kernels.use("reference"):
        ...     nd.SmoothL1Loss()(x0, x0)
        tensor(0.)
    """

    def __init__(self, backend: Backend | None) -> None:
        if backend not in ("triton", "reference", None):
            raise ValueError(
                f"backend is {backend!r}; it must be 'triton', 'reference' or None (the default)."
            )
        self._previous: Backend | None = _forced[0]
        _forced[0] = backend

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        _forced[0] = self._previous


def fused(operation: str, data: tuple[Tensor, ...], constants: tuple[Tensor | None, ...]) -> bool:
    """Whether this call of `operation` runs the Triton kernel.

    Args:
        operation: name of the operation's package.
        data: tensors that may need a gradient; all on one device.
        constants: tensors to which the kernel gives no gradient.

    Raises:
        ValueError: for tensors on several devices.
        TypeError: for a DTensor or a tensor that is not floating.
    """
    _check(operation, data)
    device = data[0].device
    if _forced[0] == "reference" or any(t.dtype == torch.float64 for t in data):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants):
        return False
    if data[0].numel() == 0 or data[0].numel() // data[0].shape[0] > 2**31 - 2**20:
        return False
    if device.type != "cuda":
        return INTERPRETED and _forced[0] == "triton"
    if _forced[0] is None and operation not in launch.proven(launch.architecture(device.index)):
        return False
    return triton_failure(device.index) is None


def explain(operation: str, index: int) -> str:
    """In words: which implementation of `operation` GPU `index` runs at this moment, and why."""
    name = launch.architecture(index)
    if _forced[0] == "reference":
        return 'reference: use("reference") was called'
    if _forced[0] is None and operation not in launch.proven(name):
        return f"reference: no committed measurement on {name} shows the kernel to win"
    failure = triton_failure(index)
    if failure is not None:
        return f"reference: Triton does not work here ({failure})"
    if _forced[0] == "triton":
        return 'triton: use("triton") was called'
    return f"triton: {launch.results(name)} shows it to win on {name}"


def _check(operation: str, data: tuple[Tensor, ...]) -> None:
    for tensor in data:
        if tensor.device != data[0].device:
            raise ValueError(
                f"{operation} got tensors on {data[0].device} and {tensor.device}; move them to one."
            )
        if not tensor.is_floating_point():
            raise TypeError(f"{operation} got a {tensor.dtype} tensor; convert it to float32.")
        if type(tensor) not in (Tensor, nn.Parameter) and _is_distributed(tensor):
            raise TypeError(
                f"{operation} got a DTensor, whose samples may be spread over ranks; pass "
                "`.to_local()` of a batch-sharded tensor or `.full_tensor()`."
            )


def _is_distributed(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@launch.constant
@functools.cache
def triton_failure(index: int) -> str | None:
    """Why Triton does not work on GPU `index`, warned once; None where a probe kernel ran."""
    try:
        from nitrodistill.kernels import probe

        probe.run(torch.device("cuda", index))
    except Exception as error:  # whatever a broken compiler raises, training goes on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"nitrodistill's fused kernels are off, the PyTorch reference runs instead: Triton does "
            f"not work on cuda:{index} ({reason}). Install the triton that belongs to torch "
            f"{torch.__version__} (pip install --force-reinstall torch; on ROCm from the ROCm wheel "
            'index) and a C compiler, or silence this with nitrodistill.kernels.use("reference").',
            RuntimeWarning,
            stacklevel=2,
        )
        return reason
    return None
