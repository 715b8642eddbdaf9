"""Pages that are made from what they describe, so that they cannot disagree with it.

`write(folder)` writes the interface of every room, a page with all recipes, one with the help of every verb, and
the notebook. They are made when the site is built, and not kept in the repository.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nitrodistill.cli.main import VERBS, main
from tools.docs.docstrings import as_rst

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs" / "notebooks" / "toy.ipynb"

ROOMS = {
    "nouns": ("The nouns", ["nitrodistill"]),
    "losses": ("Losses", ["nitrodistill.losses", "nitrodistill.losses.functional"]),
    "discriminator": ("Discriminator", ["nitrodistill.discriminator"]),
    "methods": ("Methods", ["nitrodistill.methods"]),
    "models": ("Networks and pipelines", ["nitrodistill.models"]),
    "data": ("Data", ["nitrodistill.data"]),
    "training": ("Training", ["nitrodistill.training"]),
    "evaluation": ("Evaluation", ["nitrodistill.evaluation", "nitrodistill.evaluation.report"]),
    "export": ("Export", ["nitrodistill.export"]),
    "toy": ("The embedded teachers", ["nitrodistill.toy"]),
}
"""Page -> title, packages. A name stands on the page of the room that it is defined in."""

STATUS = re.compile(
    r"\b(Published|Ours|Unproven|Not published|Proven here|Awaits an owner's run|Not run by us|Deviation)\b"
)


def write(folder: Path) -> None:
    """Writes all pages into `folder`; a file that is right already is left."""
    pages = {f"api/{name}.rst": text for name, text in interface().items()}
    pages |= {"names.md": names(), "recipes.md": recipes(), "command_line.md": command_line()}
    pages["toy_notebook.md"] = notebook(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    for name, text in pages.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def interface() -> dict[str, str]:
    """Page -> reStructuredText: the module's docstring and, for autodoc, its public names."""
    homes: dict[str, dict[str, None]] = {}
    for package in (package for _, packages in ROOMS.values() for package in packages):
        for home, name in public(package):
            homes.setdefault(home, {})[name] = None
    pages: dict[str, list[str]] = {page: [_headed(ROOMS[page][0], "=")] for page in ROOMS}
    for home in sorted(homes):
        about = inspect.getdoc(importlib.import_module(home)) or ""
        title, _, rest = about.partition("\n")
        lines = [_headed(f"``{home}``", "-"), as_rst(title), "", as_rst(rest), ""]
        lines += [f".. currentmodule:: {home}", ""]
        lines += [_directive(home, name) for name in homes[home]]
        pages[_page_of(home)].append("\n".join(lines))
    return {page: "\n\n".join(parts) + "\n" for page, parts in pages.items()}


def public(package: str) -> Iterator[tuple[str, str]]:
    """(module that defines it, name) of each name in a package's `__all__`; modules are left out."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield value.__module__, value.__name__
        else:
            yield _assigned_in(package, name), name


def names() -> str:
    """Markdown: every name of `import nitrodistill as nd`, with its first line and where it is explained."""
    rows = []
    for home, name in sorted(public("nitrodistill"), key=lambda pair: pair[1].lower()):
        value = getattr(importlib.import_module(home), name)
        described = inspect.isclass(value) or inspect.isfunction(value)
        first = (inspect.getdoc(value) or "").partition("\n")[0] if described else "a type"
        link = f"{{py:obj}}`nd.{name} <{home}.{name}>`"
        rows.append(f"| {link} | {first.replace('|', '&#124;').replace('*', '&#42;')} |")
    return (
        "# All names\n\n`import nitrodistill as nd`\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _assigned_in(package: str, name: str) -> str:
    """The module where a name that is neither class nor function is assigned, such as a type."""
    tree = ast.parse(inspect.getsource(importlib.import_module(package)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _assigned_in(str(node.module), name)
    return package


def _page_of(home: str) -> str:
    owners = {p: page for page, (_, packages) in ROOMS.items() for p in packages}
    return owners["nitrodistill" if home.count(".") == 1 and home not in owners else _room(home)]


def _room(home: str) -> str:
    room = ".".join(home.split(".")[:2])
    return room if any(room in packages for _, packages in ROOMS.values()) else "nitrodistill"


def _directive(home: str, name: str) -> str:
    value = getattr(importlib.import_module(home), name)
    if not isinstance(value, type):
        kind = "function" if inspect.isfunction(value) else "data"
        return f".. auto{kind}:: {home}.{name}\n"
    return f".. autoclass:: {home}.{name}\n   :members:\n"


def _headed(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}\n"


def recipes() -> str:
    """Markdown: a table of all recipes, and what the header of each says, with its file."""
    places = (ROOT / "examples" / "recipes", ROOT / "nitrodistill" / "recipes")
    files = sorted(f for place in places for f in place.glob("*.yaml") if not f.is_symlink())
    rows, sections = [], []
    for file in files:
        text = file.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        about = header(text)
        trained = (
            "runs here" if str(data["teacher"]).startswith("toy") else "not trained at its size"
        )
        methods = ", then ".join(_stage(stage) for stage in data["stages"])
        first = about.partition("\n")[0].partition(". ")[0].rstrip(".:")
        rows.append(f"| [{file.stem}](#{file.stem}) | {methods} | {first} | {trained} |")
        relative = Path("..") / ".." / file.relative_to(ROOT)
        listing = f"```{{literalinclude}} {relative}\n:language: yaml\n```"
        sections.append(f"({file.stem})=\n## {file.stem}\n\n{about}\n\n{listing}\n")
    head = (
        "# Every recipe\n\nWhat each says of itself: what is **published**, **ours** and **unproven**. "
        "A recipe of a published model is as published where its file does not say otherwise.\n\n"
        "| recipe | method | what | trained |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n\n" + "\n".join(sections)


def _stage(stage: Mapping[str, Any]) -> str:
    more = [name for name in ("prune", "lora") if name in stage]
    return f"`{stage['method']}`" + (f" ({', '.join(more)})" if more else "")


def header(text: str) -> str:
    """The comment that a recipe begins with, as Markdown: paragraphs, and its commands as code."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[2:])
    shown: list[str] = []
    inside = False
    for line in lines:
        command = line.startswith("  ")
        if command != inside:
            shown += ["", "```console"] if command else ["```", ""]
            inside = command
        prompt = "" if line.startswith("    ") else "$ "
        shown.append(f"{prompt}{line[2:]}" if command else STATUS.sub(r"**\1**", line))
    return "\n".join([*shown, *(["```"] if inside else [])])


def command_line() -> str:
    """Markdown: what `nitrodistill VERB --help` prints, verb by verb."""
    parts = ["# Every verb and option\n\nWhat `nitrodistill VERB --help` prints.\n"]
    for verb in VERBS:
        parts.append(f"## {verb}\n\n```text\n{_help(verb)}\n```\n")
        actions = getattr(
            importlib.import_module(f"nitrodistill.cli.{verb.replace('-', '_')}"), "ACTIONS", {}
        )
        parts += [f"### {verb} {a}\n\n```text\n{_help(verb, a)}\n```\n" for a in actions]
    return "\n".join(parts)


def _help(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*words, "--help"])
    return printed.getvalue().strip()


def notebook(data: Mapping[str, Any]) -> str:
    """Markdown of a notebook with what its cells printed and drew, pictures inside."""
    parts = []
    for cell in data["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell draws](data:image/png;base64,{_joined(data['image/png']).strip()})"
    return f"```text\n{_joined(output.get('text') or data['text/plain']).rstrip()}\n```"


def _joined(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
