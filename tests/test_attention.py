"""Attention rebuilt from its factors: against one pair at a time, float64, torch's own kernel and autograd."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from lvlm_probe.attention import AttentionCall
from lvlm_probe.errors import CaptureError, TraceError
from lvlm_probe.mask import AttentionMask, describe_mask

N = 11
EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True, database=None)
FLOAT32 = 2e-6  # float32 against float64, for weights between 0 and 1

MASKS = {
    "all": AttentionMask(),
    "causal": AttentionMask(causal=True),
    "itself": AttentionMask(causal=True, window=1),
    "window": AttentionMask(causal=True, window=4),
    "wide window": AttentionMask(causal=True, window=40),
    "prefix": AttentionMask(causal=True, prefix=4),
    "all prefix": AttentionMask(causal=True, prefix=N),
    "prefix and window": AttentionMask(causal=True, prefix=4, window=2),
    "packed": AttentionMask(segments=(3, 6, 2)),
    "packed causal": AttentionMask(causal=True, segments=(3, 6, 2)),
    "left padding": AttentionMask(start=3),
    "right padding": AttentionMask(stop=8),
    "left padding, causal": AttentionMask(causal=True, start=3),
    "right padding, causal window": AttentionMask(causal=True, window=2, stop=7),
}


ONE_KEY = AttentionMask(causal=True, window=3, start=2, stop=3)


def sees(mask: AttentionMask, query: int, key: int) -> bool:
    """What :class:`AttentionMask` says in words, one pair at a time."""
    if key < mask.start or (mask.stop is not None and key >= mask.stop):
        return False
    if mask.segments:
        owner = [number for number, length in enumerate(mask.segments) for _ in range(length)]
        if owner[query] != owner[key]:
            return False
    if not mask.causal or (query < mask.prefix and key < mask.prefix):
        return True
    return key <= query and (mask.window is None or query - key < mask.window)


def table(mask: AttentionMask, queries: int, keys: int) -> torch.Tensor:
    return torch.tensor([[sees(mask, q, k) for k in range(keys)] for q in range(queries)])


def a_call(
    mask: AttentionMask, queries: int = N, keys: int | None = None, **changes: Any
) -> AttentionCall:
    """Four heads on two key heads, values wider than keys, a scale that is not the usual one."""
    generator = torch.Generator().manual_seed(queries)
    keys = queries if keys is None else keys
    query, key, value = (
        torch.randn(shape, generator=generator)
        for shape in ((4, queries, 3), (2, keys, 3), (2, keys, 5))
    )
    fields: dict[str, Any] = {"query": query, "key": key, "value": value, "scale": 0.9, **changes}
    return AttentionCall("language", 0, mask=mask, **fields)


def shared(call: AttentionCall, tensor: torch.Tensor) -> torch.Tensor:
    """A key head's tensor for each query head, float64."""
    return torch.stack(
        [tensor[h * tensor.shape[0] // call.heads] for h in range(call.heads)]
    ).double()


def definition(call: AttentionCall, bias: torch.Tensor) -> torch.Tensor:
    """Exponentials over their sum, float64; rows without a key stay 0."""
    scores = call.query.double() @ shared(call, call.key).mT * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    powers = (scores + bias.double()).exp()
    return powers / powers.sum(-1, keepdim=True).clamp(min=1e-300)


def bias_of(allowed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)


def bias_per_head(queries: int, keys: int) -> torch.Tensor:
    """Additive, different in each head, with holes and with a query that sees nothing."""
    generator = torch.Generator().manual_seed(8)
    bias = torch.randn(4, queries, keys, generator=generator)
    bias[torch.rand(bias.shape, generator=generator) < 0.3] = -torch.inf
    bias[:, 2] = -torch.inf
    return bias


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = FLOAT32) -> bool:
    assert found.shape == wanted.shape
    return torch.allclose(found.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request: pytest.FixtureRequest) -> AttentionMask:
    return request.param


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_weights_are_the_dense_softmax(mask: AttentionMask, softcap: float | None) -> None:
    call = a_call(mask, softcap=softcap)
    allowed = table(mask, N, N)
    weights = call.weights()
    assert near(weights, definition(call, bias_of(allowed)))
    assert not weights[:, ~allowed].any()
    assert near(weights.sum(-1), allowed.any(-1).double().expand(4, N))


def test_output_is_what_torchs_kernel_gives(mask: AttentionMask) -> None:
    call = a_call(mask)
    allowed = table(mask, N, N)
    output = scaled_dot_product_attention(
        *(t.double()[None] for t in (call.query, call.key, call.value)),
        attn_mask=allowed, scale=call.scale, enable_gqa=True,
    )[0]  # fmt: skip
    seeing = allowed.any(-1)  # what a kernel gives a blind query differs between versions
    found = call.weights().double() @ shared(call, call.value)
    assert near(found[:, seeing], output[:, seeing], 1e-5)


@pytest.mark.parametrize("keys", [N, N + 4])
def test_causal_is_torchs_causal(keys: int) -> None:
    call = a_call(AttentionMask(causal=True), keys=keys)
    output = scaled_dot_product_attention(
        *(t.double()[None] for t in (call.query, call.key, call.value)),
        is_causal=True, scale=call.scale, enable_gqa=True,
    )[0]  # fmt: skip
    assert near(call.weights().double() @ shared(call, call.value), output, 1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("keys", [N, N + 5])
def test_additive_mask(heads: int, keys: int) -> None:
    bias = bias_per_head(N, keys)[:heads]
    call = a_call(AttentionMask(dense=bias), keys=keys)
    weights = call.weights()
    assert near(weights, definition(call, bias))
    assert not weights[:, 2].any()
    assert near(weights.sum(-1)[:, 3:], torch.ones(4, N - 3))


def test_additive_mask_beside_a_softcap_and_padding() -> None:
    bias = bias_per_head(N, N)
    call = a_call(AttentionMask(dense=bias, causal=True, start=2, stop=9), softcap=2.0)
    hidden = ~table(replace(call.mask, dense=None), N, N)
    assert near(call.weights(), definition(call, bias.masked_fill(hidden, -torch.inf)))


def test_a_mask_given_as_booleans_is_kept() -> None:
    allowed = torch.rand(4, N, N, generator=torch.Generator().manual_seed(1)) > 0.4
    call = a_call(describe_mask(allowed[None], N, N))
    assert near(call.weights(), definition(call, bias_of(allowed)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_are_summed_up_in_float32(dtype: torch.dtype) -> None:
    """Products of 256 bfloat16 numbers summed in bfloat16 would be off by 1e-2."""
    generator = torch.Generator().manual_seed(2)
    query, key, value, grad = (
        torch.randn(2, 20, 256, generator=generator).to(dtype) for _ in "qkvg"
    )
    call = AttentionCall(
        "vision", 3, query, key, value, 0.05, AttentionMask(causal=True), None, grad
    )
    assert near(call.weights(), definition(call, bias_of(table(call.mask, 20, 20))), 1e-5)
    wanted = (grad.double() @ value.double().mT).tril()
    assert near(call.weight_gradients() / wanted.abs().max(), wanted / wanted.abs().max())


def test_rows_are_float32_whatever_torchs_default() -> None:
    call = a_call(AttentionMask(causal=True)).with_gradient(torch.ones(4, N, 5))
    wanted = call.weights()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(call.weights(), wanted)
        assert call.weight_gradients().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("size", [1, 7, 128, 1000])
@pytest.mark.parametrize("mask", [
    AttentionMask(causal=True, window=9), AttentionMask(causal=True, prefix=30),
    AttentionMask(segments=(60, 1, 99)), AttentionMask(),
])  # fmt: skip
def test_blocks_cover_every_row_once(mask: AttentionMask, size: int) -> None:
    length = 160
    call = a_call(mask, length)
    wanted = definition(call, bias_of(table(mask, length, length)))
    rows: list[int] = []
    for block in call.blocks(size=size):
        rows += block.rows.tolist()
        assert len(block.rows) <= size
        found = torch.zeros(4, len(block.rows), length)
        found[..., block.keys] = block.weights()
        assert near(found, wanted[:, block.rows])
    assert rows == list(range(length))


def test_more_rows_than_a_block() -> None:
    call = a_call(AttentionMask(causal=True, window=50), 300)
    assert near(call.weights(), definition(call, bias_of(table(call.mask, 300, 300))))


def test_chosen_rows_and_heads(mask: AttentionMask) -> None:
    call = a_call(mask)
    wanted = definition(call, bias_of(table(mask, N, N)))
    rows, heads = torch.tensor([0, 3, 4, 10]), torch.tensor([3, 0, 3])
    assert near(call.weights(rows), wanted[:, rows])
    assert near(call.weights(rows, heads), wanted[heads][:, rows])
    assert near(call.weights(heads=heads), wanted[heads])
    assert call.weights(rows[:0]).shape == (4, 0, N)


def autograds(call: AttentionCall, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of some scalar of the output: by the output, and by weights that stand as a tensor of their own."""
    weights = definition(call, bias).requires_grad_()
    output = weights @ shared(call, call.value)
    output.retain_grad()
    (output.sin() * torch.arange(1.0, output.numel() + 1).view(output.shape)).sum().backward()
    assert output.grad is not None
    assert weights.grad is not None
    return output.grad, weights.grad


def test_gradients_are_autograds(mask: AttentionMask) -> None:
    call = a_call(mask)
    allowed = table(mask, N, N)
    by_output, by_weights = autograds(call, bias_of(allowed))
    found = call.with_gradient(by_output.float()).weight_gradients()
    unit = by_weights.abs().max()
    assert near(found / unit, by_weights.masked_fill(~allowed, 0.0) / unit)
    assert not found[:, ~allowed].any()
    rows, heads = torch.tensor([1, 9]), torch.tensor([2, 1])
    chosen = call.with_gradient(by_output.float()).weight_gradients(rows, heads)
    assert torch.allclose(chosen, found[heads][:, rows], atol=1e-6 * float(unit))


@pytest.mark.parametrize("heads", [1, 4])
def test_gradients_under_an_additive_mask(heads: int) -> None:
    bias = bias_per_head(N, N)[:heads]
    call = a_call(AttentionMask(dense=bias), softcap=3.0)
    by_output, by_weights = autograds(call, bias)
    found = call.with_gradient(by_output.float()).weight_gradients()
    hidden = (bias == -torch.inf).expand(4, N, N)
    unit = by_weights.abs().max()
    assert near(found / unit, by_weights.masked_fill(hidden, 0.0) / unit)
    assert not found[hidden].any()


def test_a_query_that_sees_nothing_is_zero_not_nan() -> None:
    for mask in (
        AttentionMask(causal=True, start=4),
        AttentionMask(dense=torch.full((1, N, N), -torch.inf)),
    ):
        weights = a_call(mask).weights()
        assert not weights[:, :4].any()
        assert not weights.isnan().any()


def test_nan_of_the_model_is_not_hidden() -> None:
    """A float16 model that overflowed must not look like one that attends to nothing."""
    call = a_call(AttentionMask(causal=True, start=2))
    broken = call.query.clone()
    broken[1, 5, 0] = torch.nan
    weights = replace(call, query=broken).weights()
    assert weights[1, 5].isnan().any()
    weights[1, 5] = call.weights()[1, 5]
    assert torch.equal(weights, call.weights())


def test_without_a_gradient_there_is_an_error() -> None:
    with pytest.raises(
        TraceError, match=r"language.layers.0.attention has no gradient .*Capture\(targets="
    ):
        a_call(AttentionMask()).weight_gradients()


def test_heads_must_share_evenly() -> None:
    three = torch.zeros(3, N, 3)
    with pytest.raises(CaptureError, match=r"vision.layers.7.attention: 3 query heads .* 2 key"):
        AttentionCall("vision", 7, three, three[:2], three[:2], 1.0, AttentionMask())


# Masks -----------------------------------------------------------------------------------------------------

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"bool": lambda allowed: allowed}
for _dtype in DTYPES:
    for _never in (-torch.inf, torch.finfo(_dtype).min):
        FORMS[f"{_dtype}, {_never}"] = lambda allowed, dtype=_dtype, never=_never: torch.zeros(
            allowed.shape, dtype=dtype
        ).masked_fill(~allowed, never)


@st.composite
def known_kinds(draw: st.DrawFn) -> dict[str, Any]:
    """N, M and a mask that describe_mask promises a short description of."""
    queries = draw(st.integers(1, 12))
    if draw(st.booleans()):
        keys = draw(st.integers(1, 12))
        start = draw(st.integers(0, keys - 1))
        stop = draw(st.none() | st.integers(start + 1, keys))
        return {"queries": queries, "keys": keys, "start": start, "stop": stop}
    start = draw(st.just(0) | st.integers(0, queries - 1))
    fields = {"queries": queries, "keys": queries, "causal": True, "start": start}
    fields["window"] = draw(st.none() | st.integers(1, queries + 1))
    if draw(st.booleans()):
        fields["prefix"] = draw(st.integers(0, queries))
    else:
        fields["stop"] = draw(st.none() | st.integers(start + 1, queries))
    return fields


@st.composite
def any_rules(draw: st.DrawFn) -> dict[str, Any]:
    """N, M and any rules at once, sensible or not."""
    queries, keys = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    cuts = draw(st.lists(st.integers(1, 13), max_size=3))
    return {
        "queries": queries,
        "keys": keys,
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 15)),
        "prefix": draw(st.just(0) | st.integers(0, 14)),
        "segments": (*cuts, 14) if cuts else (),
        "start": draw(st.just(0) | st.integers(0, keys - 1)),
        "stop": draw(st.none() | st.integers(1, keys)),
    }


def built(fields: dict[str, Any]) -> tuple[AttentionMask, int, int]:
    """Not inside a strategy: runtime type checks draw random numbers, which hypothesis forbids there."""
    rules = {name: value for name, value in fields.items() if name not in ("queries", "keys")}
    return AttentionMask(**rules), fields["queries"], fields["keys"]


@EXAMPLES
@given(known_kinds(), st.sampled_from(sorted(FORMS)))
def test_known_kinds_are_described_shortly(fields: dict[str, Any], form: str) -> None:
    mask, queries, keys = built(fields)
    allowed = table(mask, queries, keys)
    found = describe_mask(FORMS[form](allowed)[None, None], queries, keys)
    assert found.dense is None
    assert torch.equal(table(found, queries, keys), allowed)


@EXAMPLES
@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.sampled_from(sorted(FORMS)))
def test_any_mask_is_described_exactly(
    data: st.DataObject, queries: int, keys: int, form: str
) -> None:
    row = st.lists(st.booleans(), min_size=keys, max_size=keys)
    allowed = torch.tensor(data.draw(st.lists(row, min_size=queries, max_size=queries)))
    found = describe_mask(FORMS[form](allowed)[None, None], queries, keys)
    if found.dense is None:
        assert torch.equal(table(found, queries, keys), allowed)
    else:
        assert torch.equal(found.dense, bias_of(allowed)[None].float())
        assert found == replace(AttentionMask(), dense=found.dense)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (MASKS["all"], AttentionMask()),
        (MASKS["causal"], MASKS["causal"]),
        (MASKS["window"], MASKS["window"]),
        (MASKS["wide window"], MASKS["causal"]),
        (MASKS["prefix"], MASKS["prefix"]),
        (MASKS["prefix and window"], MASKS["prefix and window"]),
        (MASKS["all prefix"], AttentionMask()),
        (MASKS["left padding"], MASKS["left padding"]),
        (MASKS["right padding"], MASKS["right padding"]),
        (MASKS["left padding, causal"], MASKS["left padding, causal"]),
        (MASKS["right padding, causal window"], MASKS["right padding, causal window"]),
        (AttentionMask(start=4, stop=5), AttentionMask(start=4, stop=5)),
        (AttentionMask(stop=1), AttentionMask(stop=1)),
        (ONE_KEY, ONE_KEY),
        (MASKS["packed"], MASKS["packed"]),
        (MASKS["packed causal"], MASKS["packed causal"]),
    ],
)
def test_description_in_numbers(form: str, mask: AttentionMask, said: AttentionMask) -> None:
    assert describe_mask(FORMS[form](table(mask, N, N)), N, N) == said


def test_irregular_masks_stay_dense() -> None:
    allowed = table(MASKS["packed"], N, N)
    allowed[0, -1] = True
    found = describe_mask(allowed[None, None], N, N)
    assert found.dense is not None
    assert torch.equal(found.dense, bias_of(allowed)[None].float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_biases_come_back_as_they_were(dtype: torch.dtype) -> None:
    bias = bias_per_head(N, N + 3).to(dtype)
    found = describe_mask(bias[None], N, N + 3).dense
    assert found is not None
    assert torch.equal(found, bias.float())
    lowest = bias.clone().masked_fill_(bias == -torch.inf, torch.finfo(dtype).min)
    again = describe_mask(lowest[None], N, N + 3).dense
    assert again is not None
    assert torch.equal(again, found)
    one = describe_mask(bias[None, :1], N, N + 3).dense
    assert one is not None
    assert torch.equal(one, found[:1])


def test_one_small_bias_is_not_lost() -> None:
    bias = bias_of(table(AttentionMask(causal=True), N, N)).float()
    bias[6, 2] = 1e-6
    found = describe_mask(bias, N, N).dense
    assert found is not None
    assert torch.equal(found[0], bias)


def test_heads_that_differ_in_one_entry_stay_apart() -> None:
    allowed = table(AttentionMask(causal=True), N, N).repeat(4, 1, 1)
    assert describe_mask(allowed[None], N, N).dense is None
    allowed[2, 7, 1] = False
    found = describe_mask(allowed[None], N, N).dense
    assert found is not None
    assert torch.equal(found, bias_of(allowed).float())


def test_columns_beyond_the_keys_are_cropped() -> None:
    """A model with a static cache hands over a mask for every position that the cache could hold."""
    wide = table(AttentionMask(causal=True), N, N + 6)
    assert describe_mask(wide[None, None], N, N) == AttentionMask(causal=True)


@pytest.mark.parametrize("form", FORMS)
def test_one_row_for_all_queries(form: str) -> None:
    """``[B 1 1 M]``, as encoders of the BERT kind make it."""
    row = FORMS[form](torch.arange(N) < 8)[None, None, None]
    assert describe_mask(row, N, N) == AttentionMask(stop=8)
    holes = FORMS[form](torch.arange(N) % 3 > 0)[None, None, None]
    call = a_call(describe_mask(holes, N, N))
    allowed = (torch.arange(N) % 3 > 0).expand(N, N)
    assert near(call.weights(), definition(call, bias_of(allowed)))


@EXAMPLES
@given(any_rules())
def test_rules_are_those_of_the_words(fields: dict[str, Any]) -> None:
    mask, queries, keys = built(fields)
    found = mask.allowed(torch.arange(queries), slice(0, keys))
    wanted = table(mask, queries, keys)
    assert torch.equal(torch.ones_like(wanted) if found is None else found, wanted)
    assert AttentionMask.from_json(json.loads(json.dumps(mask.to_json()))) == mask


@EXAMPLES
@given(any_rules(), st.data())
def test_key_range_cuts_no_key_off(fields: dict[str, Any], data: st.DataObject) -> None:
    mask, queries, keys = built(fields)
    first = data.draw(st.integers(0, queries - 1))
    last = data.draw(st.integers(first, queries - 1))
    found = mask.key_range(first, last, keys)
    assert 0 <= found.start < found.stop <= keys
    outside = [k for k in range(keys) if not found.start <= k < found.stop]
    assert not any(sees(mask, q, k) for q in range(first, last + 1) for k in outside)


def test_key_range_cuts_no_key_off_exhaustively() -> None:
    windows, prefixes, segments = (None, 1, 3), (0, 2, 5), ((), (2, 4), (1, 3, 2))
    for window, prefix, cuts, stop in product(windows, prefixes, segments, (None, 5)):
        mask = AttentionMask(True, window, prefix, cuts, start=1, stop=stop)
        pairs = [(q, k) for q in range(6) for k in range(6) if sees(mask, q, k)]
        for first, last in combinations_with_replacement(range(6), 2):
            found = mask.key_range(first, last, 6)
            assert all(found.start <= k < found.stop for q, k in pairs if first <= q <= last)


@settings(EXAMPLES, max_examples=60)
@given(any_rules(), st.data())
def test_scattered_rows_under_any_rules(fields: dict[str, Any], data: st.DataObject) -> None:
    mask, queries, keys = built(fields)
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, queries - 1), min_size=1))))
    call = a_call(mask, queries, keys)
    wanted = definition(call, bias_of(table(mask, queries, keys)))
    assert near(call.weights(rows), wanted[:, rows])


@pytest.mark.parametrize("name", ["all", "causal", "window", "packed causal", "right padding"])
@pytest.mark.parametrize("rows", [(0, 0), (2, 4), (5, 10), (0, 10)])
def test_key_range_is_no_longer_than_needed(name: str, rows: tuple[int, int]) -> None:
    seen = table(MASKS[name], N, N)[rows[0] : rows[1] + 1].any(0).nonzero().flatten()
    wanted = slice(int(seen[0]), int(seen[-1]) + 1)
    assert MASKS[name].key_range(*rows, N) == wanted


def test_dense_part_goes_beside_the_json() -> None:
    dense = bias_per_head(3, 4)
    data = json.loads(json.dumps(AttentionMask(dense=dense, start=1).to_json()))
    assert data["dense"] is True
    again = AttentionMask.from_json(data, dense)
    assert again.dense is dense
    assert again.start == 1
