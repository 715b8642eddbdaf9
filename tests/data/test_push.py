"""Against a Hub in this process: what is sent, and in which order. The real Hub was never reached."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from nitrodistill.data import PairStore
from nitrodistill.data.push import card, push_store


class Hub:
    """Takes what HfApi's methods are given, with their argument names, into a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: list[str] = []

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        validate_repo_id(repo_id)
        self.private = private
        return f"https://huggingface.co/{repo_type}s/{repo_id}"

    def upload_file(
        self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, repo_type: str
    ) -> None:
        (self.root / path_in_repo).write_bytes(path_or_fileobj)
        self.sent.append(path_in_repo)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, repo_type: str, allow_patterns: list[str]
    ) -> None:
        for path in sorted(p for p in folder_path.rglob("*") if p.is_file()):
            name = path.relative_to(folder_path).as_posix()
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.root / name)
                self.sent.append(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "hub"
    folder.mkdir()
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_the_store_arrives_whole_with_the_manifest_last(made: PairStore, hub: Hub) -> None:
    assert push_store(made, "me/pairs") == "https://huggingface.co/datasets/me/pairs"
    assert hub.private
    assert hub.sent[0] == "README.md"
    assert hub.sent[-1] == "manifest.json"
    PairStore.open(hub.root).verify()


def test_datasets_reads_what_was_pushed(made: PairStore, hub: Hub, tmp_path: Path) -> None:
    push_store(made, "me/pairs", private=False)
    for streaming in (False, True):
        rows = datasets.load_dataset(
            str(hub.root),
            "shards",
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path / "c"),
        )
        assert [row["index"] for row in rows] == list(range(11))


def test_nothing_damaged_is_pushed(copied: Path, hub: Hub, flip: Any, made: PairStore) -> None:
    flip(copied / "shards/000000.arrow", made.pair_bytes(0)["x0"])
    with pytest.raises(ValueError, match=r"000000.arrow is damaged"):
        push_store(PairStore.open(copied), "me/pairs")
    assert hub.sent == []


def test_what_the_hub_refuses_is_told(
    made: PairStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'not a name' is no name on the Hub"):
        push_store(made, "not a name")

    def unknown(*_: object, **__: object) -> str:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub, "create_repo", unknown)
    with pytest.raises(PermissionError, match="hf auth login"):
        push_store(made, "me/pairs")

    class HTTPError(Exception):
        """As in httpx, whose errors are no OSErrors."""

    def away(*_: object, **__: object) -> str:
        raise type("ConnectError", (HTTPError,), {})("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub, "create_repo", away)
    with pytest.raises(ConnectionError, match=r"the Hub cannot be reached .*check the network"):
        push_store(made, "me/pairs")

    def wrong(*_: object, **__: object) -> str:
        raise AttributeError("a mistake of ours")

    monkeypatch.setattr(hub, "create_repo", wrong)
    with pytest.raises(AttributeError):
        push_store(made, "me/pairs")


def test_the_card_tells_no_path_and_holds_no_markup(made: PairStore) -> None:
    source = made.manifest.generated[0]
    from dataclasses import replace

    for teacher, shown in (
        ("/home/me/models/pixart", "pixart"),
        ("user/sd", "user/sd"),
        ("a<b>`|", "ab"),
    ):
        manifest = replace(made.manifest, sources=(replace(source, teacher=teacher),))
        text = card(PairStore(made.path, manifest))
        assert f"- 11 samples of {shown} in 2 steps, guidance 3, seed 5\n" in text
        front = json.loads(text.split("\n")[1])
        assert [c["config_name"] for c in front["configs"]] == ["shards", "prompts"]
