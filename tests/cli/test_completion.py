from __future__ import annotations

import shutil
import subprocess

import pytest

from nitrodistill.cli.main import VERBS, main

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
    for shell in ("bash", "zsh", "fish"):
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


def test_fish_has_a_line_for_each(scripts):
    text = scripts["fish"].read_text()
    for verb, summary in VERBS.items():
        about = summary.replace("'", "\\'")
        assert f"-n __fish_use_subcommand -a {verb} -d '{about}'\n" in text
    assert "-n '__fish_seen_subcommand_from pairs' -a merge\n" in text
    assert "-n '__fish_seen_subcommand_from train' -l stages.trainer.steps\n" in text
    if shutil.which("fish"):
        assert subprocess.run(["fish", "--no-execute", scripts["fish"]]).returncode == 0


def test_another_shell_is_a_mistake(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "--shell is 'tcsh'; it must be 'bash' or 'zsh' or 'fish'" in capsys.readouterr().err
