"""Attention edges cut while the model runs: chosen queries no longer see chosen keys, in chosen heads.

As in attention knockout (Geva et al. 2023, arXiv:2304.14767): the cut scores are masked before the softmax, so the rest of the
row still sums to one. A query that sees nothing any more is given nothing: its heads give zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Kind, Swap

__all__ = ["Cut", "Edges"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Edges to cut in one attention module.

    Attributes:
        item: Of the batch.
        keys: Positions that are no longer seen, as the module counts its keys.
        queries: By these, as it counts its queries.
        onwards: And by every later query, as an answer grows.
        keys_onwards: From here on keys are cut, too.
        heads: All of them if None.
    """

    item: int
    keys: tuple[int, ...]
    queries: tuple[int, ...]
    onwards: int | None = None
    keys_onwards: int | None = None
    heads: tuple[int, ...] | None = None


@dataclass(eq=False)
class Edges:
    """The cuts at one attention module.

    Attributes:
        name: For messages.
        module: That attends.
        path: Of it.
        kind: How it attends.
        cross: Whether its keys are another tower's.
        cuts: What to cut.
    """

    name: str
    module: nn.Module
    path: str
    kind: Kind | None
    cross: bool
    cuts: Sequence[Cut]
    seen: int = field(default=0, init=False)
    blind: list[Tensor | None] = field(default_factory=list[Tensor | None], init=False)

    def swap(self) -> Swap:
        """For the attention function.

        Raises:
            CaptureError: If its scores cannot be reached.
        """
        if self.kind not in ("interface", "function"):
            raise CaptureError(
                f"{self.name}: edges cannot be cut in {type(self.module).__name__}, which calls neither transformers' "
                "attention function nor torch's; leave this layer out"
            )
        return Swap(self.path, self._entering, self._leaving, attention=True)

    def _entering(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = (
            ("module", "query", "key", "value", "attention_mask")
            if self.kind == "interface"
            else ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key = given["query"], given["key"]
        cut = self._cut(query, key)
        if cut is None:
            self.blind.append(None)
            return args, kwargs
        slot = names[4] if self.kind == "interface" else "attn_mask"
        mask = _additive(given.get(slot), query, key, causal=self._causal(given, query))
        given[slot] = mask.masked_fill(cut, torch.finfo(query.dtype).min)
        blind = (given[slot] <= torch.finfo(query.dtype).min).all(-1) & cut.any(-1)
        # A softmax over nothing would spread evenly; what it gives is taken away afterwards.
        self.blind.append(blind if bool(blind.any()) else None)
        if given.get("is_causal") is not None:
            given["is_causal"] = False  # the mask says it
        rest = names[len(args) :]
        return tuple(given[name] for name in names[: len(args)]), {
            name: value for name, value in given.items() if name in rest or name not in names
        }

    def _causal(self, given: dict[str, Any], query: Tensor) -> bool:
        if self.kind == "function":
            return bool(given.get("is_causal", False))
        kernel = getattr(getattr(self.module, "config", None), "_attn_implementation", None) or ""
        mask = given.get("attention_mask")
        if (
            "flash" in kernel
            or "flex" in kernel
            or (mask is not None and not isinstance(mask, Tensor))
        ):
            raise CaptureError(
                f"{self.name} attends by {kernel!r}, which takes no mask of edges: load the model with "
                "attn_implementation='sdpa'"
            )
        causal = given.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        # The eager kernel knows no flag: without a mask it attends everywhere.
        return bool(causal) and query.shape[-2] > 1 and kernel != "eager" and not self.cross

    def _cut(self, query: Tensor, key: Tensor) -> Bool[Tensor, "B H n m"] | None:
        """Which scores of this visit go.

        Raises:
            CaptureError: If a head is out of range.
        """
        batch, heads, count, keys = *query.shape[:2], query.shape[-2], key.shape[-2]
        start = self.seen if count == 1 else 0
        self.seen = start + count
        whole = torch.zeros(batch, heads, count, keys, dtype=torch.bool, device=query.device)
        for cut in self.cuts:
            rows = _flags(cut.queries, cut.onwards, start + count)[start:].to(query.device)
            columns = _flags(cut.keys, cut.keys_onwards, keys).to(query.device)
            edges = rows[:, None] & columns[None, :]
            if cut.heads is None:
                whole[cut.item] |= edges
                continue
            if any(not -heads <= head < heads for head in cut.heads):
                raise CaptureError(
                    f"{self.name}: heads {list(cut.heads)} are out of range: there are {heads}, from 0"
                )
            for head in cut.heads:
                whole[cut.item, head] |= edges
        return whole if bool(whole.any()) else None

    def _leaving(self, value: Any) -> Any:
        blind = self.blind.pop()
        if blind is None:
            return value
        output = value[0] if isinstance(value, tuple) else value
        if self.kind == "interface":
            blind = blind.transpose(-1, -2)
        output = output.masked_fill(blind[..., None], 0.0)
        return (output, *value[1:]) if isinstance(value, tuple) else output


def _flags(chosen: Sequence[int], onwards: int | None, count: int) -> Bool[Tensor, " n"]:
    flags = torch.zeros(count, dtype=torch.bool)
    flags[[index for index in chosen if index < count]] = True
    if onwards is not None:
        flags[onwards:] = True
    return flags


def _additive(
    mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool
) -> Float[Tensor, "B H n m"]:
    """What is added to the scores, spelt out for every head."""
    shape = (*query.shape[:2], query.shape[-2], key.shape[-2])
    low = torch.finfo(query.dtype).min
    if mask is None:
        added = query.new_zeros(shape)
        if causal:
            hidden = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).triu(1)
            added = added.masked_fill(hidden, low)
        return added
    if mask.dtype == torch.bool:
        added = query.new_zeros(mask.shape).masked_fill(~mask, low)
    else:
        added = mask.to(query.dtype).clamp(min=low)
    return added[..., : shape[-1]].expand(shape)
