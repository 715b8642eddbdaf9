"""What networks have in common that see latents as tokens of 2x2 pixels: Flux, Chroma, Qwen-Image."""

from __future__ import annotations

from torch import Tensor

from nitrodistill.models.adapters.base import Adapter
from nitrodistill.models.adapters.layout import image_tokens, on_grid, unpacked


class PackedAdapter(Adapter):
    """Latents go in and come out as maps; the network sees packed tokens. t runs to 1."""

    patch: int = 2
    multiple: int = 2
    default_side: int | None = 128
    timestep_scale: float = 1e-3

    def unpacked(self, latents: Tensor, x_t: Tensor) -> Tensor:
        """Unpacks the tokens."""
        return unpacked(latents, x_t)

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The image's tokens, alone or behind the text's."""
        return on_grid(image_tokens(output, grid), grid)

    def channels(self) -> int:
        """Of the latents; a token holds four times as many."""
        return self.config.in_channels // 4
