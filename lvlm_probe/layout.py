"""Where each position of a traced sequence came from.

The processor puts a run of *visual tokens* where the prompt said ``<image>``. Logits do not say which positions
those are, nor which patch each one shows; a :class:`TokenLayout` does. Adapters build it, traces store it, recipes
read it.

Positions count from 0 along N, the language model's input: prompt, then answer. Vision-encoder positions count
along P, with the items of a batch laid end to end, so that one number names one patch of one image. Pixels are
those of the image that the user handed in: ``x`` to the right, ``y`` down, boxes half-open, fractions allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import LayoutError
from lvlm_probe.grid import Box, PatchGrid

__all__ = ["Box", "ImageSpan", "PatchGrid", "TokenLayout"]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The tokens of one image.

    Attributes:
        size: Y, X of the original image, in pixels.
        start: First position of its visual tokens along N.
        stop: One past the last, separators included; ``start`` where the prompt has no token for the image, which
            is reached by cross-attention alone.
        tokens: Where its visual tokens lie on the image; several grids where it was cut into tiles; none where each
            is a query that saw the whole image, as a Q-Former's do.
        patches: The same for the positions of the vision encoder (P); empty where there is none, or where they
            form no grid. Where both have as many grids, the first of one shows what the first of the other does.

    Raises:
        LayoutError: If a grid leaves the span, a position lies in two grids, or the image has neither positions
            nor patches.
    """

    size: tuple[int, int]
    start: int
    stop: int
    tokens: tuple[PatchGrid, ...]
    patches: tuple[PatchGrid, ...] = ()

    def __post_init__(self) -> None:
        if not self.patches and (not self.tokens and self.start == self.stop):
            raise LayoutError(
                "an image has no grid of visual tokens nor of patches, and no position: give at least one"
            )
        for grid in self.tokens:
            if grid.start < self.start or grid.stop > self.stop:
                raise LayoutError(
                    f"a grid over positions {grid.start} to {grid.stop - 1} leaves its image's span, "
                    f"{self.start} to {self.stop - 1}: widen the span or mend the grid"
                )
        for what, grids in (("visual token", self.tokens), ("patch", self.patches)):
            if (twice := _first_twice(grids)) is not None:
                raise LayoutError(
                    f"{what} {twice} lies in two grids of one image: a position shows one place"
                )

    @property
    def positions(self) -> list[int]:
        """Every position along N that shows a part of the image, or is a query to it."""
        if not self.tokens:
            return list(range(self.start, self.stop))
        return [position for grid in self.tokens for position in grid.positions]

    def seen(self) -> Bool[Tensor, "Y X"]:
        """Which pixels of the original image reach the model; the others were cropped away.

        All of them where nothing is known but that queries saw the image.
        """
        grids = self.tokens or self.patches
        if not grids:
            return torch.ones(self.size, dtype=torch.bool)
        shown = [g.on_pixels(torch.ones(g.rows, g.columns), self.size) for g in grids]
        return torch.stack(shown).sum(0) > 0

    def spread(self, scores: Float[Tensor, "*K N"], width: int) -> Float[Tensor, "*K P"]:
        """Scores of the visual tokens handed on to the patches that each token shows.

        A token's score is shared evenly among the patches whose centres lie in its cell, so the sum
        stays as it was: one patch for a projector that works token by token, four for a 2 × 2 merge. Patches beyond
        all tokens, dropped as padding, get nothing. Thumbnail and tiles are kept apart.

        Args:
            scores: Along N.
            width: P.

        Raises:
            LayoutError: If the image has no patches, or a token shows none.
        """
        spread = scores.new_zeros(*scores.shape[:-1], width)
        for tokens, patches in self._matched():
            owner = torch.cat([_owners(tokens, grid) for grid in patches])
            position = torch.tensor([p for grid in patches for p in grid.positions])
            share = torch.bincount(
                owner[owner >= 0], minlength=sum(g.rows * g.columns for g in tokens)
            )
            if int(share.min()) == 0:
                raise LayoutError(
                    f"{_shapes(tokens)} visual tokens lie over {_shapes(patches)} patches and some token shows no "
                    "patch: mend the adapter's grids"
                )
            device = scores.device
            of = torch.tensor([p for grid in tokens for p in grid.positions], device=device)
            each = scores[..., of] / share.to(device)
            shown = owner >= 0
            spread.index_add_(
                -1, position[shown].to(device), each[..., owner[shown].to(device)].to(spread.dtype)
            )
        return spread

    def _matched(self) -> list[tuple[tuple[PatchGrid, ...], tuple[PatchGrid, ...]]]:
        """Token grids with the patch grids that they were made of.

        Raises:
            LayoutError: If that cannot be told.
        """
        if self.tokens and len(self.tokens) == len(self.patches):
            return [((t,), (p,)) for t, p in zip(self.tokens, self.patches, strict=True)]
        tokens, patches = _by_scale(self.tokens), _by_scale(self.patches)
        if not tokens or len(tokens) != len(patches):
            raise LayoutError(
                f"an image has {len(self.tokens)} grids of visual tokens and {len(self.patches)} of patches: "
                "relevance cannot go on into its vision encoder; ask for the language model's alone"
            )
        # One grid of tokens over several tiles of patches, say, and a thumbnail of its own scale beside them.
        return list(zip(tokens, patches, strict=True))


def _first_twice(grids: Sequence[PatchGrid]) -> int | None:
    seen: set[int] = set()
    for grid in grids:
        for position in grid.positions:
            if position in seen:
                return position
            seen.add(position)
    return None


def _shapes(grids: Sequence[PatchGrid]) -> str:
    return " and ".join(f"{grid.rows} × {grid.columns}" for grid in grids)


def _by_scale(grids: Sequence[PatchGrid]) -> list[tuple[PatchGrid, ...]]:
    """Grids with cells of about one size put together, the finest first."""

    def side(grid: PatchGrid) -> float:
        cell = grid.cell(0, 0)
        return ((cell.right - cell.left) * (cell.bottom - cell.top)) ** 0.5

    groups: list[list[PatchGrid]] = []
    for grid in sorted(grids, key=side):
        if groups and side(grid) < 1.25 * side(groups[-1][0]):
            groups[-1].append(grid)
        else:
            groups.append([grid])
    return [tuple(group) for group in groups]


def _owners(tokens: Sequence[PatchGrid], patches: PatchGrid) -> Tensor:
    """For each patch, row by row, the token in whose cell its centre lies, counted through all grids; -1 for none."""
    owner = torch.full((patches.rows, patches.columns), -1)
    first = 0
    for grid in tokens:
        row = _cells_of_patches(
            patches.rows, patches.box.top, patches.box.bottom, grid.rows, grid.box.top, grid.box.bottom
        )  # fmt: skip
        column = _cells_of_patches(
            patches.columns, patches.box.left, patches.box.right, grid.columns, grid.box.left, grid.box.right
        )  # fmt: skip
        inside = (row >= 0)[:, None] & (column >= 0)[None, :]
        index = first + row[:, None] * grid.columns + column[None, :]
        owner = torch.where(inside & (owner < 0), index, owner)
        first += grid.rows * grid.columns
    return owner.flatten()


def _cells_of_patches(
    patches: int, low: float, high: float, cells: int, cells_low: float, cells_high: float
) -> Tensor:
    """Along one axis: the cell in which each patch's centre lies; -1 for none."""
    centres = low + (np.arange(patches) + 0.5) * (high - low) / patches
    index = np.floor((centres - cells_low) * cells / (cells_high - cells_low)).astype(np.int64)
    return torch.from_numpy(np.where((index >= 0) & (index < cells), index, -1))


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The images of a sequence, and where its answer starts.

    Attributes:
        length: N, in tokens.
        answer_start: First answer position; ``length`` if there is no answer.
        images: One span an image, in reading order.
        patch_count: P, positions of the vision encoder; 0 where there is none.
        encoder_length: Of an encoder–decoder: how many positions are its encoder's; they come first.
        unmapped: Why nobody knows which positions show the images that were given; empty where ``images`` says it.

    Raises:
        LayoutError: If spans overlap, or one leaves the prompt.
    """

    length: int
    answer_start: int
    images: tuple[ImageSpan, ...] = ()
    patch_count: int = 0
    encoder_length: int = 0
    unmapped: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.answer_start <= self.length:
            raise LayoutError(
                f"the answer starts at position {self.answer_start} of {self.length}: it starts after the "
                "prompt's first token and not beyond the end"
            )
        end = 0
        for number, span in enumerate(self.images):
            if not end <= span.start <= span.stop <= self.answer_start:
                raise LayoutError(
                    f"image {number} lies at positions {span.start} to {span.stop - 1}: images follow each other "
                    f"in the prompt, here from {end} to {self.answer_start - 1}"
                )
            end = span.stop
            if any(grid.stop > self.patch_count for grid in span.patches):
                raise LayoutError(
                    f"image {number} names patches beyond the vision encoder's {self.patch_count} positions"
                )

    @property
    def has_images(self) -> bool:
        """Whether any image was given, mapped or not."""
        return bool(self.images or self.unmapped)

    @property
    def has_queries(self) -> bool:
        """Whether visual tokens are queries that saw a whole image each, so that none shows a part."""
        return any(not span.tokens for span in self.images)

    @property
    def answer_positions(self) -> range:
        """Positions of the answer's tokens."""
        return range(self.answer_start, self.length)

    @property
    def image_positions(self) -> list[int]:
        """Positions along N that show a part of any image."""
        return [position for span in self.images for position in span.positions]

    @property
    def text_positions(self) -> list[int]:
        """Every position outside the images' spans: words, separators, special tokens."""
        image = {p for span in self.images for p in range(span.start, span.stop)}
        return [p for p in range(self.length) if p not in image]

    def image(self, index: int) -> ImageSpan:
        """The span of image ``index``.

        Raises:
            LayoutError: If there is no such image.
        """
        if self.unmapped:
            raise LayoutError(f"the pixels of image {index} cannot be told: {self.unmapped}")
        if not 0 <= index < len(self.images):
            raise LayoutError(
                f"there is no image {index}: this sequence has {len(self.images)}, counted from 0"
            )
        return self.images[index]

    def tokens_in_box(self, image: int, box: Box) -> list[int]:
        """Positions along N that show some part of a rectangle of an image, all tiles and the thumbnail included.

        Args:
            image: Index.
            box: In pixels of the original image.

        Returns:
            In rising order. Queries saw the whole image: then all of its positions.

        Raises:
            LayoutError: If there is no such image.
        """
        span = self.image(image)
        if not span.tokens:
            return span.positions
        return sorted(p for grid in span.tokens for p in grid.overlapping(box))

    def patches_in_box(self, image: int, box: Box) -> list[int]:
        """The same along P; empty where the layout knows no patches.

        Args:
            image: Index.
            box: In pixels of the original image.

        Raises:
            LayoutError: If there is no such image.
        """
        return sorted(p for grid in self.image(image).patches for p in grid.overlapping(box))

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers; :meth:`from_json` reads it back."""
        data = asdict(self)
        for span in data["images"]:
            for grid in (*span["tokens"], *span["patches"]):
                if not grid["order"]:
                    del grid["order"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenLayout:
        """What :meth:`to_json` wrote.

        Raises:
            LayoutError: If the numbers contradict each other.
        """

        def grids(rows: Sequence[Mapping[str, Any]]) -> tuple[PatchGrid, ...]:
            return tuple(PatchGrid(**_grid_fields(row)) for row in rows)

        images = tuple(
            ImageSpan(
                size=(int(span["size"][0]), int(span["size"][1])),
                start=span["start"],
                stop=span["stop"],
                tokens=grids(span["tokens"]),
                patches=grids(span["patches"]),
            )
            for span in data["images"]
        )
        return cls(
            data["length"],
            data["answer_start"],
            images,
            data["patch_count"],
            data.get("encoder_length", 0),
            data.get("unmapped", ""),
        )


def _grid_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "box": Box(**row["box"]), "order": tuple(row.get("order", ()))}
