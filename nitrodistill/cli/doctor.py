"""`nitrodistill doctor`: what this machine can do, and what is missing.

Say what this machine can do, and what is missing: Python and torch, the GPUs and whether torch was built for
them, Triton, and which fused kernels run and why.

example:
  nitrodistill doctor
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import results


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill doctor --help`."""
    parse(Parser("doctor", __doc__), argv)
    return doctor()


def doctor() -> int:
    """Prints the findings.

    Returns:
        0, or 1 if a GPU is there that torch or Triton cannot use.
    """
    healthy, lines = True, []
    for good, line in findings():
        healthy = healthy and good
        lines.append(line if good else f"{line}   <-- problem")
        print(lines[-1])
    results(healthy=healthy, findings=lines)
    return 0 if healthy else 1


def findings() -> Iterator[tuple[bool, str]]:
    """Whether all is well, and what is said, line by line."""
    import torch

    built_for = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if not (torch.version.hip or torch.version.cuda):
        built_for = "CPUs only"
    yield True, f"python       {platform.python_version()} on {platform.machine()}"
    yield True, f"torch        {torch.__version__}, built for {built_for}"
    yield True, f"triton       {_version('triton', 'pytorch-triton-rocm', 'triton-rocm')}"
    yield True, f"cpu          {os.cpu_count()} cores, {torch.get_num_threads()} threads in use"
    if not torch.cuda.is_available():
        yield True, "gpu          none that torch sees"
        yield True, "kernels      reference: fused kernels need a GPU"
        return
    for index in range(torch.cuda.device_count()):
        yield from _gpu(index)


def _gpu(index: int) -> Iterator[tuple[bool, str]]:
    import torch

    from nitrodistill.kernels import launch
    from nitrodistill.kernels.backend import explain, triton_failure

    properties = torch.cuda.get_device_properties(index)
    name = launch.architecture(index)
    memory = properties.total_memory / 2**30
    yield True, f"cuda:{index}       {properties.name}, {name}, {memory:.0f} GiB"
    listed = torch.cuda.get_arch_list()
    if torch.version.hip is not None and name not in listed:
        yield (
            False,
            f"             this torch has no code for {name}, only for {' '.join(listed)}; install a "
            "ROCm wheel that lists it",
        )
    failure = triton_failure(index)
    works = "works" if failure is None else f"does not work: {failure}"
    yield failure is None, f"             triton {works}"
    results = launch.results(name) or "none committed: pending"
    yield True, f"             measurements on {name}: {results}"
    for operation in launch.table(name):
        yield True, f"             {operation:<11}{explain(operation, index)}"


def _version(*names: str) -> str:
    for name in names:
        try:
            return f"{version(name)} ({name})"
        except PackageNotFoundError:
            continue
    return "not installed"
