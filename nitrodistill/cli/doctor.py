"""`nitrodistill doctor`: what this machine can do, and what is missing.

Say what this machine can do, and what is missing: versions, devices and whether torch was built for them,
torchvision, Triton, which fused kernels run and why, whether the extras that are there work, disk. Then a
self-test of some seconds: a noise schedule, a loss and three steps of training, on the CPU and on a GPU, against
known numbers. Each problem comes with what solves it, and with one the exit code is 1.

example:
  nitrodistill doctor
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

import nitrodistill as nd
from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import results, say, size_text

Finding = tuple[str, "str | None"]
"""What is said, and of a problem what solves it."""

_TORCH = (
    "pip install --force-reinstall torch torchvision, with the wheels for this GPU (docs/rocm.md)"
)
_PURPOSES = {
    "app": "the web page of examples/app.py",
    "augmentation": "augmentation of what discriminators see",
    "datasets": "prompts from the Hub",
    "eight-bit": "optimizers with moments in eight bits",
    "lora": "LoRA students and their files",
    "metrics": "FID and KID",
    "tensorboard": "curves in tensorboard",
}
_LEAST_DISK = 10 * 2**30  # a Stable Diffusion in float32, and its student
KNOWN = {"schedule": 0.4909, "loss": 0.2563, "training": 0.2470}
"""Numbers of `self_test`, of a CPU."""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill doctor --help`."""
    parse(Parser("doctor", __doc__), argv)
    return doctor()


def doctor() -> int:
    """Prints the findings.

    Returns:
        0, or 1 with a problem.
    """
    problems, lines = 0, []
    for line, solution in findings():
        say(line, lines=True)
        lines.append(line if solution is None else f"{line} (problem; to solve it: {solution})")
        if solution is not None:
            problems += 1
            say(f"             ^ problem; to solve it: {solution}")
    say(f"problems     {problems or 'none'}")
    results(healthy=not problems, findings=lines)
    return 1 if problems else 0


def findings() -> Iterator[Finding]:
    """What is said, and of a problem what solves it, line by line."""
    built_for = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if not (torch.version.hip or torch.version.cuda):
        built_for = "CPUs only"
    yield f"python       {platform.python_version()} on {platform.machine()}", None
    yield f"torch        {torch.__version__}, built for {built_for}", None
    yield _torchvision()
    yield f"triton       {_version('triton', 'pytorch-triton-rocm', 'triton-rocm')}", None
    yield from _packages()
    yield f"cpu          {os.cpu_count()} cores, {torch.get_num_threads()} threads in use", None
    yield from _devices()
    yield from _disk()
    yield _tested("cpu")
    if torch.cuda.is_available():
        yield _tested("cuda")
    elif torch.backends.mps.is_available():
        yield _tested("mps")


def _torchvision() -> Finding:
    """Whether torchvision's operations load: those of another torch do not."""
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        return f"torchvision  {torchvision.__version__}, fits torch", None
    except Exception as error:  # whatever a broken binary raises
        if (found := _version("torchvision")) == "not installed":
            return "torchvision  not installed; LPIPS needs it", "pip install torchvision"
        made_for = [one for one in requires("torchvision") or () if one.startswith("torch==")]
        reason = " ".join(str(error).split())[:100]
        said = f"torchvision  {found} for {made_for or 'another torch'} does not load: {reason}"
        return said, "pip install --force-reinstall torch torchvision, both from one index"


def _packages() -> Iterator[Finding]:
    """What nitrodistill requires, and each extra that is not whole."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("nitrodistill") or ()]
    except PackageNotFoundError:
        yield "packages     nitrodistill is not installed, only on the path", "pip install -e ."
        return
    extras: dict[str, list[str]] = {}
    for one in needed:
        extra = str(one.marker).partition("extra ==")[2].strip(" \"')")
        found = _version(one.name)
        if found != "not installed" and one.specifier.contains(found.split()[0], prereleases=True):
            if extra and (reason := _broken(one.name)):
                said = (
                    f"extra        {extra}: {one.name} {found} is there and does not work: {reason}"
                )
                yield said, f"pip install --force-reinstall {one.name}"
            continue
        if extra:
            extras.setdefault(extra, []).append(one.name)
        elif one.marker is None or one.marker.evaluate():
            yield f"{one.name:<12} {found}; wanted is {one.specifier}", f'pip install "{one}"'
    names = ("nitrodistill", "diffusers", "transformers", "accelerate", "safetensors")
    yield f"packages     {', '.join(f'{name} {_version(name)}' for name in names)}", None
    for extra, missing in sorted(extras.items()):
        if extra != "all":
            purpose = _PURPOSES.get(extra, "see pyproject.toml")
            said = f"extra        {extra}: no {', '.join(missing)}; it is for {purpose}"
            yield f"{said} (pip install {' '.join(missing)})", None


def _broken(name: str) -> str | None:
    """Why an extra's package does not work, though it is installed."""
    try:
        module = import_module(name.replace("-", "_"))
        if name == "bitsandbytes":  # without its native library it imports, and fails at a step
            device = "cuda" if torch.cuda.is_available() else "cpu"
            weight = torch.nn.Parameter(torch.zeros(4096, device=device))
            weight.grad = torch.ones_like(weight)
            module.optim.AdamW8bit([weight]).step()
    except Exception as error:  # whatever a broken package raises
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _gpu(index)
        return
    there = [path for path in ("/dev/nvidia0", "/dev/kfd") if Path(path).exists()]
    if torch.backends.mps.is_available():
        yield "mps          Apple's GPU", None
    elif there:
        yield f"gpu          the driver is there ({there[0]}), but torch sees none", _TORCH
    else:
        yield "gpu          none that torch sees", None
    yield "kernels      reference: fused kernels need a GPU of CUDA or ROCm", None


def _gpu(index: int) -> Iterator[Finding]:
    from nitrodistill.kernels import launch
    from nitrodistill.kernels.backend import explain, triton_failure

    properties = torch.cuda.get_device_properties(index)
    name = launch.architecture(index)
    memory = properties.total_memory / 2**30
    yield f"cuda:{index}       {properties.name}, {name}, {memory:.0f} GiB", None
    listed = torch.cuda.get_arch_list()
    if torch.version.hip is not None and name not in listed:
        said = f"             this torch has no code for {name}, only for {' '.join(listed)}"
        yield said, _TORCH
    failure = triton_failure(index)
    works = "works" if failure is None else f"does not work: {failure}"
    way = (
        None
        if failure is None
        else "pip install --force-reinstall triton, in torch's version of it"
    )
    yield f"             triton {works}", way
    results = launch.results(name) or "none committed: pending"
    yield f"             measurements on {name}: {results}", None
    for operation in launch.table(name):
        yield f"             {operation:<11}{explain(operation, index)}", None


def _disk() -> Iterator[Finding]:
    """Free space where runs go, and where the Hub's files are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, path, way in (
        ("here", Path.cwd(), "work in a folder on a larger disk"),
        ("Hub's cache", Path(HF_HUB_CACHE), "export HF_HOME=/a/folder/on/a/larger/disk"),
    ):
        place = next(one for one in (path, *path.parents) if one.exists())
        free = shutil.disk_usage(place).free
        writable = os.access(place, os.W_OK)
        said = f"disk         {size_text(free)} free, {name}: {path}{'' if writable else ', not writable'}"
        yield said, None if writable and free >= _LEAST_DISK else way


def _tested(device: str) -> Finding:
    try:
        found = self_test(torch.device(device))
    except Exception as error:  # whatever a broken installation raises
        return f"self-test    {device}: {' '.join(str(error).split())[:200]}", _TORCH
    wrong = [name for name, value in KNOWN.items() if not abs(found[name] - value) <= 0.02 * value]
    said = ", ".join(f"{name} {found[name]:.4f}" for name in KNOWN)
    if wrong:
        expected = ", ".join(f"{name} {KNOWN[name]}" for name in wrong)
        return f"self-test    {device}: {said}; expected is {expected}", _TORCH
    return f"self-test    {device}: {said}, as expected", None


def self_test(device: torch.device) -> dict[str, float]:
    """What the embedded teacher's parts come to on a device; draws and weights are the same everywhere.

    Returns:
        "schedule": signal scale halfway; "loss": smooth L1 and SSIM of an untrained student; "training": the same
        after three steps.
    """
    from nitrodistill.teachers import load_teacher

    teacher = load_teacher("toy").to(device)
    schedule, student = teacher.denoiser.schedule, teacher.denoiser.copy()
    many, one = (nd.StepPlan.from_schedule(schedule, steps) for steps in (4, 1))
    draws = nd.Draws(0, 0, torch.arange(8), purpose="doctor")
    noise = draws.normal("noise", teacher.latent_shape, device)
    condition = teacher.encode_prompt(["a small red circle on a black background"] * 8)
    with torch.no_grad():
        real = nd.sample(teacher.guided(3.0), many, noise, condition)
    terms = {"l1": (1.0, nd.SmoothL1Loss()), "ssim": (0.2, nd.LatentSSIMLoss(8.0, window_size=7))}
    loss, learn = nd.WeightedSum(terms), torch.optim.SGD(student.module.parameters(), lr=0.01)
    values = []
    for _ in range(4):
        value = loss(nd.predict_x0(student, one.steps[0], noise, condition), real)
        learn.zero_grad()
        value.backward()
        learn.step()
        values.append(value.item())
    halfway = schedule(schedule.timestep(torch.tensor(0.5)))
    return {"schedule": float(halfway.alpha), "loss": values[0], "training": values[-1]}


def _version(*names: str) -> str:
    for name in names:
        try:
            return f"{version(name)} ({name})" if len(names) > 1 else version(name)
        except PackageNotFoundError:
            continue
    return "not installed"
