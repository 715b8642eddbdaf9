"""Runs a script of this folder where a peer is installed: a folder of packages that is removed afterwards.

A peer shares torch, numpy and what else this environment has; its other needs go into the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A package on PyPI, what comes `bare` with it (without needs of its own: it has them here), and its needs."""

    requirement: str
    bare: tuple[str, ...]
    needs: tuple[str, ...]


MODELOPT = Peer(
    "nvidia-modelopt==0.47.0",
    (),
    ("omegaconf", "antlr4-python3-runtime==4.9.3", "pulp<4", "pydantic", "nvidia-ml-py"),
)
DIFFSYNTH = Peer(
    "diffsynth==2.1.12",
    ("einops", "imageio", "modelscope==1.40.2", "modelscope-hub==0.5.1"),
    ("cryptography",),
)
FASTVIDEO = Peer(
    "fastvideo==0.2.1",
    ("av", "cloudpickle", "einops", "imageio", "remote-pdb", "torchdata"),
    ("ftfy",),
)


def beside(peer: Peer, script: str, arguments: Sequence[str]) -> Any:
    """The JSON on the last line that a script prints, in a process of its own that can import the peer.

    Raises:
        CalledProcessError: if uv cannot install it, or the script fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        install = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
        install += ["--target", folder]
        subprocess.run([*install, "--no-deps", peer.requirement, *peer.bare], check=True)
        subprocess.run([*install, *peer.needs], check=True)
        paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), folder]).strip(os.pathsep)
        run = subprocess.run(
            [sys.executable, script, *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(run.stdout.splitlines()[-1])
