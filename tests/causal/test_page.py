"""Every line of Python in docs/causal.md runs, on the shipped model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "causal.md").read_text("utf-8")


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lvlm_probe").symlink_to(ROOT / "lvlm_probe")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/causal.md block {number}", "exec"), names)
    assert len(blocks) == 3
    assert (tmp_path / "graph.png").exists()
    assert (tmp_path / "overlay.png").exists()
