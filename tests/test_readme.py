"""Every command and every line of Python in the README runs, on the shipped model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's relative paths lead to the checkout."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "lvlm_probe").symlink_to(ROOT / "lvlm_probe")
    return folder


def test_first_two_commands() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets(command: str) -> None:
    """What the target runs; the rest of these tests runs that."""
    told = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"make demo": "lvlm-probe demo", "make test": "pytest"}[command] in told


def test_ci_runs_the_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_commands(elsewhere: Path) -> None:
    ran = 0
    for command in [c for c in COMMANDS if c.startswith("lvlm-probe ")]:
        program, *arguments = shlex.split(command)
        subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=elsewhere,
            check=True,
            timeout=120,
        )
        ran += 1
    assert ran >= 4
    assert (elsewhere / "answer" / "summary.json").exists()


def test_python(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README block {number}", "exec"), names)
    assert (elsewhere / "second-word.png").exists()


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_recipes_table_is_complete() -> None:
    import lvlm_probe as lp

    first = re.findall(r"^\| (`[^|]+) \|", README, flags=re.MULTILINE)
    told = {name for cell in first for name in re.findall(r"`([\w-]+)`", cell)}
    assert told == {info.name for info in lp.available_recipes()}
