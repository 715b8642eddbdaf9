"""Several processes, one training run: modules prepared for DDP or FSDP2, and how whole tensors come back.

- "ddp": every process holds the whole network; Accelerate's `prepare` averages the gradients.
- "fsdp": every process holds a part of each weight, of its gradient, its moments and its average. `fully_shard`
  is called directly, because Accelerate takes one network only under FSDP2 and, on a CPU, runs DDP in its
  place without a word. So the code that is tested on a CPU is the code that runs on a GPU.

What processes tell each other is tensors and JSON, never a pickle.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from nitrodistill.processes import place

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Parallel = Literal["ddp", "fsdp"]


def check_launch(accelerator: Accelerator, batch_size: int) -> None:
    """Checks that the processes are what the trainer can use.

    Raises:
        ValueError: if Accelerate was set up for its own FSDP, DeepSpeed or Megatron, sees one of several
            processes only, or the batch cannot be shared evenly.
    """
    kind, world = accelerator.distributed_type.value, accelerator.num_processes
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        kind = "FSDP"
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(
            f"Accelerate was launched with {kind}, which takes one network only; launch without it and "
            "choose `parallel: fsdp` in the recipe's trainer."
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError(
            "the accelerator was made with fp16, but the trainer scales the loss itself; make it with "
            "nitrodistill.training.make_accelerator, and set `mixed_precision: fp16` in the settings."
        )
    launched = place().world_size
    if launched > 1 and world == 1:
        raise ValueError(
            f"this is one of {launched} launched processes, but Accelerate sees itself alone; make the "
            "accelerator with nitrodistill.training.make_accelerator, or on a CPU with cpu=True."
        )
    if batch_size % world:
        raise ValueError(
            f"batch_size is {batch_size} and there are {world} processes; it is the size over all of them, "
            f"so make it a multiple of {world}."
        )


def prepare_module(
    module: nn.Module,
    accelerator: Accelerator,
    parallel: Parallel,
    cpu_offload: bool = False,
    fp16: bool = False,
) -> nn.Module:
    """The module as one that all processes train together, on the accelerator's device.

    Args:
        module: some of its parameters ask for a gradient. All processes start with the main one's weights.
        accelerator: whose precision is computed in.
        parallel: "ddp" or "fsdp"; the first does nothing in a single process.
        cpu_offload: with "fsdp", keeps weights, gradients and optimizer in the CPU's memory.
        fp16: computes in float16, on any device; Accelerate refuses the CPU, and so no test would reach it.
    """
    if fp16:
        from accelerate.utils.operations import convert_outputs_to_fp32

        lower = torch.autocast(accelerator.device.type, torch.float16)
        forward: Any = module.forward  # as a method, so that a copy of the module runs itself
        module.forward = MethodType(convert_outputs_to_fp32(lower(forward.__func__)), module)
    if parallel == "ddp":
        with warnings.catch_warnings():
            # the newer name that torch asks for is not Accelerate's yet
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return accelerator.prepare(module)
    module = accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
    return _shard(module, accelerator, cpu_offload)


def prepare_frozen(
    module: nn.Module, accelerator: Accelerator, parallel: Parallel, taps: Sequence[str] = ()
) -> nn.Module:
    """A network that is not trained, on the accelerator's device: a teacher, a discriminator's backbone.

    It is changed in place. Under "fsdp" every process holds a part of each weight and gathers a block when it
    runs; gradients flow through to the inputs. All processes must then call it alike.

    Args:
        module: the network; freeze it first.
        accelerator: whose processes share it out.
        parallel: "ddp" leaves it whole.
        taps: names of the submodules whose features get a gradient. A block with one inside (not the block
            itself) is gathered for the whole pass, because backward begins in the middle of it.

    Example:
        >>> accelerator = nd.training.make_accelerator(cpu=True)
        >>> type(nd.training.prepare_frozen(torch.nn.Linear(2, 2), accelerator, "ddp")).__name__
        'Linear'
    """
    if parallel == "ddp":
        return module.to(accelerator.device)
    return _shard(module, accelerator, cpu_offload=False, taps=taps)


def _shard(
    module: nn.Module, accelerator: Accelerator, cpu_offload: bool, taps: Sequence[str] = ()
) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    device = accelerator.device
    if not dist.is_initialized():  # a single process: still useful, for offloading
        dist.init_process_group(_backends(device), store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for value in (*module.parameters(), *module.buffers()):
        sent = value.detach().to(device)
        dist.broadcast(sent, src=0)
        with torch.no_grad():
            value.copy_(sent)
    # No MixedPrecisionPolicy: it would round timesteps, and so condition on other noise levels. Autocast, which
    # Accelerate has put around `forward`, computes in bfloat16 where it is safe, the same as under DDP.
    offload = CPUOffloadPolicy(pin_memory=device.type != "cpu") if cpu_offload else OffloadPolicy()
    for part in (*_blocks(module, taps), module):
        # Resharded after each forward pass, the outermost too: weights that stayed gathered after a pass
        # without a backward one would hide an average that is put in their place.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, offload_policy=offload)
    return module


def _blocks(module: nn.Module, taps: Sequence[str]) -> list[nn.Module]:
    """The blocks that are gathered one at a time, inner ones first: those that diffusers never splits."""
    kinds = block_kinds(module)
    blocks = [
        part
        for name, part in module.named_modules()
        if type(part).__name__ in kinds and not any(tap.startswith(f"{name}.") for tap in taps)
    ]
    return [part for part in reversed(blocks) if any(True for _ in part.parameters())]


def block_kinds(module: nn.Module) -> set[str]:
    """Names of the classes of blocks that diffusers never splits."""
    from diffusers import ModelMixin

    return {
        name
        for part in module.modules()
        if isinstance(part, ModelMixin)
        for name in part._no_split_modules or ()
    }


def _backends(device: torch.device) -> str:
    return "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"


def _is_shared(value: Tensor) -> TypeGuard[DTensor]:
    """Whether every process holds a part; asked by name, because the type's import takes seconds."""
    return type(value).__name__ == "DTensor"


def whole(value: Tensor) -> Tensor:
    """The tensor of which every process holds a part; others as they are. All processes must call it."""
    return value.full_tensor() if _is_shared(value) else value


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return value.to_local() if _is_shared(value) else value


def laid_out_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut, placed and laid out in memory as `like` is; the main process' values are taken.

    All processes must call it.
    """
    if _is_shared(like):
        from torch.distributed.tensor import distribute_tensor

        mesh, device = like.device_mesh, local(like).device
        on_mesh = value.to(mesh.device_type, like.dtype)
        return distribute_tensor(on_mesh, mesh, like.placements).to(device)
    # fresh memory in the same layout, so that sums run in the same order as before
    return torch.empty_like(like).detach().copy_(value)


def gather_rows(accelerator: Accelerator, value: Tensor) -> Tensor:
    """`(B, *)` of each process -> `(B world, *)` in their order, on `value`'s device."""
    if accelerator.num_processes == 1:
        return value
    gathered = accelerator.gather(value.to(accelerator.device).contiguous())
    assert isinstance(gathered, Tensor)
    return gathered.to(value.device)


def any_process(accelerator: Accelerator, flags: Sequence[Tensor | bool]) -> list[bool]:
    """Each flag: whether it is set in any process; waits for the device once."""
    device = accelerator.device
    stacked = torch.stack([torch.as_tensor(flag, device=device).int() for flag in flags])
    if accelerator.num_processes > 1:
        dist.all_reduce(stacked, dist.ReduceOp.MAX)
    return [bool(flag) for flag in stacked.tolist()]


def gather_text(accelerator: Accelerator, text: str) -> list[str]:
    """The text of every process, in their order."""
    if accelerator.num_processes == 1:
        return [text]
    data = torch.tensor([*text.encode()], dtype=torch.uint8, device=accelerator.device)
    sizes = gather_rows(accelerator, torch.tensor([len(data)], device=data.device)).tolist()
    padded = nn.functional.pad(data, (0, max(sizes) - len(data)))[None]
    rows = gather_rows(accelerator, padded).tolist() if max(sizes) else [[]] * len(sizes)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def on_main(accelerator: Accelerator, act: Callable[[], object]) -> object:
    """What `act` returns in the main process (as JSON can hold it), in all of them.

    Raises:
        Exception: what it raised, in the main process; RuntimeError that tells it in the others.
    """
    if accelerator.num_processes == 1:
        return act()
    sent, error = "", None
    if accelerator.is_main_process:
        try:
            sent = json.dumps({"value": act()})
        except Exception as raised:
            # sent to the others, which would wait for ever, and raised below
            error, sent = raised, json.dumps({"error": f"{raised}"})
    answer = json.loads(gather_text(accelerator, sent)[0])
    if error is not None:
        raise error
    if "error" in answer:
        raise RuntimeError(f"the main process failed: {answer['error']}")
    return answer["value"]
