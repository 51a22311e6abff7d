"""Values written into a forward pass: other rows in the place of those that the model computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Inputs, Swap
from lvlm_probe.places import Place

__all__ = ["Change", "Write", "Writes", "hidden_of"]

Change = Callable[[Tensor, Sequence[int]], Tensor]
"""From rows [K D] (or [K H d]) and the positions that they are at, to the rows that take their place."""


@dataclass(frozen=True, eq=False, slots=True)
class Write:
    """Rows of one place to be replaced.

    Attributes:
        place: Where.
        indices: Which rows, as the place counts them.
        change: What they become.
        onwards: Every row from here on is changed, too.
        heads: Only these heads' parts of them; all if None.
        said: For messages.
    """

    place: Place
    indices: tuple[int, ...]
    change: Change
    onwards: int | None = None
    heads: tuple[int, ...] | None = None
    said: str = ""


@dataclass(eq=False)
class Writes:
    """All writes at one place, for one run.

    Attributes:
        place: Where.
        writes: What to change in which item of the batch, in this order.
        batch: Items.
        cycle: After so many rows they start again: where one run visits the place several times, once an image.
        applied: Of each write, the rows that came by.
    """

    place: Place
    writes: Sequence[tuple[int, Write]]
    batch: int = 1
    cycle: int | None = None
    applied: list[set[int]] = field(default_factory=list[set[int]], init=False)
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.applied = [set() for _ in self.writes]

    def swap(self) -> Swap:
        """For the module, or the attention function that it calls."""
        if self.place.entering:
            return Swap(self.place.path, entering=self._entering)
        return Swap(self.place.path, leaving=self._changed, attention=self.place.kind is not None)

    def missing(self, before: int | None = None) -> str | None:
        """The first write of which a row did not come by, in words.

        Args:
            before: Count only rows before this one.
        """
        for (_, write), applied in zip(self.writes, self.applied, strict=True):
            wanted = {index for index in write.indices if before is None or index < before}
            if wanted - applied or (not write.indices and not applied):
                return f"{write.said} ({len(applied)} of {len(write.indices)} positions came by)"
        return None

    def _entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        name = hidden_of(args, kwargs)
        if name is None:
            return (self._changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, name: self._changed(kwargs[name])}

    def _changed(self, value: Any) -> Any:
        rows = self.place.rows(value, self.batch)
        start = self._start(rows.shape[1])
        new: Tensor | None = None
        for number, (item, write) in enumerate(self.writes):
            here = _between(write, start, start + rows.shape[1])
            if not here:
                continue
            self.applied[number] |= set(here)
            new = rows.clone() if new is None else new
            at = torch.tensor(here, device=rows.device) - start
            new[item, at] = _with_heads(write, new[item, at], here)
        return value if new is None else self.place.put(value, new)

    def _start(self, count: int) -> int:
        """The first row's index: an answer grows by one row a step, else a visit starts anew."""
        if self.cycle is not None:
            start = 0 if self.seen >= self.cycle else self.seen
        else:
            start = self.seen if count == 1 else 0
        self.seen = start + count
        return start


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The keyword under which a layer is given its tokens; None if they come first, without one.

    Raises:
        CaptureError: If it is given none.
    """
    if args and isinstance(args[0], Tensor):
        return None
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return name
    raise CaptureError("a layer was called without a tensor of tokens: take its residual.output")


def _between(write: Write, start: int, stop: int) -> list[int]:
    here = [index for index in write.indices if start <= index < stop]
    if write.onwards is not None:
        here += range(max(start, write.onwards, *(i + 1 for i in write.indices[-1:])), stop)
    return here


def _with_heads(write: Write, rows: Tensor, here: Sequence[int]) -> Tensor:
    changed = write.change(rows, here).to(rows)
    if write.heads is None:
        return changed
    if any(not -rows.shape[1] <= head < rows.shape[1] for head in write.heads):
        raise CaptureError(
            f"{write.said}: heads {list(write.heads)} are out of range: there are {rows.shape[1]}, from 0"
        )
    # torch.where keeps the others' bits, and their gradient.
    chosen = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    chosen[list(write.heads)] = True
    return torch.where(chosen[:, None], changed, rows)
