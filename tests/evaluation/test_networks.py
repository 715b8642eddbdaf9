"""Networks as extractors: transformers' own numbers on random weights, and what is not there."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from nitrodistill.evaluation.networks import ClipScore, _load, clip, dino, inception
from nitrodistill.models.pipeline import without_broken_torchvision
from tools.toy.text import MAX_TOKENS, make_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ["a red ring", "a large blue circle on a gray background"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = make_tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text = {
        **layers,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**layers, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 24, "width": 24}
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=size).save_pretrained(folder)
    return folder


def pictures(height: int = 24, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, height, width), generator=generator) / 127.5 - 1


def test_clip_scores_are_transformers_logits(clip_folder: Path) -> None:
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = make_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    pixels = (pictures() / 2 + 0.5 - mean) / std
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
    expected = (100 * (out.image_embeds * out.text_embeds).sum(1)).clamp_min(0)
    found = ClipScore(clip_folder)(pictures(), PROMPTS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    extractor = clip(clip_folder)
    features = extractor(pictures())
    unit = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, out.image_embeds, atol=1e-5, rtol=1e-5)
    assert (extractor.name, extractor.kernel) == ("clip", "gaussian")
    assert extractor.fingerprint == clip(clip_folder).fingerprint


def test_long_prompts_are_cut(clip_folder: Path) -> None:
    score = ClipScore(clip_folder)
    long = " ".join(["ring"] * 50)
    assert score(pictures(), [long, long]).isfinite().all()


SIZES = [(480, 640), (640, 480), (24, 24), (8, 300)]
SIZES += torch.randint(8, 90, (200, 2), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize(
    ("kind", "settings", "resized"),
    [
        ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": 24}, 24),  # CLIP's own
        ("Bit", {"size": {"shortest_edge": 27}, "crop_size": 24}, 27),  # DINOv2's: larger, then cut
        ("ViT", {"size": {"height": 24, "width": 24}}, (24, 24)),  # squeezed, not cut
    ],
)
def test_every_size_is_prepared_as_the_published_code_does(
    tmp_path: Path, kind: str, settings: dict[str, Any], resized: Any
) -> None:
    """CLIP and DINOv2 publish torchvision's Resize of a PIL image; transformers cuts the middle."""
    from torchvision.transforms import Compose, InterpolationMode, Resize, ToTensor

    processor = getattr(transformers, f"{kind}ImageProcessor")
    processor(**settings, resample=3, image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    published = Compose([Resize(resized, InterpolationMode.BICUBIC), ToTensor()])
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 0}
    heads = {"num_attention_heads": 1, "image_size": 24, "patch_size": 24}
    transformers.ViTModel(transformers.ViTConfig(**config, **heads)).save_pretrained(tmp_path)
    _, prepare = _load(transformers.AutoModel, tmp_path, "cpu")
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    generator = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        levels = torch.randint(256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
        found = prepare(levels / 127.5 - 1)[0] * std + mean
        whole: Any = published(Image.fromarray(levels[0].permute(1, 2, 0).numpy()))
        top, left = ((side - 24) // 2 for side in whole.shape[1:])
        expected = whole[:, top : top + 24, left : left + 24]
        assert found.shape == expected.shape == (3, 24, 24)
        off = 255 * (found - expected).abs()  # torchvision rounds between passes where PIL does not
        assert off.mean() < 0.5, (height, width)


def test_dino_gives_the_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                mlp_ratio=2,
                image_size=28,
                patch_size=14,
            )
        ).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    with torch.no_grad():  # its processor's mean and deviation are 0.5
        expected = model(pixel_values=pictures(28, 28)).pooler_output  # layer norm, class token
        found = dino(tmp_path)(pictures(28, 28))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_not_on_this_machine_is_not_downloaded(
    tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **more: asked.append(address) or [])
    with pytest.raises(
        FileNotFoundError, match=r"no weights of Inception at .* nothing is downloaded"
    ):
        inception(tmp_path / "none.pth")
    for load in (clip, dino, ClipScore):
        for place in (tmp_path / "none", "none", "nobody/none"):
            with pytest.raises(FileNotFoundError, match="nothing is downloaded here"):
                load(place)
    assert not asked, "no name was looked up in the network"
    (clip_folder / "preprocessor_config.json").rename(tmp_path / "away.json")
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json"):
        clip(clip_folder)
    (tmp_path / "away.json").rename(clip_folder / "preprocessor_config.json")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold torch-fidelity's Inception"):
        inception(tmp_path / "broken.pth")


def test_inception_is_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random weights: its own features of the same 8-bit pictures, which it resizes itself."""
    without_broken_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    file = tmp_path / "inception.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch, torch.random.fork_rng():
        patch.setattr(Network, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = Network("random", ["2048"], str(file))
    torch.save(network.state_dict(), file)
    extractor = inception(file)
    images = pictures(32, 48)
    levels = ((images + 1) * 127.5).round().to(torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images), network(levels)[0])
    assert (extractor.name, extractor.kernel) == ("inception", "cubic")
    assert extractor(images).shape == (2, 2048)
    assert not torch.equal(*extractor(images)), "pictures are distinguished"
