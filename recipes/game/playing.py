"""What the recipes that play a game have in common: who plays, what it is for, where worths are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation import Game, Players, Removal, Worth
from lvlm_probe.attribution import Attribution
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.estimate import Estimate
from lvlm_probe.recipes.game.named import make_players
from lvlm_probe.target import Target

__all__ = ["GameRecipe", "Play", "Progress", "Solution"]

Progress = Callable[[int, int], None]


@runtime_checkable
class Play(Protocol):
    """Makes the game that a recipe's options describe."""

    def __call__(self, *, layers: bool = False) -> Game:
        """With the worths of every layer, if they are wanted."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """What a recipe makes of its game.

    Attributes:
        game: That was played.
        tokens: A score for each position.
        meta: About the run, as plain values.
        layers: The scores of each layer's game, if there are.
    """

    game: Game
    tokens: Float[Tensor, " N"]
    meta: dict[str, Any]
    layers: Float[Tensor, "L N"] | None = None

    @classmethod
    def of(cls, game: Game, found: Estimate, layers: Tensor | None = None) -> Solution:
        """From an estimate: each player's value, shared among its positions."""
        return cls(game, game.scores(found.values), {"estimate": found.to_json()}, layers)


@dataclass(frozen=True, slots=True)
class GameRecipe:
    """A recipe that plays one game.

    Attributes:
        name: As the user writes it.
        summary: One line.
        source: Where the method comes from.
        solve: From the game to scores; its keyword-only arguments are options of the recipe.
        players: Who plays, unless said.
        worth: What a coalition is worth, unless said.
    """

    name: str
    summary: str
    source: str
    solve: Callable[..., Solution]
    players: str = "patches"
    worth: str = "target"

    @property
    def explain(self) -> Callable[..., Attribution]:
        """``explain(case, target, *, option=default, ...)``, with the options of every game and those of ``solve``."""

        def explain(
            case: Case,
            target: Target,
            *,
            players: str | Players = self.players,
            removal: str | Removal = "mean",
            worth: str = self.worth,
            cache: str | Path | None = None,
            progress: Progress | None = None,
            **own: Any,
        ) -> Attribution:
            """Play the game and solve it.

            Args:
                case: Whose model is asked.
                target: What is explained.
                players: Who plays; see :func:`make_players`.
                removal: How a player is taken away; see :class:`~lvlm_probe.ablation.Removal`.
                worth: What a coalition is worth; see :class:`~lvlm_probe.ablation.Worth`.
                cache: A file that keeps worths.
                progress: Called with coalitions done and coalitions in all.
                own: Options of ``solve``.
            """

            def play(*, layers: bool = False) -> Game:
                who = make_players(case, players) if isinstance(players, str) else players
                told = Worth(worth, target)
                return Game(case, who, removal, told, layers=layers, cache=cache, progress=progress)

            found = self.solve(play, **own)
            return Attribution(
                recipe=self.name,
                target=target,
                tokens=found.tokens,
                layout=case.layout,
                words=case.words,
                layers=found.layers,
                images=case.images,
                meta={**found.meta, "game": found.game.describe()},
            )

        return _with_options(explain, self.solve)


def _with_options(function: Callable[..., Any], solve: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose signature names the options of ``solve`` where it says ``**own``."""
    signature = inspect.signature(function)
    shared = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [p for p in inspect.signature(solve).parameters.values() if p.kind is p.KEYWORD_ONLY]
    function.__dict__["__signature__"] = signature.replace(parameters=[*shared, *own])
    return function
