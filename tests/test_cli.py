"""The command line on a tiny model saved to a folder: files, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from PIL import Image

import lvlm_probe as lp
from lvlm_probe import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny.llava().save_pretrained(path)
    tiny.processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    tiny.picture().save(path)
    return path


def run(*arguments: object) -> int:
    """The command line in this process; returns its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lvlm-probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


def test_explain_writes_everything(folder: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    asked = [
        "explain",
        picture,
        "what is this",
        "--answer",
        "a red circle",
        "--model",
        folder,
        "--out",
        out,
    ]
    assert run(*asked) == 0
    files = sorted(path.name for path in out.iterdir())
    assert files == ["00-a.png", "01-red.png", "02-circle.png", "summary.json", "trace.safetensors"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["answer"] == "a red circle"
    assert [t["picture"] for t in summary["tokens"]] == files[:3]
    probe = lp.Probe.from_pretrained(folder)
    case = probe.case(picture, "what is this", answer="a red circle")
    for index, told in enumerate(summary["tokens"]):
        found = case.explain("relevancy", index)
        pixels = found.pixels()
        spot = told["strongest_pixel"]["image 0"]
        assert spot["score"] == pytest.approx(float(pixels.max()), rel=1e-5)
        assert float(pixels[spot["y"], spot["x"]]) == pytest.approx(spot["score"], rel=1e-5)
        on_image = float(found.tokens[case.layout.image_positions].sum() / found.tokens.sum())
        assert told["share_of_image"] == pytest.approx(on_image, rel=1e-5)
        with Image.open(out / told["picture"]) as drawn:
            assert drawn.size[0] == 1200
    assert lp.load_trace(out / "trace.safetensors").answer_tokens == ("a", " red", " circle")


def test_explain_one_target_by_another_recipe(folder: Path, picture: Path, tmp_path: Path) -> None:
    asked = [
        "explain",
        picture,
        "what is this",
        "--answer",
        "a red",
        "--model",
        folder,
        "--out",
        tmp_path,
    ]
    assert run(*asked, "--recipe", "rollout", "--target", "1:logprob") == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["1-logprob-red.png"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recipe"] == "rollout"
    assert summary["tokens"][0]["target"] == lp.Target(1, "logprob").to_json()


def test_record_then_show(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.safetensors"
    asked = ["record", picture, "what is this", "--answer", "a red", "--model", folder]
    assert run(*asked, "--out", trace, "--target", "1", "--residual", "--mlp") == 0
    loaded = lp.load_trace(trace)
    assert list(loaded.meta["targets"]) == ["1"]
    assert "language.layers.0.mlp.output" in loaded
    capsys.readouterr()
    assert run("show", trace) == 0
    told = capsys.readouterr().out
    for fact in (
        "what is this",
        "a red",
        "56 × 40 pixels, visual tokens 4 × 4",
        "language 3, vision 3",
    ):
        assert fact in told
    assert "language.layers.*.attention.query" in told
    assert run("report", trace, "-o", tmp_path / "page.html", "--recipe", "rollout") == 0
    assert "page.html (0." in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text("utf-8")
    assert '"name":"rollout"' in page
    assert '"name":"relevancy"' not in page


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    told = capsys.readouterr().out
    assert all(info.name in told for info in lp.available_recipes())


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("explain", "record", "show", "recipes", "demo"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 1
    written = capsys.readouterr()
    assert "Traceback" not in written.err + written.out
    return written.err


def test_errors_are_messages(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["explain", picture, "what is this", "--model", folder, "--out", tmp_path / "o"]
    assert "known: attention, banzhaf, causal" in refused(capsys, *ask, "--recipe", "magic")
    assert "not of the form INDEX" in refused(capsys, *ask, "--target", "first")
    assert "choose from 0 to 0" in refused(capsys, *ask, "--answer", "a", "--target", "5")
    assert "cannot load the model" in refused(
        capsys, *ask[:3], "--model", tmp_path, "--out", tmp_path / "o"
    )
    assert "has no text" in refused(capsys, "explain", picture, " ", *ask[3:])
    assert "no file" in refused(capsys, "explain", tmp_path / "x.png", "what", *ask[3:])
    (tmp_path / "notes.png").write_text("no image")
    told = refused(capsys, "explain", tmp_path / "notes.png", "what", *ask[3:])
    assert "is not an image that Pillow can read (8 bytes)" in told
    (tmp_path / "taken").write_text("")
    assert "cannot make the folder" in refused(capsys, *ask[:5], "--out", tmp_path / "taken")
    assert "there is no trace" in refused(capsys, "show", tmp_path / "absent.safetensors")
    assert "[/x]" in refused(capsys, "show", tmp_path / "[/x]"), "markup in a name is text"


def test_installed_command() -> None:
    command = Path(sys.executable).with_name("lvlm-probe")
    result = subprocess.run([command, "recipes"], capture_output=True, text=True, check=True)
    assert "relevancy" in result.stdout
