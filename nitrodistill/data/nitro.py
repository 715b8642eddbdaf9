"""Import of the folders that Nitro's scripts write: three .pth files a sample.

    latents/N.pth    x0 `(C, H, W)`
    noises/N.pth     the noise, rounded after the teacher saw it
    txt_embs/N.pth   a dict of the text conditioning, one level of dicts inside

N is the line of the prompt file. The layout is that of https://github.com/AMD-AIG-AIMA/AMD-Diffusion-Distillation
(core/tools/gen_synthetic_data.py). Files are read with `weights_only=True`: a pickle with code
in it is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.data.arrow import Rows
from nitrodistill.data.columns import DTYPES, Column
from nitrodistill.data.conditioning import (
    Embeddings,
    FloatType,
    batches,
    check_finite,
    tensor_columns,
    trimmed,
)
from nitrodistill.data.files import check_folder
from nitrodistill.data.manifest import Manifest
from nitrodistill.data.pairs import MANIFEST
from nitrodistill.data.sources import Imported, code_version
from nitrodistill.data.text import hash_texts
from nitrodistill.data.work import DRAFT, Work
from nitrodistill.types import Condition

FOLDERS = ("latents", "noises", "txt_embs")


@dataclass(frozen=True)
class NitroConfig:
    """What an import needs to know, because the folder does not say it.

    Attributes:
        num_inference_steps: that the teacher took (the script's default).
        guidance: scale of classifier-free guidance that it had (the script's default).
        batch_size: samples in a record batch.
        shard_size: samples, or prompts, in one file.
        dtype: on disk.
        embeddings: "exact" keeps every bit of the text conditioning; "int8" keeps eight bits an element.

    Example:
        >>> nd.data.NitroConfig(guidance=7.5).num_inference_steps
        50
    """

    num_inference_steps: int = 50
    guidance: float = 3.0
    batch_size: int = 32
    shard_size: int = 256
    dtype: FloatType = "float16"
    embeddings: Embeddings = "exact"

    def __post_init__(self) -> None:
        check_fields(self, num_inference_steps=1, batch_size=1, shard_size=1, guidance=1)


def is_nitro(path: str | Path) -> bool:
    """Whether a folder looks like Nitro's."""
    return all((Path(path) / name).is_dir() for name in FOLDERS)


class NitroImport(Work):
    """The work of an import, file by file; see `Work`.

    Args:
        path: the folder.
        output: of the store; missing, empty, or begun with these settings.
        config: what the folder does not say.
        teacher: name, fingerprint and prediction type of the teacher that made the samples.
        prompts: the lines of the prompt file; None where it is lost: each sample is then a prompt of its own.

    Raises:
        FileNotFoundError: if it is no such folder, or a sample lacks a file.
        ValueError: if a sample cannot be read, or the prompts do not fit.
        FileExistsError: if the output holds something else, or a store with other settings.

    Example:
        >>> nd.data.NitroImport("elsewhere", "here", nd.data.NitroConfig(), ("sd21", "", "v_prediction"))
        Traceback (most recent call last):
            ...
        FileNotFoundError: 'elsewhere' is no folder of Nitro's: it must hold latents, noises, txt_embs.
    """

    def __init__(
        self,
        path: str | Path,
        output: str | Path,
        config: NitroConfig,
        teacher: tuple[str, str, str],
        prompts: Sequence[str] | None = None,
    ) -> None:
        check_folder(Path(output), (MANIFEST, DRAFT))
        self._root, self._config = Path(path), config
        self._numbers = _numbers(self._root)
        lines = _lines(self._numbers, prompts)
        self._texts = list(dict.fromkeys(lines))
        number = {text: i for i, text in enumerate(self._texts)}
        ids = np.array([number[text] for text in lines])
        self._first = np.unique(ids, return_index=True)[1]  # the sample that a prompt is taken from
        name, fingerprint, prediction_type = teacher
        source = Imported(
            num_samples=len(self._numbers),
            format="nitro",
            teacher=name,
            fingerprint=fingerprint,
            prediction_type=prediction_type,
            num_inference_steps=config.num_inference_steps,
            guidance=float(config.guidance),
            files_hash=hash_texts([*self._numbers, *lines]),
            code_version=code_version(),
        )
        latent = Column(config.dtype, tuple(self._tensor("latents", 0).shape))
        manifest = Manifest(
            shard_size=config.shard_size,
            columns={"x0": latent, "noise": latent},
            conditions=tensor_columns(self._condition_of([0]), config.embeddings),
            texts_hash=hash_texts(self._texts),
            sources=(source,),
        )
        super().__init__(output, manifest, len(self._texts), ids)

    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        for ids in batches(rows, self._config.batch_size):
            condition = self._condition_of([int(self._first[i]) for i in ids])
            check_finite(condition.tensors, ids, "prompts", self._config.dtype)
            texts = [self._texts[i] for i in ids]
            yield {"prompt_id": list(ids), "text": texts, **trimmed(condition)}

    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        for batch in batches(rows, self._config.batch_size):
            tensors = {}
            for column, folder in (("x0", "latents"), ("noise", "noises")):
                values = [self._tensor(folder, i) for i in batch]
                shapes = {tuple(value.shape) for value in values}
                if shapes != {self.manifest.columns[column].shape}:
                    names = f"{self._numbers[batch.start]} to {self._numbers[batch.stop - 1]}"
                    raise ValueError(
                        f"the {folder} {names} have shapes {sorted(shapes)}; all samples of a store have "
                        f"one shape, here {self.manifest.columns[column].shape}."
                    )
                tensors[column] = torch.stack(values).to(DTYPES[self._config.dtype])
                check_finite({column: tensors[column]}, batch, "samples", self._config.dtype)
            ids = self._prompt_ids[batch.start : batch.stop].tolist()
            yield {
                "index": list(batch),
                "prompt_id": ids,
                **{n: list(t) for n, t in tensors.items()},
            }
            advance(len(batch))

    def _tensor(self, folder: str, i: int) -> Tensor:
        path = self._root / folder / f"{self._numbers[i]}.pth"
        value = _load(path)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{path} holds {type(value).__name__} and not a tensor of floats.")
        return value

    def _condition_of(self, samples: Sequence[int]) -> Condition:
        rows = []
        for i in samples:
            path = self._root / "txt_embs" / f"{self._numbers[i]}.pth"
            rows.append(Condition({n: v[None] for n, v in _flat(_load(path), path).items()}))
        return Condition.cat(rows).to(dtype=DTYPES[self._config.dtype])


def _numbers(root: Path) -> list[str]:
    """The samples, in the order of their numbers."""
    if not is_nitro(root):
        raise FileNotFoundError(
            f"{str(root)!r} is no folder of Nitro's: it must hold {', '.join(FOLDERS)}."
        )
    found = [{p.stem for p in (root / name).glob("*.pth") if p.is_file()} for name in FOLDERS]
    lacking = sorted(set.union(*found) - set.intersection(*found))
    if lacking:
        raise FileNotFoundError(
            f"sample {lacking[0]} in {str(root)!r} (and {len(lacking) - 1} more) lacks one of its three "
            "files; generate it again, or remove what is left of it."
        )
    if not found[0]:
        raise FileNotFoundError(f"{str(root)!r} holds no samples (latents/NUMBER.pth).")
    return sorted(found[0], key=lambda stem: (int(stem) if stem.isdigit() else -1, stem))


def _lines(numbers: Sequence[str], prompts: Sequence[str] | None) -> list[str]:
    if prompts is None:
        return [f"(prompt {number} of an import)" for number in numbers]
    for number in numbers:
        if not number.isdigit() or int(number) >= len(prompts):
            raise ValueError(
                f"sample {number} has no line in the prompt file, which has {len(prompts)} lines counted "
                "from 0; give the file that the samples were made from."
            )
    return [prompts[int(number)].strip() for number in numbers]


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read: it is torn, or no tensor file ({' '.join(str(error).split())[:80]}); "
            "generate it again, or remove the sample's three files."
        ) from error


def _flat(data: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a dict, and of the dicts in it, under their own names."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds {type(data).__name__} and not a dict of conditioning.")
    tensors: dict[str, Tensor] = {}
    for name, value in data.items():
        inner = value if isinstance(value, Mapping) else {name: value}
        for key, tensor in inner.items():
            if not isinstance(tensor, Tensor) or key in tensors:
                raise ValueError(f"{path} holds {key!r:.40}, which is no tensor or there twice.")
            tensors[str(key)] = tensor
    return tensors
