from __future__ import annotations

import subprocess

import pytest

from nitrodistill.cli.main import main

ASK = """
source {script}
ask() {{ COMP_WORDS=(nitrodistill "$@"); COMP_CWORD=$#; COMPREPLY=(); _nitrodistill; echo "${{COMPREPLY[*]}}"; }}
ask ex; ask pairs me; ask export --pu; ask train --stages.trainer.par; ask generate prompts
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell; made once, because all verbs are asked."""
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    for shell in ("bash", "zsh"):
        made[shell] = folder / shell
        with pytest.MonkeyPatch.context() as patch, made[shell].open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return made


def test_bash_completes_verbs_actions_and_options(scripts):
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=scripts["bash"])], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *("export", "merge", "--push --public", "--stages.trainer.parallel", ""),
    ]


def test_zsh_takes_the_script_of_bash(scripts):
    first, _, rest = scripts["zsh"].read_text().partition("\n")
    assert first == "autoload -U +X compinit bashcompinit && compinit && bashcompinit"
    assert rest == scripts["bash"].read_text()


def test_another_shell_is_a_mistake(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "--shell is 'tcsh'; it must be 'bash' or 'zsh'" in capsys.readouterr().err
