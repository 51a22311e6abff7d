"""Pictures say what the numbers say: the hottest pixels of the drawing are those of the hottest patch."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.errors import LayoutError, OutputError, TargetError


@pytest.fixture(scope="module")
def found(case: lp.Case) -> lp.Attribution:
    return case.explain("relevancy", 1)


def hot(found: lp.Attribution, row: int, column: int, score: float = 1.0) -> lp.Attribution:
    """Only one patch has a score."""
    patches = torch.zeros_like(found.patches)
    patches[found.layout.images[0].patches[0].start + row * 4 + column] = score
    return replace(found, patches=patches)


def rendered(attribution: lp.Attribution) -> np.ndarray:
    file = io.BytesIO()
    attribution.plot().savefig(file, dpi=100)
    return np.asarray(Image.open(file).convert("RGB")).astype(float)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 3), (3, 1)])
def test_hot_patch_is_drawn_where_it_is(found: lp.Attribution, row: int, column: int) -> None:
    one = hot(found, row, column)
    changed = np.abs(rendered(one) - rendered(hot(found, row, column, 0.0))).sum(-1) > 60
    axes = one.plot().axes[1]
    height, width = changed.shape[:2]
    box = axes.get_position()
    inside = changed[
        round((1 - box.y1) * height) : round((1 - box.y0) * height),
        round(box.x0 * width) : round(box.x1 * width),
    ]
    ys, xs = np.nonzero(inside)
    cell = found.layout.images[0].tokens[0].cell(row, column)
    size_y, size_x = inside.shape
    assert xs.min() / size_x * 56 == pytest.approx(cell.left, abs=1.2)
    assert (xs.max() + 1) / size_x * 56 == pytest.approx(cell.right, abs=1.2)
    assert ys.min() / size_y * 40 == pytest.approx(cell.top, abs=1.2)
    assert (ys.max() + 1) / size_y * 40 == pytest.approx(cell.bottom, abs=1.2)


def test_words_on_the_picture(found: lp.Attribution) -> None:
    figure = found.plot()
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "“red”"
    assert "relevancy" in texts[1]
    assert {"a", "red", "circle", "what", "is", "this"} <= set(texts)
    marked = [
        t.get_text() for t in figure.texts
        if t.get_bbox_patch() is not None and t.get_bbox_patch().get_facecolor()[:3] == (1.0, 210 / 255, 77 / 255)
    ]  # fmt: skip
    assert marked == ["red"]
    assert len(figure.axes) == 3, "image, map, colour bar"
    low, high = figure.axes[2].get_ylim()
    assert (low, high) == (0, pytest.approx(float(found.pixels().max())))


def test_text_is_shaded_by_its_score(found: lp.Attribution) -> None:
    tokens = torch.zeros_like(found.tokens)
    tokens[19] = 1.0  # "is"
    figure = replace(found, tokens=tokens).plot()
    colours = {
        t.get_text(): sum(t.get_bbox_patch().get_facecolor()[:3])
        for t in figure.texts
        if t.get_bbox_patch() is not None
    }
    assert min(colours, key=colours.__getitem__) == "is"


def test_long_answers_stay_on_the_page(found: lp.Attribution) -> None:
    words = (*found.words[: found.layout.answer_start], *(f" word{i}" for i in range(300)))
    layout = replace(found.layout, length=len(words))
    tokens = torch.zeros(len(words))
    long = replace(
        found, words=words, layout=layout, tokens=tokens, target=lp.Target(150), layers=None
    )
    figure = long.plot()
    assert all(0 <= t.get_position()[1] <= 1 for t in figure.texts)
    assert "word150" in [t.get_text() for t in figure.texts]


def test_markup_in_words_is_text(found: lp.Attribution) -> None:
    words = tuple("$x_" if w.strip() == "red" else w for w in found.words)
    replace(found, words=words).plot().savefig(io.BytesIO())


def test_negative_scores_get_a_two_sided_scale(found: lp.Attribution) -> None:
    patches = found.patches.clone()
    patches[3] = -2 * patches.max()
    low, high = replace(found, patches=patches).plot().axes[2].get_ylim()
    assert low == -high


def test_without_pictures(case: lp.Case) -> None:
    trace = case.record(lp.Capture(images=False))
    assert trace.images == ()
    rendered(trace.explain("relevancy"))


def test_layers(found: lp.Attribution) -> None:
    assert found.layers.shape == (3, found.layout.length)
    assert torch.equal(found.image(0, layer=-1), found.image(0))
    assert not torch.equal(found.image(0, layer=0), found.image(0))
    with pytest.raises(TargetError, match="layer 3 is out of range: there are 3"):
        found.image(0, layer=3)
    with pytest.raises(TargetError, match="kept no scores per layer"):
        replace(found, layers=None).image(0, layer=0)
    with pytest.raises(LayoutError, match="there is no image 1"):
        found.image(1)


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg"])
def test_save_pictures(found: lp.Attribution, tmp_path: Path, name: str) -> None:
    path = found.save(tmp_path / name)
    assert path.stat().st_size > 5000


def test_save_numbers(found: lp.Attribution, tmp_path: Path) -> None:
    data = json.loads(found.save(tmp_path / "a.json").read_text())
    assert data["word"] == " red"
    assert torch.allclose(torch.tensor(data["tokens"]), found.tokens, rtol=1e-6)
    assert torch.allclose(torch.tensor(data["images"][0]), found.image(), rtol=1e-6)
    assert lp.TokenLayout.from_json(data["layout"]) == found.layout


def test_save_elsewhere(found: lp.Attribution, tmp_path: Path) -> None:
    with pytest.raises(
        OutputError,
        match=r"cannot save an attribution as 'a\.txt': end the name in \.json or \.png",
    ):
        found.save(tmp_path / "a.txt")
    with pytest.raises(OutputError, match="cannot write"):
        found.save(tmp_path / "absent" / "a.png")
