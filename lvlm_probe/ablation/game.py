"""The coalition engine: players, how they are taken away, and what each coalition is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.ablation.asking import BUDGET, Asker
from lvlm_probe.ablation.forward import Changed
from lvlm_probe.ablation.kept import Kept, Progress, case_digest
from lvlm_probe.ablation.ledger import digest
from lvlm_probe.ablation.places import token_owners
from lvlm_probe.ablation.players import Players, picture
from lvlm_probe.ablation.removal import Removal, Remover
from lvlm_probe.ablation.worth import Worth
from lvlm_probe.errors import InputError
from lvlm_probe.probe import Case

__all__ = ["Game"]


class Game:
    """A cooperative game over the parts of a case's input.

    A coalition keeps its players; all others are taken away. Its worth is what the model's answer is worth then. No
    coalition is evaluated twice: worths are kept in memory and, where a file is given, on disk, batch by batch, so that a
    game that was killed goes on where it stood, to the same bits.

    Args:
        case: Whose model is asked.
        players: Who plays.
        removal: How a player is taken away; as text, ``"mean"`` or ``"blur:8"``.
        worth: What a coalition is worth; as text, one of :data:`~lvlm_probe.ablation.worth.WORTHS`.
        layers: Read worths after each layer too; see :meth:`after_layer`.
        cache: A file that keeps the worths; several games may share it.
        budget: Bytes that one batch may take, by estimate.
        progress: Called with coalitions done and coalitions in all, of each request.

    Raises:
        InputError: If a player has nothing that could be taken away.
        CaptureError: If the model cannot be run in this way.
        OutputError: If the cache cannot be written.
    """

    def __init__(
        self,
        case: Case,
        players: Players,
        removal: str | Removal = "mean",
        worth: str | Worth = "target",
        *,
        layers: bool = False,
        cache: str | Path | None = None,
        budget: int = BUDGET,
        progress: Progress | None = None,
    ) -> None:
        self.case, self.players = case, players
        self.removal = Removal.of(removal)
        self.worth = (Worth(worth) if isinstance(worth, str) else worth).within(case)
        self.owned = self._positions()
        places = [p for held in self.owned for p in held]
        self.asker = Asker(
            case,
            [self.worth],
            tokens=self.removal.at_tokens,
            layers=layers,
            first=min(places, default=None),
            budget=budget,
        )
        self.removers = (
            {}
            if self.removal.at_tokens
            else {i: Remover(picture(case, i), self.removal) for i in players.regions}
        )
        self._hides, self._replaces = self._at_positions()
        self.digest = self._digest(layers)
        self.kept = Kept(self.asker, self._without, cache, self.digest, self.describe(), progress)
        self._asked: set[bytes] = set()

    def __repr__(self) -> str:
        return f"Game({len(self.players)} players, removal {str(self.removal)!r}, {self.worth.describe()})"

    def __len__(self) -> int:
        return len(self.players)

    @property
    def asked(self) -> int:
        """Distinct coalitions whose worth was asked for."""
        return len(self._asked)

    @property
    def computed(self) -> int:
        """Those among them for which the model ran; the others were in the cache."""
        return self.kept.computed

    @property
    def depth(self) -> int:
        """Layers whose worth is read: all of them, or 1."""
        return self.asker.columns

    def __call__(self, coalitions: Bool[Tensor, "K n"]) -> Float[Tensor, " K"]:
        """The worth of each coalition.

        Args:
            coalitions: True where a player stays.

        Raises:
            InputError: If they are for another number of players.
        """
        return self.by_layer(coalitions)[:, -1]

    def after_layer(self, layer: int) -> LayerGame:
        """The game whose worths are read after one layer; it shares every evaluation with this one.

        Args:
            layer: From 0, negative from the last.

        Raises:
            InputError: If there is no such layer, or layers were not asked for.
        """
        if not -self.depth <= layer < self.depth:
            raise InputError(
                f"layer {layer} of a game that reads {self.depth}: make it with layers=True, and count from 0"
            )
        return LayerGame(self, layer)

    def by_layer(self, coalitions: Bool[Tensor, "K n"]) -> Float[Tensor, "K L"]:
        """The worths of each coalition after each layer.

        Raises:
            InputError: If they are for another number of players.
        """
        if coalitions.ndim != 2 or coalitions.shape[1] != len(self):
            raise InputError(
                f"coalitions of shape {tuple(coalitions.shape)} in a game of {len(self)} players: "
                "give one row a coalition, one column a player"
            )
        packed = np.packbits(coalitions.cpu().numpy(), axis=1)
        keys = [row.tobytes() for row in packed]
        self._asked.update(keys)
        # Coalitions of one size take like time and length, so they go together.
        distinct = sorted(
            dict.fromkeys(keys), key=lambda key: int.from_bytes(key, "big").bit_count()
        )
        row = {key: number for number, key in enumerate(distinct)}
        return self.kept(distinct)[[row[key] for key in keys]]

    def describe(self) -> dict[str, Any]:
        """What the game is, as plain values."""
        return {
            "players": list(self.players.names),
            "removal": str(self.removal),
            "worth": self.worth.to_json(),
            "model": self.case.probe.name,
            "prompt": self.case.prompt,
            "answer": self.case.answer,
            **self.asker.describe(),
        }

    def scores(self, values: Float[Tensor, " n"]) -> Float[Tensor, " N"]:
        """Values of the players handed to their positions, shared evenly, so that the sum stays.

        Args:
            values: One a player.
        """
        found = torch.zeros(self.case.layout.length)
        for value, held in zip(values.tolist(), self.owned, strict=True):
            for position in held:
                found[position] = value / len(held)
        return found

    def _positions(self) -> list[tuple[int, ...]]:
        """Positions along N that each player's removal touches.

        Raises:
            InputError: If a region shows on no token of its own, and tokens are what is taken away.
        """
        owned: list[list[int]] = [list(held) for held in self.players.positions]
        for image, labels in self.players.regions.items():
            if not self.case.layout.image(image).tokens and not self.removal.at_tokens:
                continue
            owners = token_owners(self.case.layout, image, labels, len(self.players))
            for position, player in owners.items():
                owned[player].append(position)
        if self.removal.at_tokens:
            for player in self.players.pictured:
                if not owned[player]:
                    raise InputError(
                        f"player {player} ({self.players.names[player]!r}) owns no image token: none shows it by the "
                        "greatest part. Take larger players, or take pixels away"
                    )
        return [tuple(sorted(held)) for held in owned]

    def _at_positions(self) -> tuple[Tensor, Tensor]:
        """For each position, the player whose removal hides it, and whose removal replaces it; −1 for none."""
        hides = torch.full((self.case.layout.length,), -1)
        replaces = hides.clone()
        for player, held in enumerate(self.owned):
            if self.players.positions[player] or self.removal.kind == "knockout":
                hides[list(held)] = player
            elif self.removal.kind == "embedding":
                replaces[list(held)] = player
        return hides, replaces

    def _digest(self, layers: bool) -> str:
        facts = {
            "removal": str(self.removal),
            "worth": self.worth.to_json(),
            "layers": layers,
            "positions": self.players.positions,
            "run": self.asker.describe(),
        }
        regions = [labels.numpy() for _, labels in sorted(self.players.regions.items())]
        return case_digest(self.case, facts, regions)

    def _without(self, key: bytes) -> Changed:
        bits = np.unpackbits(np.frombuffer(key, dtype=np.uint8), count=len(self))
        gone = torch.from_numpy(bits == 0)
        hidden = _of_players(self._hides, gone)
        replaced = _of_players(self._replaces, gone)
        pictures: dict[int, Any] = {}
        for image, remover in self.removers.items():
            away = _of_players(self.players.regions[image], gone)
            if bool(away.any()):
                # Noise belongs to the coalition, whenever it is evaluated.
                seed = int.from_bytes(bytes.fromhex(digest({}, [bits]))[:7], "big")
                pictures[image] = remover.without(away, seed)
        return Changed(hidden, replaced, pictures)


def _of_players(labels: Tensor, chosen: Tensor) -> Tensor:
    """Pixels, or positions, of the chosen players."""
    table: NDArray[np.bool_] = np.append(
        chosen.numpy(), False
    )  # the last one answers for −1, nobody
    return torch.from_numpy(table[labels.numpy()])


class LayerGame:
    """A game whose worths are read after one layer; made by :meth:`Game.after_layer`."""

    def __init__(self, game: Game, layer: int) -> None:
        self.game, self.layer = game, layer

    def __len__(self) -> int:
        return len(self.game)

    def __call__(self, coalitions: Bool[Tensor, "K n"]) -> Float[Tensor, " K"]:
        """The worth of each coalition after the layer."""
        return self.game.by_layer(coalitions)[:, self.layer]
