"""3x3 convolutions with frozen weights, on a CPU in fewer products: Winograd's F(2x2, 3x3).

    Y = A^T [(G g G^T) * (B^T d B)] A

for each 2x2 outputs Y, of a kernel g and the 4x4 inputs d around them: 16 products for each pair of channels, not
36 (Lavin and Gray 2015, arXiv 1509.09308, section 4.1). Over the channels they are 16 matrix products. The value
is the convolution's but for rounding, which is of the size of the direct sum's. The gradient needs the kernel
turned by 180 degrees: its transform is the same one with the first and last row and column exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OUTPUT = ((1.0, 1, 1, 0), (0, 1, -1, -1))
_KERNEL = ((1.0, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_INPUT = ((1.0, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_LEAST_CHANNELS, _LEAST_POSITIONS = 128, 256
"""Below that the transforms cost what the products save."""


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zeros around it; with frozen weights and a wide input on a CPU it is Winograd's.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self._kept: tuple[Tensor, int, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, out_channels, H, W)`."""
        weight, bias = self.weight, self.bias
        assert bias is not None
        if (
            input.device.type != "cpu"
            or input.dtype not in (torch.float32, torch.float64)
            or weight.requires_grad
            or min(weight.shape[:2]) < _LEAST_CHANNELS
            or input.numel() < _LEAST_POSITIONS * weight.shape[1]
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or weight.is_inference()
            or torch._C._are_functorch_transforms_active()
        ):
            return super().forward(input)
        return _Winograd.apply(input, self._transformed(), False) + bias.view(-1, 1, 1)

    def _transformed(self) -> Tensor:
        """`(16, in, out)`, kept as long as the weights are the same.

        With it a view of the weights is kept: their memory, by which they are known, is nobody else's meanwhile.
        """
        weight, kept = self.weight, self._kept
        if (
            kept is None
            or kept[0].data_ptr() != weight.data_ptr()
            or kept[0].dtype != weight.dtype
            or kept[1] != weight._version
        ):
            with torch.inference_mode(False):  # what is kept may be needed for gradients later
                flat = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
                kernel = _squared(_KERNEL, flat) @ flat
                kept = weight.detach(), weight._version, kernel.view(16, *weight.shape[1::-1])
            self._kept = kept
        return kept[2]


class _Winograd(torch.autograd.Function):
    """Of transformed kernels `(16, in, out)`; `turned` is with the kernels before that turned by 180 degrees."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, turned: bool) -> Tensor:
        batch, _, height, width = x.shape
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
        tiles = x.unfold(1, 4, 2).unfold(2, 4, 2).permute(4, 5, 0, 1, 2, 3)
        rows, columns = tiles.shape[3:5]
        into, out = _squared(_INPUT, x), _squared(_OUTPUT, x)
        if turned:
            exchanged = torch.arange(16).view(4, 4)[[3, 1, 2, 0]][:, [3, 1, 2, 0]].flatten()
            into, out = into[exchanged], out[:, exchanged]
        products = (into @ tiles.reshape(16, -1)).view(16, batch * rows * columns, -1) @ kernel
        y = (out @ products.view(16, -1)).view(2, 2, batch, rows, columns, -1)
        y = y.permute(2, 3, 0, 4, 1, 5).reshape(batch, 2 * rows, 2 * columns, -1)
        return y[:, :height, :width].permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, kernel, ctx.turned = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kernel,) = ctx.saved_tensors
        return _Winograd.apply(gradients[0], kernel.transpose(1, 2), not ctx.turned), None, None


def _squared(matrix: Any, like: Tensor) -> Tensor:
    """The matrix for both sides at once, `vec(M X M^T) = (M kron M) vec(X)`."""
    one = like.new_tensor(matrix)
    return torch.kron(one, one)
