"""Pages of the documentation, run: their Python blocks in order, in one namespace, and what each prints.

    python tests/pages.py docs/where-does-the-colour-live.md

runs a page in the folder of the same name beside it, where its pictures belong.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """Code, and what the page says that it prints; None where it says nothing."""

    code: str
    told: str | None


def blocks(page: Path) -> list[Block]:
    """A page's Python, each block with the text block that follows it."""
    found = re.findall(
        r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page.read_text("utf-8"), re.DOTALL
    )
    return [Block(code, told or None) for code, told in found]


def prose(page: Path) -> str:
    """Its text without code, printed output, pictures and commands."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"`[^`]*`|!?\[[^]]*\]\([^)]*\)", "", text)


def run(page: Path, folder: Path) -> list[str]:
    """What each block prints, run in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, object] = {}
    printed: list[str] = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        for number, block in enumerate(blocks(page)):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.code, f"{page.name}, block {number}", "exec"), names)
            printed.append(out.getvalue())
    finally:
        os.chdir(before)
    return printed


def numbers(text: str) -> list[float]:
    """In their order."""
    return [float(n.replace("−", "-")) for n in NUMBER.findall(text)]


def apart(told: str, printed: str, tolerance: float) -> list[str]:
    """Lines that say something else: other words, or a number that is further off than ``tolerance``, absolute and relative."""
    wrong: list[str] = []
    lines = told.strip().splitlines(), printed.strip().splitlines()
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines are told and {len(lines[1])} are printed: {printed}"]
    for ours, theirs in zip(*lines, strict=True):
        same = NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
        pairs = list(zip(numbers(ours), numbers(theirs), strict=False))
        if not same or any(abs(a - b) > tolerance * max(1.0, abs(b)) for a, b in pairs):
            wrong.append(f"told {ours!r}, printed {theirs!r}")
    return wrong


if __name__ == "__main__":
    source = Path(sys.argv[1]).resolve()
    for part in run(source, source.with_suffix("")):
        sys.stdout.write(part)
