from __future__ import annotations

import subprocess
import sys

import pytest

import nitrodistill

LIGHT = """
import sys
import torch
before = set(sys.modules)
import nitrodistill
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new))
print("torch._dynamo" in set(sys.modules) - before)
"""

BROKEN_TORCHVISION = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
import torch
import nitrodistill as nd
x = torch.rand(2, 3, 32, 32)
print(float(nd.SmoothL1Loss()(x, x)), nd.ZeroTerminalSNR().rescale_betas(torch.full((9,), 0.1))[-1].item())
try:
    nd.LPIPSLoss()
except Exception as error:
    print(type(error).__name__, error)
from nitrodistill import toy
pipeline = nd.Pipeline.from_diffusers(toy.load_pipeline())
plan = nd.StepPlan.from_schedule(pipeline.denoiser.schedule, 1)
noise = torch.zeros(1, *pipeline.latent_shape)
condition = pipeline.encode_prompt(["a small red circle on a black background"])
with torch.no_grad():
    print(tuple(pipeline.decode(nd.sample(pipeline.denoiser, plan, noise, condition)).shape))
import nitrodistill.data, nitrodistill.training, nitrodistill.export, nitrodistill.demo.demo
nitrodistill.training.make_accelerator()
print("all but LPIPS")
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_loads_nothing_heavy_that_torch_does_not():
    names, dynamo = run(LIGHT).splitlines()
    heavy = {
        *("accelerate", "datasets", "diffusers", "docstring_parser", "huggingface_hub", "kornia"),
        *("lpips", "matplotlib", "pandas", "piq", "pyarrow", "scipy", "sympy", "torchvision"),
        *("tqdm", "transformers", "triton", "PIL"),
    }
    assert not heavy & set(names.split())
    assert dynamo == "False"


def test_a_broken_torchvision_breaks_lpips_alone_and_with_a_sentence():
    value, message, shape, last = run(BROKEN_TORCHVISION).splitlines()
    assert value == "0.0 1.0"
    assert "torchvision" in message
    assert shape == "(1, 3, 32, 32)"
    assert last == "all but LPIPS"


def test_every_public_name_is_there():
    for name in nitrodistill.__all__:
        assert getattr(nitrodistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nitro'"):
        _ = nitrodistill.Nitro
