"""Fast means of the losses with a root, pseudo-Huber and Charbonnier.

    value_b = mean rho(d),   rho = d^2 / (r + k)  or  r,   r = sqrt(d^2 + k^2)      slope = d / r

On a CPU the slope is taken in the forward pass, a piece of the data at a time, so that intermediate maps
stay in the cache and one map is kept; autograd's own way through the formula keeps four. The formula is
`nitrodistill.kernels.x0_loss.reference.elementwise_loss`, which serves devices and compiled graphs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from nitrodistill.kernels.arithmetic import masked_mean
from nitrodistill.kernels.x0_loss.reference import elementwise_loss

__all__ = ["RootedLoss", "rooted_mean"]

RootedLoss = Literal["pseudo_huber", "charbonnier"]

_PIECE = 1 << 17
"""Elements that are worked on at a time, per CPU thread."""


def rooted_mean(x: Tensor, y: Tensor, loss: RootedLoss, k: float) -> Tensor:
    """The mean loss of every sample, `(B,)`.

    Args:
        x: `(B, *)`, float32 or float64.
        y: the same shape and dtype.
        loss: which.
        k: c of pseudo-Huber, eps of Charbonnier, > 0.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return masked_mean(elementwise_loss(x - y, loss, k), None)
    need = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    value, _ = _Rooted.apply(x, y, loss, k, need)
    return value


class _Rooted(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, y: Tensor, loss: RootedLoss, k: float, need: bool
    ) -> tuple[Tensor, Tensor]:
        rows = x.reshape(x.shape[0], -1)
        slope = torch.empty_like(rows if need else rows[:, :0])
        value = _pieces(rows, y.reshape(rows.shape), loss, k, slope if need else None)
        return value, slope.view(x.shape) if need else slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, y, ctx.loss, ctx.k, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, output[1])

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, y, slope = ctx.saved_tensors
        grad = grad_outputs[0]
        if grad is None:
            return None, None, None, None, None
        scale = grad.view(-1, *(1,) * (x.ndim - 1)) * (x.shape[0] / x.numel())
        if torch.is_grad_enabled():
            d = x - y
            slope = d / elementwise_loss(d, "charbonnier", ctx.k)
        of_x = slope * scale
        need_x, need_y = ctx.needs_input_grad[:2]
        return of_x if need_x else None, of_x.neg() if need_y else None, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Under `torch.vmap`: the mapped dimension first, through the plain formula."""
        x, y, loss, k, _ = args
        x, y = (
            t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((x, y), in_dims, strict=False)
        )
        d = (x - y).expand(info.batch_size, *x.shape[1:])
        value = elementwise_loss(d, loss, k).reshape(*d.shape[:2], -1).mean(2)
        return (value, d / elementwise_loss(d, "charbonnier", k)), (0, 0)


def _pieces(x: Tensor, y: Tensor, loss: RootedLoss, k: float, slope: Tensor | None) -> Tensor:
    """Mean of every row; writes the slope if it is wanted."""
    batch, size = x.shape
    piece = _PIECE * torch.get_num_threads()
    rows, columns = max(1, piece // size), min(size, piece)
    value = x.new_zeros(batch)
    for i in range(0, batch, rows):
        for j in range(0, size, columns):
            part = slice(i, i + rows), slice(j, j + columns)
            d = x[part] - y[part]
            square = d * d
            root = torch.add(square, k * k).sqrt_()
            if slope is not None:
                torch.div(d, root, out=slope[part])
            if loss == "pseudo_huber":
                root = square.div_(root.add_(k))
            value[part[0]] += root.sum(1)
    return value / size
