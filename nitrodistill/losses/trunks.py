"""The convolutional stacks that LPIPS compares images in, and where their weights are.

The layers of torchvision's `vgg16`, `alexnet` and `squeezenet1_1` up to the last tap, under the same names, so
that their ImageNet weights load; torchvision itself is not needed. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

TrunkName = Literal["vgg", "alex", "squeeze"]
"""VGG-16 (Simonyan & Zisserman 2014), AlexNet, SqueezeNet 1.1."""


class _Recipe(NamedTuple):
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int
    file: str
    constructor: str


_RECIPES: dict[TrunkName, _Recipe] = {
    "vgg": _Recipe((3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16, "vgg16-397923af.pth", "vgg16"),
    "alex": _Recipe(
        (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31, "alexnet-owt-7be5be79.pth", "alexnet"
    ),
    "squeeze": _Recipe(
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        "squeezenet1_1-b8a52dc0.pth",
        "squeezenet1_1",
    ),
}


class Trunk(nn.Module):
    """Features of an image at several depths, frozen.

    Attributes:
        smallest: the shortest side that reaches the last tap, in pixels.
        channels: channels of every tap.
    """

    smallest: int
    channels: tuple[int, ...]

    def __init__(self, name: TrunkName) -> None:
        super().__init__()
        recipe = _RECIPES[name]
        self.smallest, self.channels, self._taps = recipe.smallest, recipe.channels, recipe.taps
        layers = {"vgg": _vgg, "alex": _alex, "squeeze": _squeeze}[name]()
        self.features: nn.Sequential = nn.Sequential(*layers).requires_grad_(False).eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The features of `x` `(B, 3, H, W)`, the shallowest first."""
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                taps.append(x)
        return tuple(taps)

    def train(self, mode: bool = True) -> Trunk:
        """Stays in evaluation mode."""
        return super().train(False)


class Fire(nn.Module):
    """SqueezeNet's block: squeeze to few channels, expand by a 1x1 and a 3x3 convolution."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze: nn.Conv2d = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1: nn.Conv2d = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3: nn.Conv2d = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to `(B, 2 * expand, H, W)`."""
        x = self.squeeze(x).relu_()
        return torch.cat([self.expand1x1(x).relu_(), self.expand3x3(x).relu_()], dim=1)


def load_trunk(name: TrunkName, weights: str | Path | Mapping[str, Tensor] | None) -> Trunk:
    """A trunk with its weights.

    Args:
        name: which.
        weights: a torchvision state dict of the network, or a file of one (.pth or .safetensors); None
            is torch's hub cache.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the state dict is of another network.
    """
    trunk = Trunk(name)
    if weights is None or isinstance(weights, str | Path):
        weights = _read(name, weights)
    state = {key: value for key, value in weights.items() if key.startswith("features.")}
    wanted = trunk.state_dict()
    missing = [key for key in wanted if key not in state]
    if missing:
        raise ValueError(
            f"the weights lack {missing[0]!r} of the {name} trunk; give the state dict of torchvision's "
            f"{_RECIPES[name].constructor}."
        )
    trunk.load_state_dict({key: state[key] for key in wanted})
    return trunk


def load_heads(name: TrunkName) -> tuple[Tensor, ...]:
    """The calibrated v0.1 channel weights, one `(C,)` per tap, from the installed `lpips` package.

    Raises:
        FileNotFoundError: if `lpips` is not installed.
    """
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the calibrated heads come with the 'lpips' package, which is not installed: "
            "`pip install lpips`, or pass heads=."
        )
    path = Path(spec.submodule_search_locations[0], "weights", "v0.1", f"{name}.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return tuple(
        state[f"lin{k}.model.1.weight"].flatten() for k in range(len(_RECIPES[name].channels))
    )


def read_weights(file: Path) -> Mapping[str, Any]:
    """What a .safetensors file holds, or one of torch.save that needs no code to be run.

    Raises:
        ValueError: if it holds no names and weights, is damaged, or needs code.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever it meets in another file
        raise ValueError(
            f"the weights in {str(file)!r} cannot be read ({' '.join(str(error).split())[:120]}); give a "
            ".safetensors file, or a state dict by torch.save."
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}; a state dict is wanted.")
    return found


def _read(name: TrunkName, path: str | Path | None) -> Mapping[str, Tensor]:
    recipe = _RECIPES[name]
    file = Path(torch.hub.get_dir(), "checkpoints", recipe.file) if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"the {name} trunk needs ImageNet weights and {file} does not exist; fetch them once with "
            f'`python -c "import torchvision; torchvision.models.{recipe.constructor}'
            "(weights='IMAGENET1K_V1')\"`, or pass weights=path."
        )
    return read_weights(file)


def _vgg() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers[:-1]


def _alex() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    ]


def _squeeze() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    ]
