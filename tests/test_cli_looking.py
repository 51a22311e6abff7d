"""``lvlm-probe lens`` and ``lvlm-probe patch`` on the shipped model: tables against the API, files, errors with their cure."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from test_cli import refused, run

import lvlm_probe as lp
from lvlm_probe.cli import common
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.grid import Box
from lvlm_probe.recipes import lens, patching

EXAMPLE = load_examples()[0]
BOX = ",".join(map(str, EXAMPLE.evidence_boxes[0]))


@pytest.fixture(scope="module")
def asked() -> lp.Case:
    return lp.Probe.from_pretrained("demo").case(EXAMPLE.path, EXAMPLE.prompt)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of the usual width, in which no number may be broken or cut."""
    monkeypatch.setattr(common.console, "width", 80)


def rows(told: str) -> list[list[str]]:
    """Of the tables, without their heads."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]  # fmt: skip


def test_lens(asked: lp.Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "words"
    assert run("lens", EXAMPLE.path, EXAMPLE.prompt, "--top", 3, "--out", out) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].strip() == asked.answer == "green"
    reading = lens.read_layers(asked, "last", count=3)
    (position,) = reading.positions
    assert f"after ':' (position {position})" in told
    expected = [
        ["input" if layer == -1 else str(layer), *(f"{w.strip()} {p:.2f}" for w, p in reading.at(position, layer))]
        for layer in reading.layers
    ]  # fmt: skip
    assert rows(told) == expected
    assert rows(told)[-1][1] == "green 1.00"
    assert sorted(p.name for p in out.iterdir()) == [f"layer-0{n}.png" for n in range(4)]
    assert "wrote 4 pictures" in told
    with Image.open(out / "layer-02.png") as drawn:
        assert drawn.size[0] == 1200
        assert len(drawn.convert("L").getcolors()) > 50


def test_lens_at_words(asked: lp.Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lens", EXAMPLE.path, EXAMPLE.prompt, "--positions", "question", "--top", 1) == 0
    told = capsys.readouterr().out
    reading = lens.read_layers(asked, "question", count=1)
    titles = [int(n) for n in re.findall(r"\(position\s+(\d+)\)", told)]
    assert titles == list(reading.positions)
    assert len(rows(told)) == 5 * len(titles)


@pytest.mark.parametrize("method", ["activation", "attribution"])
def test_patch(
    asked: lp.Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    options = ["--box", BOX, "--corruption", "recolour", "--method", method, "--out", tmp_path]
    assert run("patch", EXAMPLE.path, EXAMPLE.prompt, *options) == 0
    told = capsys.readouterr().out
    part = Box(*map(float, EXAMPLE.evidence_boxes[0]))
    corrupted = patching.recoloured(asked, part)
    said = [line.strip() for line in told.splitlines()[:2]]
    assert said == ["green", f"corrupted: {corrupted.generate()}"]
    assert corrupted.generate() != "green"
    tried = getattr(patching, f"{method}_patching")
    positions = {"box": part, "image": "image", "question": "question", "last": "last"}
    effects = tried(asked, corrupted, positions=positions)
    assert effects.metric in told
    heads = [line.split("┃")[1].strip() for line in told.splitlines() if line.startswith("┃")]
    assert heads == ["residual, layer", "attention, layer", "mlp, layer"]
    for number, (layer, *cells) in enumerate(rows(told)):
        found = effects.of(site=("residual", "attention", "mlp")[number // 4], layer=layer)
        assert layer == str(number % 4)
        assert [float(cell) for cell in cells] == pytest.approx(found.tolist(), abs=0.00501)
        assert "-0.00" not in cells
    assert len(rows(told)) == 12
    kept = json.loads((tmp_path / "effects.json").read_text())
    assert kept["axes"]["position"] == list(positions)
    assert kept["method"] == method
    assert kept["values"][0][1][3] == pytest.approx(float(effects.values[0, 1, 3]), abs=1e-4)
    if method == "activation":
        assert float(rows(told)[0][1]) > 0.5, (
            "the box's tokens hold most of the colour after layer 0"
        )
    with Image.open(tmp_path / "effects.png") as drawn:
        assert drawn.size[0] > 800
        assert len(drawn.convert("RGB").getcolors(2**24)) > 50


def test_patch_without_a_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "noise", "--corruption", "noise", "--method", "attribution"]
    assert run("patch", EXAMPLE.path, EXAMPLE.prompt, *out) == 0
    assert len(rows(capsys.readouterr().out)[0]) == 1 + 3  # no group for a box


def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    (tmp_path / "lvlm_probe").symlink_to(root / "lvlm_probe")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", (root / "docs" / "interventions.md").read_text(), re.DOTALL)  # fmt: skip
    for line in block.splitlines():
        assert run(*shlex.split(line)[1:]) == 0
    assert len(list((tmp_path / "words").iterdir())) == 4
    assert len(list((tmp_path / "patched").iterdir())) == 2


def test_errors_name_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = [EXAMPLE.path, EXAMPLE.prompt, "--out", tmp_path / "o"]
    cures = {
        ("patch", "--corruption", "melt"): "choose blur, erase, recolour or noise",
        ("patch", "--corruption", "erase"): "needs to know where: --box LEFT,TOP,RIGHT,BOTTOM",
        ("patch", "--method", "magic"): "choose activation or attribution",
        ("patch", "--box", "1,2,3"): "is not LEFT,TOP,RIGHT,BOTTOM in pixels, as in 10,20,60,80",
        ("patch", "--box", "60,20,10,80"): "give left < right and top < bottom",
        ("patch", "--box", "200,200,220,220"): "give a box or a mask inside it",
        ("lens", "--positions", "elephant"): "'elephant'",
    }
    for (command, *options), cure in cures.items():
        assert cure in " ".join(refused(capsys, command, *ask, *options).split())
    (tmp_path / "taken").write_text("")
    taken = [*ask[:2], "--out", tmp_path / "taken"]
    for command in ("patch", "lens"):
        assert "choose one that you may write to" in refused(capsys, command, *taken)
