"""Exact values against reference numbers, the definition over orders, and the axioms."""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lvlm_probe.errors import InputError
from lvlm_probe.recipes import game

REFERENCE = sorted((Path(__file__).parents[1] / "data" / "shapley").glob("*.safetensors"))


@st.composite
def tables(draw: st.DrawFn, least: int = 1, most: int = 6) -> Tensor:
    count = draw(st.integers(least, most))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(2**count, generator=generator, dtype=torch.float64)


def players(table: Tensor) -> int:
    return len(table).bit_length() - 1


def bits(members: object) -> int:
    return sum(1 << i for i in members)  # type: ignore[attr-defined]


def by_orders(table: Tensor) -> Tensor:
    """What each player adds when it comes, summed over every order."""
    count = players(table)
    total = torch.zeros(count, dtype=torch.float64)
    for order in permutations(range(count)):
        for place, player in enumerate(order):
            before = bits(order[:place])
            total[player] += table[before | 1 << player] - table[before]
    return total / factorial(count)


def by_coalitions(table: Tensor, i: int, j: int) -> float:
    """The interaction index as Grabisch and Roubens define it, coalition by coalition."""
    count = players(table)
    others = [k for k in range(count) if k not in (i, j)]
    total = 0.0
    for size in range(count - 1):
        for chosen in combinations(others, size):
            s, a, b = bits(chosen), 1 << i, 1 << j
            gain = table[s | a | b] - table[s | a] - table[s | b] + table[s]
            total += (
                float(gain) * factorial(size) * factorial(count - size - 2) / factorial(count - 1)
            )
    return total


def test_reference_is_there() -> None:
    assert REFERENCE


@pytest.mark.parametrize("path", REFERENCE, ids=lambda p: p.stem)
def test_reference(path: Path) -> None:
    given = load_file(path)
    for found, expected in (
        (game.shapley_values(given["values"]), given["shapley"]),
        (game.banzhaf_values(given["values"]), given["banzhaf"]),
        (game.shapley_interactions(given["values"]), given["shapley_interaction"]),
    ):
        assert (found - expected).abs().max() <= 1e-9


@given(tables(most=5))
def test_orders(table: Tensor) -> None:
    torch.testing.assert_close(game.shapley_values(table), by_orders(table))


@given(tables(least=2, most=5))
def test_interactions_by_definition(table: Tensor) -> None:
    found = game.shapley_interactions(table)
    for i, j in combinations(range(players(table)), 2):
        assert float(found[i, j]) == pytest.approx(by_coalitions(table, i, j), abs=1e-9)
        assert found[i, j] == found[j, i]
    assert (found.diagonal() == 0).all()


@given(tables())
def test_banzhaf_by_coalitions(table: Tensor) -> None:
    for i, value in enumerate(game.banzhaf_values(table).tolist()):
        gains = [float(table[m | 1 << i] - table[m]) for m in range(len(table)) if not m >> i & 1]
        assert value == pytest.approx(sum(gains) / len(gains), abs=1e-9)


@given(tables())
def test_efficiency(table: Tensor) -> None:
    torch.testing.assert_close(game.shapley_values(table).sum(), table[-1] - table[0])


@given(tables(least=2), st.data())
def test_symmetry(table: Tensor, data: st.DataObject) -> None:
    """Players that may be exchanged in every coalition have the same value."""
    i, j = data.draw(st.permutations(range(players(table))))[:2]
    masks = torch.arange(len(table))
    swapped = masks & ~(1 << i | 1 << j) | (masks >> i & 1) << j | (masks >> j & 1) << i
    values = game.shapley_values((table + table[swapped]) / 2)
    torch.testing.assert_close(values[i], values[j])


@given(tables(), st.data())
def test_dummy(table: Tensor, data: st.DataObject) -> None:
    """Who adds the same to every coalition gets just that, and interacts with nobody."""
    i = data.draw(st.integers(0, players(table) - 1))
    masks = torch.arange(len(table))
    dummy = table[masks & ~(1 << i)] + 0.7 * (masks >> i & 1)
    assert float(game.shapley_values(dummy)[i]) == pytest.approx(0.7)
    assert float(game.banzhaf_values(dummy)[i]) == pytest.approx(0.7)
    assert game.shapley_interactions(dummy)[i].abs().max() < 1e-9


@given(tables(least=4, most=4), tables(least=4, most=4), st.floats(-3, 3))
def test_linearity(one: Tensor, other: Tensor, factor: float) -> None:
    for index in (game.shapley_values, game.banzhaf_values, game.shapley_interactions):
        torch.testing.assert_close(index(one + factor * other), index(one) + factor * index(other))


@pytest.mark.parametrize(
    ("table", "words"),
    [(torch.zeros(6), "6 worths"), (torch.zeros(1), "1 worths"), (torch.tensor([0.0, torch.nan]), "not finite")],
)  # fmt: skip
def test_bad_tables(table: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        game.shapley_values(table)
