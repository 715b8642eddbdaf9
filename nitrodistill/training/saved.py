"""How much memory a loss keeps for its backward pass: counted, not modelled.

The loss is computed on the meta device, where tensors have shapes and storages but no memory, while a hook notes
every tensor that autograd saves. Three things differ from a run on a GPU, and are put right here:

- attention on the meta device takes the unfused way, which saves the matrix of all pairs; a GPU takes a fused
  kernel, which saves queries, keys, values, output and one number a query (Dao et al. 2022);
- the meta device knows no autocast; `Autocast` casts as CUDA's does, and keeps the cast weights as that does;
- a checkpointed block saves what it is given, and what it computes is there once, for one block at a time; one run
  counts both, with checkpointing and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode


class Saved(NamedTuple):
    """Bytes that autograd keeps for a backward pass.

    Attributes:
        plain: without gradient checkpointing.
        kept: with it; of a checkpointed block what it was given.
        block: what the largest checkpointed block saves on top, while backward recomputes it.
    """

    plain: int
    kept: int
    block: int


class SavedTensors:
    """Counts the bytes that autograd saves, apart from weights; each storage once.

    Args:
        modules: whose parameters and buffers are not counted.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._weights = {
            _storage(tensor)
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        self._plain: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        self._largest_block = 0

    def take(self) -> Saved:
        """What is saved now; then forgets it, as a backward pass does."""
        plain, kept = (sum(map(_size, saved.values())) for saved in (self._plain, self._kept))
        found = Saved(plain, kept, self._largest_block)
        self._plain.clear()
        self._kept.clear()
        self._largest_block = 0
        return found

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what is computed inside of the block."""
        with _FusedAttention(), saved_tensors_hooks(self._pack(self._kept), _unchanged):
            yield

    def checkpointed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Stands in for `torch.utils.checkpoint.checkpoint`."""
        for argument in arguments:
            if isinstance(argument, Tensor):
                self._keep(argument, self._kept)
        inside: dict[int, Tensor] = {}
        with saved_tensors_hooks(self._pack(inside), _unchanged):
            result = function(*arguments)
        anew = sum(_size(t) for key, t in inside.items() if key not in self._kept)
        self._largest_block = max(self._largest_block, anew)
        return result

    def _pack(self, kept: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
        def pack(tensor: Tensor) -> Tensor:
            self._keep(tensor, self._plain, kept)
            return tensor

        return pack

    def _keep(self, tensor: Tensor, *where: dict[int, Tensor]) -> None:
        if _storage(tensor) not in self._weights:
            for kept in where:  # alive, so that no other storage gets its address
                kept[_storage(tensor)] = tensor


class Autocast(TorchFunctionMode):
    """Casts arguments as CUDA's autocast to bfloat16 does, for what diffusion networks and heads compute."""

    _LOWER = frozenset(
        {
            F.linear,
            F.scaled_dot_product_attention,
            torch.baddbmm,
            torch.bmm,
            torch.conv2d,
            F.conv2d,
            torch.matmul,
            Tensor.matmul,
            Tensor.__matmul__,
        }
    )
    _FULL = frozenset({F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax})

    def __init__(self) -> None:
        super().__init__()
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        dtype = torch.bfloat16 if func in self._LOWER else torch.float32
        if func in self._LOWER or func in self._FULL:
            args = tuple(self._cast(value, dtype) for value in args)
            given = {name: self._cast(value, dtype) for name, value in given.items()}
        return func(*args, **given)

    def _cast(self, value: object, dtype: torch.dtype) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._casts:  # a weight is cast once
            self._casts[id(value)] = (value, value.to(dtype))
        return self._casts[id(value)][1]


class _FusedAttention(TorchFunctionMode):
    """Attention that saves what a fused kernel does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask")
        given = {**dict(zip(names, args, strict=False)), **given}
        return _Attention.apply(*(given.get(name) for name in names))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # laid out with the heads behind the tokens, so that joining the heads afterwards copies nothing
        size = (*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1])
        output = query.new_empty(size).transpose(-3, -2)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors  # a loss may ask: of shapes, that is shapes
        return *(torch.empty_like(tensor) for tensor in (query, key, value)), None


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
