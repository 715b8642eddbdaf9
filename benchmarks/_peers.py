"""Runs a script of this folder where a peer is installed: a folder of packages that is removed afterwards.

The peer shares torch, numpy and safetensors with this environment; its other needs go into the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

MODELOPT = "nvidia-modelopt==0.47.0"
_NEEDS = ("omegaconf", "antlr4-python3-runtime==4.9.3", "pulp<4", "pydantic", "nvidia-ml-py")


def beside_modelopt(script: str, arguments: Sequence[str]) -> Any:
    """The JSON on the last line that a script prints, in a process of its own that can import modelopt.

    Raises:
        CalledProcessError: if uv cannot install it, or the script fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        install = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
        install += ["--target", folder]
        subprocess.run([*install, "--no-deps", MODELOPT], check=True)
        subprocess.run([*install, *_NEEDS], check=True)
        paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), folder]).strip(os.pathsep)
        run = subprocess.run(
            [sys.executable, script, *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(run.stdout.splitlines()[-1])
