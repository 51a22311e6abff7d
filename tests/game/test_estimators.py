"""Estimators on games whose values are known: right on average, and as wrong as they say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from lvlm_probe.errors import MissingExtraError, RecipeError
from lvlm_probe.recipes import game
from lvlm_probe.recipes.game.estimate import from_samples
from lvlm_probe.recipes.game.fits import by_size, slopes
from lvlm_probe.recipes.game.with_shapiq import APPROXIMATORS, INTERACTION_APPROXIMATORS


def table(players: int, seed: int, interaction: float = 1.0) -> game.Table:
    """Singles, and pairs that need each other or stand in for each other."""
    generator = torch.Generator().manual_seed(seed)
    present = game.all_coalitions(players).double()
    worths = present @ torch.randn(players, generator=generator, dtype=torch.float64)
    for i, j in combinations(range(players), 2):
        strength = torch.randn((), generator=generator, dtype=torch.float64)
        worths += interaction * strength * present[:, i] * present[:, j] / players
    # Pairs alone would be too easy: what comes in complements, or forth and back, has no error on them.
    rough = torch.randn(2**players, generator=generator, dtype=torch.float64)
    return game.Table(worths + 0.3 * interaction * rough)


def shapley_of(made: game.Table) -> Tensor:
    return game.shapley_values(made.values)


def jumpy(players: int, seed: int) -> game.Table:
    """Worths near 0 or 1, as a sure model's: a value hangs on few coalitions, and its samples are skewed."""
    generator = torch.Generator().manual_seed(seed)
    sides = game.all_coalitions(players).double() - 0.5
    return game.Table(
        torch.sigmoid(4 * sides @ torch.randn(players, generator=generator, dtype=torch.float64))
    )


Way = Callable[[game.Worths, int, int], game.Estimate]

SHAPLEY: dict[str, Way] = {
    "permutation": game.permutation,
    "kernelshap": game.kernelshap,
    "smooth": game.smooth,
}
SHAPIQ: dict[str, Way] = {
    name: lambda g, e, s, name=name: game.through_shapiq(g, name, e, s) for name in APPROXIMATORS
}


def held(
    made: game.Table, exact: Tensor, way: Way, evaluations: int, runs: int
) -> tuple[Tensor, float]:
    """How often each value lies in its 95 % interval, and all of them in the intervals that promise that."""
    inside: list[Tensor] = []
    together: list[bool] = []
    for seed in range(runs):
        found = way(made, evaluations, seed)
        low, high = found.interval()
        inside.append((low - 1e-9 <= exact) & (exact <= high + 1e-9))
        low, high = found.interval(together=True)
        together.append(bool(((low - 1e-9 <= exact) & (exact <= high + 1e-9)).all()))
    return torch.stack(inside).double().mean(0), sum(together) / runs


def test_table_is_looked_up_by_bits() -> None:
    made = game.Table(torch.arange(8.0))
    assert len(made) == 3
    assert made(torch.tensor([[True, False, False], [False, True, True]])).tolist() == [1, 6]
    assert made(game.all_coalitions(3)).tolist() == list(range(8))


def test_exact() -> None:
    made = table(6, 0)
    found = game.exact(made)
    torch.testing.assert_close(found.values, shapley_of(made))
    assert abs(found.residual) < 1e-12
    assert (found.evaluations, found.index, float(found.errors.sum())) == (64, "Shapley value", 0)
    low, high = found.interval()
    assert torch.equal(low, high)
    with pytest.raises(RecipeError, match="131,072 evaluations"):
        game.exact(game.Table(torch.zeros(2**17)))


@pytest.mark.parametrize("name", SHAPLEY)
def test_close_to_the_exact_values(name: str) -> None:
    made = table(8, 1)
    found = SHAPLEY[name](made, 2000, 0)
    exact = shapley_of(made)
    assert (found.values - exact).abs().max() < 0.15
    assert found.evaluations <= 256
    assert found.index == "Shapley value"


@pytest.mark.parametrize("make", [table, jumpy])
@pytest.mark.parametrize("name", SHAPLEY)
def test_intervals_hold_what_they_promise(name: str, make: Callable[..., game.Table]) -> None:
    made = make(8, 2)
    each, together = held(made, shapley_of(made), SHAPLEY[name], 160, 40)
    assert float(each.mean()) > 0.9
    assert float(each.min()) > 0.8
    assert together > 0.85


@pytest.mark.parametrize("name", SHAPIQ)
def test_shapiq_errs_less_with_more_and_says_how_much(name: str) -> None:
    made = jumpy(9, 0)
    exact = shapley_of(made)

    def error(evaluations: int) -> float:
        runs = [SHAPIQ[name](made, evaluations, 100 * seed) for seed in range(3)]
        return float(torch.stack([(run.values - exact).abs().mean() for run in runs]).mean())

    assert error(1600) < 0.75 * error(600)
    each, together = held(made, exact, SHAPIQ[name], 700, 10)
    assert float(each.mean()) > 0.88
    assert together > 0.8


@pytest.mark.parametrize("name", INTERACTION_APPROXIMATORS)
def test_shapiq_interactions(name: str) -> None:
    made = table(8, 7, interaction=5.0)
    exact = game.exact_interactions(made).values
    pairs = torch.ones(8, 8).triu(1).bool()

    def asked(evaluations: int) -> list[game.Interactions]:
        return [game.shapiq_interactions(made, name, evaluations, 100 * seed) for seed in range(4)]

    few, many = asked(160), asked(480)
    wrong = [[float((f.values - exact)[pairs].abs().mean()) for f in runs] for runs in (few, many)]
    assert sum(wrong[1]) < 0.9 * sum(wrong[0])
    inside = [
        float(((f.values - exact).abs() <= 3.2 * f.errors + 1e-9)[pairs].double().mean())
        for f in many
    ]
    assert sum(inside) / 4 > 0.85
    assert float(many[0].errors.diagonal().abs().sum()) == 0
    assert torch.equal(many[0].errors, many[0].errors.T)


def test_errors_are_those_of_a_mean_where_nothing_is_to_be_shared() -> None:
    """Normal samples, spreads far apart: the textbook's standard error and degrees of freedom, nearly."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    samples = spread * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    mean, errors, freedom = from_samples(samples)
    assert torch.equal(mean, samples.mean(0))
    torch.testing.assert_close(errors[1:], samples.std(0)[1:] / 4000**0.5, rtol=0.02, atol=0)
    assert 3600 < freedom <= 3999


def test_one_player_s_silence_is_no_certainty() -> None:
    """Rare jumps: a player that has not jumped yet is as unsure as the others, and freedom is next to nothing."""
    generator = torch.Generator().manual_seed(0)
    samples = (torch.rand(20, 12, generator=generator) < 0.05).double()
    samples[:, 0] = 0
    _, errors, freedom = from_samples(samples)
    assert float(errors[0]) > 0.5 * float(errors.mean())
    assert freedom < 8
    _, still, full = from_samples(torch.zeros(20, 12, dtype=torch.float64))
    assert (float(still.sum()), full) == (0, 19)


def test_kernelshap_is_the_weighted_fit() -> None:
    """Against the definition: least squares over the pairs that were drawn, by another solver."""
    made = table(5, 3)
    found = game.kernelshap(made, 60, 4)
    half = by_size(5, 29, 4).double()
    empty, full = float(made.values[0]), float(made.values[-1])
    rows = torch.cat([half, 1 - half])
    worths = made(rows.bool()) - empty
    # The constraint as a row that outweighs all others.
    heavy = 1e7 * torch.ones(1, 5, dtype=torch.float64)
    height = torch.cat([worths, torch.tensor([1e7 * (full - empty)], dtype=torch.float64)])
    expected = torch.linalg.lstsq(torch.cat([rows, heavy]), height, driver="gelsd").solution
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)
    assert abs(found.residual) < 1e-12
    one = game.kernelshap(game.Table(torch.tensor([1.0, 3.0])), 40)
    assert (one.values.tolist(), one.errors.tolist()) == ([2.0], [0.0])


def test_pairs_that_do_not_tell_players_apart() -> None:
    same = torch.ones(9, 4, dtype=torch.float64)
    with pytest.raises(RecipeError, match="9 pairs of coalitions do not tell 4 players apart"):
        slopes(same, torch.ones(9, dtype=torch.float64))


def test_permutations_are_unbiased_and_efficient() -> None:
    made = table(6, 3)
    runs = [game.permutation(made, 60, seed) for seed in range(200)]
    mean = torch.stack([run.values for run in runs]).mean(0)
    spread = torch.stack([run.values for run in runs]).std(0) / 200**0.5
    assert ((mean - shapley_of(made)).abs() < 4 * spread + 1e-9).all()
    assert max(abs(run.residual) for run in runs) < 1e-9
    told = torch.stack([run.errors for run in runs]).mean(0) / 200**0.5
    torch.testing.assert_close(told, spread, rtol=0.25, atol=0)


def test_same_seed_same_values() -> None:
    made = table(6, 4)
    for way in (game.permutation, game.smooth, game.contiguous, game.banzhaf, game.surrogate):
        once, again, other = way(made, 60, 1), way(made, 60, 1), way(made, 60, 2)
        assert torch.equal(once.values, again.values), way
        assert not torch.equal(once.values, other.values), way


def test_banzhaf_fit() -> None:
    made = table(7, 5)
    exact = game.banzhaf_values(made.values)
    torch.testing.assert_close(game.exact_banzhaf(made).values, exact)
    each, together = held(made, exact, game.banzhaf, 80, 60)
    assert float(each.mean()) > 0.9
    assert together > 0.85
    found = game.banzhaf(made, 80)
    assert found.index == "Banzhaf value"
    with pytest.raises(RecipeError, match="needs 36 evaluations at least, and has 30"):
        game.banzhaf(made, 30)


def test_half_and_half_is_not_shapley() -> None:
    """Why p = ½ has a name of its own: on this game the two indices differ, and each estimator finds its own."""
    players = 9
    present = game.all_coalitions(players)
    majority = game.Table(((present.sum(1) >= 8) & present[:, 0]).double() + 0.2 * present[:, 1])
    shapley, banzhaf = shapley_of(majority), game.banzhaf_values(majority.values)
    assert abs(float(shapley[0] - banzhaf[0])) > 0.1
    for index, mine, other in (
        ("Shapley value", shapley, banzhaf),
        ("Banzhaf value", banzhaf, shapley),
    ):
        found = game.surrogate(majority, 400, 0, index, networks=2, epochs=60, orders=60)  # type: ignore[arg-type]
        assert found.index == index
        assert abs(float(found.values[0] - mine[0])) < abs(float(found.values[0] - other[0]))


def test_surrogate_says_how_wrong_it_is() -> None:
    """With a poor network (few epochs) the values are far off, and the intervals wide enough to hold the exact ones."""
    made = jumpy(6, 1)
    exact = shapley_of(made)

    def way(asked: game.Worths, evaluations: int, seed: int) -> game.Estimate:
        return game.surrogate(asked, evaluations, seed, networks=2, epochs=4, orders=10)

    each, _ = held(made, exact, way, 150, 20)
    assert float(each.mean()) > 0.9


def test_smooth_uses_that_neighbours_are_alike() -> None:
    """144 players, 100 evaluations: a bump is found where players have places, and missed where they have none."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    values = torch.exp(-((y - 3) ** 2 + (x - 8) ** 2) / 8).flatten().double()

    class Bump:
        def __len__(self) -> int:
            return 144

        def __call__(self, coalitions: Tensor) -> Tensor:
            return coalitions.double() @ values

    centres = {i: (0, float(i // 12), float(i % 12)) for i in range(144)}
    for way in (game.smooth, game.contiguous):
        with_places = way(Bump(), 100, 0, centres)
        without = way(Bump(), 100, 0)
        error, blind = ((e.values - values).abs().mean() for e in (with_places, without))
        assert float(error) < 0.25 * float(blind)
        assert abs(with_places.residual) < 1e-9
        assert with_places.evaluations <= 100
    assert game.contiguous(Bump(), 100, 0, centres).index == "contiguous value"
    with pytest.raises(RecipeError, match="four players"):
        game.contiguous(table(3, 0), 20)


def test_leave_one_out() -> None:
    made = table(5, 6)
    found = game.leave_one_out(made)
    whole = float(made.values[-1])
    assert found.values.tolist() == pytest.approx(
        [whole - float(made.values[31 ^ 1 << i]) for i in range(5)]
    )
    assert (found.index, found.evaluations) == ("leave-one-out", 7)


def test_interactions() -> None:
    made = table(7, 7, interaction=5.0)
    exact = game.exact_interactions(made)
    pairs = [(0, 1), (4, 2), (5, 6)]
    found = game.sampled_interactions(made, pairs, 1200, 0)
    for i, j in pairs:
        assert (
            abs(float(found.values[i, j] - exact.values[i, j]))
            <= 4 * float(found.errors[i, j]) + 1e-9
        )
    assert found.values[0, 2].isnan()
    (top,) = exact.top(range(7), range(7))
    assert abs(top[2]) == exact.values.abs().max()
    assert found.top([0], [1, 2])[0][:2] == (0, 1)
    for wrong in ([(0, 0)], [(0, 9)], []):
        with pytest.raises(RecipeError, match="two different players"):
            game.sampled_interactions(made, wrong)


def test_greedy_takes_the_pair_that_is_needed() -> None:
    present = game.all_coalitions(5)
    both = (present[:, 1] & present[:, 3]).double() + 0.01 * present[:, 4].double()
    found = game.greedy(game.Table(both))
    assert set(found.order[:2]) == {1, 3}
    assert found.order[2] == 4
    assert found.alone.tolist() == pytest.approx([0, 0, 1, 1.01, 1.01, 1.01])
    assert found.without.tolist() == pytest.approx([1.01, 0.01, 0.01, 0, 0, 0])
    assert set(found.sufficient(0.9) or ()) == {1, 3}
    assert len(found.necessary(0.1) or ()) == 1
    assert found.insertion == pytest.approx((0 + 1 + 1.01 * 2 + 1.01 / 2) / 5)
    assert found.sufficient(2.0) is None
    short = game.greedy(game.Table(both), steps=1)
    assert short.evaluations < found.evaluations
    assert sorted(short.order) == list(range(5))


def test_greedy_is_greedy() -> None:
    """Step by step against the rule written out."""
    made = table(6, 8, interaction=4.0)

    def worth(members: list[int]) -> float:
        return float(made.values[sum(1 << i for i in members)])

    chosen: list[int] = []
    while len(chosen) < 6:
        rest = [i for i in range(6) if i not in chosen]
        gain = [worth([*chosen, i]) - worth([j for j in rest if j != i]) for i in rest]
        chosen.append(rest[gain.index(max(gain))])
    assert list(game.greedy(made).order) == chosen


def test_insertion_and_deletion() -> None:
    made = game.Table(torch.tensor([0.0, 1.0, 2.0, 4.0]))
    found = game.insertion_deletion(made, [1, 0])
    assert found.inserted.tolist() == [0, 2, 4]
    assert found.deleted.tolist() == [4, 1, 0]
    assert (found.insertion, found.deletion) == (2.0, 1.5)
    with pytest.raises(RecipeError, match="each player once"):
        game.insertion_deletion(made, [0, 0])
    coarse = game.insertion_deletion(table(7, 9), list(range(7)), steps=3)
    assert coarse.shares.tolist() == pytest.approx([0, 2 / 7, 5 / 7, 1])


def test_estimates_print_their_errors() -> None:
    found = game.permutation(table(4, 10), 40)
    text = str(found)
    assert "efficiency residual" in text
    assert text.count("±") == 4
    told = found.to_json()
    assert len(told["players"]) == 4
    assert told["players"][0]["standard_error"] == float(found.errors[0])
    with pytest.raises(RecipeError, match="between 0 and 1"):
        found.interval(95.0)


def test_budgets_that_do_not_suffice() -> None:
    made = table(8, 11)
    for name, least in (
        ("permutation", 30),
        ("smooth", 12),
        ("surrogate", 20),
        ("kernelshap", 40),
        ("unbiased-kernelshap", 208),
    ):
        with pytest.raises(RecipeError, match=f"needs {least} evaluations at least, and has 10"):
            game.estimate(made, name, 10)
    with pytest.raises(RecipeError, match="unknown estimator 'guess'"):
        game.estimate(made, "guess")
    with pytest.raises(RecipeError, match="unknown approximator"):
        game.through_shapiq(made, "Guess")
    with pytest.raises(RecipeError, match="needs 496 evaluations"):
        game.through_shapiq(made, "SVARM", 495)
    with pytest.raises(RecipeError, match="no standard error"):
        game.through_shapiq(made, repeats=1)


def test_shapiq_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-probe\[game\]"):
        game.through_shapiq(table(4, 0), evaluations=200)
