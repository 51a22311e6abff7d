"""The language model's heads: what each attends to where an answer token is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.report.packing import packed, packed_parts
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

__all__ = ["crosses", "heads_of"]


def crosses(trace: Trace) -> bool:
    """Whether words attend across to the vision encoder, so that the image has no positions among them."""
    across = any(name.endswith(".cross_attention") for name in trace.sites("language"))
    return across and not trace.layout.encoder_length


def heads_of(
    trace: Trace,
    targets: Sequence[Target],
    text: Sequence[int],
    budget: int,
    missing: list[dict[str, str]],
) -> dict[str, Any] | None:
    """Attention of each head, of every target.

    Args:
        trace: With the language model's attention.
        targets: Each is looked at where it is predicted.
        text: Positions of the words.
        budget: Bytes that the maps may take; of each target, those heads have one that attend most to the image.
        missing: Gains a word if there is no attention, or it cannot be rebuilt.

    Returns:
        For each target the heads' attention to the image, ``totals`` [L H], and maps of some or all of them.
    """
    names = [name for name in trace.sites("language") if trace.layout.images]
    if not names:
        why = "no attention of the language model" if trace.layout.images else "no image"
        missing.append({"what": "heads", "why": f"the trace holds {why}"})
        return None
    across = crosses(trace)
    grids = [list(s.patches if across else s.tokens) for s in trace.layout.images]
    cells = [p for each in grids for grid in each for p in grid.positions]
    spans = trace.layout.images
    image = cells if across else [p for s in spans for p in s.positions]
    try:
        sites = {name: _attention(trace, name, targets) for name in names}
    except LvlmProbeError as error:
        missing.append({"what": "heads", "why": str(error)})
        return None
    columns = len(text) + len(cells)
    most = max(1, budget // max(1, columns * len(targets)))
    labels = [_label(name) for name in names]
    made: list[dict[str, Any]] = []
    widest = max(len(rows[0]) for rows in sites.values())
    for number in range(len(targets)):
        totals = torch.zeros(len(names), widest)
        maps: list[tuple[int, int, Tensor]] = []
        for layer, name in enumerate(names):
            rows = sites[name][number]
            is_cross = across and name.endswith(".cross_attention")
            to_image = _columns(rows, image, seen=is_cross or not across)
            totals[layer, : len(rows)] = to_image.sum(1)
            placed = _columns(rows, cells, seen=is_cross or not across)
            worded = _columns(rows, text, seen=not is_cross)
            both = torch.cat([worded, placed], dim=1)
            maps += [(layer, head, row) for head, row in enumerate(both)]
        kept = sorted(maps, key=lambda one: -float(totals[one[0], one[1]]))[:most]
        made.append(
            {
                "totals": packed(totals),
                "which": [[layer, head] for layer, head, _ in kept],
                "maps": packed_parts(torch.stack([row for _, _, row in kept]), len(text), 8),
            }
        )
    return {
        "labels": labels,
        "heads": widest,
        "images": [{"grids": [_place(grid) for grid in each], "why": _why(each)} for each in grids],
        "results": made,
    }


def _attention(trace: Trace, name: str, targets: Sequence[Target]) -> list[Float[Tensor, "H M"]]:
    """A row along N (or P, across) for each target: the mean over its tokens."""
    call = trace.site(name)
    first, across = trace.layout.encoder_length, name.endswith(".cross_attention")
    found: list[Tensor] = []
    for target in targets:
        rows = [trace.layout.answer_start + i - 1 - first for i in target.indices]
        weights = _weights(call, rows)
        if first:  # keys are the decoder's, or the encoder's
            room = torch.zeros(len(weights), trace.layout.length)
            start = 0 if across else first
            room[:, start : start + weights.shape[1]] = weights
            weights = room
        found.append(weights)
    return found


def _weights(call: AttentionCall, rows: Sequence[int]) -> Float[Tensor, "H M"]:
    return call.weights(torch.tensor(list(rows)), None).mean(1).float().cpu()


def _columns(rows: Float[Tensor, "H M"], wanted: Sequence[int], *, seen: bool) -> Tensor:
    """Some columns of the rows; zeros where this call does not look there."""
    return rows[:, list(wanted)] if seen else torch.zeros(len(rows), len(wanted))


def _label(name: str) -> str:
    _, _, layer, kind = name.split(".")
    return f"{layer} ×" if kind == "cross_attention" else layer


def _place(grid: PatchGrid) -> dict[str, Any]:
    box = [grid.box.left, grid.box.top, grid.box.right, grid.box.bottom]
    return {"box": box, "rows": grid.rows, "columns": grid.columns}


def _why(grids: Sequence[PatchGrid]) -> str:
    if grids:
        return ""
    return "the visual tokens are queries, each of which saw the whole image, so that attention to them shows no place"
