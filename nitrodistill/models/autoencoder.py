"""Pictures <-> latents through the VAE of any family, with its scale, shift and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.denoiser import device_of, dtype_of


def load_vae(path: str | Path, dtype_argument: str, dtype: torch.dtype) -> Any:
    """An autoencoder of any class of diffusers, from a directory or by its name on the Hub.

    Args:
        path: of its folder, with a config.json, or user/model.
        dtype_argument: what the installed diffusers calls the argument.
        dtype: of its weights.

    Raises:
        FileNotFoundError: if there is none.
    """
    import diffusers

    try:
        config: Any = diffusers.AutoencoderKL.load_config(str(path))
        kind = getattr(diffusers, str(config.get("_class_name")))
        return kind.from_pretrained(str(path), use_safetensors=True, **{dtype_argument: dtype})
    except (OSError, AttributeError) as error:
        raise FileNotFoundError(
            f"no VAE at {str(path)!r} ({' '.join(str(error).split())[:120]}); give a folder that "
            "vae.save_pretrained(path) wrote, or a name on the Hub (user/model)."
        ) from error


def pixels_a_latent(vae: Any) -> int:
    """How many pixels wide a latent pixel is."""
    config = vae.config
    if _draws_videos(vae):
        return 2 ** len(config.temperal_downsample)
    if "encoder_block_out_channels" in config:  # AutoencoderDC (Sana)
        return 2 ** (len(config.encoder_block_out_channels) - 1)
    return _patch(vae) * 2 ** (len(config.block_out_channels) - 1)


def image_channels(vae: Any) -> int:
    """Channels of its pictures."""
    return vae.config["input_channels" if "input_channels" in vae.config else "in_channels"]


def latent_channels(vae: Any) -> int:
    """Channels of its latents."""
    return vae.config["z_dim" if "z_dim" in vae.config else "latent_channels"]


def decode_latents(vae: Any, latents: Tensor, batch_size: int) -> Tensor:
    """Latents `(B, C, H, W)` -> pictures, float32, clamped to [-1, 1]; gradients flow."""
    scale, shift = _statistics(vae, latents)
    with _wide_enough(vae) as (device, dtype):
        raw = nn.functional.pixel_shuffle(latents / scale + shift, _patch(vae))
        raw = _framed(vae, raw.to(device, dtype))
        fast = device.type == "cpu" and raw.ndim == 4
        layout = torch.channels_last if fast else torch.preserve_format
        parts = [
            vae.decode(part.contiguous(memory_format=layout), return_dict=False)[0]
            for part in raw.split(batch_size)
        ]
    return _unframed(vae, torch.cat(parts)).float().clamp(-1, 1).contiguous()


def encode_images(vae: Any, images: Tensor, batch_size: int) -> Tensor:
    """Pictures `(B, 3, H, W)` in [-1, 1] -> scaled latents, float32 (the posterior's mean)."""
    with _wide_enough(vae) as (device, dtype):
        given = _framed(vae, images.to(device, dtype))
        parts = [_mean(vae.encode(part)) for part in given.split(batch_size)]
    raw = nn.functional.pixel_unshuffle(_unframed(vae, torch.cat(parts)).float(), _patch(vae))
    scale, shift = _statistics(vae, raw)
    return (raw - shift) * scale


def _mean(encoded: Any) -> Tensor:
    """KL autoencoders return a distribution, deterministic ones (AutoencoderDC, AutoencoderTiny) the latent."""
    known = next((key for key in ("latent", "latents") if key in encoded), None)
    return encoded["latent_dist"].mean if known is None else encoded[known]


def _draws_videos(vae: Any) -> bool:
    """Whether it sees pictures as videos `(B, C, 1, H, W)` of one frame (Qwen-Image's)."""
    return "temperal_downsample" in vae.config


def _patch(vae: Any) -> int:
    """How many of its own pixels wide a latent pixel is: 2 where latents are normalised as patches (FLUX.2's)."""
    return vae.config.patch_size[0] if "batch_norm_eps" in vae.config else 1


def _framed(vae: Any, maps: Tensor) -> Tensor:
    return maps.unsqueeze(2) if _draws_videos(vae) else maps


def _unframed(vae: Any, maps: Tensor) -> Tensor:
    return maps.squeeze(2) if _draws_videos(vae) else maps


def _statistics(vae: Any, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(scale, shift) with `latent = (raw - shift) scale`."""
    config = vae.config
    scale = config.get("scaling_factor") or 1.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if "batch_norm_eps" in config:
        norm = vae.bn
        mean, std = norm.running_mean, (norm.running_var + config.batch_norm_eps).sqrt()
    if mean is not None and std is not None:
        mean, std = (torch.as_tensor(x).to(like).reshape(1, -1, 1, 1) for x in (mean, std))
        return scale / std, mean
    return scale, config.get("shift_factor") or 0.0


@contextmanager
def _wide_enough(vae: Any) -> Iterator[tuple[torch.device, torch.dtype]]:
    """The VAE's device and dtype; float16 VAEs that overflow (`force_upcast`) are float32 meanwhile.

    By other parameters, not by other values of its own: a backward pass that comes later needs those of this one.
    """
    device, dtype = device_of(vae), dtype_of(vae)
    upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    own = [
        (module, name, parameter)
        for module in vae.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if upcast
    ]
    for module, name, parameter in own:
        setattr(module, name, nn.Parameter(parameter.float(), parameter.requires_grad))
    try:
        yield device, torch.float32 if upcast else dtype
    finally:
        for module, name, parameter in own:
            setattr(module, name, parameter)
