"""Adapters whose layout is wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lvlm_probe.adapter import Adapter, SourceSequence
from lvlm_probe.layout import ImageSpan, PatchGrid, TokenLayout


def moved(layout: TokenLayout, change: Callable[[ImageSpan], ImageSpan]) -> TokenLayout:
    return replace(layout, images=tuple(change(span) for span in layout.images))


def shifted(span: ImageSpan) -> ImageSpan:
    """One position later."""
    tokens = tuple(replace(grid, start=grid.start + 1) for grid in span.tokens)
    return replace(span, start=span.start + 1, stop=span.stop + 1, tokens=tokens)


def transposed(span: ImageSpan) -> ImageSpan:
    """Column by column."""
    return replace(span, tokens=tuple(_transposed(grid) for grid in span.tokens))


def _transposed(grid: PatchGrid) -> PatchGrid:
    across = [
        grid.positions[r * grid.columns + c] for c in range(grid.columns) for r in range(grid.rows)
    ]
    # As many rows and columns as before: only where each token lies changes.
    return PatchGrid(
        grid.start, grid.rows, grid.columns, grid.box, 0, tuple(p - grid.start for p in across)
    )


def false_layout(adapter: Adapter, change: Callable[[ImageSpan], ImageSpan]) -> Adapter:
    def layout(source: SourceSequence) -> TokenLayout:
        return moved(adapter.layout(source), change)

    return replace(adapter, layout=layout)
