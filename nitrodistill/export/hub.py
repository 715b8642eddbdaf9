"""Exports on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nitrodistill.export.folder import CARD, RECORD, verify_export, visible


def check_hub(repo_id: str, api: Any = None) -> Any:
    """Refuses, before any work, a name or a login that a push would fail with; returns the API.

    Args:
        repo_id: `"user/name"`.
        api: a `huggingface_hub.HfApi`, or what stands in for it; by default a new one.

    Raises:
        ValueError: if the name is no Hub name.
        PermissionError: if nobody is logged in, or the Hub cannot be reached.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is None:
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
            f"({_first_line(error)}); run `hf auth login` first, or export without --push."
        ) from error
    return api


def push(folder: str | Path, repo_id: str, *, private: bool = True, api: Any = None) -> str:
    """Uploads a whole export in one commit, with the repository's name in its card; returns the address.

    Every file but the card is compared with the export's record before; hidden files stay here.

    Args:
        folder: what `export` or `export_lora` wrote.
        repo_id: `"user/name"`; made if it is not there.
        private: whether a new repository is private.
        api: see `check_hub`.

    Raises:
        FileNotFoundError: if `folder` holds no export.
        ValueError: if `repo_id` is no Hub name, or a file is not what the export's record says.
        PermissionError: if nobody is logged in.
        ConnectionError: if the Hub refuses the upload; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    path = Path(folder)
    verify_export(path)
    api = check_hub(repo_id, api)
    card = _renamed((path / CARD).read_text(encoding="utf-8"), repo_id)
    operations = [
        CommitOperationAdd(name, card.encode() if name == CARD else path / name)
        for name in (CARD, RECORD, *visible(path))
    ]
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message="Upload the distilled student")
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"the Hub did not take {repo_id!r} ({_first_line(error)}); the export is whole in "
            f"{str(folder)!r}: push again."
        ) from error
    return str(address)


def _renamed(card: str, repo_id: str) -> str:
    """The card with the repository's name where it says the folder."""
    found = re.search(r'load_lora_weights\((".*?")\)', card) or re.search(
        r'from_pretrained\((".*?")\)', card
    )
    if found is None:
        raise ValueError("the export's README.md has lost its example; export again.")
    return card.replace(found[1], json.dumps(repo_id))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
