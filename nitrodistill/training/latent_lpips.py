"""A LatentLPIPS trunk for any VAE, from its own latents and a distance of pictures.

    min over f and w >= 0 of  mean (log(k d(z, z') + e) - log(D(decode z, decode z') + e))^2,   e = mean D / 100

d is LatentLPIPS with trunk f and channel weights w, D the distance of the pictures, k the ratio of their means in
the batch, which the weights get in the end. The pairs are a latent and what becomes of it by noise, blur, a shift,
or interpolation to another latent, from barely to wholly. Nobody is asked what looks alike: the trunk is as good
as D at best, is *not* calibrated on human judgements (BAPPS) as the published ones are, and belongs to this VAE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nitrodistill.checks import check_fields, check_positive, check_tensor
from nitrodistill.files import atomic, blake2, write_json
from nitrodistill.losses.latent_augmentation import warp
from nitrodistill.losses.latent_trunk import LatentTrunk, fitted_trunk
from nitrodistill.losses.lpips import lpips_distance
from nitrodistill.method import Draws
from nitrodistill.progress import progress_bar

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of latents `(B, C, H, W)` -> `(B,)`, for example `DecodedLoss(...).per_sample`."""
WEIGHTS = "latent_lpips.safetensors"
CALIBRATION = "none: regressed on a distance of decoded pictures, not on human judgements (BAPPS)"
_EPS = 1e-8


@dataclass(frozen=True)
class FitConfig:
    """How a latent trunk is fitted.

    Attributes:
        pairs: of latents, whose pictures are compared once.
        held_out: latents at the end that nothing is fitted on; an eighth of the number of pairs is made of
            them, to be ranked in the end.
        widths: channels of each block of two convolutions; each block but the first has half the side.
        steps: of Adam.
        batch_size: pairs a step.
        learning_rate: at the start; it falls to 0 along half a cosine.
        seed: of the weights and of every draw.

    Raises:
        ValueError: for a value out of its range.
    """

    pairs: int = 8192
    held_out: int = 128
    widths: tuple[int, ...] = (32, 64)
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, pairs=64, held_out=2, steps=1, batch_size=2)
        check_positive("learning_rate", self.learning_rate)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"widths is {self.widths}; give at least one block, of 1 channel or more."
            )


@dataclass(frozen=True)
class Fit:
    """What came of it: Spearman's rank correlations with the distance of the pictures, on held-out pairs.

    Attributes:
        weights: the file, for `LatentLPIPSLoss(weights=...)`.
        correlation: of the fitted distance.
        l2_correlation: of the mean squared difference of the latents.
    """

    weights: Path
    correlation: float
    l2_correlation: float


def fit_latent_lpips(
    latents: Tensor,
    distance: Distance,
    output: str | Path,
    config: FitConfig | None = None,
    *,
    progress: bool = True,
) -> Fit:
    """Fits a trunk. The distances of the pictures are kept in the folder; a fit that was stopped goes on there.

    Args:
        latents: `(N, C, H, W)`, scaled as the pipeline's network takes them.
        distance: of the pictures that two batches of latents decode to; no gradient is taken.
        output: folder of the weights and of `report.json`.
        config: how.
        progress: show bars.

    Raises:
        ValueError: if there are too few latents or too small ones, the folder holds another fit, or a distance is
            not finite.
    """
    config, folder = config or FitConfig(), Path(output)
    check_tensor("latents", latents)
    if latents.ndim != 4 or len(latents) < config.held_out + 2:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}; (N, C, H, W) is wanted, and {config.held_out} of them "
            "are held out: give more images, or hold out fewer."
        )
    smallest = 2 ** (len(config.widths) - 1)
    if min(latents.shape[-2:]) < smallest:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}, and {len(config.widths)} blocks need sides of {smallest} "
            "or more; give fewer widths."
        )
    folder.mkdir(parents=True, exist_ok=True)
    latents = latents.detach().float()
    fitted_on, held_out = latents[: -config.held_out], latents[-config.held_out :]
    pairs = _pairs(
        fitted_on, distance, folder / "fitted_on.safetensors", config, config.pairs, progress
    )
    kept = _pairs(
        held_out, distance, folder / "held_out.safetensors", config, config.pairs // 8, progress
    )
    trunk, heads = _train(pairs, config, progress)
    with torch.no_grad():
        ours = _values(trunk, heads, kept)
    plain = (kept[0] - kept[1]).square().mean((1, 2, 3))
    state = trunk.state_dict() | {f"heads.{k}": head for k, head in enumerate(heads)}
    with atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary, {"calibration": CALIBRATION})
    found = [rank_correlation(values, kept[2]) for values in (ours, plain)]
    fit = Fit(folder / WEIGHTS, *found)
    settings = {"settings": asdict(config), "calibration": CALIBRATION}
    write_json(folder / "report.json", asdict(fit) | {"weights": WEIGHTS} | settings)
    return fit


def make_pairs(latents: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Latents and what becomes of them, `(B, C, H, W)` each; by turns noise, blur, shift, interpolation."""
    rows = (draws.uniform("rows", (2,), latents.device) * len(latents)).long()
    z, other = latents[rows.clamp(max=len(latents) - 1).T]
    strength = draws.uniform("strength", (1, 1, 1), z.device)
    noise = draws.normal("noise", z.shape[1:], z.device) * latents.std()
    soft = F.pad(z, (2, 2, 2, 2), "replicate")
    soft = F.avg_pool2d(F.avg_pool2d(soft, 3, 1), 3, 1)
    most = strength[:, 0, 0] * z.new_tensor(z.shape[:-3:-1]) / 2
    shift = (draws.uniform("shift", (2,), z.device) - 0.5) * most
    moved = warp(z, torch.eye(2, device=z.device).expand(len(z), 2, 2), shift)
    changed = (
        z + 0.02 * 100**strength * noise,
        z.lerp(soft, strength),
        moved,
        z.lerp(other, strength),
    )
    return z, torch.stack(changed)[
        (draws.index % 4).to(z.device), torch.arange(len(z), device=z.device)
    ]


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of `(N,)` and `(N,)`; equal values rank in their order.

    Raises:
        ValueError: for values that are not finite, which have no rank.
    """
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise ValueError(
            "a distance is not finite, so it has no rank; look at the images and the VAE."
        )
    ranks = [v.argsort(stable=True).argsort(stable=True).double() for v in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


_Pairs = tuple[Tensor, Tensor, Tensor]


def _pairs(
    latents: Tensor, distance: Distance, file: Path, config: FitConfig, count: int, progress: bool
) -> _Pairs:
    """Pairs and their distances; `file` keeps the distances."""
    digest = blake2([latents.cpu().numpy().tobytes(), f"{config.seed} {count}"]).hex()
    known = torch.empty(0)
    if file.exists():
        with safe_open(file, "pt") as opened:
            if opened.metadata() != {"of": digest}:
                raise ValueError(f"{str(file)!r} is of another fit; choose another output.")
            known = opened.get_tensor("distances")
    chunks = []
    for rows in progress_bar(torch.arange(count).split(256), desc=file.stem, show=progress):
        pair = make_pairs(latents, Draws(config.seed, 0, rows, purpose=file.stem))
        chunks.append(pair)
        batches = zip(*(z.split(config.batch_size) for z in pair), strict=True)
        if len(known) > int(rows[-1]):
            if int(rows[0]) == 0:
                _check_same(distance, next(batches), known, file)
            continue
        with torch.no_grad():
            parts = [distance(*part) for part in batches]
        known = torch.cat([known, torch.cat(parts).float().cpu()])
        if not bool(known.isfinite().all()):
            raise ValueError(
                "the distance of two pictures is not finite; look at the images and the VAE."
            )
        with atomic(file) as temporary:
            save_file({"distances": known}, temporary, {"of": digest})
    first, second = (torch.cat(side) for side in zip(*chunks, strict=True))
    return first, second, known.to(latents.device)


def _check_same(distance: Distance, pair: tuple[Tensor, Tensor], known: Tensor, file: Path) -> None:
    """Refuses distances of other features or another decoder; rounding on another machine is none."""
    with torch.no_grad():
        now = distance(*pair).float().cpu()
    if not (now - known[: len(now)]).abs().mean() <= 0.05 * known[: len(now)].mean():
        raise ValueError(
            f"{str(file)!r} is of another fit: of the same latents with another distance of pictures; choose "
            "another output."
        )


def _train(pairs: _Pairs, config: FitConfig, progress: bool) -> tuple[LatentTrunk, list[Tensor]]:
    generator = torch.Generator().manual_seed(config.seed)
    trunk = fitted_trunk(pairs[0].shape[1], [(w, w) for w in config.widths]).requires_grad_(True)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.normal_(module.bias, std=0.5, generator=generator)  # type: ignore[arg-type]
    trunk.to(pairs[0].device)
    raw = [torch.zeros(w, device=pairs[0].device, requires_grad=True) for w in config.widths]
    adam = torch.optim.Adam([*trunk.parameters(), *raw], config.learning_rate, betas=(0.9, 0.99))
    eps = pairs[2].mean() / 100
    for step in progress_bar(range(config.steps), desc="fit", show=progress):
        rows = torch.randint(len(pairs[2]), (config.batch_size,), generator=generator)
        batch = [part[rows.to(part.device)] for part in pairs]
        values = _values(trunk, [F.softplus(one) for one in raw], batch)
        ratio = (batch[2].mean() / values.mean()).detach()
        loss = ((values * ratio + eps).log() - (batch[2] + eps).log()).square().mean()
        adam.param_groups[0]["lr"] = (
            config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    trunk.requires_grad_(False)
    heads = [F.softplus(one.detach()) for one in raw]
    scale = pairs[2].mean() / _values(trunk, heads, pairs).mean()
    return trunk, [head * scale for head in heads]


def _values(trunk: LatentTrunk, heads: list[Tensor], pairs: _Pairs | list[Tensor]) -> Tensor:
    parts = zip(pairs[0].split(256), pairs[1].split(256), strict=True)
    return torch.cat([lpips_distance(trunk(a), trunk(b), heads, eps=_EPS) for a, b in parts])
