"""Where the answer looks: attention of the positions that predict its tokens, over all layers and heads.

Every token is looked at where it is predicted, one position before its own. A row of attention sums to 1, so what it pays to
an image, to the question and to the earlier answer are shares of it. "Layers" are the language model's attention calls in
the order of the forward pass: in a model that also attends across, some of them are cross-attention (:func:`site_labels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_probe.errors import LayoutError, TraceError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.recipes.attention.keys import Keys, crosses_to_images
from lvlm_probe.trace import Trace

__all__ = [
    "AnswerAttention",
    "answer_attention",
    "answer_to_grids",
    "answer_to_image",
    "answer_to_question",
    "head_rows",
    "image_to_answer",
    "rank_heads",
]


@dataclass(frozen=True, eq=False)
class AnswerAttention:
    """What each answer token pays to what, in every layer and head; NaN where a layer has no such keys, or no such head.

    Attributes:
        sites: Names of the attention calls, in the order of the forward pass.
        to_images: To the tokens of each image (I), or to its patches.
        to_question: To the prompt's words; in an encoder–decoder, to the encoder's.
        to_answer: To the answer's earlier tokens.
        mean: The rows themselves, mean over all heads of the layers that have the keys of :attr:`mean_layer`.
        keys: What the keys of each layer are.
    """

    sites: tuple[str, ...]
    to_images: Float[Tensor, "I L H A"]
    to_question: Float[Tensor, "L H A"]
    to_answer: Float[Tensor, "L H A"]
    mean: Float[Tensor, "A K"]
    keys: tuple[Keys, ...]

    @property
    def labels(self) -> list[str]:
        """What layers are called: their number, with ``×`` behind it for cross-attention."""
        return [n.split(".")[2] + "×" * n.endswith(".cross_attention") for n in self.sites]

    def layers_seeing(self, image: int = 0) -> list[int]:
        """Numbers of the layers that attend to an image.

        Raises:
            LayoutError: If there is no such image.
        """
        self.keys[0].layout.image(image)
        return [n for n, keys in enumerate(self.keys) if keys.of_image(image)]

    def grids(self, image: int = 0) -> tuple[PatchGrid, ...]:
        """Where the keys that show an image lie on it: its visual tokens, or its patches where these are attended to.

        Raises:
            LayoutError: If there is no such image, or what is attended to shows no places (queries).
        """
        return _grids(self.keys, image)

    @property
    def mean_layer(self) -> int:
        """The first layer that sees images, or else the first one: :attr:`mean` is over all with the same keys."""
        return _leading(self.keys)

    def on_grids(
        self, layer: int, rows: Float[Tensor, "*K N"], image: int = 0
    ) -> list[tuple[PatchGrid, Float[Tensor, "*K R C"]]]:
        """Rows of one layer's attention on an image.

        Args:
            layer: Its number.
            rows: Over its keys.
            image: Index.

        Raises:
            LayoutError: If the layer does not see the image, or what it sees shows no places.
        """
        keys = self._seeing(layer, image)
        return [
            (g, rows[..., keys.on(g)].unflatten(-1, (g.rows, g.columns))) for g in keys.grids(image)
        ]

    def on_patches(
        self, layer: int, rows: Float[Tensor, "*K N"], patches: Sequence[int], image: int = 0
    ) -> Float[Tensor, "*K"]:
        """What rows of one layer's attention pay to chosen patches, added up.

        Args:
            layer: Its number.
            rows: Over its keys.
            patches: Indices as for :func:`image_to_answer`.
            image: Index.

        Raises:
            TraceError: If a patch is out of range.
            LayoutError: If the layer does not see the image, or what it sees shows no places.
        """
        return rows[..., _patch_keys(self._seeing(layer, image), patches, image)].sum(-1)

    def on_image(
        self, layer: int, rows: Float[Tensor, "*K N"], image: int = 0
    ) -> Float[Tensor, "*K"]:
        """What rows of one layer's attention pay to an image, with or without places; arguments as for :meth:`on_grids`.

        Raises:
            LayoutError: If there is no such image, or the layer does not see it.
        """
        keys = self.keys[layer].of_image(image) if layer in self.layers_seeing(image) else []
        if not keys:
            raise LayoutError(self._blind(layer, image))
        return rows[..., keys].sum(-1)

    def _blind(self, layer: int, image: int) -> str:
        return (
            f"{self.sites[layer]} does not see image {image}: choose one of the layers "
            f"{', '.join(self.labels[n] for n in self.layers_seeing(image)) or '(none does)'}"
        )

    def _seeing(self, layer: int, image: int) -> Keys:
        self.grids(image)
        if not self.keys[layer].grids(image):
            raise LayoutError(self._blind(layer, image))
        return self.keys[layer]


def answer_attention(trace: Trace) -> AnswerAttention:
    """One pass over the language model's layers.

    Args:
        trace: With the language model's attention.

    Raises:
        TraceError: If it holds none, or there is no answer.
    """
    layout, sites = trace.layout, _sites(trace)
    earlier = range(layout.answer_start, layout.length)
    prompt = layout.encoder_length or layout.answer_start
    question = [position for position in layout.text_positions if position < prompt]
    images, words, answer = list[Tensor](), list[Tensor](), list[Tensor]()
    means, kinds = list[Tensor](), list[Keys]()
    for site in sites:
        keys, rows = _rows(trace, site)
        seen = [_paid(rows, keys.of_image(n)) for n in range(len(layout.images))]
        images.append(torch.stack(seen) if seen else rows.new_zeros(0, *rows.shape[:2]))
        words.append(_paid(rows, keys.at(question)))
        answer.append(_paid(rows, keys.at(earlier)))
        means.append(rows.mean(0))
        kinds.append(keys)
    leading = kinds[_leading(kinds)]
    alike = [mean for mean, keys in zip(means, kinds, strict=True) if keys == leading]
    mean = torch.stack(alike).mean(0)
    return AnswerAttention(
        sites, _stacked(images, dim=1), _stacked(words), _stacked(answer), mean, tuple(kinds)
    )


def answer_to_grids(
    trace: Trace, image: int = 0, tokens: Sequence[int] | None = None
) -> list[tuple[PatchGrid, Float[Tensor, "L H R C"]]]:
    """How much answer tokens attend to each patch, for every layer and head; one tensor a grid of the image.

    Args:
        trace: With the language model's attention.
        image: Index.
        tokens: Indices of answer tokens, whose mean is taken; all by default.

    Returns:
        NaN for layers that do not see the image.

    Raises:
        TraceError: If a token is out of range.
        LayoutError: If there is no such image, or no patch has a place on it.
    """
    chosen = _tokens(trace, tokens)
    grids = _grids(_all_keys(trace), image)
    parts: list[list[Tensor]] = [[] for _ in grids]
    for site in _sites(trace):
        keys, rows = _rows(trace, site, chosen)
        row = rows.mean(1)
        seen = bool(keys.grids(image))
        for part, grid in zip(parts, grids, strict=True):
            shape = (grid.rows, grid.columns)
            part.append(
                row[:, keys.on(grid)].unflatten(-1, shape) if seen else torch.full((len(row), *shape), torch.nan)
            )  # fmt: skip
    return [(grid, _stacked(part)) for grid, part in zip(grids, parts, strict=True)]


def answer_to_image(
    trace: Trace, image: int = 0, tokens: Sequence[int] | None = None
) -> Float[Tensor, "L H R C"]:
    """The same for an image with one grid; arguments as for :func:`answer_to_grids`.

    Raises:
        TraceError: If a token is out of range.
        LayoutError: If there is no such image, or it has no one grid.
    """
    found = answer_to_grids(trace, image, tokens)
    if len(found) != 1:
        raise LayoutError(
            f"image {image} was cut into {len(found)} tiles, which share no one grid: use answer_to_grids"
        )
    return found[0][1]


def image_to_answer(trace: Trace, patches: Sequence[int], image: int = 0) -> Float[Tensor, "L H A"]:
    """How much each answer token attends to chosen patches, for every layer and head.

    Args:
        trace: With the language model's attention.
        patches: Indices into the image's patches, row by row, one grid after the other; their attention is added up.
        image: Index.

    Returns:
        NaN for layers that do not see the image.

    Raises:
        TraceError: If a patch is out of range.
        LayoutError: If there is no such image, or no patch has a place on it.
    """
    _grids(_all_keys(trace), image)
    found: list[Tensor] = []
    for site in _sites(trace):
        keys, rows = _rows(trace, site)
        found.append(_paid(rows, _patch_keys(keys, patches, image) if keys.grids(image) else []))
    return _stacked(found)


def answer_to_question(trace: Trace) -> Float[Tensor, "L H"]:
    """Mean over the answer's tokens of their attention to the prompt's words, for every layer and head."""
    return answer_attention(trace).to_question.mean(-1)


def rank_heads(
    scores: Float[Tensor, "L H"] | Trace, image: int = 0, most: int | None = None
) -> list[tuple[int, int, float]]:
    """(layer, head, score), the highest first.

    Args:
        scores: One a head; heads without one (NaN) are left out. Of a trace: the mean attention of its answer to an image.
        image: Index, for a trace.
        most: How many at most; all by default.
    """
    if isinstance(scores, Trace):
        scores = answer_attention(scores).to_images[image].mean(-1)
    heads, flat = scores.shape[1], scores.flatten()
    order: Int[Tensor, " _"] = flat.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    known = [int(n) for n in order if not flat[n].isnan()]
    return [(n // heads, n % heads, float(flat[n])) for n in known[:most]]


def head_rows(trace: Trace, layer: int, head: int | None = None) -> Float[Tensor, "A K"]:
    """One row of attention an answer token, over the layer's own keys.

    Args:
        trace: With the language model's attention.
        layer: Number of the call among the language model's.
        head: Mean over the layer's heads by default.

    Raises:
        TraceError: If there is no such layer or head.
    """
    sites = _sites(trace)
    if not 0 <= layer < len(sites):
        raise TraceError(f"layer {layer} is out of range: there are {len(sites)}, from 0")
    if head is None:
        return _rows(trace, sites[layer])[1].mean(0)
    call = trace.site(sites[layer])
    if not 0 <= head < call.heads:
        raise TraceError(f"head {head} is out of range: {call.site} has {call.heads}, from 0")
    return call.weights(_positions(trace, None), torch.tensor([head]))[0]


def _sites(trace: Trace) -> tuple[str, ...]:
    sites = tuple(trace.sites("language"))
    if not sites:
        raise TraceError(
            "the trace holds no attention of the language model: record with Capture(towers=('language', ...))"
        )
    return sites


def _leading(kinds: Sequence[Keys]) -> int:
    return next((n for n, keys in enumerate(kinds) if keys.sees), 0)


def _all_keys(trace: Trace) -> Iterator[Keys]:
    crossing = crosses_to_images(trace.sites("language"), trace.layout)
    for site in _sites(trace):
        yield Keys.of(trace.site(site), trace.layout, crossing=crossing)


def _grids(all_keys: Iterable[Keys], image: int) -> tuple[PatchGrid, ...]:
    kept = 0
    for keys in all_keys:
        if grids := keys.grids(image):
            return grids
        kept = max(kept, len(keys.of_image(image)))
    raise LayoutError(
        f"what the language model attends to of image {image} ({kept} feature{'' if kept == 1 else 's'}) shows no places: "
        "each saw the whole image, so there is no map of it"
    )


def _rows(
    trace: Trace, site: str, tokens: Sequence[int] | None = None
) -> tuple[Keys, Float[Tensor, "H A K"]]:
    call = trace.site(site)
    crossing = crosses_to_images(trace.sites("language"), trace.layout)
    keys = Keys.of(call, trace.layout, crossing=crossing)
    return keys, call.weights(_positions(trace, tokens))


def _positions(trace: Trace, tokens: Sequence[int] | None) -> Int[Tensor, " A"]:
    """Where tokens are predicted, counted as the language model's queries are."""
    layout = trace.layout
    first = layout.answer_start - 1 - layout.encoder_length
    return torch.tensor([first + token for token in _tokens(trace, tokens)])


def _tokens(trace: Trace, tokens: Sequence[int] | None) -> list[int]:
    count = len(trace.answer_tokens)
    chosen = sorted(set(range(count) if tokens is None else tokens))
    if not chosen or any(not 0 <= token < count for token in chosen):
        raise TraceError(f"answer tokens {chosen} are out of range: the answer has {count}, from 0")
    return chosen


def _patch_keys(keys: Keys, patches: Sequence[int], image: int) -> list[int]:
    places = [key for grid in keys.grids(image) for key in keys.on(grid)]
    if not patches or any(not 0 <= patch < len(places) for patch in patches):
        raise TraceError(
            f"patches {list(patches)} are out of range: image {image} has {len(places)}, from 0"
        )
    return [places[patch] for patch in patches]


def _paid(rows: Float[Tensor, "H A K"], keys: Sequence[int]) -> Float[Tensor, "H A"]:
    """NaN where there is nothing to be paid to."""
    return rows[..., list(keys)].sum(-1) if keys else torch.full_like(rows[..., 0], torch.nan)


def _stacked(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Stacked along layers; where layers differ in heads, those that are missing are NaN."""
    heads = max(part.shape[dim] for part in parts)
    padded: list[Tensor] = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = heads - shape[dim]
        padded.append(torch.cat([part, part.new_full(shape, torch.nan)], dim))
    return torch.stack(padded, dim)
