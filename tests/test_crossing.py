"""Relevance across cross-attention by rows, against the published rules on dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from test_relevancy import off

from lvlm_probe.attention import AttentionCall
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout
from lvlm_probe.mask import AttentionMask
from lvlm_probe.recipe import Context
from lvlm_probe.recipes.relevancy import RELEVANCY
from lvlm_probe.recipes.relevancy.crossing import across, through_normalized
from lvlm_probe.target import Target

WORDS, PATCHES = 7, 5


def call(
    seed: int, layer: int, queries: int, keys: int, *, tower: str = "language", cross: bool = False
) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, queries, 3), (2, keys, 3), (2, keys, 5), (4, queries, 5)
    query, key, value, grad = (torch.randn(*s, generator=generator) for s in shape)
    mask = AttentionMask(causal=tower == "language" and not cross)
    return AttentionCall(tower, layer, query, key, value, 0.6, mask, None, grad, cross)


def mixed(call: AttentionCall) -> torch.Tensor:
    return (call.weights() * call.weight_gradients()).clamp(min=0).mean(0).double()


def normalized(matrix: torch.Tensor) -> torch.Tensor:
    learned = matrix - torch.eye(len(matrix), dtype=torch.float64)
    sums = learned.sum(1, keepdim=True)
    shares = torch.where(sums == 0, torch.zeros_like(learned), learned / sums)
    return shares + torch.eye(len(matrix), dtype=torch.float64)


def rules(calls: list[AttentionCall], context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rules 5, 6, 10 and 11 as they are written: R of words to words, C of words to the context."""
    own = torch.eye(calls[0].queries, dtype=torch.float64)
    onto = torch.zeros(calls[0].queries, len(context), dtype=torch.float64)
    for each in calls:
        if each.cross:
            onto = onto + normalized(own).T @ mixed(each) @ normalized(context)
        else:
            own, onto = own + mixed(each) @ own, onto + mixed(each) @ onto
    return own, onto


def stack(order: str) -> list[AttentionCall]:
    """``s`` attends to itself, ``x`` across."""
    return [
        call(number, number, WORDS, PATCHES if kind == "x" else WORDS, cross=kind == "x")
        for number, kind in enumerate(order)
    ]


@pytest.mark.parametrize("order", ["sx", "xs", "ssxsx", "xsxs", "x", "sxxs"])
def test_rows_are_rows_of_the_rules(order: str) -> None:
    calls = stack(order)
    vision = [call(50 + n, n, PATCHES, PATCHES, tower="vision") for n in range(3)]
    matrix = torch.eye(PATCHES, dtype=torch.float64)
    for each in vision:
        matrix = matrix + mixed(each) @ matrix
    own, onto = rules(calls, matrix)
    start = torch.rand(2, WORDS, generator=torch.Generator().manual_seed(9))
    rows, crossed = across(start, calls)
    assert crossed is not None
    assert off(rows, start.double() @ own) <= 1e-5
    assert off(through_normalized(crossed, vision), start.double() @ onto) <= 1e-5


def test_without_a_context_of_its_own() -> None:
    rows = torch.rand(2, PATCHES)
    assert torch.equal(through_normalized(rows, []), rows)


@pytest.mark.parametrize("order", ["ssxs", "xss"])
def test_a_language_model_that_attends_across(order: str) -> None:
    """Rows after each layer: those of a model that ends there."""
    calls = stack(order)
    box = Box(0.0, 0.0, 5.0, 1.0)
    span = ImageSpan((1, 5), 1, 2, (), (PatchGrid(0, 1, PATCHES, box),))
    context = Context(
        layout=TokenLayout(WORDS, 5, (span,), PATCHES),
        words=("w",) * WORDS,
        target=Target(1),
        depth={"language": len(calls)},
        sites=tuple(each.site for each in calls),
    )
    reducer = RELEVANCY.begin(context)
    for each in reversed(calls):
        reducer.feed(each)
    found = reducer.result()
    identity = torch.eye(WORDS, dtype=torch.float64)[5]
    for layer in range(len(calls)):
        own, onto = rules(calls[: layer + 1], torch.eye(PATCHES, dtype=torch.float64))
        wanted = own[5] - identity
        assert found.layers is not None
        assert found.layer_patches is not None
        if wanted.any():
            assert off(found.layers[layer], wanted) <= 1e-5
        if onto[5].any():
            assert off(found.layer_patches[layer], onto[5]) <= 1e-5
    assert found.image().shape == (1, PATCHES)
    alone = RELEVANCY.begin(context, layers=False)
    for each in reversed(calls):
        alone.feed(each)
    assert off(alone.result().patches, found.patches) <= 1e-6
