"""Is it so? The smallest part of an explanation without which the model answers otherwise.

A graph learned from attention is a hypothesis. Here the model is asked: the nodes are masked, and the answer token is
predicted again, after the same prompt and the same earlier answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.hooks import untouched
from lvlm_probe.target import Target

__all__ = ["MinimalSubset", "Where", "changes_answer", "minimal_subset"]

Where = Literal["attention", "pixels"]
"""What is masked: no position attends to the tokens any more; or the picture under them has its mean colour."""

Changed = Callable[[Sequence[Sequence[int]]], list[bool]]


@dataclass(frozen=True, slots=True)
class MinimalSubset:
    """A part of an explanation without which the model answers otherwise.

    Attributes:
        positions: Ascending.
        smallest: Whether no smaller part does it: all were tried. Else no part of *these* with one less does.
        asked: Predictions that were made.
    """

    positions: tuple[int, ...]
    smallest: bool
    asked: int


def changes_answer(
    case: Case,
    subsets: Sequence[Sequence[int]],
    target: int | Target = 0,
    where: Where = "attention",
    batch: int = 32,
) -> Bool[Tensor, " K"]:
    """For each subset of positions, whether the model predicts another token once it is masked.

    Args:
        case: Whose model is asked.
        subsets: Positions before the answer token's.
        target: The answer token; what counts is the model's own first choice in its place.
        where: What is masked.
        batch: Subsets in one forward pass.

    Raises:
        RecipeError: If a position does not come before the token, or has no pixels where they are to be masked.
        TargetError: If the target is outside the answer.
    """
    wanted = Target.of(target).within(case.answer_tokens)
    predicted_at = case.layout.answer_start + wanted.index - 1
    wrong = [p for subset in subsets for p in subset if not 0 <= p < predicted_at]
    if wrong:
        raise RecipeError(
            f"position {wrong[0]} cannot be masked: the token is predicted at {predicted_at}, and what is masked "
            "comes before that"
        )
    if where == "pixels":
        _check_pixels(case, subsets)
    masked = _without_attention if where == "attention" else _without_pixels
    found: list[Tensor] = []
    with untouched(case.probe.model), torch.inference_mode():
        (first,) = _choices(case, [masked(case, ())], predicted_at)
        for start in range(0, len(subsets), batch):
            inputs = [masked(case, subset) for subset in subsets[start : start + batch]]
            found.append(_choices(case, inputs, predicted_at) != first)
    return torch.cat(found).cpu() if found else torch.zeros(0, dtype=torch.bool)


def minimal_subset(
    case: Case,
    nodes: Mapping[int, int] | Sequence[int],
    target: int | Target = 0,
    where: Where = "attention",
    *,
    most: int = 1000,
    batch: int = 32,
) -> MinimalSubset | None:
    """The smallest subset of an explanation that changes the model's answer when it is masked.

    Subsets are tried by size, and of one size the nearest to the explained token first. Where the next size would take
    more than ``most`` predictions, the whole explanation is shrunk instead, from the far end, for as long as the answer
    stays changed: what remains cannot spare any of its members, but another, smaller subset may exist.

    Args:
        case: Whose model is asked.
        nodes: Positions, with how far each is from the explained one where that is known
            (:attr:`~lvlm_probe.recipes.causal.heads.HeadSearch.radii`).
        target: The answer token.
        where: What is masked.
        most: Predictions, at most, before shrinking begins.
        batch: Subsets in one forward pass.

    Returns:
        None if not even masking all of them changes the answer.

    Raises:
        RecipeError: If a position cannot be masked.
        TargetError: If the target is outside the answer.
    """
    distance = dict(nodes) if isinstance(nodes, Mapping) else dict.fromkeys(nodes, 1)
    near = sorted(distance, key=lambda p: (distance[p], p))

    def changed(subsets: Sequence[Sequence[int]]) -> list[bool]:
        return changes_answer(case, subsets, target, where, batch).tolist()

    if not near or not changed([near])[0]:
        return None
    asked = 1
    for size in range(1, len(near)):
        subsets = sorted(combinations(near, size), key=lambda s: sum(distance[p] for p in s))
        for start in range(0, len(subsets), batch):
            part = subsets[start : start + batch]
            answers = changed(part)
            asked += len(part)
            if any(answers):
                return MinimalSubset(tuple(sorted(part[answers.index(True)])), True, asked)
        if asked + comb(len(near), size + 1) > most:
            return _shrunk(near, changed, asked, smaller_tried=size)
    return MinimalSubset(tuple(sorted(near)), True, asked)


def _shrunk(near: Sequence[int], changed: Changed, asked: int, smaller_tried: int) -> MinimalSubset:
    """Leave out ever smaller parts, the farthest first, for as long as the answer stays changed.

    Zeller & Hildebrandt's delta debugging (2002): what remains can spare none of its members.
    """
    kept = list(near)
    step = len(kept) // 2
    while step and len(kept) > smaller_tried + 1:
        starts = range(0, len(kept), step)
        shorter = [[*kept[:s], *kept[s + step :]] for s in reversed(starts)]
        answers = changed(shorter)
        asked += len(shorter)
        if any(answers):
            kept = shorter[answers.index(True)]
            step = min(step, max(1, len(kept) // 2))
        else:
            step //= 2
    return MinimalSubset(tuple(sorted(kept)), len(kept) == smaller_tried + 1, asked)


def _choices(case: Case, inputs: Sequence[dict[str, Tensor]], position: int) -> Int[Tensor, " K"]:
    """The model's first choice after ``position``, for several inputs at once."""
    together = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
    logits = case.probe.model(**together, use_cache=False, return_dict=True).logits
    return logits[:, position].argmax(-1)


def _without_attention(case: Case, positions: Sequence[int]) -> dict[str, Tensor]:
    """Inputs whose attention mask hides the positions from every query."""
    ids = case.inputs["input_ids"]
    mask = case.inputs.get("attention_mask", torch.ones_like(ids)).clone()
    mask[:, list(positions)] = 0
    return {**case.inputs, "attention_mask": mask}


def _without_pixels(case: Case, positions: Sequence[int]) -> dict[str, Tensor]:
    """Inputs made from pictures with the positions' boxes filled by their mean colour."""
    pictures = [np.array(picture.convert("RGB")) for picture in case.images]
    for number, span in enumerate(case.layout.images):
        mean = pictures[number].mean(axis=(0, 1)).round().astype(np.uint8)
        hidden = torch.zeros(case.layout.length)
        hidden[list(positions)] = 1.0
        for grid in span.tokens:
            on = grid.on_pixels(hidden[grid.positions].view(grid.rows, grid.columns), span.size)
            pictures[number][on.numpy() > 0] = mean
    remade = case.probe.case(
        [Image.fromarray(picture) for picture in pictures], case.prompt, case.answer
    )
    # Only the picture is taken over: the answer's tokens stay those that were explained.
    return {
        name: remade.inputs[name] if value.is_floating_point() else value
        for name, value in case.inputs.items()
    }


def _check_pixels(case: Case, subsets: Sequence[Sequence[int]]) -> None:
    if not case.images:
        raise RecipeError(
            "pixels cannot be masked in a case made without its pictures: mask the attention instead"
        )
    shown = set(case.layout.image_positions)
    text = sorted({p for subset in subsets for p in subset} - shown)
    if text:
        raise RecipeError(
            f"position {text[0]} ({case.words[text[0]]!r}) shows no pixels: mask the attention, or image positions only"
        )
