"""Who can be taken away: regions of the pictures and words of the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.ablation.places import seen_box
from lvlm_probe.errors import InputError, LayoutError, MissingExtraError
from lvlm_probe.probe import Case

__all__ = ["Players", "cells", "objects", "patches", "superpixels", "words"]


@dataclass(frozen=True, eq=False)
class Players:
    """Parts of a case's input, each of which is there or not.

    ``cells(case, 12) + words(case)`` lets patches and words play together.

    Attributes:
        names: One a player.
        regions: For each image, which player each pixel belongs to, −1 for none: those are never taken away. Images
            without players are absent.
        positions: Positions along N of each player that is a word; empty for a region.
    """

    names: tuple[str, ...]
    regions: Mapping[int, Int[Tensor, "Y X"]] = field(default_factory=dict[int, Tensor])
    positions: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.positions:
            object.__setattr__(self, "positions", ((),) * len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Players) -> Players:
        """Both, these first.

        Raises:
            InputError: If both have regions of the same image, or a position in common.
        """
        shared = sorted(set(self.regions) & set(other.regions))
        common = {p for w in self.positions for p in w} & {p for w in other.positions for p in w}
        if shared or common:
            what = f"image {shared[0]}" if shared else f"position {min(common)}"
            raise InputError(
                f"both groups of players hold {what}: a part of the input has one player at most"
            )
        moved = {
            image: torch.where(labels >= 0, labels + len(self), labels)
            for image, labels in other.regions.items()
        }
        return Players(
            self.names + other.names, {**self.regions, **moved}, self.positions + other.positions
        )

    @property
    def words(self) -> tuple[int, ...]:
        """The players that are words."""
        return tuple(player for player, held in enumerate(self.positions) if held)

    @property
    def pictured(self) -> tuple[int, ...]:
        """The players that are regions."""
        return tuple(player for player, held in enumerate(self.positions) if not held)

    def centres(self) -> dict[int, tuple[int, float, float]]:
        """Image, y and x of the centre of each region."""
        found: dict[int, tuple[int, float, float]] = {}
        for image, labels in self.regions.items():
            y, x = (labels >= 0).nonzero(as_tuple=True)
            owner = labels[y, x].long()
            size = torch.bincount(owner, minlength=len(self)).double().clamp(min=1)
            middle = [
                torch.bincount(owner, axis.double() + 0.5, minlength=len(self)) / size
                for axis in (y, x)
            ]
            for player in owner.unique().tolist():
                found[player] = image, float(middle[0][player]), float(middle[1][player])
        return found


def cells(case: Case, rows: int, columns: int | None = None, image: int = 0) -> Players:
    """A regular grid over the part of the image that reaches the model.

    Args:
        case: Whose image.
        rows: R.
        columns: C; as many as rows if None.
        image: Index of the image.

    Raises:
        InputError: If a cell would be smaller than a pixel.
        LayoutError: If there is no such image.
    """
    columns = rows if columns is None else columns
    top, bottom, left, right = seen_box(case.layout, image)
    if not (1 <= rows <= bottom - top and 1 <= columns <= right - left):
        raise InputError(
            f"{rows} × {columns} cells over {bottom - top} × {right - left} pixels: "
            "take one at least, and none smaller than a pixel"
        )
    labels = torch.full(case.layout.image(image).size, -1)
    row = (torch.arange(bottom - top) + 0.5) * rows / (bottom - top)
    column = (torch.arange(right - left) + 0.5) * columns / (right - left)
    labels[top:bottom, left:right] = row.long()[:, None] * columns + column.long()
    names = [f"cell {r},{c}" for r in range(rows) for c in range(columns)]
    return Players(tuple(names), {image: labels})


def patches(case: Case, image: int = 0) -> Players:
    """One player for each image token that shows a part of the image.

    Args:
        case: Whose image.
        image: Index of the image.

    Raises:
        LayoutError: If there is no such image, or it was cut into tiles, or its tokens are queries.
    """
    grids = case.layout.image(image).tokens
    if len(grids) != 1:
        raise LayoutError(
            f"image {image} has {len(grids)} grids of visual tokens, so its tokens are no one division of it: "
            "use cells, superpixels or objects"
        )
    (grid,) = grids
    number = torch.arange(grid.rows * grid.columns).view(grid.rows, grid.columns)
    shown = grid.on_pixels(number.double() + 1, case.layout.image(image).size)
    labels = shown.round().long() - 1
    here = labels.unique()
    here = here[here >= 0]  # a token over padding shows no pixel, and is no player
    if len(here) < number.numel():
        table = torch.full((number.numel() + 1,), -1)
        table[here] = torch.arange(len(here))
        labels = table[labels]
    names = [f"patch {n // grid.columns},{n % grid.columns}" for n in here.tolist()]
    return Players(tuple(names), {image: labels})


def objects(
    case: Case,
    masks: Bool[Tensor, "K Y X"] | NDArray[np.bool_],
    names: Sequence[str] | None = None,
    image: int = 0,
    rest: str | None = "background",
) -> Players:
    """Regions given by masks, and all the rest as one more player.

    Args:
        case: Whose image.
        masks: One an object, in pixels of the original image; disjoint.
        names: One an object.
        image: Index of the image.
        rest: Name of the player that holds every other pixel; None for no such player.

    Raises:
        InputError: If masks overlap, one is empty, or their number or size does not fit.
        LayoutError: If there is no such image.
    """
    stack = torch.from_numpy(np.array(masks)) if isinstance(masks, np.ndarray) else masks
    stack = stack.bool()
    size = case.layout.image(image).size
    given = [f"object {i}" for i in range(len(stack))] if names is None else list(names)
    if tuple(stack.shape[1:]) != size or len(given) != len(stack):
        raise InputError(
            f"{len(given)} names and masks of shape {tuple(stack.shape)} for an image of {size} pixels: "
            "give one mask and one name an object"
        )
    count = stack.sum(0)
    if bool((count > 1).any()):
        raise InputError(
            f"{int((count > 1).sum())} pixels lie in more than one mask: make the masks disjoint"
        )
    empty = [name for name, mask in zip(given, stack, strict=True) if not bool(mask.any())]
    if empty:
        raise InputError(f"the mask of {empty[0]!r} is empty: leave it out")
    labels = torch.full(size, -1)
    for number, mask in enumerate(stack):
        labels[mask] = number
    if rest is not None and bool((labels < 0).any()):
        labels[labels < 0] = len(given)
        given.append(rest)
    return Players(tuple(given), {image: labels})


def superpixels(
    case: Case, count: int, image: int = 0, compactness: float = 10.0, sigma: float = 1.0
) -> Players:
    """Regions of like colour (SLIC, Achanta et al. 2012), exactly ``count`` of them.

    SLIC gives about as many as it is asked for; it is asked for more, and the smallest region is joined to the
    neighbour with the nearest mean colour until the number is right.

    Args:
        case: Whose image.
        count: Regions.
        image: Index of the image.
        compactness: How much nearness counts against likeness of colour.
        sigma: Of the Gaussian that smooths the image first, in pixels.

    Raises:
        InputError: If the image has no such number of regions, or the case no picture.
        LayoutError: If there is no such image.
        MissingExtraError: If scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MissingExtraError(
            "superpixels need scikit-image, which is not installed: pip install 'lvlm-probe[game]'"
        ) from error
    top, bottom, left, right = seen_box(case.layout, image)
    if not 1 <= count <= (bottom - top) * (right - left):
        raise InputError(f"{count} superpixels: take one at least, and no more than pixels")
    pixels = np.asarray(picture(case, image))[top:bottom, left:right]
    found: Any = None
    for asked in (count, 2 * count, 4 * count, 16 * count):
        found = slic(pixels, n_segments=asked, compactness=compactness, sigma=sigma, start_label=0)
        if found.max() + 1 >= count:
            break
    if found.max() + 1 < count:
        raise InputError(
            f"the image falls into {found.max() + 1} superpixels at most, not {count}: "
            "ask for fewer, or use cells"
        )
    labels = torch.full(case.layout.image(image).size, -1)
    labels[top:bottom, left:right] = torch.from_numpy(_merged(found, pixels, count))
    return Players(tuple(f"superpixel {i}" for i in range(count)), {image: labels})


def _merged(labels: NDArray[Any], pixels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Fewer regions: the smallest joins its nearest neighbour in colour, time and again; numbered in reading order."""
    labels = labels.astype(np.int64)
    while True:
        present, size = np.unique(labels, return_counts=True)
        if len(present) <= count:
            break
        smallest = present[size.argmin()]
        inside = labels == smallest
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        near = np.unique(labels[grown & ~inside])
        colour = pixels[inside].mean(0)
        away = [float(((pixels[labels == n].mean(0) - colour) ** 2).sum()) for n in near]
        labels[inside] = near[int(np.argmin(away))]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[first.argsort()] = np.arange(len(first))
    return order[inverse].reshape(labels.shape)


def words(case: Case, positions: Sequence[Sequence[int]] | None = None) -> Players:
    """The words of the prompt, as the user wrote it; punctuation stays where it is.

    Args:
        case: Whose prompt.
        positions: Those of each player along N, if they are to be chosen by hand.

    Raises:
        InputError: If the prompt is not found among the tokens, a position is no word before the answer, or two
            players share one.
    """
    chosen = _prompt_words(case) if positions is None else [tuple(held) for held in positions]
    flat = [p for held in chosen for p in held]
    text = set(case.layout.text_positions)
    # The last position predicts the answer: without it there is nothing to ask.
    wrong = [p for p in flat if p not in text or not 0 < p < case.layout.answer_start - 1]
    if not chosen or wrong or len(set(flat)) < len(flat) or not all(chosen):
        raise InputError(
            f"positions {wrong or flat} cannot be players: take words between the first token and the last one "
            f"before the answer ({case.layout.answer_start - 1}), each once"
        )
    names = ["".join(case.words[p] for p in held).strip() for held in chosen]
    return Players(tuple(names), {}, tuple(chosen))


def _prompt_words(case: Case) -> list[tuple[int, ...]]:
    """Positions of each word of the prompt, in the run of text tokens that spells it.

    Raises:
        InputError: If no run does.
    """
    wanted = re.sub(r"\s+", "", case.prompt).lower()
    last_image = max((span.stop for span in case.layout.images), default=0)
    run = [p for p in case.layout.text_positions if p < case.layout.answer_start]
    run.sort(key=lambda p: (p < last_image, p))  # behind the images first, where questions stand
    text, owner = "", list[int]()
    for position in run:
        spelled = re.sub(r"\s+", "", case.words[position]).lower()
        text += spelled
        owner += [position] * len(spelled)
    start = text.find(wanted) if wanted else -1
    if start < 0:
        raise InputError(
            f"the prompt {case.prompt!r} is not found among the tokens {text[:80]!r}: "
            "give the positions of each word"
        )
    found: list[tuple[int, ...]] = []
    for word in re.finditer(r"\w(?:[\w'’-]*\w)?", case.prompt):
        first = start + len(re.sub(r"\s+", "", case.prompt[: word.start()]))
        held = dict.fromkeys(owner[first : first + len(word[0])])
        fresh = tuple(p for p in held if not found or p not in found[-1])
        if fresh:
            found.append(fresh)
    return found


def picture(case: Case, image: int) -> Any:
    """The original picture.

    Raises:
        InputError: If the case was made without its pictures.
    """
    if image >= len(case.images):
        raise InputError(
            f"the case has {len(case.images)} pictures, and image {image} is to be cut up: "
            "make the case from its pictures, probe.case(...)"
        )
    return case.images[image]
