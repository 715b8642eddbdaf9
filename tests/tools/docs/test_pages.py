from __future__ import annotations

import re

import yaml

import nitrodistill
from nitrodistill.cli.main import VERBS
from tools.docs import pages


def test_every_public_name_stands_on_one_page():
    text = "\n".join(pages.interface().values())
    shown = re.findall(r"^\.\. auto\w+:: (\S+)", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    wanted = {
        f"{home}.{name}"
        for _, packages in pages.ROOMS.values()
        for package in packages
        for home, name in pages.public(package)
    }
    assert set(shown) == wanted
    assert "nitrodistill.losses.reconstruction.L1Loss" in wanted
    assert "nitrodistill.types.PredictionType" in wanted
    functions = [name for name in nitrodistill.__all__ if name != "functional"]
    assert pages.names().count("{py:obj}") == len(functions)


def test_every_recipe_says_what_it_is():
    text = pages.recipes()
    files = [*pages.ROOT.glob("*/recipes/*.yaml")]
    assert len(files) > 30
    for file in files:
        assert f"## {file.stem}\n" in text
        row = next(line for line in text.splitlines() if line.startswith(f"| [{file.stem}]"))
        teacher = str(yaml.safe_load(file.read_text())["teacher"])
        assert ("runs here" in row) == teacher.startswith("toy")


def test_a_header_has_its_commands_as_code():
    text = "# What it is. Published: all.\n#   nitrodistill a \\\n#     --b\n# More.\nteacher: toy\n# no\n"
    assert pages.header(text) == (
        "What it is. **Published**: all.\n\n```console\n$ nitrodistill a \\\n  --b\n```\n\nMore."
    )


def test_every_verb_and_action_has_its_help():
    text = pages.command_line()
    assert [
        verb for verb in VERBS if f"## {verb}\n\n```text\nusage: nitrodistill {verb}" not in text
    ] == []
    assert "usage: nitrodistill pairs merge" in text


def test_a_notebook_shows_what_its_cells_printed_and_drew():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {
            "cell_type": "code",
            "source": "print(1)",
            "outputs": [
                {"text": ["1\n"]},
                {"data": {"image/png": "QUJD\n", "text/plain": "<Image>"}},
            ],
        },
    ]
    assert pages.notebook({"cells": cells}) == (
        "# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "![what the cell draws](data:image/png;base64,QUJD)\n"
    )
