"""What every benchmark says of itself: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from typing import Any


def facts() -> dict[str, Any]:
    """As plain values, for a JSON file."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}",
        "versions": {
            name: version(name) for name in ("lvlm-probe", "nnsight", "torch", "transformers")
        },
        "commit": commit.stdout.strip(),
    }


def signature(found: dict[str, Any]) -> str:
    """The same in one line, for a page."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['machine']}; {versions}; commit {found['commit'][:12]}."
