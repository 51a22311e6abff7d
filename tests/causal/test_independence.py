"""Tests of independence against regression residuals, and the whole-matrix way against the plain one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lvlm_probe.errors import InputError
from lvlm_probe.recipes.causal import p_value
from lvlm_probe.recipes.causal.independence import (
    IndependenceTest,
    PartialCorrelation,
    correlation,
)


def attention(rows: int, seed: int = 0, columns: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns or rows, generator=generator, dtype=torch.float64)
    return torch.softmax(2 * scores, -1)


def by_regression(rows: np.ndarray, x: int, y: int, given: list[int], samples: int) -> float:
    """What is left of two rows after the least-squares fit by others, and how they agree."""
    basis = rows[given].T
    left = [row - basis @ np.linalg.lstsq(basis, row, rcond=None)[0] for row in rows[[x, y]]]
    rho = left[0] @ left[1] / math.sqrt((left[0] @ left[0]) * (left[1] @ left[1]))
    z = abs(math.atanh(rho)) * math.sqrt(samples - len(given) - 3)
    return math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("order", range(6))
def test_partial_correlation_is_that_of_residuals(order: int) -> None:
    rows = attention(9, seed=order, columns=40)
    rng = np.random.default_rng(order)
    for _ in range(20):
        x, y, *given = rng.permutation(9)[: order + 2].tolist()
        expected = by_regression(rows.numpy(), x, y, given, 30)
        assert p_value(rows, x, y, given, 30) == pytest.approx(expected, abs=1e-10)


def test_float32_attention_is_worked_on_in_double_precision() -> None:
    rows = attention(6).float()
    assert p_value(rows, 0, 1, [2, 3], 64) == p_value(rows.double(), 0, 1, [2, 3], 64)


def test_equal_tokens_are_dependent_and_harmless_as_conditions() -> None:
    rows = attention(6, columns=20)
    rows[1] = rows[0]
    assert p_value(rows, 0, 1, [], 64) == 0
    # 2 and 3 given both twins: as given one of them.
    assert p_value(rows, 2, 3, [0, 1], 65) == pytest.approx(
        by_regression(rows.numpy(), 2, 3, [0, 1], 65), abs=1e-6
    )


def test_more_conditions_than_degrees_of_freedom_never_separate() -> None:
    assert p_value(attention(8, columns=20), 0, 1, [2, 3, 4, 5], 6) == 0


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_whole_matrices_answer_as_single_questions(ordered: bool, density: float) -> None:
    test = PartialCorrelation(correlation(attention(14, columns=30)), 64)
    plain = PartialCorrelation(test.correlations, 64)
    rng = np.random.default_rng(3)
    upper = np.triu(rng.random((14, 14)) < density, 1)
    adjacent = upper | upper.T
    best, chosen = test.best_single(adjacent, ordered=ordered)
    expected, by = IndependenceTest.best_single(plain, adjacent, ordered=ordered)
    np.testing.assert_allclose(best, expected, atol=1e-12)
    np.testing.assert_array_equal(chosen, by)
    assert test.performed == plain.performed
    assert (chosen >= 0).any()


def test_ordered_conditions_come_before_the_later_one() -> None:
    adjacent = ~np.eye(8, dtype=np.bool_)
    test = PartialCorrelation(correlation(attention(8, columns=30)), 64)
    _, chosen = test.best_single(adjacent, ordered=True)
    pairs = np.argwhere(chosen >= 0)
    assert all(chosen[i, j] < j and chosen[i, j] != i for i, j in pairs)
    assert chosen[0, 1] == -1  # nothing comes before


def test_tests_are_counted_by_order() -> None:
    test = PartialCorrelation(correlation(attention(5, columns=9)), 64)
    one = np.zeros(3, np.int64)
    test.p_values(one, one + 1, np.full((3, 2), 2) + np.arange(2))
    assert test.performed == {2: 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, [], 64), "name different rows, from 0 to 4"),
        ((0, 9, [], 64), "name different rows"),
        ((0, 1, [1], 64), "name different rows"),
        ((0, 1, [], 3), "at least 4 degrees of freedom"),
    ],
)
def test_wrong_questions(arguments: tuple[int, int, list[int], int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        p_value(attention(5), *arguments)


def test_a_row_without_attention_is_named() -> None:
    rows = attention(5)
    rows[3] = 0
    with pytest.raises(InputError, match="attention row 3 attends to nothing"):
        correlation(rows)
    rows[3, 0] = math.nan
    with pytest.raises(InputError, match="no number"):
        correlation(rows)
