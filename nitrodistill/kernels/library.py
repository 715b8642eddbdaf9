"""Registration of the fused operations with `torch.library`.

`define` and `impl`, with autograd in a `torch.autograd.Function` outside of the operation: of all the
ways this one costs the host least per call (61 us forward and backward, where `custom_op` with
`register_autograd` took 102 us and the unfused loss 103 us), and for small latents the host is the
bottleneck. ROCm devices dispatch on the CUDA key too; the CPU key is Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("nitrodistill", "DEF")

# The kernels walk several tensors with one set of strides; a compiler must not change them.
_STRIDES = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)


def define(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register `nitrodistill::<schema>` and return the callable operation.

    Args:
        schema: name and signature in torch's schema language; the first argument is a tensor.
        launch: runs the kernels on real tensors.
        fake: the same outputs, empty, for tracing.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(_STRIDES,))
    _LIBRARY.impl(name, launch, "CPU")
    _LIBRARY.impl(name, on_its_device(launch), "CUDA")
    torch.library.register_fake(f"nitrodistill::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.nitrodistill, name).default


def with_graph(
    loss: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients of a reference that can be differentiated again; None for an input that wants none."""
    chosen = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(loss, chosen, upstream, create_graph=True))
    return [next(found) if want else None for want in wanted]


def none_as_empty(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Gradients as an operation must return them: an empty tensor where there is none."""
    return [like.new_empty(0) if gradient is None else gradient for gradient in gradients]


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """`launch` with the first argument's GPU made current, on which Triton launches."""

    def run(first: Tensor, *rest: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return launch(first, *rest)
        with torch.cuda.device(first.device):
            return launch(first, *rest)

    return run
