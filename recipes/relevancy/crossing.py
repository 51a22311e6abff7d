"""Relevance across a cross-attention (rules 6, 10 and 11 of Chefer, Gur & Wolf 2021), by rows.

Tokens that attend to themselves and to a context (a Q-Former's queries to an image's patches, a language model's words
to an image) carry two matrices: R of token to token, and C of token to context. With ``R̄`` the matrix whose rows are
divided by their sums, the identity kept apart,

    self-attention:   R ← R + Ā R,   C ← C + Ā C
    cross-attention:  C ← C + R̄ᵀ Ā R̄_context

A row r of what follows, times C, needs neither: going down the layers, r takes up ``r ← r + r Ā`` at a self-attention;
at a cross-attention ``(r R̄ᵀ) Ā`` is added to a row over the context. ``r R̄ᵀ`` is the column ``R̄ rᵀ``, and R times a column is
made from the layers below, first one first; so are the sums of its rows, which are R times a column of ones. What this
costs is that the factors of all layers must be at hand at once: they grow as N · d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.errors import CaptureError
from lvlm_probe.recipes.relevancy.push import Push, pull, sweep

__all__ = ["across", "places_of_queries", "through_normalized"]


def across(
    rows: Float[Tensor, "K T"],
    calls: Sequence[AttentionCall],
    crossing: Sequence[int] | None = None,
    starting: Callable[[Float[Tensor, "K T"], AttentionCall], Float[Tensor, "K T"]] | None = None,
) -> tuple[Float[Tensor, "K T"], Float[Tensor, "K P"] | None]:
    """Rows of relevance on tokens, taken through the tokens' own layers and across to their context.

    Args:
        rows: What follows the last layer, identity included.
        calls: Of self-attention and of cross-attention, with their gradients, in the order in which the model runs them.
        crossing: Which tokens attend to the context, in order; all by default.
        starting: Rows as they are when a call is reached, where some start later than others.

    Returns:
        The rows on the tokens before the first layer, and on the context; None where no call crosses.
    """
    onto: Tensor | None = None
    for number in reversed(range(len(calls))):
        call = calls[number]
        rows = rows.to(call.query.device)
        if starting is not None:
            rows = starting(rows, call)
        own, context = _sides(call)
        if context is not None:
            below = [lower for lower in calls[:number] if not lower.cross]
            turned = _normalized_columns(rows.T, below).T
            attending = turned if crossing is None or own is not None else turned[:, list(crossing)]
            gained = _pushed(attending, call)[:, context]
            onto = gained if onto is None else onto.to(gained.device) + gained
        if own is not None:
            rows = rows + _pushed(rows, call)[:, own]
    return rows, onto


def places_of_queries(calls: Sequence[AttentionCall], tokens: int) -> list[int]:
    """Where a projector's queries stand among its tokens: first in each image's segment, before any text.

    Args:
        calls: The projector's.
        tokens: How many visual tokens the prompt has.

    Raises:
        CaptureError: If they are not as many as the visual tokens.
    """
    own = next((call for call in calls if not call.cross), None)
    cross = next((call for call in calls if call.cross), own)
    if own is None or cross is own:
        return list(range(tokens))
    assert cross is not None
    segments = own.mask.segments or (own.queries,)
    each = cross.queries // len(segments)
    if each * len(segments) != tokens:
        raise CaptureError(
            f"the projector has {each} queries for each of {len(segments)} images, the prompt {tokens} visual tokens: "
            "mend the adapter's layout"
        )
    begin, places = 0, list[int]()
    for length in segments:
        places += range(begin, begin + each)
        begin += length
    return places


def _sides(call: AttentionCall) -> tuple[Tensor | slice | None, Tensor | slice | None]:
    """Which of a call's keys are the tokens themselves, and which are their context.

    Some attend to both at once: resamplers, where in each segment the context's keys come first and the tokens' own
    last; and decoders, whose own come first.
    """
    if call.cross:
        return None, slice(None)
    if call.keys == call.queries:
        return slice(None), None
    device = call.query.device
    own: list[int] = []
    first = 0
    if call.tower == "language":
        inside = torch.arange(call.keys, device=device) < call.queries
        return inside, ~inside
    segments = call.mask.segments or (call.queries,)
    for queries, keys in zip(segments, call.mask.key_segments or (call.keys,), strict=True):
        own += range(first + keys - queries, first + keys)
        first += keys
    inside = torch.zeros(call.keys, dtype=torch.bool, device=device)
    inside[own] = True
    return inside, ~inside


def through_normalized(
    rows: Float[Tensor, "K P"], calls: Sequence[AttentionCall]
) -> Float[Tensor, "K P"]:
    """``rows R̄``, with R of these calls.

    Args:
        rows: On the last layer's tokens.
        calls: Of self-attention, with their gradients, first layer first.
    """
    if not calls:
        return rows
    sums = _sums(calls).to(rows.device)
    shares = rows / sums.masked_fill(sums == 0, 1.0)
    shares = shares.masked_fill((sums == 0)[None], 0.0)
    learned = torch.zeros_like(shares)  # shares (R - I), the identity kept apart
    for call in reversed(calls):
        learned = learned + _pushed(shares + learned, call)
    return rows + learned


def _sums(calls: Sequence[AttentionCall]) -> Float[Tensor, " T"]:
    """Sums of the rows of R - I."""
    ones = torch.ones(calls[0].queries, 1, device=calls[0].query.device)
    return _learned_columns(ones, calls)[:, 0]


def _learned_columns(
    columns: Float[Tensor, "T K"], calls: Sequence[AttentionCall]
) -> Float[Tensor, "T K"]:
    """``(R - I) columns``, first layer first."""
    learned = torch.zeros_like(columns)
    for call in calls:
        own, _ = _sides(call)
        whole = columns + learned
        if call.keys != call.queries:
            whole = whole.new_zeros(call.keys, whole.shape[1])
            whole[own] = columns + learned
        learned = learned + pull(whole, call)
    return learned


def _normalized_columns(
    columns: Float[Tensor, "T K"], calls: Sequence[AttentionCall]
) -> Float[Tensor, "T K"]:
    """``R̄ columns``."""
    if not calls:
        return columns
    both = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
    learned = _learned_columns(both, calls)
    sums = learned[:, -1:]
    return columns + (learned[:, :-1] / sums.masked_fill(sums == 0, 1.0)).masked_fill(
        sums == 0, 0.0
    )


def _pushed(rows: Float[Tensor, "K N"], call: AttentionCall) -> Float[Tensor, "K M"]:
    push = Push.begin(rows, call, heads=False)
    sweep([push])
    return push.gained
