"""Which keys each query may attend to, said as shortly as it can be.

A mask that a model builds is N × N; what it says is mostly a few numbers: causal, a window, a prefix, sequences laid end to
end, padding. Only what these cannot say is kept as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["AttentionMask", "describe_batch", "describe_mask", "end_to_end"]


_NEVER = -9e3


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which keys each query may attend to, said as shortly as it can be.

    Attributes:
        causal: A query sees no later key; query i stands at key position i.
        window: With ``causal``, a query sees this many keys, itself included.
        prefix: With ``causal``, the first ``prefix`` keys are seen by every one of the first ``prefix`` queries.
        segments: Lengths of sequences laid end to end; a query sees its own segment only.
        key_segments: Lengths of the segments along the keys, where those are other tokens than the queries; the same
            lengths as along the queries if empty.
        limits: Which keys of its own segment a query sees, from and to, counted within that segment; all of them if
            empty. So padding is said where each segment has its own.
        start: Keys before this one are padding.
        stop: Keys from this one on are padding.
        dense: Added to the scores as it stands, one for all heads or one a head; set only where nothing
            shorter says it.
    """

    causal: bool = False
    window: int | None = None
    prefix: int = 0
    segments: tuple[int, ...] = ()
    key_segments: tuple[int, ...] = ()
    limits: tuple[tuple[int, int], ...] = ()
    start: int = 0
    stop: int | None = None
    dense: Float[Tensor, "_ N M"] | None = None

    def allowed(self, queries: Int[Tensor, " Q"], keys: slice) -> Bool[Tensor, "Q M"] | None:
        """Which of ``keys`` each of ``queries`` may see; None where it sees all of them. Ignores ``dense``."""
        q = queries[:, None]
        k = torch.arange(keys.start, keys.stop, device=queries.device)[None, :]
        rules: list[Tensor] = []
        if self.causal:
            seen = k <= q
            if self.window is not None:
                seen = seen & (k > q - self.window)
            if self.prefix:
                seen = seen | ((k < self.prefix) & (q < self.prefix))
            rules.append(seen)
        if self.segments:
            own = torch.tensor(self.segments, device=queries.device).cumsum(0)
            others = torch.tensor(self._along_keys, device=queries.device).cumsum(0)
            of_key = torch.bucketize(k, others, right=True)
            rules.append(torch.bucketize(q, own, right=True) == of_key)
            if self.limits:
                limits = torch.tensor(self.limits, device=queries.device)[of_key]
                place = k - (others - others.diff(prepend=others.new_zeros(1)))[of_key]
                rules.append((place >= limits[..., 0]) & (place < limits[..., 1]))
        if self.start:
            rules.append(k >= self.start)
        if self.stop is not None:
            rules.append(k < self.stop)
        if not rules:
            return None
        allowed = rules[0]
        for rule in rules[1:]:
            allowed = allowed & rule
        return allowed.expand(len(queries), keys.stop - keys.start)

    def key_range(self, first: int, last: int, keys: int) -> slice:
        """The shortest run of keys outside which no query from ``first`` to ``last`` sees anything."""
        low, high = self.start, keys if self.stop is None else min(self.stop, keys)
        if self.dense is not None:
            return slice(low, high)
        if self.causal:
            high = min(high, max(last + 1, self.prefix if first < self.prefix else 0))
            if self.window is not None and not self.prefix:
                low = max(low, first - self.window + 1)
        for begin, end, low_key, high_key in self._segments():
            if begin <= first < end:
                low = max(low, low_key)
            if begin <= last < end:
                high = min(high, high_key)
        low = min(low, keys - 1)  # a run of one, hidden, key where nothing is seen
        return slice(low, max(high, low + 1))

    def open_range(self, first: int, last: int, keys: int) -> slice:
        """A run of keys that every query from ``first`` to ``last`` sees; empty where none is known."""
        low, high = self.start, keys if self.stop is None else min(self.stop, keys)
        if self.dense is not None:
            return slice(low, low)
        if self.causal:
            high = min(high, first + 1)
            if self.window is not None:
                low = max(low, last - self.window + 1)
        for begin, end, low_key, high_key in self._segments():
            if begin <= first < end:
                low = max(low, low_key)
                high = min(high, high_key) if last < end else low
        return slice(low, max(low, high))

    @property
    def _along_keys(self) -> tuple[int, ...]:
        return self.key_segments or self.segments

    def _segments(self) -> Iterator[tuple[int, int, int, int]]:
        """First query and one past the last of each segment, then the same of the keys that it sees."""
        query = key = 0
        limits = self.limits or [(0, keys) for keys in self._along_keys]
        for queries, keys, (low, high) in zip(self.segments, self._along_keys, limits, strict=True):
            yield query, query + queries, key + low, key + high
            query, key = query + queries, key + keys

    def spelt_out(self, queries: int, keys: int, device: torch.device) -> Float[Tensor, "_ N M"]:
        """The same as one tensor added to the scores: 0 where a key is seen, minus infinity where not."""
        if self.dense is not None:
            return self.dense
        seen = self.allowed(torch.arange(queries, device=device), slice(0, keys))
        bias = torch.zeros(1, queries, keys, device=device)
        return bias if seen is None else bias.masked_fill(~seen, -torch.inf)

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, without ``dense``, of which only the presence is told."""
        return {
            "causal": self.causal,
            "window": self.window,
            "prefix": self.prefix,
            "segments": list(self.segments),
            "key_segments": list(self.key_segments),
            "limits": [list(limit) for limit in self.limits],
            "start": self.start,
            "stop": self.stop,
            "dense": self.dense is not None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], dense: Tensor | None = None) -> AttentionMask:
        """What :meth:`to_json` wrote, with the dense mask that was stored beside it."""
        return cls(
            causal=data["causal"],
            window=data["window"],
            prefix=data["prefix"],
            segments=tuple(data["segments"]),
            key_segments=tuple(data.get("key_segments", ())),
            limits=tuple((low, high) for low, high in data.get("limits", ())),
            start=data["start"],
            stop=data["stop"],
            dense=dense,
        )


def describe_mask(mask: Tensor, queries: int, keys: int) -> AttentionMask:
    """The shortest description that allows exactly what ``mask`` allows.

    Args:
        mask: Boolean (true where a key is seen) or added to the scores; ``[..., N, M]``, or ``[..., 1, M]``
            for all queries alike, where one of the leading sides may be the heads'.
        queries: N.
        keys: M; a mask with more columns is cropped, as the kernels do.

    Returns:
        Causal, sliding-window, prefix and padding masks by their numbers; anything else with its dense form.
    """
    mask = mask[..., :queries, :keys]
    mask = mask.expand(*mask.shape[:-2], queries, keys).reshape(-1, queries, keys)
    if mask.dtype == torch.bool:
        allowed = mask
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    else:
        # Models write "never" as -inf, as the lowest number of their type or as -1e4; none leaves any weight.
        allowed = mask > _NEVER
        bias = mask.float().masked_fill(~allowed, -torch.inf)
    plain = bool((bias.masked_fill(~allowed, 0.0) == 0).all()) and bool(
        (allowed == allowed[:1]).all()
    )
    if plain:
        rows = torch.arange(queries, device=mask.device)
        for guess in _guesses(allowed[0]):
            said = guess.allowed(rows, slice(0, keys))
            if torch.equal(allowed[0], torch.ones_like(allowed[0]) if said is None else said):
                return guess
    return AttentionMask(dense=bias if not plain else bias[:1])


def _guesses(allowed: Bool[Tensor, "N M"]) -> Iterator[AttentionMask]:
    """The parameters that a mask of each known kind would have; the caller verifies them on every entry."""
    queries, keys = allowed.shape
    seen = allowed.any(0).nonzero().flatten()
    if len(seen) == 0:
        return
    start, stop = int(seen[0]), int(seen[-1]) + 1
    padded = AttentionMask(start=start, stop=None if stop == keys else stop)
    yield padded
    if queries != keys:
        return
    # Only a window lets the last query that sees anything miss the first key, or leaves later ones blind.
    last = int(allowed.any(1).nonzero()[-1])
    first = int(allowed[last].nonzero()[0])
    window = last - first + 1 if first > start or last < queries - 1 else None
    ahead = allowed[0].nonzero().flatten()  # more than itself in a prefix
    prefix = int(ahead[-1]) + 1 if len(ahead) else 0
    yield replace(padded, causal=True, window=window, prefix=prefix if prefix > 1 else 0)
    packed = _packed(allowed)
    yield AttentionMask(segments=packed)
    yield AttentionMask(causal=True, segments=packed)


def _packed(allowed: Bool[Tensor, "N N"]) -> tuple[int, ...]:
    """Lengths of the runs that would see themselves only: the first key of each is seen until its end."""
    lengths: list[int] = []
    start, size = 0, len(allowed)
    while start < size:
        seen = allowed[:, start].nonzero().flatten()
        stop = int(seen[-1]) + 1 if len(seen) else start + 1
        lengths.append(max(stop - start, 1))
        start += lengths[-1]
    return tuple(lengths)


def describe_batch(mask: Tensor, batch: int, queries: int, keys: int) -> AttentionMask:
    """A mask of several items, for these items laid end to end.

    Args:
        mask: As for :func:`describe_mask`, ``[B or 1, …, N, M]``.
        batch: B.
        queries: N, of each item.
        keys: M, of each item.
    """
    items = (
        mask.expand(batch, *mask.shape[1:])
        if mask.ndim == 4
        else mask[None].expand(batch, *mask.shape)
    )
    return end_to_end(
        [describe_mask(item, queries, keys) for item in items],
        [(queries, keys)] * batch,
        mask.device,
    )


def end_to_end(
    masks: Sequence[AttentionMask], sizes: Sequence[tuple[int, int]], device: torch.device
) -> AttentionMask:
    """The mask of several sequences laid end to end, none of which sees another.

    Args:
        masks: One a sequence.
        sizes: Queries and keys of each.
        device: For a dense mask, where nothing shorter says it.
    """
    if len(masks) == 1:
        return masks[0]
    if all(mask.dense is None for mask in masks):
        pieces = [
            piece for mask, size in zip(masks, sizes, strict=True) for piece in _pieces(mask, *size)
        ]
        causal = all(mask.causal for mask in masks)
        if None not in pieces and (causal or not any(mask.causal for mask in masks)):
            return _of_pieces([piece for piece in pieces if piece is not None], causal=causal)
    spelt = [mask.spelt_out(*size, device) for mask, size in zip(masks, sizes, strict=True)]
    heads = max(len(bias) for bias in spelt)
    whole = [sum(lengths) for lengths in zip(*sizes, strict=True)]
    dense = torch.full((heads, *whole), -torch.inf, device=device)
    query = key = 0
    for bias, (queries, keys) in zip(spelt, sizes, strict=True):
        dense[:, query : query + queries, key : key + keys] = bias
        query, key = query + queries, key + keys
    return AttentionMask(dense=dense)


_Piece = tuple[int, int, tuple[int, int]]  # queries, keys, and which of the keys are seen


def _pieces(mask: AttentionMask, queries: int, keys: int) -> list[_Piece | None]:
    """The segments that a mask without a dense part consists of; None where it says more than that."""
    if mask.window is not None or mask.prefix:
        return [None]
    stop = keys if mask.stop is None else mask.stop
    if not mask.segments:
        return [None if mask.causal and queries != keys else (queries, keys, (mask.start, stop))]
    if mask.start or stop != keys or mask.causal:
        return [None]
    along_keys = mask.key_segments or mask.segments
    limits = mask.limits or [(0, length) for length in along_keys]
    return list(zip(mask.segments, along_keys, limits, strict=True))


def _of_pieces(pieces: Sequence[_Piece], *, causal: bool) -> AttentionMask:
    segments = tuple(queries for queries, _, _ in pieces)
    along_keys = tuple(keys for _, keys, _ in pieces)
    whole = all(limits == (0, keys) for _, keys, limits in pieces)
    return AttentionMask(
        causal=causal,
        segments=segments,
        key_segments=() if along_keys == segments else along_keys,
        limits=() if whole else tuple(limits for _, _, limits in pieces),
    )
