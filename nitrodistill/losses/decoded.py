"""Losses on pictures for latents: both sides are decoded first.

    value_b = loss_b(decode(pred), decode(target))

`decode` is the caller's: a frozen autoencoder's decoder, through which gradients flow to the latents. A
chunk of samples is decoded and compared at a time, and computed again in the backward pass (Chen et al.
2016, checkpointing), so that the activations of one chunk alone are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nitrodistill.checks import check_mask, check_pair, check_whole
from nitrodistill.losses.base import Loss, Reduction, check_part, refuse_trainable


class DecodedLoss(Loss):
    """A loss on what latents decode to.

    Args:
        loss: what compares the pictures; its own reduction must be "mean", this module has one.
        decode: latents `(b, C, H, W)` -> pictures `(b, 3, h, w)`, differentiable and without randomness. Its
            parameters must be frozen; it is no submodule of this one, which therefore does not move it.
        chunk: samples that are decoded and compared at a time; None is all at once, kept for the backward
            pass.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for a `chunk` below 1, a decoder that would be trained, a loss with another reduction than
            "mean", or chunks for a loss that draws at random for a whole batch.
        TypeError: if `decode` cannot be called, or `chunk` is no whole number.

    Example:
        >>> loss = nd.DecodedLoss(nd.L1Loss(), teacher.decode)  # of images, from latents
        >>> loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)).item()
        0.0
    """

    chunk: int | None

    def __init__(
        self,
        loss: Loss,
        decode: Callable[[Tensor], Tensor],
        chunk: int | None = 1,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        if not callable(decode):
            raise TypeError(
                f"decode is a {type(decode).__name__}; it must be a function of latents, such as "
                "`Pipeline.decode`."
            )
        refuse_trainable("decoder", decode)
        self.loss: Loss = check_part("the loss", loss)
        self.chunk = None if chunk is None else check_whole("chunk", chunk)
        if chunk is not None and any(isinstance(m, Loss) and m.num_draws for m in loss.modules()):
            raise ValueError(
                f"the loss on the pictures draws at random for a whole batch, and chunk is {chunk}; leave out its "
                "augment, or decode all at once (chunk=None, in Python)."
            )
        self._decode = (decode,)  # in a tuple, so that it is no submodule

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """The decoder."""
        return self._decode[0]

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of every sample.

        Args:
            pred: latents, `(B, C, H, W)`.
            target: latents, the same shape.
            mask: `(B, 1, H, W)` on the latents, or with sides of 1; enlarged to the pictures' size.

        Returns:
            `(B,)`, in the dtype of the loss on the pictures.
        """
        return decoded_values([self], pred, target, mask)[0]

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}, {super().extra_repr()}"


def decoded_values(
    losses: Sequence[DecodedLoss], pred: Tensor, target: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The values `(B,)` of losses that share a decoder and a chunk, decoded once; see `DecodedLoss`."""
    check_pair(pred, target)
    if mask is not None:
        check_mask(mask, pred)
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; the channels of latents are not those of pictures, "
                "give it one: (B, 1, H, W)."
            )
        mask = mask.expand(pred.shape[0], -1, -1, -1)
    decode, chunk = losses[0].decode, losses[0].chunk

    def compare(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        ours = decode(pred)
        with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
            theirs = decode(target)
        if mask is not None:
            mask = _enlarged(mask, ours)
        return tuple(each.loss.per_sample(ours, theirs, mask) for each in losses)

    learns = torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad)
    values = []
    for start in range(0, pred.shape[0], chunk or pred.shape[0]):
        rows = slice(start, start + (chunk or pred.shape[0]))
        arguments = pred[rows], target[rows], None if mask is None else mask[rows]
        if chunk is None or not learns:
            values.append(compare(*arguments))
        else:
            values.append(
                checkpoint(compare, *arguments, use_reentrant=False, preserve_rng_state=False)
            )
    return tuple(torch.cat(value) for value in zip(*values, strict=True))


def _enlarged(mask: Tensor, pictures: Tensor) -> Tensor:
    """A mask on latents as one on pictures: a latent pixel's value on all pixels that it stands for."""
    size = [
        have if have == 1 else want
        for have, want in zip(mask.shape[-2:], pictures.shape[-2:], strict=True)
    ]
    return F.interpolate(mask.to(pictures.dtype), size=size, mode="area")
