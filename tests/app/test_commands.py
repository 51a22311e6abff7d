"""``lvlm-probe app`` as README and docs/app.md say it: it serves, says where, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lvlm_probe as lp
from lvlm_probe import cli
from lvlm_probe.demo.examples import load_examples

ROOT = Path(__file__).parents[2]
EXAMPLE = load_examples()[0]


def told() -> list[str]:
    """The commands of both pages that need no download."""
    text = "\n".join((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/app.md"))
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found = {line for line in lines if line.startswith("lvlm-probe app")}
    return sorted(line for line in found if "--model" not in line)


@contextmanager
def running(command: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The served page and its address, of a command in a folder, on any free port."""
    program, *arguments = shlex.split(command)
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name(program)), *arguments, "--port", "0"],
        cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = ""
        while "http" not in said:
            line = process.stdout.readline()
            assert line, "it ended before it served"
            said += line
        found = re.search(r"http://\S+", said)
        assert found is not None
        with urllib.request.urlopen(found.group()) as answer:
            yield answer.read().decode(), found.group()
    finally:
        process.send_signal(signal.SIGTERM)  # SIGINT is ignored where tests run in the background
        process.communicate(timeout=60)


def test_the_commands_are_these() -> None:
    assert told() == ["lvlm-probe app", "lvlm-probe app --trace recorded/"]


@pytest.mark.parametrize("command", told())
def test_it_serves_and_leaves_nothing(command: str, tmp_path: Path) -> None:
    case = lp.Probe.from_pretrained("demo").case(EXAMPLE.path, EXAMPLE.prompt)
    (tmp_path / "recorded").mkdir()
    case.record(path=tmp_path / "recorded" / "colour.safetensors")
    with running(command, tmp_path) as (page, url):
        assert url.startswith("http://127.0.0.1:")
        assert "lvlmViewer" in page, "the viewer comes with the page"
        assert list(tmp_path.glob("lvlm-probe-app-*"))
    assert not list(tmp_path.glob("lvlm-probe-app-*")), "its folder is gone"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["lvlm-probe", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_no_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "app", "--trace", str(tmp_path)) == 1
    assert "there is no trace at" in capsys.readouterr().err


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lvlm_probe.app.find_spec", lambda _: None)
    assert run(monkeypatch, "app") == 1
    assert "pip install 'lvlm-probe[app]'" in capsys.readouterr().err


def test_a_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = lp.Probe.from_pretrained("demo").case(EXAMPLE.path, EXAMPLE.prompt)
    case.record(path=tmp_path / "colour.safetensors")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(monkeypatch, "app", "--trace", str(tmp_path), "--port", str(port)) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
