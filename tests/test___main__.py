"""`python -m nitrodistill` is the command line."""

from __future__ import annotations

import runpy

import pytest


def test_it_passes_on_arguments_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["python", "trian"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("nitrodistill", run_name="__main__")
    assert left.value.code == 2
    assert "there is no verb 'trian'; did you mean 'train'?" in capsys.readouterr().err
