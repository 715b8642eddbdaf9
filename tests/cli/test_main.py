from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from nitrodistill.cli.main import VERBS, main
from nitrodistill.cli.pairs import ACTIONS
from nitrodistill.cli.terminal import results, say


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


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(capsys, option):
    assert main([option]) == 0
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


def test_a_reader_that_has_left_is_no_mistake(verb, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)

    def head(argv):
        raise BrokenPipeError

    verb(head)
    assert main(["generate"]) == 141
    print("lost", flush=True)
    assert capsys.readouterr() == ("", "")


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


COMMANDS = [[verb] for verb in VERBS if verb != "pairs"] + [["pairs", one] for one in ACTIONS]
MACHINERY = (
    *("argparse", "Literal", "NoneType", "Namespace", "typing", "usage:", "Traceback", "dataclass"),
    *(
        "argument -",
        "unrecognized",
        "expected one",
        "expected at",
        "invalid choice",
        "arguments are",
    ),
)
"""Words of the parser, and of Python."""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "mistake",
    [
        ["--no_such_option", "3"],
        ["-x"],
        ["--quiet=yes"],
        ["--log_level", "loud"],
        ["--log_level"],
        ["--=3"],
        ["a", "b", "c", "--", "d"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_sentence_in_the_words_of_the_user(command, mistake, capsys):
    assert main([*command, *mistake]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("nitrodistill: ")
    assert told.err.count("\n") == 1
    assert not [word for word in MACHINERY if word in told.err], told.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_what_all_verbs_have_and_no_words_of_the_parser(command, capsys):
    assert main([*command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {option} " in printed for option in ("--quiet", "--json", "--log_level"))
    assert not [word for word in MACHINERY if word in printed.replace("usage:", "", 1)]


def _speaks(argv):
    from nitrodistill.cli.arguments import Parser, parse

    parse(Parser("generate", "Speaks."), argv)
    results(path=Path("here"), numbers=[1.5, math.nan])
    say("for people")
    print("from a library")
    logging.getLogger("nitrodistill.data").info("so far")
    logging.getLogger("nitrodistill.data").warning("careful")
    return 0


def test_json_is_one_document_and_all_else_goes_to_the_standard_error(verb, capsys):
    verb(_speaks)
    assert main(["generate", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"path": "here", "numbers": [1.5, None]}
    assert told.err.splitlines() == ["for people", "from a library", "so far", "careful"]
    assert main(["generate"]) == 0
    told = capsys.readouterr()
    assert told.out == "for people\nfrom a library\n", "and the next command is as it always was"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], ["so far", "careful"]),
        (["--quiet"], ["careful"]),
        (["--log_level", "error"], []),
        (["--quiet", "--log_level", "debug"], ["careful"]),
    ],
)
def test_how_much_is_said(verb, capsys, options, lines):
    verb(_speaks)
    before = logging.getLogger("nitrodistill").level
    assert main(["generate", *options]) == 0
    assert capsys.readouterr().err.splitlines() == lines
    assert logging.getLogger("nitrodistill").level == before


def test_an_error_leaves_no_document(verb, capsys):
    def fail(argv):
        _speaks(argv)
        raise ValueError("This is wrong; do that.")

    verb(fail)
    assert main(["generate", "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith("nitrodistill: This is wrong; do that.\n")
