"""Attention of the whole answer, against the model's own eager attention; shares, the encoder's part, and whole words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_mllama
import test_qformer
import tiny
import torch
import zoo
from test_relevancy import off

import lvlm_probe as lp
from lvlm_probe.errors import LayoutError, RecipeError, TraceError
from lvlm_probe.layout import Box, PatchGrid
from lvlm_probe.recipes.attention import (
    answer_attention,
    answer_to_grids,
    answer_to_image,
    answer_to_question,
    head_rows,
    image_to_answer,
    rank_heads,
)
from lvlm_probe.recipes.shares import highest, rescaled, shares_of, token_scores
from lvlm_probe.target import Target

mllama = test_mllama.case


@pytest.fixture(scope="module")
def trace(case: lp.Case) -> lp.Trace:
    return case.record(lp.Capture())


def eager(case: lp.Case) -> torch.Tensor:
    """L H N N, as the model itself gives it."""
    model = case.probe.model
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(**case.inputs, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation("sdpa")
    return torch.stack([each[0] for each in found])


def test_answer_attention(case: lp.Case, trace: lp.Trace) -> None:
    attention, layout = eager(case), case.layout
    found = answer_attention(trace)
    image, start = layout.images[0].positions, layout.answer_start
    words = [p for p in range(start) if p not in set(range(image[0], image[-1] + 1))]
    for token in range(len(case.answer_tokens)):
        row = attention[:, :, start + token - 1]
        for got, keys in (
            (found.to_images[0], image), (found.to_question, words), (found.to_answer, range(start, layout.length)),
        ):  # fmt: skip
            wanted = sum(row[..., key] for key in keys)
            assert torch.allclose(got[..., token], wanted, atol=1e-6)
        assert torch.allclose(found.mean[token], row.mean((0, 1)), atol=1e-6)
        assert torch.allclose(head_rows(trace, 1, 2)[token], row[1, 2], atol=1e-6)
        assert torch.allclose(head_rows(trace, 2)[token], row[2].mean(0), atol=1e-6)
    assert torch.equal(answer_to_question(trace), found.to_question.mean(-1))
    assert found.labels == ["0", "1", "2"]


def test_maps_and_patches(case: lp.Case, trace: lp.Trace) -> None:
    attention, start = eager(case), case.layout.answer_start
    (grid,) = case.layout.images[0].tokens
    maps = answer_to_image(trace, tokens=[0, 2])
    wanted = attention[:, :, [start - 1, start + 1]].mean(2)
    for row in range(grid.rows):
        for column in range(grid.columns):
            position = grid.positions[row * grid.columns + column]
            assert torch.allclose(maps[..., row, column], wanted[..., position], atol=1e-6)
    patches = [0, 5, 6]
    paid = image_to_answer(trace, patches)
    for token in range(len(case.answer_tokens)):
        own = sum(attention[:, :, start + token - 1, grid.positions[p]] for p in patches)
        assert torch.allclose(paid[..., token], own, atol=1e-6)
    found = answer_attention(trace)
    rows = head_rows(trace, 1, 3)
    assert torch.allclose(found.on_patches(1, rows, patches), paid[1, 3], atol=1e-6)
    assert torch.allclose(found.on_image(1, rows), found.to_images[0, 1, 3], atol=1e-6)
    ((_, drawn),) = found.on_grids(1, rows)
    assert torch.allclose(drawn[[0, 2]].mean(0), maps[1, 3], atol=1e-6)


def test_ranking(trace: lp.Trace) -> None:
    scores = torch.tensor([[0.2, torch.nan], [0.9, 0.2]])
    assert [(n, h) for n, h, _ in rank_heads(scores)] == [(1, 0), (0, 0), (1, 1)]
    assert len(rank_heads(scores, most=1)) == 1
    ranked = rank_heads(trace)
    means = answer_attention(trace).to_images[0].mean(-1)
    assert ranked[0][2] == float(means.max()) == float(means[ranked[0][0], ranked[0][1]])
    assert sorted((n, h) for n, h, _ in ranked) == [(n, h) for n in range(3) for h in range(4)]


def test_tiles(case: lp.Case, trace: lp.Trace) -> None:
    """The image's one grid, said to be two: each map is its half, and patches count through both."""
    span = case.layout.images[0]
    (whole,) = span.tokens
    left = PatchGrid(whole.start, 4, 2, Box(0.0, 0.0, 28.0, 40.0), row_stride=4)
    right = PatchGrid(whole.start + 2, 4, 2, Box(28.0, 0.0, 56.0, 40.0), row_stride=4)
    layout = replace(case.layout, images=(replace(span, tokens=(left, right)),))
    tiled = lp.Trace(trace._tensors, {**trace.meta, "layout": layout.to_json()})
    one = answer_to_image(trace)
    halves = [scores for _, scores in answer_to_grids(tiled)]
    assert torch.equal(torch.cat(halves, -1), one)
    assert torch.equal(image_to_answer(tiled, [8 + 2]), image_to_answer(trace, [4 + 2]))
    with pytest.raises(LayoutError, match="2 tiles"):
        answer_to_image(tiled)
    assert torch.allclose(answer_attention(tiled).to_images, answer_attention(trace).to_images)


def test_cross_attention(mllama: lp.Case) -> None:
    """Layers 1 and 3 attend across to patches, the others see no image."""
    trace = mllama.record(lp.Capture())
    found = answer_attention(trace)
    assert found.labels == ["0", "1×", "2", "3×"]
    assert found.layers_seeing() == [1, 3]
    assert found.to_images[0, [0, 2]].isnan().all()
    weights = trace.call("language", 1, cross=True).weights()
    start = mllama.layout.answer_start
    places = [p for grid in mllama.layout.images[0].patches for p in grid.positions]
    wanted = weights[:, start - 1 :][:, : len(mllama.answer_tokens)][..., places].sum(-1)
    assert torch.allclose(found.to_images[0, 1], wanted, atol=1e-6)
    grids = answer_to_grids(trace)
    assert [(grid.rows, grid.columns) for grid, _ in grids] == [(2, 2), (2, 2)]
    assert sum(float(scores[1].sum()) for _, scores in grids) == pytest.approx(
        float(wanted.mean(-1).sum()), abs=1e-5
    )
    with pytest.raises(LayoutError, match=r"does not see image 0: choose one of the layers 1×, 3×"):
        found.on_grids(0, head_rows(trace, 0))
    plain = mllama.explain("attention", 0)
    assert plain.layer_patches is not None
    assert torch.allclose(plain.layer_patches[1], weights[:, start - 1].mean(0), atol=1e-6)
    assert torch.equal(plain.layer_patches[0], torch.zeros(mllama.layout.patch_count))
    with pytest.raises(RecipeError, match="attends across"):
        mllama.explain("rollout")


def test_queries_have_sums_and_no_map() -> None:
    probe = lp.Probe(test_qformer.build("blip-2"))
    inputs = test_qformer.inputs("blip-2")
    case = probe.case_from_inputs(inputs, test_qformer.QUERIES + 3, tiny.picture())
    trace = case.record(lp.Capture())
    found = answer_attention(trace)
    weights = torch.stack([trace.attention("language", layer) for layer in range(3)])
    start = case.layout.answer_start
    wanted = weights[:, :, start - 1 : -1, : test_qformer.QUERIES].sum(-1)
    assert torch.allclose(found.to_images[0], wanted, atol=1e-6)
    with pytest.raises(LayoutError, match=r"5 features\) shows no places"):
        found.grids()
    with pytest.raises(LayoutError, match="shows no places"):
        image_to_answer(trace, [0])


def test_encoder_decoder() -> None:
    model = zoo.build("florence2")
    made = zoo.inputs("florence2", model)
    with pytest.warns(lp.errors.UnmappedImageWarning):
        case = lp.Probe(model).case_from_inputs(made.inputs, made.answer_start, tiny.picture())
    trace, layout = case.record(lp.Capture()), case.layout
    found = answer_attention(trace)
    assert found.labels[:2] == ["0", "0×"]
    first = layout.answer_start - 1 - layout.encoder_length
    across = trace.call("language", 0, cross=True).weights()
    own = trace.call("language", 0).weights()
    assert torch.allclose(found.to_question[1, :, 0], across[:, first].sum(-1), atol=1e-6)
    assert found.to_question[0].isnan().all()
    assert torch.allclose(found.to_answer[0, :, 1], own[:, first + 1, first + 1 :].sum(-1))
    mean = case.explain("attention", 0).layers
    assert mean is not None
    both = torch.cat([across[:, first].mean(0), own[:, first].mean(0)]) / 2
    assert torch.allclose(mean[0], both, atol=1e-6)


def test_what_is_out_of_range(trace: lp.Trace) -> None:
    with pytest.raises(TraceError, match=r"answer tokens \[7\] are out of range: the answer has 3"):
        answer_to_image(trace, tokens=[7])
    with pytest.raises(TraceError, match=r"patches \[16\] are out of range: image 0 has 16"):
        image_to_answer(trace, [16])
    with pytest.raises(TraceError, match="head 4 is out of range"):
        head_rows(trace, 0, 4)
    with pytest.raises(TraceError, match="layer 3 is out of range"):
        head_rows(trace, 3)
    with pytest.raises(LayoutError, match="no image 1"):
        answer_attention(trace).grids(1)


def test_the_encoder_alone(case: lp.Case, trace: lp.Trace) -> None:
    """Mean over patches of the rows of the encoder's dense relevancy matrix, layer by layer."""
    found = trace.explain("relevancy", 1, vision="alone")
    size, places = case.layout.patch_count, case.layout.images[0].patches[0].positions
    matrix = torch.eye(size, dtype=torch.float64)
    for layer in range(trace.depth("vision")):
        call = trace.call("vision", layer, 1)
        mixed = (call.weights() * call.weight_gradients()).clamp(min=0).mean(0).double()
        matrix = matrix + mixed @ matrix
        wanted = (matrix - torch.eye(size, dtype=torch.float64))[places].mean(0)
        assert found.layer_patches is not None
        assert off(found.layer_patches[layer], wanted) <= 1e-5
    assert off(found.patches, wanted) <= 1e-5
    assert not found.tokens.any()
    assert off(case.explain("relevancy", 1, vision="alone").patches, wanted) <= 1e-4
    alone = trace.explain("relevancy", 1, vision="alone", layers=False)
    assert off(alone.patches, wanted) <= 1e-5
    together = trace.explain_all("relevancy", vision="alone", normalize=True)[1]
    assert off(together.patches, wanted / wanted.sum()) <= 1e-5
    with pytest.raises(RecipeError, match="words have no scores"):
        shares_of(found)
    blind = case.record(lp.Capture(towers=("language",)))
    with pytest.raises(RecipeError, match="no part of its own here"):
        blind.explain("relevancy", vision="alone")


def test_shares(case: lp.Case) -> None:
    found = case.explain("relevancy", 2)
    layout = case.layout
    for layer in (None, 0, 2):
        tokens = token_scores(found, layer)
        parts = shares_of(found, layer)
        total = float(tokens.sum())
        image = sum(float(tokens[p]) for p in layout.images[0].positions)
        answer = float(tokens[layout.answer_start] + tokens[layout.answer_start + 1])
        assert parts.images[0] == pytest.approx(image / total, rel=1e-5)
        assert parts.answer == pytest.approx(answer / total, rel=1e-5)
        assert sum(parts.images) + parts.question + parts.answer == pytest.approx(1, rel=1e-5)
    signed = replace(found, tokens=-found.tokens)
    assert shares_of(signed) == shares_of(found)


def test_shares_across(mllama: lp.Case) -> None:
    found = mllama.explain("relevancy", 0)
    parts = shares_of(found, crossing=True)
    assert found.patches is not None
    places = [p for grid in mllama.layout.images[0].patches for p in grid.positions]
    image = float(found.patches[places].sum())
    words = float(found.tokens.sum()) - float(found.tokens[mllama.layout.images[0].start])
    assert parts.images[0] == pytest.approx(image / (image + words), rel=1e-5)


def test_one_scale(case: lp.Case) -> None:
    found = case.explain("attention", 0)
    assert found.layers is not None
    image = case.layout.images[0].positions
    assert highest(found) == float(found.tokens[image].max())
    assert highest(found, layer=1) == float(found.layers[1, image].max())
    assert highest(found, all_layers=True) == float(found.layers[:, image].max())
    assert highest(rescaled(found, highest(found))) == pytest.approx(1)
    assert torch.equal(rescaled(found, 0.0).tokens, found.tokens)


@pytest.mark.parametrize(
    ("tokens", "index", "wanted"),
    [
        ([" rhino", "cer", "os", ",", " big"], 1, (0, 3)),
        ([" rhino", "cer", "os", ",", " big"], 3, (3, 1)),
        (["top", " right"], 1, (1, 1)),
        (["a", "b"], 0, (0, 2)),
        (["日", "本", "。"], 1, (0, 2)),
    ],
)
def test_whole_words(tokens: list[str], index: int, wanted: tuple[int, int]) -> None:
    found = Target(index, "logprob").widened(tokens)
    assert (found.index, found.count, found.kind) == (*wanted, "logprob")
