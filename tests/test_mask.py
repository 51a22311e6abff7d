"""Masks said shortly, held to the masks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lvlm_probe.mask import AttentionMask, describe_batch, describe_mask, end_to_end

FULL, CAUSAL = AttentionMask(), AttentionMask(causal=True)


def seen(mask: AttentionMask, queries: int, keys: int) -> Tensor:
    return mask.spelt_out(queries, keys, torch.device("cpu")) == 0


def block_diagonal(parts: list[Tensor]) -> Tensor:
    return torch.block_diag(*[part.float() for part in parts]).bool()


@pytest.mark.parametrize(
    "masks",
    [
        [FULL, FULL],
        [CAUSAL, CAUSAL],
        [AttentionMask(stop=2), AttentionMask(start=1), FULL],
        [AttentionMask(segments=(1, 3)), FULL],
        [CAUSAL, FULL],
        [AttentionMask(causal=True, window=2), CAUSAL],
        [AttentionMask(causal=True, prefix=2), FULL],
    ],
)
def test_laid_end_to_end(masks: list[AttentionMask]) -> None:
    sizes = [(4, 4)] * len(masks)
    whole = end_to_end(masks, sizes, torch.device("cpu"))
    expected = block_diagonal([seen(mask, 4, 4)[0] for mask in masks])
    assert torch.equal(seen(whole, len(expected), len(expected))[0], expected)


def test_other_keys_than_queries() -> None:
    whole = end_to_end([AttentionMask(stop=2), FULL], [(2, 3), (1, 4)], torch.device("cpu"))
    assert whole == AttentionMask(segments=(2, 1), key_segments=(3, 4), limits=((0, 2), (0, 4)))
    expected = block_diagonal([torch.tensor([[1, 1, 0]] * 2), torch.ones(1, 4)])
    assert torch.equal(seen(whole, 3, 7)[0], expected)


def test_limits_bound_the_runs_of_keys() -> None:
    """Outside ``key_range`` nothing is seen, and inside ``open_range`` everything is."""
    mask = AttentionMask(segments=(3, 4), limits=((1, 3), (0, 2)))
    allowed = seen(mask, 7, 7)[0]
    for first in range(7):
        for last in range(first, 7):
            rows = allowed[first : last + 1]
            outside, opened = mask.key_range(first, last, 7), mask.open_range(first, last, 7)
            assert not rows[:, : outside.start].any()
            assert not rows[:, outside.stop :].any()
            assert rows[:, opened].all()


def test_a_padded_batch() -> None:
    lengths = [3, 5]
    mask = torch.zeros(2, 1, 5, 5)
    for item, length in zip(mask, lengths, strict=True):
        item[:, :, length:] = torch.finfo(torch.float32).min
    assert describe_batch(mask, 2, 5, 5) == AttentionMask(segments=(5, 5), limits=((0, 3), (0, 5)))
    assert describe_batch(mask[1:], 2, 5, 5) == AttentionMask(segments=(5, 5))


def test_a_bias_stays() -> None:
    bias = torch.randn(2, 3, 4, 4)
    said = describe_batch(bias, 2, 4, 4)
    assert said.dense is not None
    assert torch.equal(said.dense[:, :4, :4], bias[0])
    assert (said.dense[:, :4, 4:] == -torch.inf).all()


def test_packed_images_and_low_numbers() -> None:
    blocks = block_diagonal([torch.ones(2, 2), torch.ones(1, 1), torch.ones(3, 3)])
    assert describe_mask(blocks, 6, 6) == AttentionMask(segments=(2, 1, 3))
    causal = torch.ones(4, 4).tril()
    assert describe_mask((1 - causal) * -1e4, 4, 4) == CAUSAL
    said = AttentionMask(segments=(2, 2), limits=((0, 1), (0, 2)))
    assert AttentionMask.from_json(said.to_json()) == said
