"""The recipe: nodes, heads, consensus, live against a trace; masking, against the model itself; pictures."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import lvlm_probe as lp
from lvlm_probe.errors import MissingExtraError, RecipeError
from lvlm_probe.recipes import causal
from lvlm_probe.recipes.causal.figure import draw_graph, draw_overlay
from lvlm_probe.recipes.causal.nodes import NodeChoice

OPTIONS = {"layers": None, "alpha": 0.2, "num_samples": 64, "text_threshold": 0.0}


@pytest.fixture(scope="module")
def trace(case: lp.Case) -> lp.Trace:
    return case.record(lp.Capture(towers=("language",), targets=()))


@pytest.fixture(scope="module")
def search(trace: lp.Trace) -> causal.TokenSearch:
    return causal.TokenSearch.of(trace.explain("causal", 1, **OPTIONS))


def test_a_head_is_learned_from_its_own_rows(search: causal.TokenSearch, trace: lp.Trace) -> None:
    """Each graph is that of the head's attention, rebuilt whole, over the same nodes."""
    assert [(h.layer, h.head) for h in search.heads] == [
        (layer, head) for layer in range(3) for head in range(4)
    ]
    position = trace.layout.answer_start
    for found in search.heads:
        whole = trace.attention("language", found.layer)[found.head]
        graph = causal.learn_graph(whole, found.graph.labels, 0.2, 64)
        assert found.graph.edges() == graph.edges()
        assert found.position == position == found.graph.labels[-1]
        for radius in (1, 2, None):
            assert found.explanation(radius) == causal.explanation(graph, position, radius)
        on_image = whole[position, trace.layout.image_positions].sum()
        assert found.importance == pytest.approx(float(on_image), abs=1e-6)


def test_consensus_is_the_importance_of_heads_over_distance(search: causal.TokenSearch) -> None:
    expected = torch.zeros(search.layout.length)
    for found in search.heads:
        for radius in range(1, 9):
            for position in set(found.explanation(radius)) - set(
                found.explanation(radius - 1) if radius > 1 else []
            ):
                expected[position] += found.importance / radius
    expected /= sum(found.importance for found in search.heads)
    torch.testing.assert_close(search.consensus(), expected)
    assert expected.max() > 0
    near = search.consensus(1)
    assert bool((near <= search.consensus()).all())
    assert near.sum() < expected.sum()


def test_an_attribution_carries_its_graphs(search: causal.TokenSearch, trace: lp.Trace) -> None:
    found = search.attribution()
    again = causal.TokenSearch.of(found)
    for one, other in zip(search.heads, again.heads, strict=True):
        assert one.to_json() == other.to_json()
        assert other.graph.edges() == one.graph.edges()
        assert causal.radii(other.graph, other.position) == one.radii
    with pytest.raises(RecipeError, match="holds no causal graphs"):
        causal.TokenSearch.of(trace.explain("attention"))


def test_best_heads_come_first(search: causal.TokenSearch) -> None:
    best = search.best(3)
    assert [h.importance for h in best] == sorted(h.importance for h in search.heads)[:-4:-1]


def test_live_and_from_a_trace(case: lp.Case, trace: lp.Trace, search: causal.TokenSearch) -> None:
    live = case.explain("causal", 1, **OPTIONS)
    stored = trace.explain("causal", 1, **OPTIONS)
    torch.testing.assert_close(live.tokens, stored.tokens, rtol=0, atol=0)
    torch.testing.assert_close(live.tokens, search.consensus())
    assert live.meta["heads"] == stored.meta["heads"]
    assert json.loads(json.dumps(live.to_json()))["recipe"] == "causal"
    assert live.image().shape == (4, 4)


def test_radius_layers_and_heads_are_options(trace: lp.Trace, search: causal.TokenSearch) -> None:
    near = trace.explain("causal", 1, radius=1, **OPTIONS)
    torch.testing.assert_close(near.tokens, search.consensus(1))
    one = trace.explain("causal", 1, **{**OPTIONS, "layers": (-1,), "heads": (2,)})
    assert [(h["layer"], h["head"]) for h in one.meta["heads"]] == [(2, 2)]


def test_two_processes_find_the_same(trace: lp.Trace) -> None:
    options = {**OPTIONS, "layers": (0,)}
    alone = trace.explain("causal", 1, **options)
    together = trace.explain("causal", 1, workers=2, **options)
    assert alone.meta["heads"] == together.meta["heads"]


def test_nodes(case: lp.Case) -> None:
    layout, words = case.layout, case.words
    position = layout.answer_start
    attention = torch.zeros(layout.length)
    image = layout.image_positions
    attention[image[5]], attention[image[2]], attention[image[9]] = 0.3, 0.2, 0.2
    first = layout.text_positions[0]
    attention[first] = 0.1
    choose = NodeChoice(image=2, text=0.1, question=False)
    assert choose.of(attention, layout, words, position) == sorted(
        [first, image[2], image[5], position]
    )
    asked = NodeChoice(image=0, text=2.0, question=True).of(attention, layout, words, position)
    assert asked[:-1] == list(range(image[-1] + 1, layout.answer_start))
    every = NodeChoice(image=None, text=0.0).of(attention, layout, words, position)
    assert every == list(range(position + 1))
    with pytest.raises(RecipeError, match="neither is negative"):
        NodeChoice(image=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (7,)}, "out of range: there are 3"),
        ({"heads": (4,)}, "has 4, from 0"),
        ({"radius": 0}, "the radius is 0"),
        ({"colour": 1}, "takes no option 'colour'; it takes: layers, heads, radius"),
    ],
)
def test_wrong_options(trace: lp.Trace, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        trace.explain("causal", **options)


def test_the_bound_is_told(trace: lp.Trace) -> None:
    rows = torch.softmax(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)), -1)
    with pytest.warns(causal.BoundReached, match="stopped at max_conditioning=0"):
        graph = causal.learn_graph(rows, alpha=0.01, max_conditioning=0)
    assert graph.bounded
    assert set(graph.tests) == {0}
    free = causal.learn_graph(rows, alpha=0.01)
    assert not free.bounded
    assert len(free.edges()) < len(graph.edges())
    same = causal.learn_graph(rows, alpha=0.01, max_conditioning=max(free.tests))
    assert same.edges() == free.edges()
    assert not same.bounded


# Masking.


def logits(case: lp.Case, **changed: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return case.probe.model(**{**case.inputs, **changed}).logits[0]


def test_a_masked_token_is_seen_by_nobody(case: lp.Case) -> None:
    """What a masked text token says cannot matter: the predictions stay the same to the bit."""
    from lvlm_probe.recipes.causal.minimal import _without_attention

    asked = case.layout.answer_start - 3
    hidden = _without_attention(case, [asked])
    other = hidden["input_ids"].clone()
    other[0, asked] = 12
    there = [p for p in range(case.layout.length) if p != asked]
    one, two = logits(case, **hidden)[there], logits(case, **{**hidden, "input_ids": other})[there]
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not torch.equal(one, logits(case)[there])


def test_masked_pixels_have_the_mean_colour(case: lp.Case) -> None:
    from lvlm_probe.recipes.causal.minimal import _without_pixels

    grid = case.layout.images[0].tokens[0]
    picture = np.array(case.images[0])
    box = grid.cell(1, 2)
    painted = picture.copy()
    columns, rows = np.arange(picture.shape[1]) + 0.5, np.arange(picture.shape[0]) + 0.5
    inside = np.ix_(
        (rows >= box.top) & (rows < box.bottom), (columns >= box.left) & (columns < box.right)
    )
    painted[inside] = picture.mean((0, 1)).round()
    expected = case.probe.case(painted, case.prompt, case.answer).inputs["pixel_values"]
    position = grid.positions[1 * grid.columns + 2]
    found = _without_pixels(case, [position])
    torch.testing.assert_close(found["pixel_values"], expected)
    assert found["input_ids"] is case.inputs["input_ids"]


@pytest.mark.parametrize("where", ["attention", "pixels"])
def test_changes_are_those_of_single_predictions(case: lp.Case, where: str) -> None:
    """In batches or one by one, and against the model called by hand."""
    from lvlm_probe.recipes.causal import minimal

    rng = np.random.default_rng(0)
    image = case.layout.image_positions
    subsets = [rng.choice(image, 6, replace=False).tolist() for _ in range(7)]
    make = minimal._without_attention if where == "attention" else minimal._without_pixels
    at = case.layout.answer_start + 1
    before = logits(case)[at].argmax()
    expected = [bool(logits(case, **make(case, s))[at].argmax() != before) for s in subsets]
    assert causal.changes_answer(case, subsets, 2, where, batch=3).tolist() == expected
    assert causal.changes_answer(case, [], 2, where).tolist() == []


def test_minimal_subset_is_the_smallest(case: lp.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that changes its mind without {3, 8}, or without {2, 4, 5}."""
    from lvlm_probe.recipes.causal import minimal

    def changes(case, subsets, target, where, batch):
        return torch.tensor([{3, 8} <= set(s) or {2, 4, 5} <= set(s) for s in subsets])

    monkeypatch.setattr(minimal, "changes_answer", changes)
    found = causal.minimal_subset(case, range(2, 12))
    assert found is not None
    assert (found.positions, found.smallest) == ((3, 8), True)
    assert found.asked <= 1 + 10 + 45
    assert causal.minimal_subset(case, [3, 9, 2, 4]) is None
    assert causal.minimal_subset(case, []) is None
    # Of two of one size the nearer: {2, 4, 5} is spared, since 3 and 8 are two.
    assert causal.minimal_subset(case, [2, 4, 5]).positions == (2, 4, 5)
    # No budget for pairs: shrinks from the far end, and says that smaller ones were not tried.
    shrunk = causal.minimal_subset(case, dict.fromkeys(range(2, 12), 1) | {8: 2}, most=12)
    assert (shrunk.positions, shrunk.smallest) == ((2, 4, 5), False)


def test_a_real_change_of_mind(probe: lp.Probe) -> None:
    """On the model: what is found does change the prediction, and nothing smaller does."""
    sizes: list[int] = []
    for seed in range(4):
        case = probe.case(tiny.picture(seed), "what is this", answer="a red circle")
        nodes = range(case.layout.answer_start - 9, case.layout.answer_start - 1)
        found = causal.minimal_subset(case, nodes)
        if found is not None:
            sizes.append(len(found.positions))
            assert causal.changes_answer(case, [found.positions]).tolist() == [True]
            smaller = [s for size in range(sizes[-1]) for s in combinations(nodes, size)]
            assert not causal.changes_answer(case, smaller).any()
    assert sizes


def test_what_cannot_be_masked(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match="cannot be masked: the token is predicted at"):
        causal.changes_answer(case, [[case.layout.answer_start]], 0)
    with pytest.raises(RecipeError, match=r"shows no pixels: mask the attention"):
        causal.changes_answer(case, [[0]], 0, "pixels")


def test_the_model_is_left_as_it_was(case: lp.Case) -> None:
    model = case.probe.model
    model.train()
    try:
        causal.changes_answer(case, [[1]])
        assert model.training
    finally:
        model.eval()


# Pictures.


def test_pictures(search: causal.TokenSearch, tmp_path: Path) -> None:
    head = max(search.heads, key=lambda h: len(h.radii))
    figure = draw_graph(search, head, radius=2)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert "→ red" in texts
    assert "radius 1" in texts
    shown = head.explanation(2)
    crops = [p for p in shown if p in search.layout.image_positions]
    assert len(figure.axes[0].images) == len(crops) > 0
    overlay = draw_overlay(search, head, radius=2)
    assert len(overlay.axes) == 3
    for radius, axes in enumerate(overlay.axes[1:], 1):
        patches = set(head.explanation(radius)) & set(search.layout.image_positions)
        assert len(axes.patches) == len(patches)
    assert len(draw_overlay(search).axes) == 2
    for name, drawn in {"graph": figure, "overlay": overlay}.items():
        drawn.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000


def test_marks_are_drawn_as_such(search: causal.TokenSearch) -> None:
    from matplotlib.patches import Circle, Polygon

    head = max(search.heads, key=lambda h: len(h.radii))
    axes = draw_graph(search, head, radius=None).axes[0]
    ends = [
        mark
        for (a, b), marks in head.graph.edges().items()
        if {a, b} <= {head.position, *head.radii}
        for mark in marks
    ]
    assert len([p for p in axes.patches if isinstance(p, Circle)]) == ends.count("circle")
    assert len([p for p in axes.patches if isinstance(p, Polygon)]) == ends.count("arrow") > 0


def test_without_networkx(search: causal.TokenSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-probe\[causal\]"):
        draw_graph(search, search.heads[0])
