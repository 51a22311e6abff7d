"""The example package of docs/your-own-recipe, installed as a user would and run; and the code of docs/interventions.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUN = """
import torch, lvlm_probe as lp
torch.set_num_threads(1)
assert "attention-peak" in [info.name for info in lp.available_recipes() if info.needs == "trace"]
probe = lp.Probe.from_pretrained("demo")
case = probe.case("lvlm_probe/demo/examples/colour.png", "What colour is the circle?")
live = case.explain("attention-peak")
trace = case.record(lp.Capture(targets=()))
again = trace.explain("attention-peak")
assert torch.equal(live.tokens, again.tokens)
position = case.layout.answer_start - 1
rows = torch.stack([trace.attention("language", layer=l, queries=[position])[:, 0] for l in range(4)])
assert torch.allclose(live.tokens, rows.amax((0, 1)), atol=1e-6)
live.plot()
from typer.testing import CliRunner
from lvlm_probe.cli import app
assert "attention-peak" in CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "200"}).output
"""


@pytest.mark.slow
def test_example_package(tmp_path: Path) -> None:
    copy = tmp_path / "package"
    copy.mkdir()
    for file in (ROOT / "docs" / "your-own-recipe").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", target, copy], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_example_is_thirty_lines() -> None:
    text = (ROOT / "docs" / "your-own-recipe" / "attention_peak.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_page_of_interventions(tmp_path: Path) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "interventions.md").read_text(), re.DOTALL
    )
    script = tmp_path / "page.py"  # nnsight reads the source of a trace's block from its file
    script.write_text("\n".join([*blocks, "assert hidden.shape[-1] == 128 or hidden[0] is not None"]))  # fmt: skip
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
