"""Pretrained networks as feature extractors and scores of text: Inception, CLIP, DINO; from this machine alone.

    inception  the 2048 numbers before the classifier of the original FID network, by torch-fidelity
    clip       CLIP's image embeddings, by transformers: the extractor of CMMD
    dino       the class token of DINOv2 or another vision transformer, by transformers
    ClipScore  100 max(0, cos(image, text)) of CLIP's embeddings (Hessel et al. 2021)

Nothing is downloaded: give a path, or a name whose files are in the library's cache. Pictures are brought to 8
bits; then torch-fidelity's network, or transformers' processor by the preprocessor_config.json next to the
weights, resizes and normalises them: none of it is done again here, as a pixel more or less is another number.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.evaluation.features import Extractor
from nitrodistill.evaluation.frechet import finite
from nitrodistill.files import hash_file
from nitrodistill.models.pipeline import fingerprint, without_broken_torchvision

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/" + INCEPTION_FILE
)


def inception(
    weights: str | Path | None = None, device: torch.device | str = "cpu", name: str = "inception"
) -> Extractor:
    """The network of FID and KID, `(B, 2048)`.

    Args:
        weights: torch-fidelity's file of weights; None looks in torch's hub cache.
        device: where it computes.
        name: what results call it.

    Raises:
        ModuleNotFoundError: without torch-fidelity.
        FileNotFoundError: if the weights are not on this machine.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ModuleNotFoundError(
            "Inception's features need torch-fidelity; install it with `pip install torch-fidelity`."
        )
    file = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE)
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights of Inception at {str(file)!r}, and nothing is downloaded here; get {INCEPTION_URL} "
            "and put it there, or give its path."
        )
    without_broken_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        torch.load(file, weights_only=True, map_location="cpu")  # torch-fidelity would unpickle it
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))
    except Exception as error:
        raise ValueError(
            f"{str(file)!r} does not hold torch-fidelity's Inception: {' '.join(str(error).split())[:160]}"
        ) from error
    network = network.eval().requires_grad_(False).to(device)

    def features(images: Tensor) -> Tensor:
        return network(_levels(images).to(device))[0].flatten(1)

    return Extractor(name, features, "cubic", hash_file(file))


def clip(path: str | Path, device: torch.device | str = "cpu", name: str = "clip") -> Extractor:
    """CLIP's image embeddings `(B, F)`, with the Gaussian kernel of CMMD.

    Args:
        path: a folder that `CLIPModel.save_pretrained` and its processor wrote, or a name in the cache.
        device: where it computes.
        name: what results call it.

    Raises:
        FileNotFoundError: if it is not on this machine.
    """
    from transformers import CLIPModel

    network, prepare = _load(CLIPModel, path, device)

    def features(images: Tensor) -> Tensor:
        return _image_embedding(network, prepare(images))

    return Extractor(name, features, "gaussian", fingerprint(network))


def dino(path: str | Path, device: torch.device | str = "cpu", name: str = "dino") -> Extractor:
    """The class token `(B, F)` of DINOv2, or of another vision transformer that transformers knows.

    Args:
        path: a folder that `save_pretrained` and its processor wrote, or a name in the cache.
        device: where it computes.
        name: what results call it.

    Raises:
        FileNotFoundError: if it is not on this machine.
    """
    from transformers import AutoModel

    network, prepare = _load(AutoModel, path, device)

    def features(images: Tensor) -> Tensor:
        return network(pixel_values=prepare(images)).last_hidden_state[:, 0]

    return Extractor(name, features, "cubic", fingerprint(network))


class ClipScore:
    """How well pictures and prompts agree: 100 max(0, cos) of CLIP's embeddings.

    Args:
        path: a folder that `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` wrote, or a
            name in the cache.
        device: where it computes.

    Raises:
        FileNotFoundError: if it is not on this machine.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._network, self._prepare = _load(CLIPModel, path, device)
        self._tokenizer: Any = _local(AutoTokenizer, path)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The score of each of `(B, 3, H, W)` in [-1, 1] with its prompt; `(B,)`. Long prompts are cut."""
        tokens = self._tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self._network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)
        text = self._network.text_projection(self._network.text_model(**tokens).pooler_output)
        image = _image_embedding(self._network, self._prepare(images))
        return 100 * torch.cosine_similarity(image, text, dim=1).clamp_min(0)


def _image_embedding(network: Any, pixels: Tensor) -> Tensor:
    return network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)


def _levels(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] in 8 bits, as they would be saved."""
    return ((finite(images, "pictures").clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _load(
    kind: Any, path: str | Path, device: torch.device | str
) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A network, and what makes its input of pictures in [-1, 1]: the processor saved next to it."""
    without_broken_torchvision()
    from transformers import AutoImageProcessor

    network: nn.Module = _local(kind, path).eval().requires_grad_(False).to(device)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(_folder(path), local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{str(path)!r} has no preprocessor_config.json, or an unknown one, which says what pictures the "
            f"network wants ({' '.join(str(error).split())[:80]}); save its processor next to it."
        ) from error

    def prepare(images: Tensor) -> Tensor:
        levels = _levels(images).cpu()
        made = processor(images=levels, return_tensors="pt", input_data_format="channels_first")
        return made["pixel_values"].to(device)

    return network, prepare


def _local(kind: Any, path: str | Path) -> Any:
    weights = {} if "Tokenizer" in kind.__name__ else {"use_safetensors": True}
    try:
        return kind.from_pretrained(_folder(path), local_files_only=True, **weights)
    except (OSError, ValueError, ImportError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} is not at {str(path)!r} on this machine, and nothing is downloaded here "
            f"({' '.join(str(error).split())[:120]}); give the folder of a saved one."
        ) from error


def _folder(path: str | Path) -> str:
    """A folder, or that of a name in the cache; given the name, AutoModel would ask the network for adapters."""
    from huggingface_hub import snapshot_download

    return str(path) if Path(path).is_dir() else snapshot_download(str(path), local_files_only=True)
