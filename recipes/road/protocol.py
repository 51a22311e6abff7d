"""How ROAD curves are taken: the published protocols, and what one of your own must say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lvlm_probe.errors import RecipeError

__all__ = ["PROTOCOLS", "RONG_2022", "ZHU_2025", "Order", "Protocol", "find_protocol"]

Order = Literal["morf", "lerf"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a ROAD curve is taken.

    Attributes:
        name: As users write it.
        shares: The abscissa, ascending, 0 to 1.
        lerf_over: Whether the LeRF curve's abscissa is the share of pixels ``"kept"`` or ``"removed"``; the MoRF curve's
            is always the share removed.
        noise: Standard deviation of the imputation's noise, where 1 is white.
        worth: What is read off the model.
        change: Whether the curve shows the change from the whole picture's worth, not the worth itself.
        shuffle: Whether pixels of equal score come in random order, not row by row.
    """

    name: str
    shares: tuple[float, ...]
    lerf_over: Literal["kept", "removed"]
    noise: float
    worth: str
    change: bool
    shuffle: bool

    def removed(self, order: Order) -> list[float]:
        """The share removed at each point of the abscissa."""
        if order == "lerf" and self.lerf_over == "kept":
            return [1 - share for share in self.shares]
        return list(self.shares)


RONG_2022 = Protocol(
    "rong2022",
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
    "kept",
    0.01,
    "same",
    change=False,
    shuffle=True,
)
"""The original: whether the answer stays, noise 0.01; LeRF over the share kept."""

ZHU_2025 = Protocol(
    "zhu2025", tuple(step / 50 for step in range(51)), "removed", 0.0, "answer", change=True, shuffle=False
)  # fmt: skip
"""The patchwise game's: 51 steps of 2 % removed, no noise, the change of the answer's geometric mean probability."""

PROTOCOLS = {protocol.name: protocol for protocol in (RONG_2022, ZHU_2025)}


def find_protocol(protocol: str | Protocol) -> Protocol:
    """By name; one of your own is checked.

    Raises:
        RecipeError: If there is no such protocol, or its abscissa is none.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise RecipeError(
                f"unknown ROAD protocol {protocol!r}: choose one of {', '.join(sorted(PROTOCOLS))}"
            )
        return PROTOCOLS[protocol]
    shares = protocol.shares
    ascending = all(a < b for a, b in pairwise(shares))
    if len(shares) < 2 or not ascending or shares[0] < 0 or shares[-1] > 1:
        raise RecipeError(
            f"the shares {shares} are no abscissa: give two at least, ascending, from 0 to 1"
        )
    return protocol
