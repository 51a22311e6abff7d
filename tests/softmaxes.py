"""What an eager model's softmaxes gave in one forward, with the gradients that a backward pass brings them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor


@contextmanager
def softmaxes() -> Generator[list[Tensor]]:
    """Every result with four sides, [B H N M], in the order of the calls."""
    kept: list[Tensor] = []
    depth = 0

    def keep(plain: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal depth
            depth += 1  # the function calls the method
            result = plain(*args, **kwargs)
            depth -= 1
            if depth == 0 and result.ndim == 4 and result.requires_grad:
                result.retain_grad()
                kept.append(result)
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", keep(torch.nn.functional.softmax))
        patch.setattr(Tensor, "softmax", keep(Tensor.softmax))
        yield kept


def mixed(weights: Tensor) -> Tensor:
    """Mean over heads of the positive part of weights times gradient; items of a batch on the diagonal; float64."""
    assert weights.grad is not None
    product = (weights.detach().double() * weights.grad.double()).clamp(min=0).mean(1)
    return torch.block_diag(*product)


def normalized(matrix: Tensor) -> Tensor:
    """Rows divided by their sums, the identity kept apart."""
    learned = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
    sums = learned.sum(1, keepdim=True)
    shares = torch.where(sums == 0, torch.zeros_like(learned), learned / sums)
    return shares + torch.eye(len(matrix), dtype=matrix.dtype)


def margin(logits: Tensor, position: int, token: int) -> Tensor:
    """Of a token over the likeliest other one, where ``position`` predicts it."""
    others = torch.cat([logits[position, :token], logits[position, token + 1 :]])
    return logits[position, token] - others.max()
