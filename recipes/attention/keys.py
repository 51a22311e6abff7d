"""What the keys of an attention call are: positions of the sequence, patches of the encoder, or neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lvlm_probe.attention import AttentionCall
from lvlm_probe.grid import PatchGrid
from lvlm_probe.layout import TokenLayout

__all__ = ["Keys", "crosses_to_images"]


def crosses_to_images(sites: Iterable[str], layout: TokenLayout) -> bool:
    """Whether the language model reaches its images by cross-attention, and not among its own tokens.

    Args:
        sites: Names of its attention calls.
        layout: An encoder–decoder crosses to its encoder's tokens, the images' among them; that is not meant.
    """
    across = (
        name.startswith("language.") and name.endswith(".cross_attention")
        for name in sites  # a Q-Former's own cross-attention is not the language model's
    )
    return not layout.encoder_length and any(across)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one call, as places of the layout.

    Attributes:
        layout: Which positions are which.
        count: How many keys there are.
        first: Position along N of the first key; None where keys are no positions of the sequence.
        patches: Whether they are the vision encoder's positions, P.
        sees: Whether images are among them.
    """

    layout: TokenLayout
    count: int
    first: int | None
    patches: bool
    sees: bool

    @classmethod
    def of(cls, call: AttentionCall, layout: TokenLayout, *, crossing: bool) -> Keys:
        """Those of a call of the language model.

        Args:
            call: A decoder's calls count from its own first token.
            layout: Of the sequence.
            crossing: What :func:`crosses_to_images` says.
        """
        if not call.cross and call.keys + layout.encoder_length != layout.length:
            return cls(layout, call.keys, None, False, False)  # own and encoder's tokens in one
        if not call.cross:
            return cls(
                layout,
                call.keys,
                layout.encoder_length,
                False,
                not (crossing or layout.encoder_length),
            )
        if layout.encoder_length:
            return cls(layout, call.keys, 0, False, True)
        return cls(layout, call.keys, None, call.keys == layout.patch_count, True)

    def grids(self, image: int) -> tuple[PatchGrid, ...]:
        """Where an image's keys lie on it; none where they are not seen here, or show no places.

        Args:
            image: Index.
        """
        if not self.sees:
            return ()
        span = self.layout.image(image)
        if self.patches:
            return span.patches
        if self.first is None:
            return ()
        return tuple(grid for grid in span.tokens if self._has(grid.start))

    def on(self, grid: PatchGrid) -> list[int]:
        """The keys of a grid's cells, row by row."""
        return [position - (self.first or 0) for position in grid.positions]

    def of_image(self, image: int) -> list[int]:
        """The keys that show an image, or are queries to it; none where it is not seen here.

        Args:
            image: Index.
        """
        if not self.sees:
            return []
        span = self.layout.image(image)
        if self.patches:
            return [key for grid in span.patches for key in grid.positions]
        if self.first is None:
            # Features that a resampler made: of one image all of them, of several nobody knows which.
            return list(range(self.count)) if len(self.layout.images) == 1 else []
        return self.at(span.positions)

    def at(self, positions: Iterable[int]) -> list[int]:
        """The keys at those of some positions along N that are keys here."""
        first = self.first
        return [] if first is None else [p - first for p in positions if self._has(p)]

    def _has(self, position: int) -> bool:
        return self.first is not None and self.first <= position < self.first + self.count
