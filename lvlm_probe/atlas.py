"""Which pixels of the original image each position shows, measured on any model and processor.

Two measurements, neither of which knows a family: ramp pictures through the processor tell which pixel each element
of the model's image inputs shows (:mod:`lvlm_probe.ramps`); gradients with attention cut tell which position each
element feeds (:mod:`lvlm_probe.feeds`). Together they give each position's place, and places are put together into
grids (:mod:`lvlm_probe.lattice`). What cannot be told is left out, or an error; nothing is guessed.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lvlm_probe.adapter import Sites, SourceSequence
from lvlm_probe.blurred import centres, clear_grid
from lvlm_probe.errors import LayoutError, UnmappedImageWarning
from lvlm_probe.feeds import Partial, feeds, run_partly
from lvlm_probe.grid import PatchGrid
from lvlm_probe.known import Measured, ends_of, ids_of, key_of, moved, remembered
from lvlm_probe.lattice import Places, grids_of, place
from lvlm_probe.layout import ImageSpan, TokenLayout
from lvlm_probe.ramps import Prepare, Shown, image_path, shown_by_itself, trace_pixels

__all__ = ["Measured", "measure", "measured_layout"]

_FEW = 9  # positions that tell whether all see everything
_SCATTERED = 0.5  # of the elements: above, positions share what they show


def measure(
    source: SourceSequence,
    model: nn.Module,
    sites: Sites,
    prepare: Prepare | None = None,
    cache: MutableMapping[Hashable, Measured] | None = None,
) -> TokenLayout:
    """Which positions show which part of which image.

    Costs one forward of the vision encoder and the projector, about 1 + log2 of the visual tokens and as many of the
    patches backward passes through them, and 6 runs of the processor and one an image. Where images of the same
    sizes were measured before, ``cache`` spares all of it.

    Args:
        source: The sequence.
        model: The whole LVLM; it is left as it was.
        sites: Where its layers are.
        prepare: Makes the model's inputs from pictures as those of ``source`` were made; the processor's image
            processor alone if None.
        cache: Kept between calls for one model.

    Returns:
        N counts what enters the language model's first layer, which may be more than ``input_ids``; for an encoder
        and decoder, the encoder's positions and then the decoder's. Patches are left out where the vision encoder
        attends to other positions than those that enter its first layer, or where they form no grid.

    Raises:
        LayoutError: If the inputs do not depend on the pictures in a way that can be followed, or the positions that
            show an image form no grid.
    """
    if not source.image_sizes:
        given = [name for name, value in source.inputs.items() if value.is_floating_point()]
        if given:
            raise LayoutError(
                f"the inputs {', '.join(given)} were made by hand, and not as one picture an item, so their pixels are not "
                "known: give Probe the processor, and the case its pictures"
            )
        return ends_of(source, sites, len(ids_of(source)))
    key = key_of(source)
    if cache is not None and key in cache:
        known = moved(cache[key], source, sites)
        if known is not None:
            return known
    shown = _shown(source, prepare)
    layout = _Measurement(source, model, sites, shown).layout()
    if cache is not None:
        cache[key] = remembered(layout, source)
    return layout


_CACHES: WeakKeyDictionary[nn.Module, dict[Hashable, Measured]] = WeakKeyDictionary()


def measured_layout(source: SourceSequence) -> TokenLayout:
    """What an adapter says whose layouts are measured; each shape of images is measured once a model.

    Where they cannot be, a warning says why, and the layout holds that in place of its images.

    Args:
        source: The sequence, with its model and sites.
    """
    model, sites = source.model, source.sites
    assert sites is not None
    try:
        return measure(source, model, sites, source.prepare, _CACHES.setdefault(model, {}))
    except LayoutError as error:
        warnings.warn(
            f"{type(model).__name__}: no map of the images, words can be explained only: {error}",
            UnmappedImageWarning,
            stacklevel=2,
        )
        met = run_partly(model, sites, source.inputs, (), gradients=False)
        entered = len(ids_of(source)) if met.hidden is None else len(met.hidden)
        return replace(ends_of(source, sites, entered), unmapped=str(error))


def _shown(source: SourceSequence, prepare: Prepare | None) -> dict[str, Shown]:
    if prepare is None and source.processor is None:
        return shown_by_itself(source.image_sizes, source.inputs)
    return trace_pixels(prepare or image_path(source.processor), source.image_sizes, source.inputs)


class _Measurement:
    """One sequence, one model."""

    def __init__(
        self, source: SourceSequence, model: nn.Module, sites: Sites, shown: dict[str, Shown]
    ) -> None:
        self.source, self.model, self.sites, self.shown = source, model, sites, shown
        self.attending = (*sites.vision, *sites.resampler)

    def layout(self) -> TokenLayout:
        """The layout.

        Raises:
            LayoutError: If the language model was not reached, or positions form no grid.
        """
        if not self.sites.language:
            raise LayoutError(
                "no layer of the language model is known, so where images enter it cannot be measured: give Probe an "
                "adapter that names the layers"
            )
        met = self._run(self.source.inputs, cut=True)
        if met.hidden is None:
            raise LayoutError(
                "the forward pass never reached the first layer of the language model "
                f"({self.sites.language[0].layer!r}): mend the paths of the adapter"
            )
        patches = self._patch_places(met)
        tokens = self._places(met, met.hidden)
        if tokens is not None and (tokens.image >= 0).any() and tokens.mixing < _SCATTERED:
            spans = self._shown_spans(tokens, patches)
        elif met.keys is not None:
            spans = self._crossed_spans(patches)
        else:
            spans = self._moved_spans(met, patches)
        width = len(patches.image) if patches is not None and any(s.patches for s in spans) else 0
        ends = ends_of(self.source, self.sites, len(met.hidden))
        return replace(ends, images=spans, patch_count=width)

    def _run(self, inputs: Mapping[str, Tensor], *, cut: bool, gradients: bool = True) -> Partial:
        attending = self.attending if cut else None
        return run_partly(
            self.model, self.sites, inputs, list(self.shown), cut=attending, gradients=gradients
        )

    def _places(self, met: Partial, targets: Tensor | None) -> Places | None:
        """Where the rows of ``targets`` lie; None where no image feeds them."""
        if targets is None or not targets.requires_grad:
            return None
        found = feeds(targets, list(met.leaves.values()))
        each = [
            place([feed], [shown], len(targets))
            for feed, shown in zip(found, self.shown.values(), strict=True)
        ]
        # Where a picture goes in twice, once past convolutions, the other way tells the places.
        clear = [n for n, p in enumerate(each) if p.mixing < _SCATTERED and (p.image >= 0).any()]
        used = clear or range(len(each))
        shown = list(self.shown.values())
        return place([found[n] for n in used], [shown[n] for n in used], len(targets))

    def _patch_places(self, met: Partial) -> Places | None:
        """Where the vision encoder's positions lie; None where its attention takes them in another order."""
        across = self._places(met, met.keys)
        if across is not None and (across.image >= 0).any() and across.mixing < _SCATTERED:
            return across
        # Else words attend to queries, if to anything, which attended to these.
        places = self._places(met, met.patches)
        if met.queries is None or places is None:
            return places
        asked = self._places(met, met.queries)
        if asked is None or len(asked.image) != len(places.image):
            return None
        same = all(
            bool((a == b).all())
            for a, b in ((asked.image, places.image), (asked.x, places.x), (asked.y, places.y))
        )
        return places if same else None

    def _shown_spans(self, tokens: Places, patches: Places | None) -> tuple[ImageSpan, ...]:
        edges = self._edges(tokens)
        spans: list[ImageSpan] = []
        for number, (size, (start, stop)) in enumerate(
            zip(self.source.image_sizes, edges, strict=True)
        ):
            grids, tiles = grids_of(tokens, number, size)
            spans.append(
                ImageSpan(size, start, stop, grids, self._patches(patches, number, size, tiles))
            )
        return tuple(spans)

    def _edges(self, tokens: Places) -> list[tuple[int, int]]:
        """Where each image's positions begin and end; those of a separator of the same id belong to it.

        Raises:
            LayoutError: If no position shows an image.
        """
        ids = ids_of(self.source)
        known = len(ids) == len(tokens.image)
        edges: list[tuple[int, int]] = []
        for number in range(len(self.source.image_sizes)):
            at = (tokens.image == number).nonzero()[0]
            if len(at) == 0:
                raise LayoutError(
                    f"no position of the prompt shows image {number}: are there more images than the prompt has "
                    "places, or did the processor drop one?"
                )
            start, stop = int(at[0]), int(at[-1]) + 1
            of_image = {ids[position] for position in at} if known else set[int]()
            if len(of_image) == 1:
                after = edges[-1][1] if edges else 0
                while start > after and ids[start - 1] in of_image:
                    start -= 1
                while stop < len(ids) and ids[stop] in of_image and tokens.image[stop] < 0:
                    stop += 1
            edges.append((start, stop))
        # Positions that the model puts before the prompt by itself show the image, or are its class token.
        added = len(tokens.image) - len(ids) - sum(stop - start for start, stop in edges)
        if added > 0 and len(edges) == 1 and edges[0][0] >= added:
            edges = [(edges[0][0] - added, edges[0][1])]
        return edges

    def _patches(
        self, patches: Places | None, image: int, size: tuple[int, int], tiles: Sequence[int] = ()
    ) -> tuple[PatchGrid, ...]:
        """Grids of an image's patches, in the order of the tiles of its tokens; none where they form none."""
        if patches is None:
            return ()
        try:
            grids, shown = grids_of(patches, image, size)
        except LayoutError:
            return ()
        if sorted(shown) == sorted(tiles) and len(set(tiles)) == len(tiles):
            return tuple(grids[shown.index(tile)] for tile in tiles)
        return grids

    def _crossed_spans(self, patches: Places | None) -> tuple[ImageSpan, ...]:
        """The image is attended to across; the prompt has a token for it, or none.

        Raises:
            LayoutError: If what is attended to forms no grid.
        """
        ids = ids_of(self.source)
        config = self.source.config
        place = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        where = [number for number, token in enumerate(ids) if token == place]
        sizes = self.source.image_sizes
        each = len(where) // len(sizes)
        if each * len(sizes) != len(where):
            where, each = [], 0
        spans: list[ImageSpan] = []
        for number, size in enumerate(sizes):
            start = where[number * each] if each else 0
            stop = where[(number + 1) * each - 1] + 1 if each else 0
            grids = self._patches(patches, number, size)
            if not grids:
                raise LayoutError(
                    f"image {number} is attended to across, and the positions there form no grid: give Probe an "
                    "adapter whose layout says where they lie"
                )
            spans.append(ImageSpan(size, start, stop, (), grids))
        return tuple(spans)

    def _moved_spans(self, met: Partial, patches: Places | None) -> tuple[ImageSpan, ...]:
        """Positions that show no part of their own sharply.

        Either queries, each of which saw the whole image through attention, or a convolutional encoder's.

        Raises:
            LayoutError: If no position depends on an image, or none has a gradient to it, or it cannot be told
                where they lie.
        """
        whole = self._run(self.source.inputs, cut=False)
        assert whole.hidden is not None
        plain = whole.hidden.detach()
        spans: list[ImageSpan] = []
        for number, size in enumerate(self.source.image_sizes):
            changed = self._run(self._disturbed(number), cut=False, gradients=False).hidden
            assert changed is not None
            off = (changed - plain).float().norm(dim=-1)
            at = (off > 1e-6 * plain.float().norm(dim=-1)).nonzero().flatten().tolist()
            self._check_moved(number, at, len(plain))
            if not whole.hidden.requires_grad:
                raise LayoutError(
                    f"{len(at)} positions depend on image {number}, and have no gradient to it: the image is turned into "
                    "numbers of tokens on its way, which cannot be followed; give Probe an adapter whose layout says "
                    "where they lie"
                )
            tokens = self._blurred(met, number, size, at)
            spans.append(
                ImageSpan(size, at[0], at[-1] + 1, tokens, self._patches(patches, number, size))
            )
        return tuple(spans)

    def _check_moved(self, number: int, at: Sequence[int], length: int) -> None:
        """Some positions depend on the image, and the last word is none of them.

        Raises:
            LayoutError: If it is otherwise.
        """
        if not at:
            raise LayoutError(
                f"no position that enters the language model depends on image {number}: the image reaches it in a "
                "way that is not known here; give Probe an adapter whose layout says how"
            )
        if at[-1] == length - 1:
            raise LayoutError(
                f"{len(at)} positions depend on image {number} where they enter {self.sites.language[0].layer!r}, and "
                "the last word is one of them: words attend to images before that layer; let the adapter's sites "
                "name the language model's first layer"
            )

    def _blurred(
        self, met: Partial, number: int, size: tuple[int, int], at: Sequence[int]
    ) -> tuple[PatchGrid, ...]:
        """The grid of a convolutional encoder's positions; none where they are queries.

        Raises:
            LayoutError: If they are neither.
        """
        assert met.hidden is not None
        if not met.hidden.requires_grad:
            return ()
        name = next(n for n, shown in self.shown.items() if (shown.image == number).any())
        look = partial(centres, met.hidden, at, met.leaves[name], self.shown[name], number, size)
        few = look(most=_FEW)
        if few.everywhere or not few.fed:
            return ()
        found = look()
        if (grid := clear_grid(found, at)) is not None:
            return (grid,)
        raise LayoutError(
            f"the {len(at)} positions that depend on image {number} each show more than one place, and their centres "
            "fit no regular grid: give Probe an adapter whose layout says where they lie"
        )

    def _disturbed(self, image: int) -> dict[str, Tensor]:
        """The inputs with noise on one image."""
        generator = torch.Generator().manual_seed(image)
        changed = dict(self.source.inputs)
        for name, shown in self.shown.items():
            value = changed[name]
            noise = torch.randn(value.shape, generator=generator).to(value)
            at = torch.from_numpy(shown.image == image).view(value.shape).to(value.device)
            changed[name] = torch.where(at, value + noise, value)
        return changed
