"""Which tokens become nodes of a head's graph.

All tokens of a question with an image are hundreds, most of which the head ignores; what is left out counts as latent,
which the learners allow for. The authors' application takes the image tokens attended to most, and text over a
threshold (LVLM-Interpret, arXiv:2404.03118).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.layout import TokenLayout

__all__ = ["NodeChoice"]


@dataclass(frozen=True, slots=True)
class NodeChoice:
    """What to make nodes of, beside the explained token.

    Attributes:
        image: So many image tokens, those attended to most; None for all.
        text: Text tokens that get at least this share of the head's attention.
        question: Every word that stands between the last image and the answer.

    Raises:
        RecipeError: If a number is negative.
    """

    image: int | None = 50
    text: float = 0.02
    question: bool = True

    def __post_init__(self) -> None:
        if (self.image is not None and self.image < 0) or self.text < 0:
            raise RecipeError(
                f"cannot take {self.image} image tokens and text over a threshold of {self.text}: neither is negative"
            )

    def of(
        self,
        attention: Float[Tensor, " N"],
        layout: TokenLayout,
        words: Sequence[str],
        position: int,
    ) -> list[int]:
        """Positions of the nodes, ascending; the last is ``position``.

        Args:
            attention: The head's, of the explained token.
            layout: Which positions are which.
            words: Text of each position; blank ones are no words.
            position: Where the explained token is predicted; nothing after it can have caused it.
        """
        seen = torch.tensor([p for p in layout.image_positions if p < position], dtype=torch.long)
        count = len(seen) if self.image is None else min(self.image, len(seen))
        # Of equal shares the earlier: a stable sort, which topk is not.
        order = attention[seen].argsort(descending=True, stable=True)
        chosen = set(seen[order[:count]].tolist())
        after_image = max((span.stop for span in layout.images), default=0)
        for p in layout.text_positions:
            if p < position and words[p].strip():
                asked = self.question and after_image <= p < layout.answer_start
                if asked or float(attention[p]) >= self.text:
                    chosen.add(p)
        return [*sorted(chosen), position]
