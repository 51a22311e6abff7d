"""The target's score as a function of one tensor, which Captum differentiates."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.edits import activations, answer_logits, run_edited
from lvlm_probe.errors import MissingExtraError, RecipeError
from lvlm_probe.hooks import untouched
from lvlm_probe.places import Place, place_of
from lvlm_probe.target import Target
from lvlm_probe.writes import Write

__all__ = ["Score", "captum", "scored"]


def captum() -> Any:
    """Captum's methods.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise MissingExtraError(
            "gradient recipes need Captum, which is not installed: pip install 'lvlm-probe[gradients]'"
        ) from error


@contextmanager
def scored(case: Case, target: Target, on: str, layer: int) -> Generator[Score]:
    """The score, with gradients on; afterwards the model is as it was.

    Raises:
        RecipeError: If the model has no such input.
    """
    with untouched(case.probe.model), torch.inference_mode(mode=False), torch.enable_grad():
        yield Score(case, target, on, layer)


class Score:
    """The target's score as a function of what a model is fed at one place.

    Args:
        case: Whose model.
        target: Whose score.
        on: ``"pixels"``; ``"embeddings"``, what the first language layer is fed; or ``"vision"``, what leaves a layer there.
        layer: Of the vision encoder.

    Attributes:
        start: What the model is fed in this case, [1 ...].

    Raises:
        RecipeError: If the model has no such input.
    """

    def __init__(self, case: Case, target: Target, on: str, layer: int) -> None:
        self.case, self.target, self.on, self.layer = case, target, on, layer
        self.place: Place | None = None
        if on == "pixels":
            self.start = _pixels(case)[None]
            return
        names = {
            "embeddings": "language.layers.0.residual.input",
            "vision": f"vision.layers.{layer}.residual.output",
        }
        if on not in names:
            raise RecipeError(
                f"on={on!r}: choose 'pixels', 'embeddings' or 'vision' (what leaves one of its layers)"
            )
        if case.layout.encoder_length and on == "embeddings":
            raise RecipeError(
                "on='embeddings': an encoder–decoder's image is not among what its decoder is fed; take on='pixels'"
            )
        self.place = place_of(case.probe.model, case.probe.sites, names[on])
        self.start = activations(case, (), [self.place.name])[self.place.name].detach()[None]

    def __call__(self, values: Tensor) -> Tensor:
        """The score of each item, [B]; one forward pass an item, whatever the model lays end to end."""
        return torch.stack([self._score(item) for item in values])

    def _score(self, value: Tensor) -> Tensor:
        case, inputs = self.case, dict(self.case.inputs)
        edits: tuple[Write, ...] = ()
        if self.place is None:
            inputs["pixel_values"] = value
        else:
            indices = tuple(range(len(value)))
            change = partial(_replaced, value)
            edits = (Write(self.place, indices, change, said="the embeddings"),)
        count = len(case.answer_ids)
        logits = run_edited(case, [edits], partial(answer_logits, case.probe.model, inputs, count))
        return self.target.total(logits[0], case.answer_ids, case.token_id)

    def of(self, case: Case) -> Score:
        """The same of another case."""
        return Score(case, self.target, self.on, self.layer)

    def blank(self) -> Tensor:
        """What the model is fed of pictures whose every pixel has their mean colour, the text as it is; shape of ``start``."""
        pixels = _pixels(self.case)
        # Pictures are [... X Y X']; patches laid out flat, [P X], have the mean patch.
        dims = (-1, -2) if pixels.ndim > 3 else (-2,)
        grey = pixels.mean(dims, keepdim=True).expand_as(pixels).clone()
        if self.on == "pixels":
            return grey[None]
        other = copy(self.case)
        other.inputs = {**self.case.inputs, "pixel_values": grey}
        return self.of(other).start

    def attribution(
        self, recipe: str, scores: Tensor, meta: Mapping[str, Any] | None = None
    ) -> Attribution:
        """Scores laid on tokens or patches.

        Args:
            recipe: Its name.
            scores: In the shape of ``start``, to be added up over channels; or without them, [1 N].
            meta: What else to tell.

        Raises:
            RecipeError: If pixels cannot be laid on patches.
        """
        case, found = self.case, scores.detach()[0].float().cpu()
        tokens, patches = torch.zeros(case.layout.length), None
        if self.on == "pixels":
            patches = _in_patches(case, found)
        else:
            rows = found.sum(-1) if found.ndim > 1 else found
            tokens, patches = (rows, None) if self.on == "embeddings" else (tokens, rows)
        return Attribution(
            recipe=recipe,
            target=self.target,
            tokens=tokens,
            layout=case.layout,
            words=case.words,
            patches=patches,
            images=case.images,
            meta={"model": case.probe.provenance, "on": self.on, **(meta or {})},
        )


def _pixels(case: Case) -> Tensor:
    if "pixel_values" not in case.inputs:
        raise RecipeError("this case is fed no 'pixel_values': take on='embeddings'")
    return case.inputs["pixel_values"].detach()


def _replaced(value: Tensor, rows: Tensor, here: Any) -> Tensor:
    return value[list(here)]


def _in_patches(case: Case, scores: Tensor) -> Tensor:
    """Scores of pixels added up within each patch, along P; tiles in their order.

    Raises:
        RecipeError: If pixels and patches do not fit.
    """
    grids = [grid for span in case.layout.images for grid in span.patches]
    tiles = scores.flatten(0, -4) if scores.ndim >= 4 else None
    if tiles is None or len(tiles) < len(grids) or not grids:
        raise RecipeError(
            f"on='pixels': pixels of shape {tuple(scores.shape)} cannot be told apart by {len(grids)} grids of patches; "
            "take on='vision' with layer=0, or on='embeddings'"
        )
    laid = torch.zeros(case.layout.patch_count)
    for tile, grid in zip(tiles.sum(1), grids, strict=False):
        if tile.shape[0] % grid.rows or tile.shape[1] % grid.columns:
            raise RecipeError(
                f"on='pixels': {tile.shape[0]} × {tile.shape[1]} pixels are not whole patches of a grid of {grid.rows} × "
                f"{grid.columns}; take on='vision' with layer=0"
            )
        pooled = F.adaptive_avg_pool2d(tile[None, None], (grid.rows, grid.columns))[0, 0]
        laid[grid.positions] = pooled.flatten() * (tile.numel() / (grid.rows * grid.columns))
    return laid
