"""Runs a function of a test module in an interpreter of its own, without the type checks that tests turn on.

Checking every call makes small functions ten times slower; a test that learns thousands of graphs cannot afford it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(file: str, call: str) -> Any:
    """What ``call`` gives in the module of that file, through JSON."""
    path = Path(file)
    code = (
        f"import json, sys; sys.path[:0] = {[str(path.parent), str(Path(__file__).parent)]!r}; "
        f"import {path.stem} as module; print(json.dumps(module.{call}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])
