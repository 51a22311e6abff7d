"""Files that are no pictures, numbers that are none, a model that fails: a message, and the session goes on."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from app_pages import answer, ask, dismiss, message
from browsing import needs_browser
from PIL import Image
from playwright.sync_api import Page, expect

from lvlm_probe.app import uploads
from lvlm_probe.app.service import Service
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.errors import ImageError

COLOUR = load_examples()[0]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has no pixels."""
    facts = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = [(13, facts), (0, end)]
    body = b"".join(
        struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for size, chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def truncated(tmp_path: Path) -> Path:
    path = tmp_path / "truncated.png"
    path.write_bytes(COLOUR.path.read_bytes()[:700])
    return path


def huge_header(tmp_path: Path) -> Path:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(40_000, 40_000))
    return path


def large_header(tmp_path: Path) -> Path:
    """Too large for us, not for Pillow."""
    path = tmp_path / "large.png"
    path.write_bytes(png_header(9_000, 9_000))
    return path


def vector(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    return path


def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.png"
    path.write_text("this is no picture")
    return path


BAD = {
    truncated: "truncated",
    huge_header: "too large",
    large_header: "9000 × 9000 pixels",
    vector: "no picture of a known type",
    text: "no picture of a known type",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_files(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path)
    with pytest.raises(ImageError, match=BAD[make]) as error:
        uploads.read_picture(path)
    assert str(tmp_path) not in str(error.value), "where the server keeps files is its own business"
    assert path.name in str(error.value)


def test_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "heavy.png"
    with path.open("wb") as file:
        file.truncate(100 * 10**6)
    with pytest.raises(ImageError, match="100 MB"):
        uploads.read_picture(path)


@pytest.mark.parametrize("kind", uploads.FORMATS)
def test_good_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{kind.lower()}"
    picture = Image.open(COLOUR.path).convert("RGB")
    picture.save(path, kind)
    assert uploads.read_picture(path).size == picture.size


@needs_browser
def test_the_page_tells_and_goes_on(page: Page, tmp_path: Path) -> None:
    heavy = tmp_path / "heavy.png"
    with heavy.open("wb") as file:
        file.truncate(100 * 10**6)
    upload = page.locator("#line input[type=file]")
    upload.set_input_files(str(heavy))
    assert "size" in message(page).lower()
    page.reload()
    page.locator("#line textarea").wait_for()
    for make, said in {text: BAD[text], huge_header: BAD[huge_header]}.items():
        upload.set_input_files(str(make(tmp_path)))
        expect(page.locator("#line .thumbnail-item, #line img")).not_to_have_count(0)
        page.locator("#line textarea").fill("what is this")
        page.locator("#line textarea").press("Enter")
        assert said in message(page)
        dismiss(page)
        # The line keeps what was written; the file is taken out by hand.
        expect(page.locator("#line textarea")).to_have_value("what is this")
        page.locator("#line .delete-button").first.click()
    ask(page, COLOUR.prompt, COLOUR.path)
    assert answer(page) == "green"


@needs_browser
def test_a_model_that_fails(
    page: Page, demo: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    probe = demo[0].need_probe()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of <b>memory</b>")

    with monkeypatch.context() as patch:
        patch.setattr(probe.model, "generate", broken)
        page.locator("#line textarea").fill("What shape is it?")
        page.locator("#line textarea").press("Enter")
        said = message(page)
    assert "RuntimeError: out of <b>memory</b>" in said, "told, and not taken for markup"
    dismiss(page)
    expect(page.locator("#line textarea")).to_have_value("What shape is it?")
    page.locator("#line textarea").press("Enter")
    expect(page.locator("#turns input")).to_have_value(re.compile(r"^2\. What shape is it\? → \w+"))


@needs_browser
def test_bad_numbers(page: Page) -> None:
    page.get_by_text("How it answers, and what it sees").click()
    page.locator("#most input").fill("0")
    page.locator("#most input").press("Tab")  # a number counts once it is left
    expect(page.locator("#most input")).to_have_value("0")
    page.locator("#line input[type=file]").set_input_files(str(COLOUR.path))
    expect(page.locator("#line img")).to_have_count(1)
    page.locator("#line textarea").fill(COLOUR.prompt)
    page.locator("#line textarea").press("Enter")
    assert "Tokens at most" in message(page) or "minimum" in message(page)
    dismiss(page)
    page.locator("#most input").fill("8")
    page.locator("#line textarea").press("Enter")
    expect(page.locator("#turns input")).to_have_value("1. What color is the circle? → green")
