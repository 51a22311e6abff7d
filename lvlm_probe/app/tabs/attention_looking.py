"""What a page looks at in the attention tab, and the numbers for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from lvlm_probe.app.desk import need
from lvlm_probe.app.inputs import choice
from lvlm_probe.app.service import Question, Service
from lvlm_probe.app.session import Session
from lvlm_probe.errors import TargetError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.recipes.attention import (
    AnswerAttention,
    answer_attention,
    head_rows,
    image_to_answer,
    rank_heads,
)
from lvlm_probe.viewer import views

__all__ = [
    "ALL",
    "EARLIER",
    "HEAD",
    "IMAGE",
    "LAYER",
    "NAME",
    "PATCHES",
    "PICKED",
    "QUESTION",
    "TO",
    "VIEWS",
    "WHOLE",
    "Look",
    "Looking",
    "Place",
]

NAME = "attention"
PICKED, WHOLE = "picked words", "whole answer"
HEAD, LAYER, ALL = "the chosen head", "mean of its layer", "mean of all layers"
IMAGE, QUESTION, EARLIER, PATCHES = (
    "the image",
    "the question",
    "the earlier answer",
    "the picked patches",
)
VIEWS, TO = (HEAD, LAYER, ALL), (IMAGE, QUESTION, EARLIER, PATCHES)

Place = tuple[int, int]


@dataclass(eq=False)
class Look:
    """What a page looks at in this tab.

    Attributes:
        key: Of the question.
        image: Whose patches are picked.
        head: The layer and head that were chosen; None for the highest ranked.
        patches: Picked cells, (grid, cell) each.
    """

    key: str
    image: int
    head: Place | None = None
    patches: list[Place] = field(default_factory=list[Place])


class Looking:
    """Rows, scores and the map of what a page looks at.

    Args:
        service: Whose traces are read.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def look(self, session: Session) -> Look:
        """What the page looks at; anew for another question, without patches for another image."""
        question, kept = need(session), session.shelf.get(NAME)
        if not isinstance(kept, Look) or kept.key != question.key:
            kept = session.shelf[NAME] = Look(question.key, session.image)
        if kept.image != session.image:
            kept.image, kept.patches = session.image, []
        return kept

    def found(self, question: Question) -> AnswerAttention:
        """All layers and heads of the question's trace."""
        return self.service.cached(
            question, "answer attention", lambda: answer_attention(self.service.trace(question))
        )

    def choose(self, session: Session, layer: int, head: int) -> None:
        """Look at a head.

        Raises:
            TargetError: If there is none such.
        """
        known = self.found(need(session)).to_question
        if not (0 <= layer < known.shape[0] and 0 <= head < known.shape[1]):
            raise TargetError(
                f"there is no layer {layer} with head {head}: {known.shape[0]} × {known.shape[1]} are there"
            )
        self.look(session).head = (layer, head)

    def head(self, session: Session) -> Place:
        """The chosen layer and head, or those that look at the image most."""
        look, found = self.look(session), self.found(need(session))
        if look.head is not None:
            return look.head
        seen = look.image < len(found.to_images)
        scores = found.to_images[look.image] if seen else found.to_question
        ranked = rank_heads(scores[..., list(session.picked)].mean(-1), most=1)
        return (ranked[0][0], ranked[0][1]) if ranked else (0, 0)

    def rows(self, session: Session, view: str) -> tuple[int, Float[Tensor, "A K"], str]:
        """A layer, rows over its keys, and what they are."""
        question = need(session)
        found = self.found(question)
        if view == ALL:
            return found.mean_layer, found.mean, "mean of all heads and layers"
        layer, head = self.head(session)
        trace, label = self.service.trace(question), found.labels[layer]
        if view == LAYER:
            return layer, head_rows(trace, layer), f"layer {label}, mean of its heads"
        return layer, head_rows(trace, layer, head), f"layer {label}, head {head}"

    def scores(self, session: Session, of: str, to: str) -> Float[Tensor, "L H"]:
        """One number a head, for the matrix.

        Raises:
            TargetError: If patches are asked for and none is picked.
        """
        question, look = need(session), self.look(session)
        found = self.found(question)
        if to == IMAGE:
            question.layout.image(look.image)
            every = found.to_images[look.image]
        elif to == PATCHES and look.patches:
            flat = tuple(self.flat(question, look))
            every = self.service.cached(
                question,
                ("image to answer", look.image, flat),
                lambda: image_to_answer(self.service.trace(question), flat, look.image),
            )
        elif to == PATCHES:
            raise TargetError("no patch is picked: click or drag on the map")
        else:
            every = found.to_question if to == QUESTION else found.to_answer
        return every[..., self.tokens(session, of)].mean(-1)

    def to_patches(
        self, session: Session, layer: int, rows: Float[Tensor, "A K"]
    ) -> Float[Tensor, " A"]:
        """What each word pays to the picked patches, or to the whole image."""
        question, look = need(session), self.look(session)
        found = self.found(question)
        if look.patches:
            return found.on_patches(layer, rows, self.flat(question, look), look.image)
        return found.on_image(layer, rows, look.image)

    def flat(self, question: Question, look: Look) -> list[int]:
        """Picked cells, counted through all grids of the image."""
        sizes = [grid.rows * grid.columns for grid in self.found(question).grids(look.image)]
        return [sum(sizes[:grid]) + cell for grid, cell in look.patches]

    def tokens(self, session: Session, of: str) -> list[int]:
        """Indices of the words whose attention is looked at."""
        if choice(of, "Attention of", (PICKED, WHOLE)) == WHOLE:
            return list(range(len(need(session).answer_tokens)))
        return list(session.picked)

    def whose(self, session: Session, of: str) -> str:
        """The words whose attention is looked at, in quotes."""
        if of == WHOLE:
            return "the whole answer"
        tokens = need(session).answer_tokens
        return "“" + " … ".join(tokens[n].strip() for n in session.picked) + "”"

    def aim(self, session: Session) -> str:
        """What words are held against."""
        count = len(self.look(session).patches)
        return f"{count} picked patch{'es' * (count > 1)}" if count else "the image"

    def map_view(
        self,
        session: Session,
        placed: list[tuple[PatchGrid, Tensor]],
        title: str,
        tokens: list[int],
    ) -> views.View:
        """The map, with its picked patches."""
        question, look = need(session), self.look(session)
        total = sum(float(scores.sum()) for _, scores in placed)
        whose = self.whose(session, PICKED if tokens == list(session.picked) else WHOLE)
        view = views.grid_view(
            [scores for _, scores in placed],
            question.layout,
            look.image,
            grids=[grid for grid, _ in placed],
            picture=self.picture(question, look.image),
            pick="cells",
            alt=f"Attention of {whose} to image {look.image + 1}, {title}",
            caption=f"Attention of {whose} to each patch, {title}: {total:.3f} of it goes to the image. "
            "Click or drag over patches to see which words look there.",
        )
        return view | {"picked": [list(place) for place in look.patches]}

    def picture(self, question: Question, image: int) -> str | None:
        """The picture's address, made once."""
        if image >= len(question.images):
            return None
        return self.service.cached(
            question, ("picture", image), lambda: views.picture_uri(question.images[image], 1152)
        )
