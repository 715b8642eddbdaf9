"""Exports on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nitrodistill.export.folder import CARD, RECORD, verify_export, visible
from nitrodistill.pretrained import check_hub, upload


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

    Example:
        >>> nd.export.push("nowhere", "me/student")
        Traceback (most recent call last):
            ...
        FileNotFoundError: ...
    """
    path = Path(folder)
    verify_export(path)
    api = check_hub(repo_id, api)
    files: dict[str, bytes | Path] = {name: path / name for name in (RECORD, *visible(path))}
    files[CARD] = _renamed((path / CARD).read_text(encoding="utf-8"), repo_id).encode()
    return upload(repo_id, files, "Upload the distilled student", private, api)


def _renamed(card: str, repo_id: str) -> str:
    """The card with the repository's name where it says the folder."""
    found = re.search(r'load_lora_weights\((".*?")\)', card) or re.search(
        r'from_pretrained\((".*?")\)', card
    )
    if found is None:
        raise ValueError("the export's README.md has lost its example; export again.")
    return card.replace(found[1], json.dumps(repo_id))
