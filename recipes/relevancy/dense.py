"""The published definitions, on dense matrices: for small inputs, and to check the recipe against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import TraceError

__all__ = [
    "normalize_rows",
    "qformer_relevance",
    "relevance_matrix",
    "relevance_rows",
    "relevance_rows_cached",
]

Pair = tuple[Tensor, Tensor]


def _mean_positive(
    attention: Float[Tensor, "H Q M"], gradient: Float[Tensor, "H Q M"]
) -> Float[Tensor, "Q M"]:
    return (gradient.float() * attention.float()).clamp(min=0).mean(dim=0)


def _paired(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Pair]:
    if len(attentions) == 0 or len(attentions) != len(gradients):
        raise TraceError(
            f"{len(attentions)} layers of attention and {len(gradients)} of gradients: give one of each for "
            "every layer, at least one"
        )
    return list(zip(attentions, gradients, strict=True))


def relevance_matrix(
    attentions: Sequence[Float[Tensor, "H N N"]], gradients: Sequence[Float[Tensor, "H N N"]]
) -> Float[Tensor, "N N"]:
    """Relevance of each input position (column) to each output position (row), identity included.

    Rules 5 and 6 of Chefer, Gur & Wolf (2021): each layer adds ``Ā R`` to R, which starts as the identity.

    Args:
        attentions: Softmax weights, first layer first; rows attend to columns.
        gradients: Of the target with respect to each of ``attentions``.

    Returns:
        Float32, non-negative, without a unit: rank positions within one target.

    Raises:
        TraceError: If a layer lacks its gradient, or there is no layer.
    """
    pairs = _paired(attentions, gradients)
    relevance = torch.eye(pairs[0][0].shape[-1], device=pairs[0][0].device)
    for attention, gradient in pairs:
        relevance = relevance + _mean_positive(attention, gradient) @ relevance
    return relevance


def relevance_rows(
    attentions: Sequence[Float[Tensor, "H N N"]],
    gradients: Sequence[Float[Tensor, "H N N"]],
    position: int = -1,
) -> Float[Tensor, "L N"]:
    """One row of the relevance matrix after each layer, identity removed; no matrix product is made.

    Args:
        attentions: Softmax weights, first layer first.
        gradients: Of the target with respect to each of ``attentions``.
        position: Whose row.

    Returns:
        Row l is the row of ``(I + Ā_l) ··· (I + Ā_1)`` less the identity's 1.

    Raises:
        TraceError: If a layer lacks its gradient, or there is no layer.
    """
    pairs = _paired(attentions, gradients)
    width = pairs[0][0].shape[-1]
    position %= width
    rows = torch.zeros(len(pairs), width, device=pairs[0][0].device)
    # Row l starts when the descent reaches layer l; all rows above it are under way by then. The identity's 1 is
    # kept apart: beside it, the small relevance of a confident prediction would lose its digits.
    for layer in reversed(range(len(pairs))):
        mixed = _mean_positive(*pairs[layer])
        rows[layer:] += rows[layer:] @ mixed + mixed[position]
    return rows


def relevance_rows_cached(
    attentions: Sequence[Float[Tensor, "H N N"]],
    gradients: Sequence[Float[Tensor, "H N N"]],
    steps: Sequence[Sequence[tuple[Float[Tensor, "H 1 _"], Float[Tensor, "H 1 _"]]]],
) -> list[Float[Tensor, " _"]]:
    """The last row at each step of decoding with a cache, identity included, as LVLM-Interpret has it.

    Each step adds one row to every layer's ``Ā`` with that step's own gradient; rows of earlier tokens keep the
    gradient of the step that produced them. So it differs from one forward over prompt and answer with one target.

    Args:
        attentions: Of the prompt, first layer first.
        gradients: Of the prompt's own target.
        steps: For each decoded token, (attention, gradient) of its one query row, [H 1 M] with M = N + 1,
            N + 2, …; first layer first.

    Returns:
        For each step its row, of length N + 1, N + 2, ….

    Raises:
        TraceError: If a step has another number of layers than the prompt.
    """
    layers = [_mean_positive(*pair) for pair in _paired(attentions, gradients)]
    found: list[Tensor] = []
    for number, step in enumerate(steps):
        if len(step) != len(layers):
            raise TraceError(
                f"step {number} has {len(step)} layers, the prompt {len(layers)}: give one row a layer"
            )
        layers = [
            torch.cat([torch.nn.functional.pad(layer, (0, 1)), _mean_positive(*row)])
            for layer, row in zip(layers, step, strict=True)
        ]
        row = torch.zeros(1, layers[0].shape[-1], device=layers[0].device)
        row[0, -1] = 1.0
        for layer in reversed(layers):
            row = row + row @ layer
        found.append(row[0])
    return found


def normalize_rows(R: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """Rules 8 and 9: ``(R − I) / rowsum(R − I) + I``; a row of zeros stays the identity's."""
    identity = torch.eye(R.shape[-1], device=R.device)
    learned = R.float() - identity
    sums = learned.sum(dim=-1, keepdim=True)
    return learned / sums.masked_fill(sums == 0, 1.0) + identity


def qformer_relevance(
    vision: Sequence[Pair],
    self_attention: Sequence[Pair | None],
    cross_attention: Sequence[Pair | None],
) -> Float[Tensor, "Q P"]:
    """Relevance of each vision position to each query token of a Q-Former (rules 10 and 11 of Chefer et al.).

    Args:
        vision: (attention, gradient) of the vision encoder, first layer first.
        self_attention: The same for the Q-Former's query tokens; None where a layer has none.
        cross_attention: The same from query tokens to vision positions; None where a layer has none.

    Returns:
        Class token included.

    Raises:
        TraceError: If no layer cross-attends, or a list is empty.
    """
    crossing = [pair for pair in cross_attention if pair is not None]
    if not crossing or len(self_attention) != len(cross_attention):
        raise TraceError(
            f"{len(self_attention)} layers of self-attention and {len(cross_attention)} of cross-attention, "
            f"{len(crossing)} of them present: give one entry a layer (None where there is none), one at least present"
        )
    to_patches = relevance_matrix(*zip(*vision, strict=True)) if vision else None
    queries, patches = crossing[0][0].shape[-2:]
    device = crossing[0][0].device
    if to_patches is None:
        to_patches = torch.eye(patches, device=device)
    among = torch.eye(queries, device=device)
    onto = torch.zeros(queries, patches, device=device)
    for own, cross in zip(self_attention, cross_attention, strict=True):
        if own is not None:
            mixed = _mean_positive(*own)
            among, onto = among + mixed @ among, onto + mixed @ onto
        if cross is not None:
            onto = onto + normalize_rows(among).T @ _mean_positive(*cross) @ normalize_rows(
                to_patches
            )
    return onto
