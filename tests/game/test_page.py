"""Every line of Python and every command in docs/game.md runs, on the shipped model."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from lvlm_probe import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "game.md").read_text("utf-8")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lvlm_probe").symlink_to(ROOT / "lvlm_probe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(elsewhere: Path) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/game.md block {number}", "exec"), names)
    assert len(blocks) == 2
    assert (elsewhere / "worths.sqlite").exists()


def test_commands(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for command in block.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert (elsewhere / "lvlm-probe-ablation" / "ablation.png").exists()
    assert (elsewhere / "lvlm-probe-road" / "road.png").exists()


def test_every_estimator_is_told() -> None:
    from lvlm_probe.recipes import game

    for name in (
        "exact", "permutation", "kernelshap", "smooth", "surrogate", "through_shapiq", "banzhaf", "contiguous", "leave_one_out",
        "exact_interactions", "sampled_interactions", "shapiq_interactions", "greedy", "rise",
    ):  # fmt: skip
        assert callable(getattr(game, name))
        assert f"`{name}`" in PAGE
