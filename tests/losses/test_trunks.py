"""Trunks against torchvision's networks, and where weights are looked for."""

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from nitrodistill.losses import LPIPSLoss
from nitrodistill.losses.trunks import Trunk, load_heads, load_trunk

PEERS = {
    "vgg": torchvision.models.vgg16,
    "alex": torchvision.models.alexnet,
    "squeeze": torchvision.models.squeezenet1_1,
}
NAMES = tuple(PEERS)


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_torchvisions_features(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = PEERS[name](weights=None)
    trunk = load_trunk(name, peer.state_dict())
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    features = iter(trunk(x))
    for index, layer in enumerate(peer.features[: len(trunk.features)].eval()):
        x = layer(x)
        if index in trunk._taps:
            torch.testing.assert_close(next(features), x)
    assert next(features, None) is None


@pytest.mark.parametrize("name", NAMES)
def test_heads_fit_the_trunk(name):
    heads = load_heads(name)
    assert tuple(len(head) for head in heads) == Trunk(name).channels
    features = Trunk(name)(torch.rand(1, 3, 48, 48))
    assert tuple(f.shape[1] for f in features) == Trunk(name).channels


def test_weights_from_files(tmp_path, monkeypatch):
    state = Trunk("squeeze").state_dict() | {"classifier.1.weight": torch.zeros(1)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    torch.save(state, checkpoints / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for weights in (tmp_path / "w.safetensors", str(tmp_path / "w.pth"), None, state):
        trunk = load_trunk("squeeze", weights)
        for key, value in trunk.state_dict().items():
            assert torch.equal(value, state[key])


def test_missing_weights_say_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"torchvision.models.vgg16\(weights="):
        LPIPSLoss()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        LPIPSLoss("alex", weights=tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"lack 'features.0.weight' of the alex trunk"):
        LPIPSLoss("alex", weights={"conv.weight": torch.zeros(1)})


def test_missing_heads_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install lpips"):
        load_heads("vgg")
