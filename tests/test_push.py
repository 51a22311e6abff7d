"""Rows through one layer, by blocks, against the dense definition in float64: every kind of mask, shared heads, both sides."""

from __future__ import annotations

import pytest
import torch
from test_relevancy import off

from lvlm_probe import attention
from lvlm_probe.attention import AttentionCall
from lvlm_probe.mask import AttentionMask
from lvlm_probe.recipes.relevancy.push import Push, pull, sweep

N = 300  # more than two blocks of query rows

MASKS = {
    "none": AttentionMask(),
    "causal": AttentionMask(causal=True),
    "sliding window": AttentionMask(causal=True, window=40),
    "narrow window": AttentionMask(causal=True, window=3),
    "prefix": AttentionMask(causal=True, prefix=150),
    "left padding": AttentionMask(causal=True, start=70),
    "right padding": AttentionMask(stop=260),
    "packed": AttentionMask(segments=(90, 10, 130, 70)),
    "packed causal": AttentionMask(causal=True, segments=(131, 169)),
    "dense": AttentionMask(dense=torch.where(torch.rand(1, N, N) < 0.5, 0.0, -torch.inf)),
    "dense, a bias a head": AttentionMask(dense=torch.randn(6, N, N)),
}


def dense(call: AttentionCall, mask: AttentionMask) -> torch.Tensor:
    """``Ā`` by the definition: repeated heads, whole matrices."""
    shared = call.heads // call.key.shape[0]
    query = call.query.double()
    key, value = (t.double().repeat_interleave(shared, 0) for t in (call.key, call.value))
    scores = call.scale * query @ key.mT
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    rows, columns = torch.arange(N)[:, None], torch.arange(N)[None, :]
    seen = torch.ones(N, N, dtype=torch.bool)
    if mask.causal:
        seen = columns <= rows
        if mask.window is not None:
            seen = seen & (rows - columns < mask.window)
        seen = seen | ((rows < mask.prefix) & (columns < mask.prefix))
    if mask.segments:
        owner = torch.repeat_interleave(
            torch.arange(len(mask.segments)), torch.tensor(mask.segments)
        )
        seen = seen & (owner[:, None] == owner[None, :])
    seen = seen & (columns >= mask.start) & (columns < (mask.stop or N))
    if mask.dense is not None:
        scores = scores + mask.dense.double()
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)
    assert call.output_grad is not None
    gradients = call.output_grad.double() @ value.mT
    return (weights * gradients).clamp(min=0).mean(0)


@pytest.fixture(params=[2**21, 2**14], ids=["all heads", "heads apart"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK_SCORES", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("kind", MASKS)
def test_rows_and_columns(kind: str, groups: int, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (6, N, 8), (groups, N, 8), (groups, N, 8), (6, N, 8)
    query, key, value, grad = (torch.randn(*shape, generator=generator) for shape in shapes)
    mask = MASKS[kind]
    call = AttentionCall("language", 0, query, key, value, 0.5, mask, softcap, grad)
    wanted = dense(call, mask)
    rows = torch.rand(3, N, generator=generator)
    rows[:, 5:60] = 0.0  # rows without relevance are skipped
    for part in (rows, rows[:1]):
        push = Push.begin(part, call, heads=True)
        sweep([push])
        assert off(push.gained, part.double() @ wanted) <= 1e-5
        assert push.heads is not None
        assert off(push.heads.sum(0), push.gained[-1]) <= 1e-5
    columns = torch.randn(N, 2, generator=generator)
    assert off(pull(columns, call), wanted @ columns.double()) <= 1e-5
