"""Tests of conditional independence, and the one that reads them off attention.

Attention is taken for what a structural equation model leaves behind: row ``i`` of a head's ``A`` says how token ``i``
is mixed from the others, so ``A Aᵀ`` is the tokens' covariance (Rohekar et al., NeurIPS 2023, arXiv:2310.20307).
Two tokens are independent given others where their partial correlation is not distinguishable from zero.

A learner never asks the same question twice, so nothing is cached but the correlations; it asks many at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.errors import InputError

__all__ = ["IndependenceTest", "PartialCorrelation", "correlation", "p_value"]

LEAST_VARIANCE = 1e-16  # of a row of attention; a row that sums to 1 has at least 1 / N
CHUNK = 1 << 22  # numbers in one stack of matrices
UNSURE = 1e-6  # an inverse that misses the identity by more is none


class IndependenceTest(ABC):
    """Answers whether two of n variables are independent given others.

    Attributes:
        size: n; variables are counted from 0.
        longest: The largest conditioning set that can be tested.
        performed: Tests made so far, by the size of the conditioning set.
    """

    def __init__(self, size: int, longest: int) -> None:
        self.size, self.longest = size, longest
        self.performed: Counter[int] = Counter()

    def p_values(
        self,
        x: Int[NDArray[np.int64], " K"],
        y: Int[NDArray[np.int64], " K"],
        given: Int[NDArray[np.int64], "K r"],
    ) -> Float[NDArray[np.float64], " K"]:
        """How well independence fits: K questions of one order at once.

        Args:
            x: One variable of each question.
            y: The other.
            given: The conditioning sets, all of one size r.

        Returns:
            From 0 (dependent) to 1; 0 also where the question has no answer.
        """
        self.performed[given.shape[1]] += len(x)
        return self.compute(x, y, given)

    @abstractmethod
    def compute(
        self,
        x: Int[NDArray[np.int64], " K"],
        y: Int[NDArray[np.int64], " K"],
        given: Int[NDArray[np.int64], "K r"],
    ) -> Float[NDArray[np.float64], " K"]:
        """What :meth:`p_values` returns."""

    def best_single(
        self, adjacent: Bool[NDArray[np.bool_], "n n"], *, ordered: bool
    ) -> tuple[Float[NDArray[np.float64], "n n"], Int[NDArray[np.int64], "n n"]]:
        """The best separating variable of every adjacent pair, from all tests of order 1.

        Args:
            adjacent: Symmetric; which pairs are asked about. A variable is tried where it is adjacent to either of
                a pair.
            ordered: Try only variables that come before both of a pair and are adjacent to the later one, or lie
                between the two and are adjacent to the later one.

        Returns:
            Above the diagonal the largest p-value, -1 where nothing was tried; and the variable that gave it.
        """
        best = np.full((self.size, self.size), -1.0)
        chosen = np.full((self.size, self.size), -1, dtype=np.int64)
        rows, columns = np.nonzero(np.triu(adjacent, 1))
        for z in range(self.size):
            tried = tried_with(adjacent, z, rows, columns, ordered=ordered)
            x, y = rows[tried], columns[tried]
            values = self.p_values(x, y, np.full((len(x), 1), z, dtype=np.int64))
            better = values > best[x, y]
            best[x[better], y[better]] = values[better]
            chosen[x[better], y[better]] = z
        return best, chosen


def tried_with(
    adjacent: Bool[NDArray[np.bool_], "n n"],
    z: int,
    x: Int[NDArray[np.int64], " K"],
    y: Int[NDArray[np.int64], " K"],
    *,
    ordered: bool,
) -> Bool[NDArray[np.bool_], " K"]:
    """Which pairs ``x < y`` may be conditioned on ``z`` alone; see :meth:`IndependenceTest.best_single`."""
    outside = (x != z) & (y != z)
    if ordered:
        return outside & adjacent[z, y] & (z < y)
    return outside & (adjacent[z, x] | adjacent[z, y])


class PartialCorrelation(IndependenceTest):
    """Fisher's z of the partial correlation.

    Args:
        correlations: Symmetric, ones on the diagonal.
        num_samples: Degrees of freedom: of how many samples the correlations are taken to come.

    Raises:
        InputError: If there are too few degrees of freedom for any test.
    """

    def __init__(self, correlations: Float[NDArray[np.float64], "n n"], num_samples: int) -> None:
        if num_samples < 4:
            raise InputError(
                f"num_samples is {num_samples}: a correlation needs at least 4 degrees of freedom to be tested"
            )
        super().__init__(len(correlations), num_samples - 4)
        self.correlations, self.num_samples = correlations, num_samples

    def compute(
        self,
        x: Int[NDArray[np.int64], " K"],
        y: Int[NDArray[np.int64], " K"],
        given: Int[NDArray[np.int64], "K r"],
    ) -> Float[NDArray[np.float64], " K"]:
        """``2 (1 − Φ(|atanh ρ| √(n − r − 3)))``, ``ρ`` the partial correlation."""
        order = given.shape[1]
        c = self.correlations
        if order == 0:
            return self._fisher(c[x, y], 0)
        if order == 1:
            z = given[:, 0]
            return self._fisher(_single(c[x, y], c[x, z], c[y, z]), 1)
        found = np.empty(len(x))
        step = max(1, CHUNK // (order + 2) ** 2)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            chosen = np.column_stack([x[part], y[part], given[part]])
            precision = _inverse(c[chosen[:, :, None], chosen[:, None, :]])
            with np.errstate(invalid="ignore", divide="ignore"):
                found[part] = -precision[:, 0, 1] / np.sqrt(precision[:, 0, 0] * precision[:, 1, 1])
        return self._fisher(found, order)

    def best_single(
        self, adjacent: Bool[NDArray[np.bool_], "n n"], *, ordered: bool
    ) -> tuple[Float[NDArray[np.float64], "n n"], Int[NDArray[np.int64], "n n"]]:
        """As the base class says; whole matrices at a time where most pairs are adjacent."""
        if adjacent.sum() < 0.2 * adjacent.size:
            return super().best_single(adjacent, ordered=ordered)
        size, c = self.size, self.correlations
        least = np.full((size, size), np.inf)
        chosen = np.full((size, size), -1, dtype=np.int64)
        upper = np.triu(adjacent, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            for z in range(size):
                # Ordered, only pairs whose later one comes after z; those are the columns from z + 1.
                first = z + 1 if ordered else 0
                near = adjacent[z, first:]
                tried = upper[:, first:] & (near if ordered else adjacent[z][:, None] | near)
                tried[z] = False
                if not ordered:
                    tried[:, z] = False
                self.performed[1] += int(tried.sum())
                rest = np.sqrt(1.0 - c[z] ** 2)
                rho = np.abs(c[:, first:] - np.multiply.outer(c[z], c[z, first:]))
                rho /= np.multiply.outer(rest, rest[first:])
                # Not a number compares as not smaller: an undecidable test never separates.
                better = tried & (rho < least[:, first:])
                least[:, first:][better] = rho[better]
                chosen[:, first:][better] = z
        best = np.where(chosen >= 0, self._fisher(least, 1), -1.0)
        return best, chosen

    def _fisher(
        self, rho: Float[NDArray[np.float64], "*shape"], order: int
    ) -> Float[NDArray[np.float64], "*shape"]:
        freedom = self.num_samples - order - 3
        size = np.abs(rho)
        if freedom < 1:
            return np.zeros_like(size)
        known = size < 1.0  # false for what is no number, too
        strength = np.arctanh(np.where(known, size, 0.0)) * (freedom / 2) ** 0.5
        tail = torch.erfc(torch.from_numpy(np.atleast_1d(strength))).numpy().reshape(size.shape)
        return np.where(known, tail, 0.0)


def _single(
    xy: NDArray[np.float64], xz: NDArray[np.float64], yz: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - xz * yz) / np.sqrt((1.0 - xz**2) * (1.0 - yz**2))


def _inverse(stack: Float[NDArray[np.float64], "K m m"]) -> Float[NDArray[np.float64], "K m m"]:
    """Of each matrix; the pseudo-inverse of those that have none, as of two tokens with the same attention."""
    try:
        inverse = np.linalg.inv(stack).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return np.linalg.pinv(stack, hermitian=True).astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        missed = np.abs(stack @ inverse - np.eye(stack.shape[-1])).max(axis=(1, 2))
    wrong = ~(missed < UNSURE)
    if wrong.any():
        inverse[wrong] = np.linalg.pinv(stack[wrong], hermitian=True)
    return inverse


def correlation(attention: Float[Tensor, "n N"]) -> Float[NDArray[np.float64], "n n"]:
    """Correlations of tokens from rows of attention: ``A Aᵀ``, scaled to ones on the diagonal.

    Args:
        attention: One head's; a row a token.

    Returns:
        In double precision, whatever the attention's.

    Raises:
        InputError: If a row is all zeros, or holds what is no number.
    """
    rows = attention.detach().cpu().double().numpy()
    covariance = rows @ rows.T
    variance = np.diag(covariance)
    if not np.isfinite(covariance).all() or bool((variance <= LEAST_VARIANCE).any()):
        wrong = np.flatnonzero(~(variance > LEAST_VARIANCE) | ~np.isfinite(covariance).all(axis=1))
        raise InputError(
            f"attention row {int(wrong[0])} attends to nothing, or holds what is no number: it has no correlation "
            "with any other; leave padding out of the nodes"
        )
    scale = 1.0 / np.sqrt(variance)
    found = covariance * scale * scale[:, None]
    return (found + found.T) / 2


def p_value(
    attention: Float[Tensor, "n N"], x: int, y: int, given: Sequence[int], num_samples: int
) -> float:
    """How well tokens ``x`` and ``y`` being independent given others fits one head's attention.

    Args:
        attention: One head's; a row a token.
        x: A row.
        y: Another.
        given: The conditioning set, any rows but those two.
        num_samples: Degrees of freedom.

    Returns:
        From 0 to 1; independent where it exceeds the level α. 0 where the partial correlation is ±1 or undefined.

    Raises:
        InputError: If a row does not exist or is named twice.
    """
    rows = [x, y, *given]
    if len(set(rows)) < len(rows) or not all(0 <= row < len(attention) for row in rows):
        raise InputError(
            f"cannot test {x} and {y} given {list(given)}: name different rows, from 0 to {len(attention) - 1}"
        )
    test = PartialCorrelation(correlation(attention[rows]), num_samples)
    rest = np.arange(2, len(rows), dtype=np.int64)[None]
    return float(test.p_values(np.zeros(1, np.int64), np.ones(1, np.int64), rest)[0])
