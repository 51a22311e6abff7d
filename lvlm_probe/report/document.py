"""What a report shows of a trace: one document of plain values, made without the model.

A column of a packed row is a word of the text (in the order of ``words``) or a cell of an image (image by image, grid by
grid, row by row). What a trace does not hold is left out, and the document says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import LvlmProbeError, RecipeError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.layout import TokenLayout
from lvlm_probe.recipe import TraceRecipe, find_recipe
from lvlm_probe.recipes.contribution import BY, Grounding, beliefs, visual_contribution
from lvlm_probe.reduce import reduce_trace
from lvlm_probe.report.heads import crosses, heads_of
from lvlm_probe.report.packing import packed_parts
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace
from lvlm_probe.viewer.views import numbers, picture_uri

__all__ = ["BUDGET", "RECIPES", "document"]

RECIPES = ("relevancy", "attention", "rollout")
"""What a report shows unless told otherwise."""

BUDGET = 3_000_000
"""Bytes that the scores of layers and heads may take, before base64."""

LONGEST = 1024  # pixels of an embedded picture's longer side


@dataclass(frozen=True, slots=True)
class _Found:
    """One recipe's attributions, a target each; None where it has none."""

    name: str
    attributions: list[Attribution | None]


def document(
    trace: Trace,
    recipes: Sequence[str] = RECIPES,
    grounding: Grounding | None = None,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        trace: What is shown.
        recipes: Trace recipes, in the order of the page.
        grounding: Of the same case, for what a trace cannot tell: the likelihood ratio.
        budget: Bytes for the scores of layers and heads. Where they would take more, layers are left out evenly, and of
            the heads those that attend least to the image.

    Raises:
        RecipeError: If a recipe is unknown or needs the model.
    """
    for name in recipes:
        find_recipe(name, needs="trace")
    targets = _targets(trace)
    missing: list[dict[str, str]] = []
    found = [one for name in recipes if (one := _explained(trace, name, targets, missing))]
    text = [p for p in range(trace.layout.length) if _is_word(trace, p)]
    some = [
        one
        for one in found
        if any(a is not None and a.layers is not None for a in one.attributions)
    ]
    share = budget // 2 // max(1, len(some) * len(targets))
    return {
        "prompt": trace.meta["prompt"] or trace.meta.get("text", ""),
        "answer": "".join(trace.answer_tokens).strip(),
        "words": [
            {
                "text": trace.words[p],
                "position": p,
                "answer": p - trace.layout.answer_start if p >= trace.layout.answer_start else None,
            }
            for p in text
        ],
        "images": _images(trace),
        "targets": [
            {
                "tokens": list(t.indices),
                "label": t.describe(),
                "kind": t.kind,
                "word": _word_of(trace, t),
            }
            for t in targets
        ],
        "recipes": [_recipe(one, text, trace.layout, share) for one in found],
        "missing": missing,
        "heads": heads_of(trace, targets, text, budget // 2, missing),
        "numbers": _numbers(trace, targets, found, grounding, missing),
        "about": _about(trace),
    }


def _is_word(trace: Trace, position: int) -> bool:
    if position >= trace.layout.answer_start:
        return True
    inside = any(span.start <= position < span.stop for span in trace.layout.images)
    return not inside and bool(trace.words[position].strip())


def _targets(trace: Trace) -> list[Target]:
    """Those recorded; and one for each answer token that none of them is about."""
    recorded = [Target.from_json(facts) for facts in trace.meta["targets"].values()]
    told = {index for target in recorded for index in target.indices}
    others = [Target(i) for i in range(len(trace.answer_tokens)) if i not in told]
    return sorted([*recorded, *others], key=lambda target: (target.index, target.count))


def _word_of(trace: Trace, target: Target) -> str:
    return "".join(trace.answer_tokens[i] for i in target.indices).strip()


def _explained(
    trace: Trace, name: str, targets: Sequence[Target], missing: list[dict[str, str]]
) -> _Found | None:
    """None, and a word about it, where the trace does not hold what the recipe needs."""
    recipe = find_recipe(name, needs="trace")
    assert isinstance(recipe, TraceRecipe)
    served = [t for t in targets if not recipe.gradients or t.name in trace.meta["targets"]]
    if not served:
        missing.append({"what": name, "why": "the trace holds no gradient of any answer token"})
        return None
    try:
        made = dict(zip(served, reduce_trace(trace, recipe, served, {}), strict=True))
    except LvlmProbeError as error:
        missing.append({"what": name, "why": str(error)})
        return None
    return _Found(name, [made.get(target) for target in targets])


def _images(trace: Trace) -> list[dict[str, Any]]:
    pictures: Sequence[Image.Image | None] = trace.images or [None] * len(trace.layout.images)
    return [
        {
            "uri": None if picture is None else picture_uri(picture, LONGEST, compact=True),
            "size": list(span.size),
        }
        for span, picture in zip(trace.layout.images, pictures, strict=True)
    ]


def _recipe(found: _Found, text: Sequence[int], layout: TokenLayout, share: int) -> dict[str, Any]:
    """One recipe's scores of every target.

    Args:
        found: Its attributions.
        text: Positions of the words.
        layout: Which positions are which.
        share: Bytes that the layers of one target may take.
    """
    info = find_recipe(found.name)
    first = next(a for a in found.attributions if a is not None)
    grids = [_grids(first, number) for number in range(len(layout.images))]
    columns = len(text) + sum(g.rows * g.columns for each in grids for g in each)
    layers = _kept(0 if first.layers is None else len(first.layers), max(1, share // columns))
    results: list[Any] = []
    for attribution in found.attributions:
        if attribution is None:
            results.append(None)
            continue
        whole = _row(attribution, text, grids, None)
        after = [_row(attribution, text, grids, layer) for layer in layers]
        results.append(
            {
                "whole": packed_parts(whole[None], len(text)),
                "layers": packed_parts(torch.stack(after), len(text), 8) if after else None,
            }
        )
    return {
        "name": found.name,
        "summary": info.summary,
        "source": info.source,
        "layers": layers,
        "depth": 0 if first.layers is None else len(first.layers),
        "images": [
            {
                "grids": [
                    {
                        "box": [g.box.left, g.box.top, g.box.right, g.box.bottom],
                        "rows": g.rows,
                        "columns": g.columns,
                    }
                    for g in each
                ],
                "why": "" if each else _why_no_grid(first, number),
            }
            for number, each in enumerate(grids)
        ],
        "results": results,
    }


def _kept(depth: int, most: int) -> list[int]:
    """Layers, the last one always among them; evenly spaced where not all fit."""
    if depth <= most:
        return list(range(depth))
    return sorted({round(depth - 1 - n * (depth - 1) / max(1, most - 1)) for n in range(most)})


def _grids(attribution: Attribution, image: int) -> list[PatchGrid]:
    span = attribution.layout.image(image)
    return list(span.tokens if attribution.patches is None else span.patches)


def _why_no_grid(attribution: Attribution, image: int) -> str:
    try:
        attribution.grids(image)
    except LvlmProbeError as error:
        return str(error)
    return ""


def _row(
    attribution: Attribution,
    text: Sequence[int],
    grids: Sequence[Sequence[PatchGrid]],
    layer: int | None,
) -> Tensor:
    tokens = attribution.tokens
    if layer is not None:
        assert attribution.layers is not None
        tokens = attribution.layers[layer]
    parts = [tokens[list(text)].float().cpu()]
    for image, each in enumerate(grids):
        if each and not (layer is not None and _without_layer_patches(attribution)):
            parts += [
                scores.flatten().float().cpu() for _, scores in attribution.grids(image, layer)
            ]
        else:
            parts += [torch.zeros(g.rows * g.columns) for g in each]
    return torch.cat(parts)


def _without_layer_patches(attribution: Attribution) -> bool:
    return attribution.patches is not None and attribution.layer_patches is None


def _numbers(
    trace: Trace,
    targets: Sequence[Target],
    found: Sequence[_Found],
    grounding: Grounding | None,
    missing: list[dict[str, str]],
) -> dict[str, Any]:
    """A list a quantity, one number an answer token; None for what is not known.

    Raises:
        RecipeError: If the grounding is of another answer.
    """
    count = len(trace.answer_tokens)
    told: dict[str, Any] = {}
    if "language.logits" in trace:
        seen = beliefs(trace)
        told |= {
            "probability": numbers(seen.probability),
            "margin": numbers(seen.margin),
            "entropy": numbers(seen.entropy),
        }
    else:
        missing.append({"what": "probabilities", "why": "the trace holds no logits"})
    if grounding is not None:
        if grounding.words != trace.answer_tokens:
            raise RecipeError(
                f"the grounding is of the answer {''.join(grounding.words)!r}, the trace of "
                f"{''.join(trace.answer_tokens)!r}: make both from one case"
            )
        told["llr"] = None if grounding.llr is None else numbers(grounding.llr)
    relevancy = next((one for one in found if one.name == "relevancy"), None)
    if relevancy is None:
        return told
    across = crosses(trace)
    for by in BY:
        told[f"contribution {by}"] = [None] * count
    told["share by layer"] = [None] * count
    try:
        for target, attribution in zip(targets, relevancy.attributions, strict=True):
            if attribution is None or target.count > 1:
                continue
            for by in BY:
                ratio, layers = visual_contribution(attribution, by, crosses=across)
                told[f"contribution {by}"][target.index] = numbers(ratio)
                if by == "sum" and layers is not None:
                    # Shares stay finite where there is nothing on the text.
                    shares = torch.where(layers.isinf(), 1.0, layers / (1 + layers))
                    told["share by layer"][target.index] = numbers(shares)
    except RecipeError as error:
        missing.append({"what": "visual contribution", "why": str(error)})
    return told


def _about(trace: Trace) -> list[list[str]]:
    meta, layout = trace.meta, trace.layout
    model = meta["model"]
    rows = [
        ["model", str(model["id"])],
        ["family", str(model.get("type") or "")],
        ["revision", str(model.get("revision") or "")],
        ["weights (SHA-256)", str(model.get("weights_sha256") or "")],
        ["kernel and type", f"{meta['kernel']}, {meta['dtype']}"],
        ["whole prompt", str(meta.get("text") or "")],
        ["tokens", f"{layout.length}, of which the answer has {len(trace.answer_tokens)}"],
        ["layers", ", ".join(f"{tower} {depth}" for tower, depth in meta["depth"].items())],
        ["gradients of", ", ".join(meta["targets"]) or "nothing"],
    ]
    for number, span in enumerate(layout.images):
        grids = ", ".join(f"{g.rows} × {g.columns}" for g in span.tokens)
        seen = grids or f"{span.stop - span.start} without a place"
        rows.append(
            [f"image {number + 1}", f"{span.size[1]} × {span.size[0]} pixels; visual tokens {seen}"]
        )
    if layout.unmapped:
        rows.append(["images", layout.unmapped])
    rows.append(["made by", ", ".join(f"{n} {v}" for n, v in meta["versions"].items())])
    return [row for row in rows if row[1]]
