"""FeatureTaps: named submodules of a network -> their feature maps.

The hooks live for one call. `features` stops the forward pass as soon as the last tap has fired, so that the
blocks behind it are never run; `prediction_and_features` runs to the end.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters import first_tensor
from nitrodistill.models.denoiser import DiffusersDenoiser
from nitrodistill.types import Condition, Denoiser

__all__ = ["FeatureTaps"]


class FeatureTaps:
    """Reads feature maps from inside a denoiser.

    Args:
        denoiser: the network; its submodules are looked up once, here.
        names: dotted submodule names in the order wanted, such as `"down_blocks.1"`, `"mid_block"`.
        image_part: picks the image's map from what a tapped module returns; by default what the
            denoiser's family says, else the first tensor.

    Raises:
        ValueError: if a name does not exist (the nearest ones are listed) or is given twice.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        names: Sequence[str],
        image_part: Callable[[object], Tensor] | None = None,
    ) -> None:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"taps are {list(names)}; give at least one name, each only once.")
        self.denoiser: Denoiser = denoiser
        self.names: tuple[str, ...] = tuple(names)
        known = isinstance(denoiser, DiffusersDenoiser)
        modules = dict((denoiser.network if known else denoiser.module).named_modules())
        for name in names:
            if name not in modules or not name:
                near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3)
                raise ValueError(
                    f"the network has no submodule {name!r}; the nearest are "
                    f"{', '.join(near) or ', '.join(list(modules)[1:6])}."
                )
        self._modules = [modules[name] for name in names]
        self._image_part = image_part

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The feature maps, in the order of `names`; what lies behind the last tap is not run.

        Gradients flow to `x_t`. Diffusers networks give maps `(B, C_i, H_i, W_i)`, transformers too: their
        tokens are laid out on the latent's grid.
        """
        with self._hooked(x_t, stop=True) as found, suppress(_AllFound):
            self.denoiser(x_t, t, condition)
        return self._collect(found)

    def prediction_and_features(
        self, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The prediction and the feature maps, from one forward pass."""
        with self._hooked(x_t, stop=False) as found:
            prediction = self.denoiser(x_t, t, condition)
        return prediction, self._collect(found)

    def bind(self, t: Tensor, condition: Condition) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """`x_t -> features` at a fixed timestep and condition: a perceptual trunk."""
        return lambda x_t: self.features(x_t, t, condition)

    def channels(self, example: tuple[Tensor, Tensor, Condition] | None = None) -> tuple[int, ...]:
        """The channels of each map, probed by running the network once without gradients.

        Args:
            example: `(x_t, t, condition)`; by default the smallest input of the denoiser's family.

        Raises:
            TypeError: if there is no example and the family is unknown.
        """
        if example is None:
            if not isinstance(self.denoiser, DiffusersDenoiser):
                raise TypeError(
                    f"{type(self.denoiser).__name__} has no example input of its own; pass "
                    "example=(x_t, t, condition) of batch size one."
                )
            example = self.denoiser.example()
        with torch.no_grad():
            return tuple(feature.shape[1] for feature in self.features(*example))

    def _reader(self, x_t: Tensor) -> Callable[[object], Tensor]:
        if self._image_part is not None:
            return self._image_part
        if not isinstance(self.denoiser, DiffusersDenoiser):
            return first_tensor
        adapter = self.denoiser.adapter
        grid = adapter.grid(x_t)
        return lambda output: adapter.image_part(output, grid)

    @contextmanager
    def _hooked(self, x_t: Tensor, stop: bool) -> Iterator[dict[int, Tensor]]:
        found: dict[int, Tensor] = {}
        image_part = self._reader(x_t)

        def hook_for(i: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, args: object, output: object) -> None:
                found[i] = image_part(output)
                if stop and len(found) == len(self._modules):
                    raise _AllFound

            return hook

        handles = [m.register_forward_hook(hook_for(i)) for i, m in enumerate(self._modules)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _collect(self, found: dict[int, Tensor]) -> tuple[Tensor, ...]:
        missing = [name for i, name in enumerate(self.names) if i not in found]
        if missing:
            raise ValueError(
                f"the taps {missing} were never reached in the forward pass; tap modules that the "
                "network calls."
            )
        return tuple(found[i] for i in range(len(self.names)))


class _AllFound(Exception):
    """Leaves a forward pass when every tap has fired."""
