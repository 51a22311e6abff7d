"""What a notebook shows: well-formed, escaped, without a script or anything fetched, and the right pixels."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import test_qformer
import tiny
from matplotlib import colormaps
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.picture import overlay

VOID = {"img", "br"}


class Page(HTMLParser):
    """Tags must close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page(shown: lp.Attribution | lp.Trace) -> Page:
    text = shown._repr_html_()
    read = Page(text)
    assert not read.all("script")
    sources = [
        value for _, attrs in read.tags for name, value in attrs.items() if name in ("src", "href")
    ]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in text
    return read


def picture(attrs: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1])))


def test_attribution_shows_picture_map_and_words(case: lp.Case) -> None:
    told = case.explain("relevancy", 1)
    read = page(told)
    original, heat = map(picture, read.all("img"))
    assert np.array_equal(np.asarray(original), np.asarray(case.images[0].convert("RGB")))
    pixels = told.pixels().numpy()
    y, x = divmod(int(pixels.argmax()), pixels.shape[1])
    grey = np.asarray(case.images[0].convert("L"))[y, x]
    wanted = 0.7 * 255 * np.array(colormaps["inferno"](1.0)[:3]) + 0.3 * grey
    assert np.asarray(heat)[y, x] == pytest.approx(wanted, abs=1)
    assert "“red”" in read.text
    words = [attrs for attrs in read.all("span") if "title" in attrs]
    scores = [float(w["title"]) for w in words]
    before = [p for p in told.layout.text_positions if p < told.position]
    assert scores == pytest.approx(told.tokens[before].tolist(), rel=1e-2)
    darkest = max(words, key=lambda w: float(w["style"].split(",")[-1].rstrip(")")))
    assert float(darkest["title"]) == max(scores)


def test_cropped_pixels_stay_bare(case: lp.Case) -> None:
    told = case.explain("relevancy")
    bare = ~told.layout.image(0).seen().numpy()
    shown = np.asarray(overlay(told))
    grey = np.asarray(case.images[0].convert("L"))
    assert bare.any()
    assert (shown[bare] == grey[bare][:, None]).all()


def test_what_a_model_wrote_is_text(case: lp.Case) -> None:
    told = case.explain("relevancy")
    words = tuple("<script>alert(1)</script>" if w.strip() else w for w in told.words)
    hostile = lp.Attribution(
        'a"><b>', told.target, told.tokens, told.layout, words, images=told.images
    )
    assert "<script>alert(1)</script>" in page(hostile).text
    assert '"><b>' not in hostile._repr_html_()


def test_without_pictures_and_with_queries() -> None:
    probe = lp.Probe(test_qformer.build("blip-2"))
    start = test_qformer.QUERIES + test_qformer.TEXT - 3
    case = probe.case_from_inputs(test_qformer.inputs("blip-2"), start)
    read = page(case.explain("attention"))
    assert not read.all("img")
    assert "the visual tokens of image 0 are queries" in read.text
    blind = case.explain("relevancy")
    assert len(page(blind).all("img")) == 1  # the map alone


def test_trace_is_a_table(case: lp.Case) -> None:
    trace = case.record(lp.Capture(targets=(1,)))
    text = page(trace).text
    for told in (case.prompt, case.answer, "language.layers.*.attention.output_grad.*"):
        assert told in text
    shape = " × ".join(map(str, trace["language.layers.0.attention.query"].shape))
    assert f"language.layers.*.attention.query3{shape}" in text  # three layers, and the shape


def test_many_images(probe: lp.Probe) -> None:
    case = probe.case(
        [tiny.picture(seed) for seed in range(6)], "what is this", answer="a red circle"
    )
    read = page(case.explain("attention"))
    assert len(read.all("img")) == 8
    assert "and 2 more images" in read.text
