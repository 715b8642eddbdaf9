"""`nitrodistill completion bash|zsh`: the verbs and options, for the Tab key.

Print what makes a shell complete the verbs and their options. The options are those that each verb's --help lists.

example:
  nitrodistill completion bash > ~/.local/share/bash-completion/completions/nitrodistill
  nitrodistill completion zsh > ~/.nitrodistill.zsh && echo 'source ~/.nitrodistill.zsh' >> ~/.zshrc
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import results, say

_BASH = """{head}_nitrodistill() {{
  local words
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) words="{verbs}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _nitrodistill nitrodistill"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        shell: which one.
    """

    shell: Literal["bash", "zsh"]


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill completion --help`."""
    from nitrodistill.cli.main import VERBS
    from nitrodistill.cli.pairs import ACTIONS

    given = parse(Parser("completion", __doc__, _Options, words="shell"), argv)
    words = {verb: _options(verb) for verb in VERBS}
    words["pairs"] = [*ACTIONS, *dict.fromkeys(o for a in ACTIONS for o in _options("pairs", a))]
    cases = "\n".join(
        f'    *:{verb}) words="{" ".join(those)}" ;;' for verb, those in words.items()
    )
    head = _ZSH if given.shell == "zsh" else ""
    script = _BASH.format(head=head, verbs=" ".join(words), cases=cases)
    results(script=script)
    say(script, lines=True)
    return 0


def _options(*command: str) -> list[str]:
    """What the help of a verb lists."""
    from nitrodistill.cli.main import find_verb

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        find_verb(command[0])([*command[1:], "--help"])
    found = re.findall(r"^  (?:-h, )?(--[\w.]+)", printed.getvalue(), re.MULTILINE)
    return list(dict.fromkeys(one.replace("ROLE", "student") for one in found))
