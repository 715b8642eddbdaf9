"""A store on the Hub: its files as they are, and a card that says what they are."""

from __future__ import annotations

import json
from typing import Any

from nitrodistill.data.pairs import PairStore
from nitrodistill.data.remote import reaching
from nitrodistill.data.sources import Encoded, Generated, Source


def push_store(store: PairStore, repo: str, *, private: bool = True) -> str:
    """Verifies a store and uploads it to a dataset repository of the Hub; a broken upload can be repeated.

    Args:
        store: it must be on this machine.
        repo: `user/name`; made if it does not exist.
        private: whether a new repository is.

    Returns:
        The repository's address.

    Raises:
        ValueError: if the store is damaged, or `repo` is no name.
        OSError: if the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    if store.remote is not None:
        raise ValueError(
            "a store that is elsewhere cannot be pushed; copy it here with `pairs merge`."
        )
    store.verify()
    api = HfApi()
    try:
        with reaching("the Hub"):
            address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
            text = card(store).encode()
            api.upload_file(
                path_or_fileobj=text, path_in_repo="README.md", repo_id=repo, repo_type="dataset"
            )
            # Files first, then the manifest: a store without one is not a store yet.
            for patterns in (["prompts/*.arrow", "shards/*.arrow"], ["manifest.json"]):
                api.upload_folder(
                    folder_path=store.path,
                    repo_id=repo,
                    repo_type="dataset",
                    allow_patterns=patterns,
                )
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name on the Hub; it is user/name.") from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            "the Hub does not know you; log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    return str(address)


def card(store: PairStore) -> str:
    """The dataset's README: how it was made, and how to read it."""
    manifest = store.manifest
    settings: dict[str, Any] = {
        "configs": [
            {"config_name": kind, "data_files": f"{kind}/*.arrow"} for kind in ("shards", "prompts")
        ],
        "tags": ["nitrodistill", "diffusion-distillation"],
    }
    lines = [
        "---",
        json.dumps(settings),  # JSON is YAML
        "---",
        "",
        "# Pairs for diffusion distillation",
        "",
        f"{len(store)} samples of {manifest.num_prompts} prompts, made by nitrodistill:",
        "",
        *(f"- {_about(source)}" for source in manifest.sources),
        "",
        "```python",
        "from nitrodistill import PairStore, BatchStream",
        "",
        'store = PairStore.open("hf://datasets/USER/NAME")  # or a folder that you downloaded',
        "stream = BatchStream(store, seed=0, batch_size=48)",
        "```",
        "",
        "The tensors are raw bytes; `manifest.json` says their shapes and dtypes. The licence of the teacher's "
        "outputs, or of the images, applies; state it here.",
        "",
    ]
    return "\n".join(lines)


def _about(source: Source) -> str:
    if isinstance(source, Encoded):
        return f"{source.num_samples} images through the VAE of {_plain(source.teacher)}"
    made = (
        f"{source.num_samples} samples of {_plain(source.teacher)} in {source.num_inference_steps} steps, "
        f"guidance {source.guidance:g}"
    )
    return f"{made}, seed {source.seed}" if isinstance(source, Generated) else f"{made}, imported"


def _plain(name: str) -> str:
    """A teacher's name without what Markdown would take for markup, and without the folders of a path."""
    last = name if name.count("/") == 1 else name.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isalnum() or c in "/._- ") or "a teacher"
