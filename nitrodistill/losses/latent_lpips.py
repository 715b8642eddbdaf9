"""LatentLPIPS: a perceptual distance of latents, without decoding them (Kang et al. 2024, arXiv 2405.05967).

    d = sum_l mean_{h,w} sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2,   |f|^2 = sum_c f_c^2 + 1e-8

The formula is that of LPIPS; the features f_l are of latents, and there is a choice of them:

    a trunk from a file           the published networks, which the user brings, or one of `fit-latent-lpips`
    the teacher's own features    `FeatureTaps.bind(t, condition)`
    the VAE decoder's             `models.DecoderFeatures`

E-LatentLPIPS is the mean over augmentations that both sides share, one draw for each sample and step. What the
published code adds, mean |x - y|, is `L1Loss` in a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nitrodistill.checks import check_floating, check_kind, check_pair
from nitrodistill.files import hash_file
from nitrodistill.losses.base import Loss, Reduction
from nitrodistill.losses.latent_augmentation import NUM_DRAWS, augment_latents, check_groups
from nitrodistill.losses.latent_trunk import read_heads, read_latent_trunk
from nitrodistill.losses.lpips import FeatureTrunk, LPIPSLoss, TargetFeatures
from nitrodistill.losses.trunks import read_weights

_NUM_ROWS, _LEVELS = 4096, 2**24
_TOY = Path(__file__).parent / "weights" / "toy_latent_lpips.safetensors"
_TOY_HASH = "0002e19d33da784dfe9d22520b8a8839"


class LatentLPIPSLoss(Loss):
    """LatentLPIPS; see the module.

    Args:
        network: any callable from latents `(B, C, H, W)` to feature maps; its parameters must be frozen, and it is
            no part of this module. None takes `weights`.
        weights: file of a trunk, .safetensors or of torch.save, in one of the layouts of `latent_trunk`; "toy" is
            that which comes with the embedded teacher, for its VAE alone.
        heads: channel weights, one `(C_l,)` for each feature map, or a file of them; None takes those of the
            `weights`, or 1 for every channel with a `network`. A negative one counts as 0.
        augment: groups of augmentations, letters of "bgco" (E-LatentLPIPS: "bg"); "" has none. In eval() there is
            none either.
        generator: on the CPU; what the augmentations are drawn from, all of them here: a table of 4096 rows that
            is gone through again and again. Not needed where `draw` is called before the loss, whose draws
            go first: methods do so.
        reduction: "mean", "sum" or "none".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for neither or both of network and weights, a file of another layout or without heads, no
            heads in `heads`, a network with parameters that require gradients, unknown augmentations, or a
            generator without any.
        TypeError: for a network that is not callable, or another argument of a wrong type.

    Example:
        >>> loss = nd.LatentLPIPSLoss(weights="toy")  # the embedded teacher's trunk
        >>> loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)).item()
        0.0
    """

    augment: str

    def __init__(
        self,
        network: FeatureTrunk | None = None,
        *,
        weights: str | Path | None = None,
        heads: str | Path | Sequence[Tensor] | None = None,
        augment: str = "",
        generator: torch.Generator | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.augment = check_groups(augment, "augment")
        if (network is None) == (weights is None):
            given = "neither network nor weights" if weights is None else "both network and weights"
            raise ValueError(
                f"got {given}; give either weights, a file, or a network, a callable from latents to feature maps."
            )
        if network is not None and not callable(network):
            raise TypeError(
                f"network is {network!r:.60}; it must be a callable from latents to feature maps (LPIPS' networks "
                "by name see pictures), or give the file of a trunk, or 'toy', as weights=."
            )
        own = None if heads is None else _given_heads(heads)
        if weights is not None:
            state = read_weights(_file(weights))
            network, in_file = read_latent_trunk(state, f"the weights in {str(weights)!r}")
            own = in_file if own is None else own
            if len(own) != len(network.blocks):
                raise ValueError(
                    f"the trunk in {str(weights)!r} has {len(network.blocks)} feature maps and {len(own)} "
                    "heads; give the file of the heads with heads=."
                )
            self.trunk: torch.nn.Module = network
        assert network is not None
        own = None if own is None else [head.clamp_min(0) for head in own]
        self.distance: LPIPSLoss = LPIPSLoss(network, heads=own, eps=1e-8)
        self.num_draws = NUM_DRAWS if augment else 0
        self.register_buffer("table", _table(augment, generator), persistent=False)
        self.register_buffer("next_row", torch.zeros((), dtype=torch.int64), persistent=False)

    def target_features(self, target: Tensor) -> TargetFeatures:
        """The features of a target, without gradients, to be passed instead of it where nothing is augmented."""
        return self.distance.target_features(target)

    def per_sample(
        self, pred: Tensor, target: Tensor | TargetFeatures, mask: Tensor | None = None
    ) -> Tensor:
        """The distance of every sample.

        Args:
            pred: latents as the network of a pipeline takes them (scaled), `(B, C, H, W)` or `(B, C, T, H, W)`.
            target: the same shape, or its features.
            mask: `(B, 1, H, W)`, `(B, 1, T, H, W)`, or with dimensions of size 1.

        Returns:
            `(B,)`, float64 if the features are, else float32.

        Raises:
            ValueError: for wrong shapes, and where both sides are augmented for a mask, features, or nothing to
                draw from.
        """
        if not (self.augment and self.training):
            return self.distance.per_sample(pred, target, mask)
        if mask is not None or isinstance(target, TargetFeatures):
            raise ValueError(
                "both sides are augmented, so neither a mask nor features of the target can be given; call "
                ".eval() or leave augment out."
            )
        check_pair(pred, target)
        r = self._rows(len(pred)) if self.drawn is None else self.drawn
        if len(r) != len(pred):
            raise ValueError(
                f"pred has {len(pred)} samples, and draws were made for {len(r)}; call draw(draws.uniform) before "
                "each call of the loss."
            )
        pred, target = (augment_latents(z, r, self.augment) for z in (pred, target))
        return self.distance.per_sample(pred, target)

    def _rows(self, count: int) -> Tensor:
        """The next rows of the table, `(count, NUM_DRAWS)`."""
        table, next_row = self.get_buffer("table"), self.get_buffer("next_row")
        if len(table) == 0:
            raise ValueError(
                f"augment is {self.augment!r}, and there is nothing to draw from; give a generator, or call "
                "draw(draws.uniform) before the loss."
            )
        rows = torch.arange(count, device=table.device) + next_row
        next_row += count
        return table[rows % _NUM_ROWS].float() / _LEVELS

    def extra_repr(self) -> str:
        return f"augment={self.augment!r}, {super().extra_repr()}"


def _table(augment: str, generator: torch.Generator | None) -> Tensor:
    """Draws `(4096, NUM_DRAWS)` as whole numbers, which stay what they are in a module cast to bfloat16."""
    if generator is None:
        return torch.empty(0, dtype=torch.int32)
    check_kind("generator", generator, torch.Generator, " of torch")
    if not augment:
        raise ValueError(
            "a generator is given, and augment is '', which draws nothing; give augment='bg', or leave the "
            "generator out."
        )
    return (torch.rand(_NUM_ROWS, NUM_DRAWS, generator=generator) * _LEVELS).int()


def _given_heads(heads: str | Path | Sequence[Tensor]) -> Sequence[Tensor]:
    """The heads that were given, of a file or as they are."""
    if isinstance(heads, str | Path):
        found = read_heads(read_weights(_file(heads)))
        if not found:
            raise ValueError(
                f"{str(heads)!r} holds no heads (lin0.model.1.weight, linear1.model.1.weight, heads.0); give a "
                "file that does, or leave heads out."
            )
        return found
    check_kind("heads", heads, Sequence[Tensor], " (C_l,), or a file of them")
    for head in heads:
        check_floating("a head", head)
    return heads


def _file(weights: str | Path) -> Path:
    check_kind("weights", weights, str | Path, " of a file")
    if str(weights) == "toy":
        if hash_file(_TOY) != _TOY_HASH:
            raise ValueError(f"{_TOY} is damaged; reinstall nitrodistill.")
        return _TOY
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"no weights of a latent trunk at {str(weights)!r}; make them with `nitrodistill fit-latent-lpips`, "
            "or give the file of published ones."
        )
    return Path(weights)
