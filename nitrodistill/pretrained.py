"""Weights in a folder or on the Hub, with what they are: `save_pretrained`, `from_pretrained`, `push_to_hub`.

`NAME.safetensors`, and `config.json` with the settings and a hash of both. There is no pickle in it, and nothing
in it is imported.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from torch import Tensor

from nitrodistill.files import atomic, blake2, damage, read_text, record_of, write_json

CONFIG, _FORMAT = "config.json", 1
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], settings: object) -> None:
    """Writes weights, then the config; what is half written cannot be loaded.

    Args:
        folder: made if it is not there.
        name: what it is, such as "heads".
        tensors: the weights.
        settings: what JSON can hold.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    from safetensors.torch import save_file

    weights = f"{name}.safetensors"
    strange = {file.name for file in folder.glob("*")} - {weights, CONFIG}
    if strange:
        raise FileExistsError(
            f"{str(folder)!r} holds {min(strange)!r}, which is no file of {name}; choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / weights) as temporary:
        save_file({n: v.detach().cpu().contiguous() for n, v in tensors.items()}, temporary)
    files = {weights: record_of(folder / weights)}
    content = {"format": _FORMAT, "settings": settings, "files": files, "blake2b": _hash(settings)}
    write_json(folder / CONFIG, content)


def load(place: str | Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Settings and weights that `save` wrote, compared with their hashes.

    Args:
        place: the folder, or a repository's name on the Hub, `user/name`, where there is no such folder.
        name: what it is.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are damaged, or of another format.
    """
    from safetensors.torch import load_file

    weights = f"{name}.safetensors"
    folder = _folder_of(place, weights)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no {name} in {str(place)!r}; it has no {CONFIG}.")
    try:
        content = json.loads(read_text(folder / CONFIG))
        version, settings, files = (content[key] for key in ("format", "settings", "files"))
        same = content["blake2b"] == _hash(settings)
        found = damage(folder, files) if same else "its hash differs"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(folder / CONFIG)!r} is damaged: {error!r}.") from error
    if version != _FORMAT:
        raise ValueError(
            f"the {name} in {str(place)!r} are of format {version}, and this version reads {_FORMAT}; save them "
            "with it, or read them with the version that wrote them."
        )
    if found is not None or weights not in files:
        raise ValueError(
            f"the files of {name} in {str(place)!r} are damaged: {found or 'no record of them'}."
        )
    return settings, load_file(folder / weights)


class Pushable(ABC):
    """What can be saved into a folder, and pushed to the Hub."""

    _kind: ClassVar[str]
    """Its name in files and messages, as `save` takes it."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads."""

    def push_to_hub(self, repo_id: str, *, private: bool = True, api: Any = None) -> str:
        """Uploads it to a repository of the Hub, which `from_pretrained` takes; returns its address.

        Args:
            repo_id: `"user/name"`; made if it is not there.
            private: whether a new repository is.
            api: a `huggingface_hub.HfApi`; by default a new one.

        Raises:
            ValueError: if `repo_id` is no Hub name.
            PermissionError: if nobody is logged in.
            ConnectionError: if the Hub refuses the upload.
        """
        api, message = check_hub(repo_id, api), f"Upload {self._kind}"
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files = {file.name: file for file in Path(folder).iterdir()}
            return upload(repo_id, files, message, private, api)


def upload(
    repo_id: str, files: Mapping[str, bytes | Path], message: str, private: bool, api: Any
) -> str:
    """Uploads files in one commit to a repository, made if it is not there; returns its address.

    Raises:
        ConnectionError: if the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message=message)
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"the Hub did not take {repo_id!r} ({_first_line(error)}); nothing is lost here: push again."
        ) from error
    return str(address)


def check_hub(repo_id: str, api: Any = None) -> Any:
    """Refuses, before any work, a name or a login that a push would fail with; returns the API.

    Args:
        repo_id: `"user/name"`.
        api: a `huggingface_hub.HfApi`, or what stands in for it; by default a new one.

    Raises:
        ValueError: if the name is no Hub name.
        PermissionError: if nobody is logged in, or the Hub cannot be reached.

    Example:
        >>> class Hub:  # a huggingface_hub.HfApi by default
        ...     def whoami(self):
        ...         return {"name": "me"}
        >>> type(nd.export.check_hub("me/student", Hub())).__name__
        'Hub'
    """
    if _REPOSITORY.fullmatch(repo_id) is None:
        raise ValueError(f"{repo_id!r} is not a name on the Hub; give user/name.")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api.whoami()
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise PermissionError(
            f"cannot push to {repo_id!r}: nobody is logged in to the Hugging Face Hub, or it cannot be reached "
            f"({_first_line(error)}); run `hf auth login` first, or do not push."
        ) from error
    return api


def _folder_of(place: str | Path, weights: str) -> Path:
    if Path(place).is_dir() or not isinstance(place, str) or not _REPOSITORY.fullmatch(place):
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(place, allow_patterns=[CONFIG, weights]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"there is no folder {place!r} here, and no such repository can be had from the Hub "
            f"({_first_line(error)})."
        ) from error


def _hash(settings: object) -> str:
    return blake2(json.dumps(settings, sort_keys=True)).hex()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
