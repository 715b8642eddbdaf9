from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nitrodistill import kernels
from nitrodistill.kernels import backend, launch, library, probe
from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.laplacian import laplacian_loss
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.ssim import ssim_loss
from nitrodistill.kernels.x0_loss import x0_loss

ROOT = Path(__file__).parents[2]
X, Y = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
SCALES = torch.tensor([0.6, 0.3]), torch.tensor([0.8, 0.9])
CALLS = {
    "x0_loss": lambda x, y: x0_loss(x, y, y, *SCALES, prediction_type="epsilon"),
    "lpips_head": lambda x, y: lpips_head(x, y, torch.ones(4)),
    "dmd": lambda x, y: dmd(x, y, y),
    "ssim": lambda x, y: ssim_loss(x, y, taps=(0.25, 0.5, 0.25), c1=1e-4, c2=9e-4),
    "laplacian": lambda x, y: laplacian_loss(x, y, weights=(1.0, 1.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_cpu_runs_the_reference_whatever_is_asked(name):
    plain = CALLS[name](X, Y)
    with kernels.use("triton"):
        assert torch.equal(CALLS[name](X, Y), plain)


@pytest.mark.parametrize("name", CALLS)
def test_bad_input_is_refused_with_a_sentence(name):
    with pytest.raises(TypeError, match="int64"):
        CALLS[name](X.long(), Y)
    with pytest.raises(ValueError, match="move them to one"):
        CALLS[name](X, Y.to("meta"))


@pytest.mark.parametrize("name", ["x0_loss", "lpips_head", "dmd"])
def test_unequal_shapes_are_refused(name):
    with pytest.raises(ValueError, match="must be"):
        CALLS[name](X, Y[:1])


def test_x0_loss_refuses_wrong_scales_types_and_parameters():
    with pytest.raises(ValueError, match="alpha and sigma"), kernels.use("triton"):
        backend_call(alpha=torch.ones(3))
    with pytest.raises(ValueError, match="prediction_type"):
        backend_call(prediction_type="eps")
    with pytest.raises(ValueError, match="elementwise loss"):
        backend_call(loss="l3")
    with pytest.raises(ValueError, match="must be positive"):
        backend_call(loss="huber", parameter=0.0)


def backend_call(alpha=SCALES[0], prediction_type="epsilon", loss="l2", parameter=1.0):
    return x0_loss(
        X, Y, Y, alpha, SCALES[1], prediction_type=prediction_type, loss=loss, parameter=parameter
    )


def test_a_dtensor_is_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import distribute_tensor

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x = distribute_tensor(X, dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match="to_local"):
            dmd(x, x, x)
    finally:
        dist.destroy_process_group()


def test_use_is_a_function_and_a_context_manager():
    assert backend._forced == [None]
    with kernels.use("reference"):
        assert backend._forced == ["reference"]
        kernels.use("triton")
        assert backend._forced == ["triton"]
    assert backend._forced == [None]
    with pytest.raises(ValueError, match="'cuda'"):
        kernels.use("cuda")  # type: ignore[arg-type]


class FakeTensor:
    """Enough of a GPU tensor to decide by."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda", 0), dtype, (2, 8)
        self.requires_grad = False

    def numel(self) -> int:
        return 16

    def is_floating_point(self) -> bool:
        return True


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(backend, "_check", lambda *_: None)
    monkeypatch.setattr(launch, "architecture", lambda index: "sm_90")
    backend.triton_failure.cache_clear()
    yield monkeypatch
    backend.triton_failure.cache_clear()


def chosen(**keywords) -> bool:
    return backend.fused("dmd", (FakeTensor(**keywords),), ())  # type: ignore[arg-type]


def test_the_default_is_what_is_measured(gpu):
    gpu.setattr(probe, "run", lambda device: None)
    gpu.setattr(launch, "proven", lambda architecture: frozenset())
    assert not chosen()
    with kernels.use("triton"):
        assert chosen()
        assert not chosen(dtype=torch.float64)
    gpu.setattr(launch, "proven", lambda architecture: frozenset({"dmd"}))
    assert chosen()
    with kernels.use("reference"):
        assert not chosen()


def test_a_broken_triton_warns_once_and_falls_back(gpu):
    def broken(device: torch.device) -> None:
        raise RuntimeError("Cannot find ptxas\nlong trace")

    gpu.setattr(probe, "run", broken)
    with kernels.use("triton"):
        with pytest.warns(
            RuntimeWarning, match=r"Cannot find ptxas\).*Install the triton"
        ) as caught:
            assert not chosen()
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not chosen()


def test_a_missing_triton_falls_back(gpu):
    gpu.setitem(sys.modules, "nitrodistill.kernels.probe", None)
    gpu.delattr(kernels, "probe", raising=False)
    with kernels.use("triton"), pytest.warns(RuntimeWarning, match="fused kernels are off"):
        assert not chosen()


@pytest.mark.parametrize(("current", "switched"), [(0, ["cuda:1"]), (1, [])])
def test_kernels_launch_on_the_gpu_of_their_tensors(monkeypatch, current, switched):
    entered: list[str] = []

    @contextmanager
    def device(where: torch.device) -> Iterator[None]:
        entered.append(str(where))
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    tensor = FakeTensor()
    tensor.device = torch.device("cuda", 1)
    run = library.on_its_device(lambda first, *rest: (first, rest))
    assert run(tensor, 2, 3) == (tensor, (2, 3))
    assert entered == switched


def test_importing_the_kernels_imports_no_triton_source():
    code = (
        "import sys, nitrodistill.kernels.x0_loss, nitrodistill.kernels.ssim; "
        "assert not any('triton' in m or m.endswith(('finish', 'probe', 'tiles')) "
        "for m in sys.modules if m.startswith('nitrodistill'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(launch.TABLES.glob("*.json")), ids=lambda p: p.stem)
def test_tables_are_complete_and_proven_by_a_committed_file(path):
    table = json.loads(path.read_text())
    assert table["architecture"] == path.stem
    first = json.loads((launch.TABLES / "gfx90a.json").read_text())["launch"]
    assert {op: set(o) for op, o in table["launch"].items()} == {
        op: set(o) for op, o in first.items()
    }
    if table["proven"]:
        results = json.loads((ROOT / table["results"]).read_text())
        assert results["architecture"] == path.stem
        assert set(table["proven"]) == set(results["proven"])
    else:
        assert table["results"] is None or (ROOT / table["results"]).exists()


@pytest.mark.parametrize(
    ("architecture", "listed"),
    [
        ("sm_86", "sm_80"),
        ("sm_100", "sm_90"),
        ("gfx90a", "gfx90a"),
        ("gfx950", "gfx942"),
        ("gfx1100", "gfx90a"),
    ],
)
def test_an_unlisted_architecture_takes_its_relative_but_nothing_is_proven(architecture, listed):
    assert launch.table(architecture) == launch.table(listed)
    if architecture != listed:
        assert launch.proven(architecture) == frozenset()
        assert launch.results(architecture) is None
