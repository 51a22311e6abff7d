"""The example packages of docs/, installed as a user would; and every block and command of the pages about them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

RUN = """
import json, sys
import torch
torch.set_num_threads(1)
import pages
from pathlib import Path
docs = Path("docs").resolve()
told = {name: pages.run(docs / name, Path.cwd()) for name in ("your-own-adapter.md", "your-own-recipe.md")}

import lvlm_probe as lp
assert "attention-peak" in [info.name for info in lp.available_recipes() if info.needs == "trace"]
probe = lp.Probe.from_pretrained("demo")
case = probe.case("lvlm_probe/demo/examples/colour.png", "What colour is the circle?")
live = case.explain("attention-peak")
trace = case.record(lp.Capture(targets=()))
position = case.layout.answer_start - 1
rows = torch.stack([trace.attention("language", layer=l, queries=[position])[:, 0] for l in range(4)])
assert torch.allclose(live.tokens, rows.amax((0, 1)), atol=1e-6)

from lvlm_probe.recipe_check import check_recipe
report = check_recipe("attention-peak", case)
assert report.ok, str(report)
assert report["trace"].status == "passed", str(report)

from lvlm_probe.cli import app
from typer.testing import CliRunner
told["commands"] = [
    [*command, ran.exit_code, ran.output]
    for command in json.loads(sys.argv[1])
    for ran in [CliRunner().invoke(app, command[1:], env={"COLUMNS": "200"})]
]
print("\\n" + json.dumps(told))
"""


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Both packages installed by one call of pip, and what the pages print in a fresh interpreter."""
    folder = tmp_path_factory.mktemp("packages")
    copies = []
    for name in ("your-own-recipe", "your-own-adapter"):
        copies.append(folder / name)
        shutil.copytree(DOCS / name, copies[-1], ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    target = folder / "installed"
    subprocess.run([*pip, "--no-index", "--target", target, *copies], check=True, capture_output=True)  # fmt: skip
    for name in ("lvlm_probe", "docs"):
        (folder / name).symlink_to(ROOT / name)
    ours = [c for p in ("your-own-recipe.md",) for c in commands(p) if c[0] == "lvlm-probe"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(ours)], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{target}:{ROOT / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_recipe_package(told: dict[str, list]) -> None:
    listed, explained, checked = told["commands"]
    assert all(status == 0 for *_, status, _ in told["commands"])
    assert listed[1] == "recipes"
    assert "attention-peak" in listed[-1]
    assert explained[1] == "explain"
    assert checked[1:-2] == ["recipes", "--check", "attention-peak"]
    assert "nothing is wrong" in checked[-1]
    assert "interrupted" in checked[-1]


@pytest.mark.slow
def test_adapter_package(told: dict[str, list]) -> None:
    page = DOCS / "your-own-adapter.md"
    blocks = pages.blocks(page)
    assert len(blocks) == 4
    for block, printed in zip(blocks, told[page.name], strict=True):
        assert pages.apart(block.told or "", printed, 1e-6) == []


@pytest.mark.parametrize("page", ["your-own-recipe", "your-own-adapter"])
def test_pages_show_what_the_packages_hold(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    (table,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert table in (DOCS / page / "pyproject.toml").read_text()
    held = "".join(file.read_text() for file in (DOCS / page).glob("*.py"))
    for shown in re.findall(r"```py\n(.*?)```", text, re.DOTALL):
        assert shown in held
    installed = [command for command in commands(f"{page}.md") if command[0] == "pip"]
    assert installed == [["pip", "install", f"docs/{page}"]]


def test_example_is_thirty_lines() -> None:
    text = (DOCS / "your-own-recipe" / "attention_peak.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_page_of_interventions(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "interventions.md").read_text(), re.DOTALL)
    script = tmp_path / "page.py"  # nnsight reads the source of a trace's block from its file
    script.write_text("\n".join([*blocks, "assert hidden.shape[-1] == 128 or hidden[0] is not None"]))  # fmt: skip
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
