"""Maximum mean discrepancy of features as a loss, for `loss_ablation.py`; a loss from outside of the package.

    value_i = mean over j != i of  k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)
    k(a, b) = mean over s in (1/2, 1, 2) of exp(-|a - b|^2 / (2 s m))

over the samples of a micro-batch; the mean of the values is Gretton et al.'s (2012) U-statistic of MMD^2, which
can be negative. x and y are feature maps averaged over their places, of unit length in each map; m is the mean of
|y_i - y_j|^2. It compares two sets: which picture belongs to which it does not see, and so not the prompt either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nitrodistill.losses import Loss, Reduction
from nitrodistill.losses.lpips import FeatureTrunk


class MMDLoss(Loss):
    """See the module.

    Args:
        network: from latents to feature maps `(B, C, H, W)`.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, network: FeatureTrunk, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self._network = (network,)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Each sample's share of MMD^2, `(B,)`; B of at least 2."""
        if mask is not None or len(pred) < 2:
            raise ValueError(
                f"MMD takes no mask and at least two samples, and there are {len(pred)}."
            )
        x = self._features(pred)
        with torch.no_grad():
            y = self._features(target)
        yy = _squares(y, y)
        scale = yy.sum() / (len(y) * (len(y) - 1))
        cross = _kernel(_squares(x, y), scale)
        terms = _kernel(_squares(x, x), scale) + _kernel(yy, scale) - cross - cross.T
        others = 1 - torch.eye(len(x), device=x.device)
        return (terms * others).sum(1) / (len(x) - 1)

    def _features(self, latents: Tensor) -> Tensor:
        (network,) = self._network
        maps = [normalize(map.float().mean((2, 3)), dim=1, eps=1e-8) for map in network(latents)]
        return torch.cat(maps, dim=1)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, `(B, B)`."""
    return (a[:, None] - b[None]).square().sum(2)


def _kernel(squares: Tensor, scale: Tensor) -> Tensor:
    widths = [torch.exp(-squares / (2 * s * scale)) for s in (0.5, 1.0, 2.0)]
    return torch.stack(widths).mean(0)
