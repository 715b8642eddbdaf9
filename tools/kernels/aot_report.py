"""Compile one recorded launch for an architecture and read what the compiler says of it."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.kernels.aot_cases import Launch

NARROW = {
    "finish.finish": "reduces a few kilobytes of partial sums: no bulk loads",
    "ssim.centre": "strided samples",
    "ssim.rows": "stencil along the rows, shifted by single elements",
    "laplacian.": "stencil across two resolutions, strided by two",
}
"""Kernels that need not load 90% of their bulk by 128-bit instructions, by a part of their key, and why."""

NOT_BULK = "# not bulk: "
"""On a source line that loads what many lanes share (one value per channel, say), and why."""

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
LAUNCH_OPTIONS = ("num_warps", "num_stages", "waves_per_eu")


class Figures(TypedDict):
    """What a compiled kernel takes."""

    registers: int
    shared_bytes: int
    scratch_bytes: int
    spills: int
    waves: int
    wide_loads: float
    float_atomics: int


def compile_launch(launch: Launch, architecture: str, pointer_range: bool) -> Figures:
    """Compile a launch as the JIT would, for `architecture`.

    Args:
        launch: a kernel and its arguments.
        architecture: "gfx90a", "sm_90", ...
        pointer_range: whether tensors under 2 GiB are marked so on AMD; False is what happens when
            they are larger.
    """
    amd = architecture.startswith("gfx")
    number = architecture.removeprefix("sm_")
    target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(number), 32)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    keywords = dict(launch.keywords)
    options = {name: keywords.pop(name) for name in LAUNCH_OPTIONS if name in keywords}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[index] if index < len(launch.arguments) else keywords[name]
        kind, marks = _specialize(value, name in keywords)
        signature[name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        if isinstance(value, Tensor) and amd and pointer_range and _bytes(value) < 2**31:
            marks.append(["tt.pointer_range", 32])
        if marks:
            attributes[(index,)] = marks
    source = ASTSource(launch.kernel, signature, constants, attributes)
    with knobs.compilation.scope():
        # A build from Triton's cache on disk names the source lines of the checkout that filled it.
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=target, options=options)
    return _read_amd(compiled) if amd else _read_nvidia(compiled)


def _specialize(value: Any, keyword: bool) -> tuple[str, list[list[Any]]]:
    """Type and attributes of an argument, by the JIT's rules; tensors are taken to be aligned."""
    divisible = [["tt.divisibility", 16]]
    if keyword or value is None:
        return "constexpr", []
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype], divisible
    if isinstance(value, float):
        return "fp32", []
    if value == 1:
        return "constexpr", []
    kind = "i32" if -(2**31) <= value < 2**31 else "i64"
    return kind, divisible if value % 16 == 0 else []


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _read_amd(compiled: Any) -> Figures:
    text = compiled.asm["amdgcn"]
    shared = compiled.metadata.shared
    waves = _number(r"; Occupancy: (\d+)", text)
    if shared:
        waves = min(waves, 65536 // shared * compiled.metadata.num_warps // 4)
    widths = {"ubyte": 1, "sbyte": 1, "ushort": 2, "short": 2, "dword": 4}
    loads = []
    pattern = r"(?:global|buffer|flat)_load_(ubyte|sbyte|ushort|short|dword)(?:x(\d))?"
    for name, many in re.findall(pattern, _bulk(text)):
        loads.append(widths[name] * int(many or 1))
    return {
        "registers": _number(r"\.vgpr_count:\s+(\d+)", text),
        "shared_bytes": shared,
        "scratch_bytes": _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        "spills": _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        + _number(r"\.sgpr_spill_count:\s+(\d+)", text),
        "waves": waves,
        "wide_loads": _share(loads),
        "float_atomics": len(re.findall(r"atomic_(?:pk_)?(?:add|min|max)_f", text)),
    }


def _read_nvidia(compiled: Any) -> Figures:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers = _number(r"REG:(\d+)", usage)
    ptx = compiled.asm["ptx"]
    loads = []
    pattern = r"ld\.global(?:\.[a-z_:0-9]+)*?(?:\.v(\d))?\.b(\d+)"
    for many, bits in re.findall(pattern, _bulk(ptx)):
        loads.append(int(many or 1) * int(bits) // 8)
    # Numbers that the whole program reads once are no bulk loads.
    for bits in re.findall(r"tt\.load[^:\n]*: !tt\.ptr<[a-z]*f?(\d+)>", compiled.asm["ttgir"]):
        if int(bits) // 8 in loads:
            loads.remove(int(bits) // 8)
    stack = _number(r"STACK:(\d+)", usage)
    warps = 65536 // (max(8, registers) * 32)
    return {
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "scratch_bytes": stack,
        "spills": _number(r"LOCAL:(\d+)", usage),
        "waves": min(16, warps // 4),
        "wide_loads": _share(loads),
        "float_atomics": len(re.findall(r"(?:atom|red)\.[a-z.]*f(?:16|32|64)", ptx)),
    }


def _bulk(text: str) -> str:
    """The instructions of an assembly text but those of source lines marked `NOT_BULK`."""
    files: dict[str, list[str]] = {}
    for number, directory, name in re.findall(r'\.file\s+(\d+) "([^"]*)"(?: "([^"]*)")?', text):
        path = Path(directory, name) if name else Path(directory)
        files[number] = path.read_text().splitlines()
    kept, skip = [], False
    for line in text.splitlines():
        at = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line)
        if at is None:
            kept += [] if skip else [line]
            continue
        source, number = files.get(at[1], []), int(at[2])
        skip = 0 < number <= len(source) and NOT_BULK in source[number - 1]
    return "\n".join(kept)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output has no {pattern!r}; its format has changed.")
    return int(found.group(1))


def _share(widths: list[int]) -> float:
    """The share of the bulk bytes a lane loads that 128-bit instructions load; 1 where there are none."""
    return round(sum(w for w in widths if w >= 16) / sum(widths), 3) if widths else 1.0


def gate(key: str, figures: Figures) -> list[str]:
    """The gates that a kernel misses."""
    missed = []
    if figures["scratch_bytes"] or figures["spills"]:
        missed.append(f"{figures['scratch_bytes']} B scratch, {figures['spills']} spills; want 0")
    if figures["shared_bytes"] > 32 * 1024:
        missed.append(f"{figures['shared_bytes']} B of shared memory; at most 32768")
    least = 2 if "ssim." in key else 3
    if "gfx" in key and figures["waves"] < least:
        missed.append(f"{figures['waves']} waves per SIMD; at least {least}")
    if figures["float_atomics"]:
        missed.append(f"{figures['float_atomics']} float atomics; want 0, for reproducible sums")
    exempt = any(part in key for part in NARROW)
    if not exempt and figures["wide_loads"] < 0.9:
        missed.append(f"{figures['wide_loads']:.0%} of bulk loads 128-bit; at least 90%")
    return missed


def table(found: dict[str, Figures]) -> str:
    """The figures as text."""
    lines = [f"{'kernel':70} regs   LDS scratch spills waves wide"]
    for key, f in found.items():
        lines.append(
            f"{key:70} {f['registers']:4} {f['shared_bytes']:5} {f['scratch_bytes']:7} "
            f"{f['spills']:6} {f['waves']:5} {f['wide_loads']:4.0%}"
        )
    return "\n".join(lines)


def document(found: dict[str, Figures]) -> str:
    """The figures as the JSON that is committed."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    head = {"triton": triton.__version__, "stencils_exempt_from_the_gate_of_wide_loads": NARROW}
    return json.dumps(head, indent=1)[:-2] + f',\n "figures": {{\n{rows}\n }}\n}}\n'
