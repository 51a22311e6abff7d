"""What an estimator hands back, and what it takes: values with their errors, from a game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import RecipeError

__all__ = ["Estimate", "Table", "Worths"]


@runtime_checkable
class Worths(Protocol):
    """A game: :class:`lvlm_probe.ablation.Game`, :class:`Table`, or anything of this kind."""

    def __len__(self) -> int:
        """Players."""
        ...

    def __call__(self, coalitions: Tensor) -> Tensor:
        """The worth [K] of each coalition [K n], True where a player stays."""
        ...


class Table:
    """A game given by the worth of each coalition.

    Args:
        values: 2ⁿ worths; bit i of the index says whether player i is there.
    """

    def __init__(self, values: Float[Tensor, " S"]) -> None:
        self.values = values.double()

    def __len__(self) -> int:
        return len(self.values).bit_length() - 1

    def __call__(self, coalitions: Bool[Tensor, "K n"]) -> Float[Tensor, " K"]:
        """Looked up."""
        return self.values[(coalitions.long() << torch.arange(len(self))).sum(1)]


class Counted:
    """A game that counts the distinct coalitions it is asked for."""

    def __init__(self, game: Worths) -> None:
        self.game = game
        self._seen: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.game)

    def __call__(self, coalitions: Tensor) -> Tensor:
        self._seen.update(row.numpy().tobytes() for row in coalitions)
        return self.game(coalitions).double()

    @property
    def count(self) -> int:
        """Distinct coalitions so far."""
        return len(self._seen)

    def ends(self) -> tuple[float, float]:
        """The worth of nobody, and of all."""
        none = torch.zeros(1, len(self), dtype=torch.bool)
        empty, full = self(torch.cat([none, ~none])).tolist()
        return empty, full


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values of the players, and how far to trust them.

    Attributes:
        estimator: How they were found.
        index: What they estimate: ``"Shapley value"``, ``"Banzhaf value"``, ``"leave-one-out"``, …
        values: One a player, in the unit of the worth.
        errors: Their standard errors; 0 where they are exact.
        freedom: Degrees of freedom behind the errors; infinite where they are exact or from a posterior.
        evaluations: Distinct coalitions that were asked for.
        empty: The worth of nobody.
        full: The worth of all.
        names: One a player.
        meta: More about the run, as plain values.
    """

    estimator: str
    index: str
    values: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    freedom: float
    evaluations: int
    empty: float
    full: float
    names: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def residual(self) -> float:
        """What the values' sum lacks of ``full - empty``; Shapley values owe all of it, other indices nothing."""
        return self.full - self.empty - float(self.values.sum())

    def interval(
        self, level: float = 0.95, together: bool = False
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Lower and upper ends of each value's confidence interval.

        Args:
            level: Of confidence.
            together: That all values lie in their intervals at once (Bonferroni), not each by itself.

        Raises:
            RecipeError: If the level is not between 0 and 1.
        """
        from scipy.stats import t

        if not 0 < level < 1:
            raise RecipeError(f"a confidence level of {level}: give one between 0 and 1, as 0.95")
        doubt = (1 - level) / (len(self.values) if together else 1)
        reach = float(t.ppf(1 - doubt / 2, self.freedom)) * self.errors
        return self.values - reach, self.values + reach

    def ranking(self) -> list[int]:
        """Players, the highest value first."""
        return self.values.argsort(descending=True, stable=True).tolist()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "estimator": self.estimator,
            "index": self.index,
            "evaluations": self.evaluations,
            "worth_of_none": self.empty,
            "worth_of_all": self.full,
            "efficiency_residual": self.residual,
            "freedom": None if self.freedom == float("inf") else self.freedom,
            "players": [
                {"name": name, "value": value, "standard_error": error}
                for name, value, error in zip(
                    self.names or map(str, range(len(self.values))),
                    self.values.tolist(),
                    self.errors.tolist(),
                    strict=True,
                )
            ],
            **self.meta,
        }

    def __str__(self) -> str:
        low, high = self.interval()
        lines = [
            f"{self.index}, {self.estimator}: {self.evaluations} evaluations, all {self.full:.4g}, none "
            f"{self.empty:.4g}, efficiency residual {self.residual:.2g}"
        ]
        names = self.names or tuple(map(str, range(len(self.values))))
        for i in self.ranking():
            lines.append(
                f"  {names[i]:24s} {self.values[i]:+.4g} ± {self.errors[i]:.2g}  "
                f"[{low[i]:+.4g}, {high[i]:+.4g}]"
            )
        return "\n".join(lines)


def from_samples(samples: Float[Tensor, "K n"]) -> tuple[Tensor, Tensor, float]:
    """Mean, its standard error and degrees of freedom of independent estimates, along the first axis."""
    count = len(samples)
    mean = samples.mean(0)
    errors, freedom = from_parts((samples - mean) / (count * (count - 1)) ** 0.5, float(count - 1))
    return mean, errors, freedom


def from_parts(parts: Float[Tensor, "K n"], most: float) -> tuple[Tensor, float]:
    """Standard errors and degrees of freedom of values whose errors are sums of independent parts.

    Worths near 0 or 1 jump: a player that turns few coalitions may have shown hardly any scatter, and is not therefore
    certain. So the players' variances borrow from one another, the more the less their differences exceed what chance
    makes of them (Opgen-Rhein & Strimmer 2007), and the degrees of freedom are those that the kurtosis of the parts
    leaves (Satterthwaite's: 2 · variance² over the variance's own variance).

    Args:
        parts: What each independent draw adds to each value's error.
        most: Degrees of freedom, were the parts normal.
    """
    count = len(parts)
    squares = parts**2
    own = squares.sum(0)
    doubt = count / (count - 1) * ((squares - squares.mean(0)) ** 2).sum(0)
    shared = own.mean()
    share = (doubt.sum() / ((own - shared) ** 2).sum().clamp(min=1e-300)).clamp(max=1)
    scattered = own > 0
    if not bool(scattered.any()):
        return own, float(most)
    relative = float((doubt[scattered] / own[scattered] ** 2).mean())
    freedom = min(most, 2 / max(relative, 1e-12))
    return (share * shared + (1 - share) * own).sqrt(), max(freedom, 1.0)


def enough(estimator: str, evaluations: int, least: int, players: int) -> None:
    """The budget must do.

    Raises:
        RecipeError: If it does not.
    """
    if evaluations < least:
        raise RecipeError(
            f"{estimator} with {players} players needs {least} evaluations at least, and has {evaluations}: raise "
            "them, or take fewer players"
        )


def names_of(game: Any) -> tuple[str, ...]:
    """Of the players, where the game knows them."""
    while isinstance(game, Counted):
        game = game.game
    game = getattr(game, "game", game)
    players = getattr(game, "players", None)
    names: Sequence[str] = getattr(players, "names", ())
    return tuple(names)
