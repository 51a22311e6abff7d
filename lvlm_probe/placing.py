"""The checks of a layout: that visual tokens stand where it says, and show what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_probe.adapter import SourceSequence
from lvlm_probe.asking import encoded, placed
from lvlm_probe.case import Case
from lvlm_probe.census import census, held
from lvlm_probe.feeds import Partial, run_partly
from lvlm_probe.layout import ImageSpan
from lvlm_probe.ramps import image_path
from lvlm_probe.verdict import Check
from lvlm_probe.verify import Verification, verify

__all__ = ["check_places", "check_span"]

_STILL = 1e-6  # of a position's norm
_HITS = 0.7  # a grid that is shifted, transposed or cut otherwise hits a few blocks by chance
_ORDER = 0.75  # of the other tokens; one half is chance


def _without_picture(case: Case) -> str | None:
    """Why pictures cannot be changed; None if they can."""
    if not case.layout.images and not case.images:
        return "the case has no image"
    if case.probe.processor is None:
        return "without a processor no changed picture can be shown: give Probe(model, processor) the model's own"
    if not case.images:
        return "the case has no picture, only inputs: give case_from_inputs its images"
    return None


def _untied(case: Case) -> str | None:
    """What to say where there are pictures, and no position of theirs is known."""
    if case.images and not case.layout.images:
        return "the layout ties no position to the picture: explanations stay with the tokens"
    return None


def _prepared(case: Case, pictures: Sequence[Image.Image]) -> Mapping[str, Any]:
    """Inputs made of other pictures as the case's were made of its own."""
    if case.text:
        return encoded(case.probe, pictures, case.text)
    return image_path(case.probe.processor)(pictures)


def _changed(case: Case) -> dict[str, Tensor]:
    """The case's inputs with every pixel of its pictures changed."""
    pictures = [
        Image.fromarray(np.array(picture.convert("RGB")) + np.uint8(128)) for picture in case.images
    ]
    made = placed(case.probe, _tensors(_prepared(case, pictures)))
    inputs = dict(case.inputs)
    for name, value in made.items():
        if name in inputs and value.is_floating_point() and value.shape == inputs[name].shape:
            inputs[name] = value
    return inputs


def _tensors(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for name, value in made.items()
    }


def check_span(case: Case) -> Check:
    """Another picture moves the positions that the layout gives to it, and no other, before the first language layer."""
    if why := _without_picture(case):
        return Check("span", "skipped", why)
    if why := _untied(case):
        return Check("span", "warned", why)
    plain, other = (_entering(case, inputs).hidden for inputs in (case.inputs, _changed(case)))
    if plain is None or other is None:
        return Check("span", "failed", "the language model's first layer was never reached")
    off = (other - plain).float().norm(dim=-1)
    moved = set((off > _STILL * plain.float().norm(dim=-1)).nonzero().flatten().tolist())
    layout = case.layout
    inside = {p for span in layout.images for p in range(span.start, span.stop)}
    strays = sorted(moved - inside)
    if not moved:
        return _across(case)
    still = sorted({p for span in layout.images for p in _in_sight(span)} - moved)
    complaints: list[str] = []
    if strays:
        complaints.append(
            f"positions {_runs(strays)} move with the picture, and are text by the layout"
        )
    if still:
        complaints.append(
            f"positions {_runs(still)} show the picture by the layout, and do not move"
        )
    wrong = float(len(strays) + len(still))
    if complaints:
        return Check("span", "failed", "; ".join(complaints), wrong, 0.0)
    detail = f"{len(moved)} positions move with the picture, all of them in its span"
    return Check("span", "passed", detail, wrong, 0.0)


def _across(case: Case) -> Check:
    """Where no position carries the image: it is attended to, and the layout must not say otherwise."""
    tokens = sum(len(grid.positions) for span in case.layout.images for grid in span.tokens)
    if tokens:
        told = f"{tokens} positions show the picture by the layout, and none moves with it"
        return Check("span", "failed", told, float(tokens), 0.0)
    if not any(site.cross_attention for site in case.probe.sites.language):
        return Check(
            "span", "failed", "nothing that enters the language model moves with the picture"
        )
    return Check(
        "span", "passed", "no position carries the picture: words attend across to it", 0.0, 0.0
    )


def _entering(case: Case, inputs: Mapping[str, Tensor]) -> Partial:
    return run_partly(case.probe.model, case.probe.sites, inputs, (), gradients=False)


def _in_sight(span: ImageSpan) -> list[int]:
    """Positions that show some of the picture itself, not only what it was padded with."""
    if not span.tokens:
        return [span.start, span.stop - 1]  # separators may stand between queries
    height, width = span.size
    found: list[int] = []
    for grid in span.tokens:
        places = iter(grid.positions)
        for row in range(grid.rows):
            for column in range(grid.columns):
                place, box = next(places), grid.cell(row, column)
                # Of a cell that shares less than a pixel with the picture, resampling may leave nothing.
                across = min(box.right, width) - max(box.left, 0)
                down = min(box.bottom, height) - max(box.top, 0)
                if across >= 1 and down >= 1:
                    found.append(place)
    return found


def check_places(case: Case) -> Check:
    """Changed blocks of the picture move the tokens and patches that the layout names for them."""
    if why := _without_picture(case):
        return Check("places", "skipped", why)
    if why := _untied(case):
        return Check("places", "warned", why)
    if not any(span.tokens or span.patches for span in case.layout.images):
        return Check(
            "places",
            "skipped",
            "the layout ties neither tokens nor patches to places: queries saw the whole image",
        )
    source = SourceSequence(
        config=getattr(case.probe.model, "config", None),
        processor=case.probe.processor,
        inputs=case.inputs,
        image_sizes=tuple((picture.height, picture.width) for picture in case.images),
        answer_start=case.layout.answer_start,
        model=case.probe.model,
        sites=case.probe.sites,
        images=case.images,
    )
    free = _verified(case, source)
    if free.rate >= _HITS:
        return Check("places", "passed", _told(free), free.rate, _HITS)
    # Attention may carry a change to where it shows more. Held as it was, it carries none.
    modules = [each.module for each in census(case.probe.model, case.inputs, 1).attending.values()]
    with held(case.probe.model, modules):
        bound = _verified(case, source)
    detail = f"{_told(bound)}, with attention held as it was ({free.rate:.0%} with it let free)"
    if bound.rate >= _HITS:
        return Check("places", "passed", detail, bound.rate, _HITS)
    order = max(free.percentile, bound.percentile)
    if order >= _ORDER:
        detail += (
            f"; the tokens that it names move more than {order:.0%} of the others: the encoder mixes neighbours in "
            "another way than by attention, so places are known roughly"
        )
        return Check("places", "warned", detail, bound.rate, _HITS)
    return Check("places", "failed", detail, bound.rate, _HITS)


def _verified(case: Case, source: SourceSequence) -> Verification:
    return verify(
        case.layout,
        source,
        case.probe.model,
        case.probe.sites,
        case.images,
        lambda pictures: _tensors(_prepared(case, pictures)),
    )


def _told(found: Verification) -> str:
    return "; ".join(
        f"{sum(hits)} of {len(hits)} blocks move most the {what} that the layout names"
        for what, hits in (("token", found.hits), ("patch", found.patch_hits))
        if hits
    )


def _runs(positions: Sequence[int]) -> str:
    """``3, 7-9`` for 3, 7, 8, 9."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    told = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{', '.join(told[:6])}{' …' if len(told) > 6 else ''}"
