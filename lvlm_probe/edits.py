"""What edits are made of, and how a forward pass runs with them; :mod:`lvlm_probe.intervene` is how users make them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.edges import Cut, Edges
from lvlm_probe.errors import CaptureError, LayoutError
from lvlm_probe.forward import logits_of as logits_in
from lvlm_probe.forward import run_model
from lvlm_probe.hooks import Swap, Tap, attention_kind, observed, swapped, untouched
from lvlm_probe.places import Place, place_of
from lvlm_probe.positions import Where, positions_of
from lvlm_probe.writes import Change, Write, Writes, hidden_of

if TYPE_CHECKING:
    from lvlm_probe.case import Case

__all__ = [
    "Change",
    "Edit",
    "Knockout",
    "activations",
    "added",
    "answer_logits",
    "averaged",
    "cuts_between",
    "edited",
    "filled",
    "first_row",
    "logits_of",
    "patched",
    "prompt_of",
    "rows_of",
    "run_edited",
    "write_at",
    "zeroed",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knockout:
    """Edges to cut.

    Attributes:
        layers: Of the language model.
        own: Cuts where tokens attend to themselves.
        cross: Cuts where they attend to another tower's; None if nothing of it is named.
        said: For messages.
    """

    layers: tuple[int, ...]
    own: Cut | None
    cross: Cut | None
    said: str


Edit = Write | Knockout


def logits_of(
    case: Case, items: Sequence[Sequence[Edit]], swaps: Sequence[Swap] = ()
) -> Float[Tensor, "B A V"]:
    """The logits that predict the answer's tokens under several lists of edits, one forward pass for all.

    Args:
        case: Whose inputs; each item is given a copy.
        items: Edits of each item of the batch.
        swaps: Others, for the whole batch.

    Raises:
        CaptureError: If an edit is never reached.
    """
    batch, count = len(items), len(case.answer_ids)
    inputs = {
        name: value.repeat(batch, *[1] * (value.ndim - 1)) if batch > 1 else value
        for name, value in case.inputs.items()
    }
    with torch.inference_mode(mode=False), torch.no_grad(), untouched(case.probe.model):
        run = partial(answer_logits, case.probe.model, inputs, count)
        return run_edited(case, items, run, swaps=swaps)


def activations(
    case: Case, edits: Sequence[Edit], names: Sequence[str], *, logits: bool = False
) -> dict[str, Float[Tensor, "N ..."]]:
    """What passes at several places, from one forward pass.

    Args:
        case: Whose inputs.
        edits: In force.
        names: As in :mod:`lvlm_probe.places`.
        logits: Keep the answer's logits, too, under ``"logits"``.

    Raises:
        CaptureError: If a place does not exist, or is not reached.
    """
    model = case.probe.model
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    taps = [_tap(place_of(model, case.probe.sites, name), found[name]) for name in names]
    with torch.inference_mode(mode=False), torch.no_grad(), untouched(model):
        forward = partial(answer_logits, model, case.inputs, len(case.answer_ids))
        result = run_edited(case, [edits], forward, taps)
    for name, values in found.items():
        if not values:
            raise CaptureError(f"the forward pass never reached {name}: take another place")
    rows = {name: torch.cat(values) for name, values in found.items()}
    return {**rows, "logits": result[0]} if logits else rows


def _tap(place: Place, found: list[Tensor]) -> Tap:
    def entered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = hidden_of(args, kwargs)
        found.append(place.rows(args[0] if name is None else kwargs[name], 1)[0])

    def left(args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        found.append(place.rows(value, 1)[0])

    if place.entering:
        return Tap(place.path, entered=entered)
    return Tap(place.path, left, attention=place.kind is not None)


def answer_logits(model: Any, inputs: Mapping[str, Tensor], count: int) -> Float[Tensor, "B A V"]:
    """The logits that predict the answer's tokens.

    Args:
        model: Which is run.
        inputs: What its forward takes: prompts and answers.
        count: A, of the answer's tokens.
    """
    # Keeping those of the answer alone spares the output head the whole prompt.
    logits = logits_in(run_model(model, inputs, logits_to_keep=count + 1))
    return logits[:, -count - 1 : -1]


def run_edited(
    case: Case,
    items: Sequence[Sequence[Edit]],
    call: Callable[[], T],
    taps: Sequence[Tap] = (),
    *,
    swaps: Sequence[Swap] = (),
    until: int | None = None,
) -> T:
    """Run with edits, and see that each was reached.

    Raises:
        CaptureError: If one was not.
    """
    with edited(case, items) as parts, swapped(case.probe.model, swaps):
        result = observed(case.probe.model, taps, call)
    for part in parts:
        if isinstance(part, Writes):
            before = (
                None
                if until is None or part.place.along == "P"
                else until - first_row(case, part.place)
            )
            if (missing := part.missing(before)) is not None:
                raise CaptureError(
                    f"{missing}: the forward pass has no such rows there; mend the adapter's layout, or leave them out"
                )
    return result


@contextmanager
def edited(case: Case, items: Sequence[Sequence[Edit]]) -> Generator[list[Writes | Edges]]:
    """Whatever is observed inside runs with the edits of each item of a batch."""
    writes: dict[str, list[tuple[int, Write]]] = {}
    cuts: dict[tuple[int, bool], list[Cut]] = {}
    for item, edits in enumerate(items):
        for edit in edits:
            if isinstance(edit, Write):
                writes.setdefault(edit.place.name, []).append((item, edit))
            else:
                for layer in edit.layers:
                    for cross, cut in ((False, edit.own), (True, edit.cross)):
                        if cut is not None:
                            cuts.setdefault((layer, cross), []).append(replace(cut, item=item))
    parts: list[Writes | Edges] = []
    for group in writes.values():
        place = group[0][1].place
        cycle = case.layout.patch_count if place.tower == "vision" else None
        parts.append(Writes(place, group, len(items), cycle))
    for (layer, cross), group in cuts.items():
        parts += _edges(case, layer, group, cross=cross)
    with swapped(case.probe.model, [part.swap() for part in parts]):
        yield parts


def _edges(case: Case, layer: int, cuts: Sequence[Cut], *, cross: bool) -> list[Edges]:
    site = case.probe.sites.language[layer]
    path = site.cross_attention if cross else site.attention
    if path is None:
        return []
    module = case.probe.model.get_submodule(path)
    name = f"language.layers.{layer}.{'cross_attention' if cross else 'attention'}"
    return [Edges(name, module, path, attention_kind(type(module)), cross, cuts)]


def cuts_between(
    case: Case, from_: Where, to: Where, heads: tuple[int, ...] | None
) -> tuple[Cut | None, Cut | None]:
    """Among the language model's own positions, and across to another tower's; None where nothing is named.

    Raises:
        LayoutError: If no query is named.
    """
    first = case.layout.encoder_length
    queries, keys = positions_of(case, to), positions_of(case, from_)
    shift = tuple(p - first for p in queries.indices if p >= first)
    onwards = None if queries.onwards is None else queries.onwards - first
    if not shift:
        raise LayoutError(
            f"{to!r} names no position of the decoder, whose attention is cut: name 'last' or 'answer'"
        )
    own = tuple(p - first for p in keys.indices if p >= first)
    later = None if keys.onwards is None else keys.onwards - first
    across: tuple[int, ...] = ()
    if any(site.cross_attention for site in case.probe.sites.language):
        across = tuple(p for p in keys.indices if p < first) if first else _shown(case, from_)
    return (
        Cut(0, own, shift, onwards, later, heads) if own else None,
        Cut(0, across, shift, onwards, None, heads) if across else None,
    )


def _shown(case: Case, where: Where) -> tuple[int, ...]:
    """Patches that a description of a part of the image names; none if it is of the text."""
    if isinstance(where, str):
        # Class tokens, which show no part of it, saw the image, too.
        return tuple(range(case.layout.patch_count)) if where in ("image", "all") else ()
    if isinstance(where, Sequence) and not isinstance(where, str):
        return ()
    return positions_of(case, where, "P").indices


def first_row(case: Case, place: Place) -> int:
    """What the place's first row is along N or P."""
    return case.layout.encoder_length if place.tower == "language" else 0


def rows_of(case: Case, place: Place, where: Where) -> tuple[tuple[int, ...] | None, int | None]:
    """Rows of a place, and the one from which later ones are chosen, too; None for every row there is.

    Raises:
        LayoutError: If the place has none of them.
    """
    if place.tower in ("projected", "projector"):
        if isinstance(where, str) and where in ("all", "image"):
            return None, None
        raise LayoutError(
            f"{place.name} is edited whole, 'image': for a part of it, edit 'language.layers.0.residual.input', where its "
            "tokens stand in the sequence"
        )
    found = positions_of(case, where, place.along)
    first = first_row(case, place)
    stop = case.layout.length
    if place.tower == "encoder":
        stop = case.layout.encoder_length
    if place.along == "P":
        return found.indices, None
    rows = tuple(p - first for p in found.indices if first <= p < stop)
    if not rows:
        raise LayoutError(
            f"{where!r} names no position of {place.name}, which sees positions {first} to {stop - 1}: name some of these"
        )
    onwards = None if found.onwards is None or place.tower == "encoder" else found.onwards - first
    return rows, onwards


def write_at(
    place: Place,
    indices: tuple[int, ...],
    change: Change,
    heads: Sequence[int] | None,
    what: str,
    onwards: int | None,
) -> Write:
    """A write, checked.

    Raises:
        CaptureError: If heads are named where there are none.
    """
    if heads is not None and place.kind is None:
        raise CaptureError(
            f"{place.name} is not apart by heads: leave heads={list(heads)} out, or take the layer's attention.output"
        )
    said = f"{what} of {place.name}"
    return Write(place, indices, change, onwards, None if heads is None else tuple(heads), said)


def patched(values: Tensor, at: Mapping[int, int], rows: Tensor, here: Sequence[int]) -> Tensor:
    """Other values, by row."""
    return values[[at[index] for index in here]]


def zeroed(rows: Tensor, here: Sequence[int]) -> Tensor:
    """Nothing."""
    return torch.zeros_like(rows)


def averaged(rows: Tensor, here: Sequence[int]) -> Tensor:
    """Their mean."""
    return rows.mean(0, keepdim=True).expand_as(rows)


def filled(value: Tensor, rows: Tensor, here: Sequence[int]) -> Tensor:
    """One vector for all."""
    return value.to(rows).expand_as(rows)


def added(vector: Tensor, rows: Tensor, here: Sequence[int]) -> Tensor:
    """With a vector added.

    Raises:
        CaptureError: If it has another width.
    """
    if vector.shape[-1] != rows.shape[-1]:
        raise CaptureError(
            f"a vector of width {vector.shape[-1]} cannot be added to a stream of width {rows.shape[-1]}: give one of "
            "the model's width"
        )
    return rows + vector.to(rows)


def prompt_of(case: Case) -> dict[str, Tensor]:
    """The inputs without the answer."""
    if "decoder_input_ids" in case.inputs:
        return {n: v for n, v in case.inputs.items() if not n.startswith("decoder_")}
    whole = case.inputs["input_ids"].shape[1]
    start = whole - len(case.answer_ids)
    grown = (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "cross_attention_mask",
    )
    return {
        name: value[:, :start] if name in grown else value for name, value in case.inputs.items()
    }
