from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from nitrodistill.cli.main import VERBS, main


@pytest.fixture
def verb(monkeypatch):
    """Puts a function in the place of `generate`."""

    def put(function):
        module = SimpleNamespace(main=function)
        monkeypatch.setitem(sys.modules, "nitrodistill.cli.generate", module)

    return put


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(argv, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in VERBS)


def test_without_a_verb_the_help_is_shown_and_it_is_a_mistake(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nitrodistill 0.")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "did you mean 'train'?"),
        (["xyzzy"], "known are demo, generate, encode, pairs, fit-latent-lpips, prune, train"),
    ],
)
def test_an_unknown_verb(argv, words, capsys):
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_the_verb_gets_its_arguments_and_gives_the_exit_code(verb):
    seen = []
    verb(lambda argv: seen.append(argv) or 7)
    assert main(["generate", "--a", "b"]) == 7
    assert seen == [["--a", "b"]]


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        TypeError,
        FileNotFoundError,
        PermissionError,
        FloatingPointError,
        RuntimeError,
        SafetensorError,
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(verb, capsys, error):
    def fail(argv):
        raise error("This is wrong; do that.")

    verb(fail)
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == "nitrodistill: This is wrong; do that.\n"
    with pytest.raises(error):
        main(["generate", "--traceback"])


def test_interrupt_is_130(verb, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    verb(stop)
    assert main(["generate"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback(verb):
    def fail(argv):
        raise KeyError("ours")

    verb(fail)
    with pytest.raises(KeyError):
        main(["generate"])
