"""Pushing, to an object that stands in for the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from nitrodistill.export import push
from nitrodistill.export.folder import RECORD
from nitrodistill.export.hub import check_hub
from nitrodistill.files import record_of


class FakeHub:
    """Keeps what it is sent."""

    def __init__(self, *, logged_in: bool = True, full: bool = False) -> None:
        self.logged_in, self.full = logged_in, full
        self.repos: list[tuple[str, bool]] = []
        self.files: dict[str, bytes] = {}
        self.commits = 0

    def whoami(self) -> dict[str, str]:
        if not self.logged_in:
            raise LocalTokenNotFoundError("Token is required\nbut no token found.")
        return {"name": "me"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.repos.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
        if self.full:
            raise OSError("quota exceeded")
        self.commits += 1
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(b"123")
    files = {"unet/weights.safetensors": record_of(folder / "unet/weights.safetensors")}
    (folder / RECORD).write_text(json.dumps({"files": files}))
    (folder / "README.md").write_text('pipe = DiffusionPipeline.from_pretrained("runs/student")\n')
    return folder


def test_all_files_go_in_one_commit_and_the_card_names_the_repository(folder: Path) -> None:
    (folder / ".DS_Store").touch()
    hub = FakeHub()
    assert push(folder, "me/student", private=True, api=hub) == "https://huggingface.co/me/student"
    assert hub.repos == [("me/student", True)]
    assert hub.commits == 1
    assert set(hub.files) == {"README.md", RECORD, "unet/weights.safetensors"}
    assert hub.files["unet/weights.safetensors"] == b"123"
    assert b'from_pretrained("me/student")' in hub.files["README.md"]
    assert "runs/student" in (folder / "README.md").read_text(), "the folder's own card stays"


def test_the_card_of_lora_weights_keeps_its_base_model(folder: Path) -> None:
    (folder / "README.md").write_text(
        'pipe = DiffusionPipeline.from_pretrained("some/base")\n'
        'pipe.scheduler = DDIMScheduler.from_pretrained("out", subfolder="scheduler")\n'
        'pipe.load_lora_weights("out")\n'
    )
    hub = FakeHub()
    push(folder, "me/lora", api=hub)
    assert hub.files["README.md"].decode() == (
        'pipe = DiffusionPipeline.from_pretrained("some/base")\n'
        'pipe.scheduler = DDIMScheduler.from_pretrained("me/lora", subfolder="scheduler")\n'
        'pipe.load_lora_weights("me/lora")\n'
    )


@pytest.mark.parametrize("place", range(3))
def test_a_flipped_bit_is_not_uploaded(folder: Path, place: int) -> None:
    data = bytearray(b"123")
    data[place] ^= 1
    (folder / "unet" / "weights.safetensors").write_bytes(data)
    hub = FakeHub()
    with pytest.raises(
        ValueError, match=r"damaged: unet/weights.safetensors is not what was written; export"
    ):
        push(folder, "me/student", api=hub)
    assert (hub.repos, hub.commits) == ([], 0)


def test_what_export_did_not_write_is_not_uploaded(folder: Path) -> None:
    (folder / "unet" / "pytorch_model.bin").touch()
    with pytest.raises(
        ValueError, match=r"holds unet/pytorch_model.bin, which export did not write"
    ):
        push(folder, "me/student", api=FakeHub())
    (folder / "unet" / "pytorch_model.bin").unlink()
    (folder / RECORD).write_text("{}")
    with pytest.raises(ValueError, match="names no files; export again"):
        push(folder, "me/student", api=FakeHub())


def test_what_cannot_be_pushed_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'student' is not a name on the Hub"):
        check_hub("student", FakeHub())
    with pytest.raises(PermissionError, match=r"nobody is logged in .*\(Token is required\)"):
        push(folder, "me/student", api=FakeHub(logged_in=False))
    with pytest.raises(FileNotFoundError, match="holds no export"):
        push(tmp_path, "me/student", api=FakeHub())
    with pytest.raises(ConnectionError, match=r"quota exceeded.*push again"):
        push(folder, "me/student", api=FakeHub(full=True))
    (folder / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="has lost its example"):
        push(folder, "me/student", api=FakeHub())
