"""How tokens and maps lie: the image among a block's tokens, on a grid, and latents packed into tokens of 2x2."""

from __future__ import annotations

import torch
from torch import Tensor


def first_tensor(output: object) -> Tensor:
    """`output` if it is a tensor, else the first tensor of a tuple or list.

    Example:
        >>> nd.models.adapters.first_tensor(("text", torch.zeros(2))).shape
        torch.Size([2])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        for element in output:
            if isinstance(element, Tensor):
                return element
    raise TypeError(
        f"a tapped module returned {type(output).__name__} without a tensor in it; tap a module that "
        "returns a feature map."
    )


def image_tokens(output: object, grid: tuple[int, int]) -> Tensor:
    """The image's tokens `(B, h w, D)` in what a joint block of text and image returned.

    Of a tuple that is the last tensor with h w tokens (blocks return the text first; tap these, where text may
    have as many tokens as the image). Of longer sequences it is the end: the text comes first.

    Example:
        >>> nd.models.adapters.image_tokens(torch.zeros(2, 16, 8), (4, 4)).shape
        torch.Size([2, 16, 8])
    """
    length = grid[0] * grid[1]
    parts = output if isinstance(output, (tuple, list)) else [output]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    same = [part for part in tensors if part.ndim == 3 and part.shape[1] == length]
    if same:
        return same[-1]
    found = first_tensor(output)
    return found[:, -length:] if found.ndim == 3 and found.shape[1] > length else found


def on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lays tokens `(B, N, D)` out as a map `(B, D, h, w)`; maps stay as they are.

    Args:
        features: tokens or a map.
        grid: `(h, w)` of the whole latent. N = h w, or fewer by a power of two a side (deeper levels of a
            UNet).

    Raises:
        ValueError: if it is neither, as for a module that sees text or timesteps only.

    Example:
        >>> nd.models.adapters.on_grid(torch.zeros(2, 16, 8), (4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """
    if features.ndim == 4:
        return features
    height, width = grid
    if features.ndim == 3:
        length = features.shape[1]
        while length < height * width and max(height, width) > 1:
            height, width = -(-height // 2), -(-width // 2)
        if length == height * width:
            return features.transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"a tapped module returned shape {tuple(features.shape)}, which is neither a map (B, D, h, w) nor "
        f"tokens (B, N, D) of a {grid[0]}x{grid[1]} grid; tap a module that the image passes through."
    )


def packed(x_t: Tensor) -> Tensor:
    """Maps `(B, C, H, W)` as tokens of 2x2 pixels `(B, H W / 4, 4 C)`, channels outermost (Flux's order)."""
    height, width = x_t.shape[-2] // 2, x_t.shape[-1] // 2
    patches = x_t.unflatten(3, (width, 2)).unflatten(2, (height, 2))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """The maps, as high and wide as `like`, that `packed` made tokens of."""
    grid = like.shape[-2] // 2, like.shape[-1] // 2
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, grid)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(grid: tuple[int, int], like: Tensor) -> Tensor:
    """`(h w, 3)`: 0, row and column of each token, on `like`'s device, in its dtype (Flux's position ids)."""
    height, width = grid
    rows = torch.arange(height, device=like.device).repeat_interleave(width)
    columns = torch.arange(width, device=like.device).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1).to(like.dtype)
