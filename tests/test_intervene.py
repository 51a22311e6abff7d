"""Edits change what they say, to the bit where nothing should change, and are gone after the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_hooks import Refused, fresh, unchanged

import lvlm_probe as lp
from lvlm_probe.errors import AnswerError, CaptureError, LayoutError, PromptError
from lvlm_probe.grid import Box
from lvlm_probe.positions import Region, aligned, positions_of

__all__ = ["fresh"]

PLACES = [
    f"{tower}.layers.{layer}.{what}"
    for tower, layer in (("vision", 0), ("vision", 2), ("language", 0), ("language", 2))
    for what in ("residual.input", "residual.output", "mlp.output", "attention.output")
]


@pytest.fixture(scope="module")
def other(probe: lp.Probe) -> lp.Case:
    return probe.case(tiny.picture(7), "what is this", answer="a red circle")


@pytest.mark.parametrize("site", [*PLACES, "projector"])
def test_clean_into_clean_is_nothing(case: lp.Case, site: str) -> None:
    assert torch.equal(case.patch(site, source=case).logits(), case.logits())


@pytest.mark.parametrize("layer", range(3))
def test_a_whole_residual_restores_the_clean_run(case: lp.Case, other: lp.Case, layer: int) -> None:
    clean, corrupted = case.logits(), other.logits()
    assert (clean - corrupted).abs().max() > 0.1
    restored = other.patch(f"language.layers.{layer}.residual", source=case).logits()
    torch.testing.assert_close(restored, clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        other.patch("projector", source=case).logits(), clean, atol=1e-5, rtol=0
    )


def by_torch(case: lp.Case, path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same edit of a module's output by torch's own hook."""

    def hook(_module: Any, _args: Any, value: Any) -> Any:
        return (change(value[0]), *value[1:]) if isinstance(value, tuple) else change(value)

    handle = case.probe.model.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = case.probe.model(**case.inputs).logits
    finally:
        handle.remove()
    start, stop = case.layout.answer_start, case.layout.length
    return logits[0, start - 1 : stop - 1]


def test_each_edit_is_the_hook_that_one_would_write(case: lp.Case, other: lp.Case) -> None:
    box = Box(0.0, 0.0, 28.0, 20.0)
    tokens = case.layout.tokens_in_box(0, box)
    assert 0 < len(tokens) < 16
    at = "language.layers.1.mlp.output"
    values = other.activation(at)
    assert values.shape == (case.layout.length, 32)

    def put(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, tokens] = values[tokens]
        return hidden

    def mean(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, tokens] = sum(hidden[0, t] for t in tokens) / len(tokens)
        return hidden

    def zero(hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.tensor([float(n not in tokens) for n in range(hidden.shape[1])])[:, None]  # fmt: skip

    mlp = "model.language_model.layers.1.mlp"
    layer = "model.language_model.layers.1"
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    last = case.layout.answer_start - 1

    def add(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, last] += 2 * vector
        return hidden

    for edited, path, change in (
        (case.patch(at, box, source=other), mlp, put),
        (case.ablate(at, box), mlp, zero),
        (case.ablate(at, box, value="mean"), mlp, mean),
        (case.steer(vector, 1, "last", strength=2.0), layer, add),
    ):
        found = edited.logits()
        assert not torch.equal(found, case.logits())
        torch.testing.assert_close(found, by_torch(case, path, change), atol=1e-6, rtol=0)


def test_heads(case: lp.Case, other: lp.Case) -> None:
    """What a head gives is a slice of what the output projection is given."""
    at = "language.layers.2.attention.output"
    values = other.activation(at)
    assert values.shape == (case.layout.length, 4, 8)
    projection = case.probe.model.model.language_model.layers[2].self_attn.o_proj

    def hook(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden = args[0].clone()
        hidden[0, :, 8:16] = values[:, 1]
        return (hidden,)

    handle = projection.register_forward_pre_hook(hook)
    expected = case.logits()
    handle.remove()
    found = case.patch(at, source=other, heads=[1]).logits()
    assert not torch.equal(found, case.logits())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    whole = case.patch(at, source=other, heads=range(4)).logits()
    assert torch.equal(whole, case.patch(at, source=other).logits())


def masked_eager(case: lp.Case, layers: range, queries: list[int], keys: list[int]) -> torch.Tensor:
    """An eager forward, each layer's whole mask written out entry by entry."""
    model, count = case.probe.model, case.layout.length
    mask = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            if j > i:
                mask[i, j] = float("-inf")
    cut = mask.clone()
    for i in queries:
        for j in keys:
            cut[i, j] = float("-inf")

    def hook(number: int) -> Any:
        def give(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            own = cut if number in layers else mask
            return args, {**kwargs, "attention_mask": own[None, None]}

        return give

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    handles = [
        layer.self_attn.register_forward_pre_hook(hook(n), with_kwargs=True)
        for n, layer in enumerate(model.model.language_model.layers)
    ]
    try:
        with torch.no_grad():
            logits = model(**case.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)
    return logits[0, case.layout.answer_start - 1 : -1]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [range(3), range(1, 2)])
def test_knockout_is_a_mask(case: lp.Case, layers: range, kernel: str) -> None:
    start = case.layout.answer_start
    expected = masked_eager(
        case, layers, [start - 1, start, start + 1], case.layout.image_positions
    )
    case.probe.model.set_attn_implementation(kernel)
    try:
        edited = case.knockout("image", range(start - 1, start + 2), layers=layers)
        torch.testing.assert_close(edited.logits(), expected, atol=1e-5, rtol=0)
        assert (expected - case.logits()).abs().max() > 1e-3
    finally:
        case.probe.model.set_attn_implementation("sdpa")


def test_knockout_of_one_head(case: lp.Case) -> None:
    """The attention of that head alone loses its edges; the rest of the row still sums to one."""
    last, tokens = case.layout.answer_start - 1, case.layout.image_positions
    edited = case.knockout("image", "last", layers=0, heads=[2])
    before, after = (c.activation("language.layers.0.attention.output") for c in (case, edited))
    changed = (before != after).flatten(2).any(-1)
    assert changed[last].tolist() == [False, False, True, False]
    rows = torch.ones(case.layout.length, dtype=torch.bool)
    rows[last] = False
    assert torch.allclose(before[rows], after[rows], atol=1e-6)
    trace = case.record(lp.Capture(targets=()))
    weights = trace.attention("language", layer=0, queries=[last])[2, 0].clone()
    weights[tokens] = 0
    value = trace["language.layers.0.attention.value"][1]  # two heads share a value
    torch.testing.assert_close(after[last, 2], weights @ value / weights.sum(), atol=1e-5, rtol=0)


def test_a_query_that_sees_nothing_is_given_nothing(case: lp.Case) -> None:
    edited = case.knockout("all", "last", layers=1)
    output = edited.activation("language.layers.1.attention.output")
    last = case.layout.answer_start - 1
    assert torch.equal(output[last], torch.zeros(4, 8))
    assert output[last - 1].abs().min() > 0
    assert edited.logits().isfinite().all()


def test_nothing_edited_is_nothing(case: lp.Case) -> None:
    assert torch.equal(case.steer(torch.zeros(32), range(3)).logits(), case.logits())
    assert torch.equal(case.steer(torch.ones(32), 1, strength=0.0).logits(), case.logits())
    start = case.layout.answer_start
    with torch.no_grad():
        plain = case.probe.model(**case.inputs).logits[0, start - 1 : -1]
    assert torch.equal(case.logits(), plain)


def test_edits_compose(case: lp.Case, other: lp.Case) -> None:
    one = case.ablate("language.layers.0.mlp", "image")
    both = one.steer(torch.ones(32), 1, "last")
    assert len({str(e.logits()) for e in (case, one, both)}) == 3
    assert len(one.edits) == 1
    # The later edit of one place has the last word.
    at = "language.layers.0.mlp"
    again = case.ablate(at, "last").patch(at, "last", source=case)
    assert torch.equal(again.logits(), case.logits())
    # An edited case is a source, too.
    whole = other.patch("language.layers.2.residual", source=both)
    torch.testing.assert_close(whole.logits(), both.logits(), atol=1e-5, rtol=0)
    assert "the ablation of language.layers.0.mlp.output; the steering" in repr(both)


def test_recipes_see_the_edited_model(case: lp.Case) -> None:
    edited = case.knockout("image", "all")
    found = edited.explain("relevancy", vision=False)
    assert float(found.tokens[case.layout.image_positions].abs().max()) == 0.0
    assert (
        float(case.explain("relevancy", vision=False).tokens[case.layout.image_positions].max()) > 0
    )


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_generation(probe: lp.Probe, seed: int) -> None:
    """Step by step with a cache, the edits act as they do in one forward over prompt and answer."""
    asked = probe.case(tiny.picture(seed), "what is this", max_new_tokens=6)
    vector = 3 * torch.randn(32, generator=torch.Generator().manual_seed(5))
    assert asked.steer(torch.zeros(32), 1).generate(6) == asked.answer
    edits: list[Callable[[lp.Case], Any]] = [
        lambda c: c.steer(vector, 1),
        lambda c: c.steer(vector, 0, "answer"),
        lambda c: c.ablate("language.layers.0.residual.input", "image"),
        lambda c: c.knockout("image", "answer").knockout("image", "last"),
    ]
    changed = 0
    for edit in edits:
        try:
            written = edit(asked).generate(6)
        except AnswerError:
            continue  # it ended at once
        changed += written != asked.answer
        again = probe.case(tiny.picture(seed), "what is this", answer=written)
        best = edit(again).logits().argmax(-1)
        assert torch.equal(best, again.answer_ids)
    assert changed >= 2


def test_positions(case: lp.Case) -> None:
    layout, words = case.layout, case.words
    assert [words[p].strip() for p in positions_of(case, "question").indices] == ["what", "is", "this"]  # fmt: skip
    assert [words[p].strip() for p in positions_of(case, "is this").indices] == ["is", "this"]
    assert positions_of(case, "last").indices == (layout.answer_start - 1,)
    assert positions_of(case, "answer").indices == tuple(layout.answer_positions)
    assert positions_of(case, "red").indices == (layout.answer_start + 1,)
    assert positions_of(case, [-1, 0]).indices == (0, layout.length - 1)
    size = layout.images[0].size
    mask = np.zeros(size, dtype=bool)
    mask[10:15, 20:25] = True
    mask.flags.writeable = False
    expected = {
        p
        for grid in layout.images[0].tokens
        for n, p in enumerate(grid.positions)
        for y in range(10, 15)
        for x in range(20, 25)
        if (c := grid.cell(*divmod(n, grid.columns))).left <= x + 0.5 < c.right
        and c.top <= y + 0.5 < c.bottom
    }
    assert set(positions_of(case, mask).indices) == expected
    assert positions_of(case, Region(torch.tensor(mask))).indices == tuple(sorted(expected))
    patches = positions_of(case, mask, "P").indices
    assert len(patches) == len(expected)
    assert positions_of(case, "image").onwards is None
    assert positions_of(case, "answer").onwards == layout.length


def test_another_length(probe: lp.Probe, case: lp.Case) -> None:
    longer = probe.case(tiny.picture(7), "what is this red circle", answer="a red circle")
    image = case.layout.image_positions
    assert aligned(case, longer, image) == longer.layout.image_positions
    end = [case.layout.answer_start - 1, case.layout.answer_start]
    assert aligned(case, longer, end) == [p + 2 for p in end]
    patched = case.patch("language.layers.0.residual", "last", source=longer)
    assert patched.logits().isfinite().all()
    asked = positions_of(case, "what").indices
    assert aligned(case, longer, asked) == list(asked)
    shorter = probe.case(tiny.picture(7), "where is", answer="a red circle")
    with pytest.raises(LayoutError, match=r"'this'.* has no counterpart"):
        case.patch("language.layers.0.residual", "this", source=shorter)


def test_what_is_wrong_is_said(case: lp.Case) -> None:
    with pytest.raises(CaptureError, match=r"'language.layer.3' names no place"):
        case.ablate("language.layer.3")
    with pytest.raises(CaptureError, match="has 3 layers"):
        case.ablate("language.layers.3.mlp")
    with pytest.raises(CaptureError, match="not apart by heads"):
        case.ablate("language.layers.0.mlp", heads=[0])
    with pytest.raises(CaptureError, match="heads \\[9\\] are out of range: there are 4"):
        case.ablate("language.layers.0.attention", heads=[9]).logits()
    with pytest.raises(CaptureError, match="heads \\[9\\] are out of range"):
        case.knockout("image", "last", heads=[9]).logits()
    with pytest.raises(CaptureError, match="layers \\[5\\] are out of range"):
        case.knockout("image", "last", layers=5)
    with pytest.raises(CaptureError, match="give one, \\[D\\]"):
        case.steer(torch.zeros(2, 32), range(3))
    with pytest.raises(CaptureError, match="width 31"):
        case.steer(torch.zeros(31), 0).logits()
    with pytest.raises(LayoutError, match="'elephant' names no position"):
        case.ablate("language.layers.0.mlp", "elephant")
    with pytest.raises(LayoutError, match="does not fit an image of 40 × 56"):
        case.ablate("language.layers.0.mlp", torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(LayoutError, match="in the vision encoder"):
        case.ablate("vision.layers.0.mlp", "question")
    bare = lp.Probe(case.probe.model).case_from_inputs(case.inputs, case.layout.answer_start)
    with pytest.raises(PromptError, match="no processor"):
        bare.generate()


def test_nothing_is_left(fresh: lp.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = (
        fresh.patch(PLACES, "all", source=fresh)
        .knockout("image", "last")
        .steer(torch.ones(32), [0, 2])
    )
    model = fresh.probe.model
    with unchanged(model):
        edited.logits()
        edited.generate(2)
        edited.explain("relevancy")
        edited.activation("language.layers.1.mlp")

    def fail(*_: object, **__: object) -> None:
        raise Refused

    monkeypatch.setattr(model.get_submodule("model.language_model.layers.2.mlp"), "forward", fail)
    with unchanged(model):
        for run in (edited.logits, edited.generate, lambda: edited.explain("relevancy")):
            with pytest.raises(Refused):
                run()
    monkeypatch.undo()
    assert torch.equal(fresh.logits(), fresh.steer(torch.zeros(32), 0).logits())


def test_plain_nnsight() -> None:
    """As documented in docs/interventions.md."""
    # A model of its own: nnsight stays on it.
    case = lp.Probe(tiny.llava(), tiny.processor()).case(tiny.picture(), "what is this", "a circle")
    with case.probe.nnsight.trace(**case.inputs):
        hidden = case.probe.nnsight.model.language_model.layers[1].output.save()
    first = hidden[0] if isinstance(hidden, tuple) else hidden
    assert torch.equal(first.reshape(-1, 32), case.activation("language.layers.1.residual"))
