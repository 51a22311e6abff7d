"""What an answer's word came from, by two recipes side by side: patches, words, layers and parts of the model."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cache
from typing import Any

import gradio as gr

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded
from lvlm_probe.app.inputs import Number, choice, whole
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.widgets import bars, patch_map, words
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.recipe import TraceRecipe, available_recipes, find_recipe, options_of
from lvlm_probe.recipes.attention.keys import crosses_to_images
from lvlm_probe.recipes.shares import highest, rescaled, shares_of, token_scores
from lvlm_probe.target import Target
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "relevancy"
PARTS = {
    "both parts": None,
    "language model alone": False,
    "vision encoder alone": "alone",
}
BOTH = next(iter(PARTS))
NONE = "none"
LONG = {"progress", "steps", "samples"}  # options of recipes that run the model many times
ELSEWHERE = {"causal", "patching"}  # these have tabs of their own


def build(desk: Desk) -> None:
    """The tab."""
    tab = RelevancyTab(desk)
    with desk.tab(NAME, "Relevancy"):
        tab.settings()
        with gr.Row():
            tab.sides()
    tab.wire()


@cache
def quick_recipes() -> tuple[str, ...]:
    """Recipes that take a forward and a backward pass or so."""
    names = [info.name for info in available_recipes() if info.name not in ELSEWHERE]
    return tuple(name for name in names if not LONG & set(options_of(find_recipe(name))))


@dataclass(frozen=True, slots=True)
class Settings:
    """What the tab's controls say.

    Attributes:
        recipes: One or two.
        part: Value of the option ``vision``, for recipes that have it.
        target: What is explained.
        layer: After which; None for the whole result.
        same: One scale for all layers.
    """

    recipes: tuple[str, ...]
    part: str
    target: Target
    layer: int | None
    same: bool


class Side:
    """One recipe's place in the tab.

    Args:
        name: Of its elements.
    """

    def __init__(self, name: str) -> None:
        self.title = gr.HTML(elem_id=f"{name}-title")
        self.map = patch_map(f"{name}-map")
        self.told = gr.HTML(elem_id=f"{name}-told")
        self.words = words(f"{name}-words")
        self.bars = bars(f"{name}-bars")

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`RelevancyTab.side` gives values for."""
        return [self.title, self.map, self.told, self.words, self.bars]


EMPTY = ["", None, "", None, None]


class RelevancyTab:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def settings(self) -> None:
        """What is shown."""
        known = quick_recipes()
        with gr.Row():
            self.left = gr.Dropdown(
                list(known),
                value="relevancy",
                label="Recipe",
                elem_id="relevancy-left",
                interactive=True,
            )
            self.right = gr.Dropdown(
                [NONE, *known], value="attention", label="Beside it", elem_id="relevancy-right", interactive=True
            )  # fmt: skip
            self.part = gr.Dropdown(
                list(PARTS), value=BOTH, label="Through", elem_id="relevancy-part", interactive=True
            )
        with gr.Row():
            with gr.Column(min_width=160):
                self.entire = gr.Checkbox(True, label="Whole result", elem_id="relevancy-entire")
                self.same = gr.Checkbox(
                    True, label="Same scale for all layers", elem_id="relevancy-same"
                )
            self.layer = gr.Slider(
                0, 1, 0, step=1, label="After layer", elem_id="relevancy-layer", interactive=True
            )
            with gr.Column(min_width=160):
                self.words = gr.Checkbox(False, label="Whole words", elem_id="relevancy-whole")
                self.against = gr.Textbox(
                    placeholder="contrast with another word",
                    show_label=False,
                    container=False,
                    elem_id="relevancy-against",
                )

    def sides(self) -> None:
        """The recipes' places."""
        with gr.Column(min_width=340):
            self.first = Side("relevancy")
        with gr.Column(min_width=340) as self.beside:
            self.second = Side("beside")

    def wire(self) -> None:
        """Connect it."""
        controls = [
            self.left,
            self.right,
            self.part,
            self.words,
            self.against,
            self.entire,
            self.layer,
            self.same,
        ]
        shown = [*self.first.outputs, *self.second.outputs]
        redrawn = [
            self.left.input, self.right.input, self.part.input, self.words.input, self.against.submit, self.against.blur,
        ]  # fmt: skip
        self.desk.shows(NAME, self.draw, [*shown, self.beside, self.layer], controls, also=redrawn)
        inputs = [self.desk.session, *controls]
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        for event in (self.entire.input, self.same.input):
            event(guarded(self.draw_sides), inputs, shown, **quick)
        # While it is dragged, only where it stands at last counts.
        moved = [self.entire, *shown]
        self.layer.input(
            guarded(self.draw_layer), inputs, moved, trigger_mode="always_last", **quick
        )

    def draw(self, session: Session, *controls: Any) -> list[Any]:
        """Everything, for the question at hand."""
        if session.question is None:
            return [*EMPTY, *EMPTY, gr.update(), gr.update(interactive=False)]
        settings = self.read(session, *controls)
        depth = self.depth(session, settings)
        slider = gr.update(maximum=max(depth - 1, 1), interactive=depth > 1)
        return [
            *self.draw_sides(session, *controls),
            gr.update(visible=len(settings.recipes) > 1),
            slider,
        ]

    def draw_layer(self, session: Session, *controls: Any) -> list[Any]:
        """The sides after the layer that the slider stands at."""
        *others, _, layer, same = controls
        return [False, *self.draw_sides(session, *others, False, layer, same)]

    def draw_sides(self, session: Session, *controls: Any) -> list[Any]:
        """Both recipes."""
        if session.question is None:
            return [*EMPTY, *EMPTY]
        settings = self.read(session, *controls)
        found = [self.explained(session, recipe, settings) for recipe in settings.recipes]
        scaled = self.on_one_scale(session, found, settings)
        drawn = [self.side(session, one, scale, settings) for one, scale in scaled]
        return [*drawn[0], *(drawn[1] if len(drawn) > 1 else EMPTY)]

    def read(
        self,
        session: Session,
        left: str | None,
        right: str | None,
        part: str | None,
        whole_words: bool,
        against: str | None,
        entire: bool,
        layer: Number,
        same: bool,
    ) -> Settings:
        """What the controls say."""
        known = quick_recipes()
        recipes = (choice(left, "Recipe", known), choice(right, "Beside it", [NONE, *known]))
        target = session.target
        if against and against.strip():
            target = Target(target.index, "contrast", target.count, against=against.strip())
        if whole_words:
            target = target.widened(need(session).answer_tokens)
        return Settings(
            recipes[: 1 if recipes[1] == NONE else 2],
            choice(part, "Through", list(PARTS)),
            target,
            None if entire else whole(layer, "After layer", 0, 10_000),
            bool(same),
        )

    def explained(self, session: Session, recipe: str, settings: Settings) -> Attribution | str:
        """The recipe's explanation, or why there is none."""
        options: dict[str, Any] = {}
        if settings.part != BOTH and "vision" in options_of(find_recipe(recipe)):
            options["vision"] = PARTS[settings.part]
        if options.get("vision") == "alone" and recipe != NAME:
            return f"{recipe} has no part of the vision encoder alone: choose 'relevancy'"
        try:
            return self.service.explain(need(session), recipe, settings.target, **options)
        except LvlmProbeError as error:
            return f"{recipe}: {error}"

    def depth(self, session: Session, settings: Settings) -> int:
        """How many layers the slider runs over: those of the recipe that has most."""
        found = [self.explained(session, recipe, settings) for recipe in settings.recipes]
        layers = [one.layers for one in found if isinstance(one, Attribution)]
        return max([len(each) for each in layers if each is not None], default=0)

    def on_one_scale(
        self, session: Session, found: list[Attribution | str], settings: Settings
    ) -> list[tuple[Attribution | str, views.Scale | None]]:
        """Two recipes each over its own highest score, so that one scale fits; one as it is."""
        image, made = session.image, list[Attribution | str]()
        tops: list[float] = []
        for one in found:
            if isinstance(one, str):
                made.append(one)
                continue
            layer = _layer(one, settings)
            every = settings.same and layer is not None
            try:
                top = highest(one, image, layer, all_layers=every)
            except LvlmProbeError:
                top = 0.0  # the map says why it is not there
            made.append(rescaled(one, top) if len(found) > 1 else one)
            tops.append(1.0 if len(found) > 1 else top)
        top = max(tops, default=0.0) or 1.0
        low = -top if any(_negative(one, image, settings) for one in made) else 0.0
        return [(one, {"low": low, "high": top}) for one in made]

    def side(
        self,
        session: Session,
        found: Attribution | str,
        scale: views.Scale | None,
        settings: Settings,
    ) -> list[Any]:
        """One recipe's drawings."""
        if isinstance(found, str):
            return [f"<div>{html.escape(found)}</div>", None, "", None, None]
        question, layer = need(session), _layer(found, settings)
        title = f"<div><b>{html.escape(_title(found, settings, layer))}</b></div>"
        shown: Any = None
        try:
            shown = views.map_view(
                found, session.image, layer, scale,
                picture=self.picture(question, session.image), caption=_scale_told(settings, layer),
            )  # fmt: skip
        except LvlmProbeError as error:
            title += f"<div>{html.escape(str(error))}</div>"
        try:
            scores = token_scores(found, layer)
            parts = shares_of(found, layer, crossing=self.crosses(question))
        except LvlmProbeError as error:
            return [title, shown, f"<div>{html.escape(str(error))}</div>", None, None]
        asked = [n for n in question.layout.text_positions if n < found.position]
        told = "<div>Words before it, shaded by their score; hover to read it.</div>"
        line = views.words_view(
            question.words, asked, scores, label="Words of the prompt and the earlier answer"
        )
        return [title, shown, told, line, _bars(parts)]

    def crosses(self, question: Question) -> bool:
        """Whether images are reached by cross-attention."""
        sites = self.service.trace(question).sites("language")
        return crosses_to_images(sites, question.layout)

    def picture(self, question: Question, image: int) -> str | None:
        """The picture's address, made once."""
        if image >= len(question.images):
            return None
        return self.service.cached(
            question, ("picture", image), lambda: views.picture_uri(question.images[image], 1152)
        )


def _layer(found: Attribution, settings: Settings) -> int | None:
    """The layer that is shown; None for a recipe without layers, or the whole result."""
    if settings.layer is None or found.layers is None:
        return None
    return min(settings.layer, len(found.layers) - 1)


def _negative(found: Attribution | str, image: int, settings: Settings) -> bool:
    if isinstance(found, str):
        return False
    try:
        grids = found.grids(image, _layer(found, settings))
    except LvlmProbeError:
        return False
    return any(bool((scores < 0).any()) for _, scores in grids)


def _title(found: Attribution, settings: Settings, layer: int | None) -> str:
    where = "whole result" if layer is None else f"layer {layer}"
    if layer is None and settings.layer is not None:
        where = "whole result (it has no layers)"
    recipe = find_recipe(found.recipe)
    told = f", {found.target.kind}"
    if isinstance(recipe, TraceRecipe) and not recipe.gradients:
        told = ""  # it looks at where the word is predicted, whatever is asked of it
    elif found.target.against:
        told = f", contrast with “{found.target.against}”"
    return f"{found.recipe} of “{found.word.strip()}”{told}, {where}"


def _scale_told(settings: Settings, layer: int | None) -> str:
    over = "of all layers" if settings.same and layer is not None else "here"
    if len(settings.recipes) > 1:
        return f"Each recipe over its own highest score {over}, so that one scale fits both."
    return f"Scores have no unit; the scale ends at the highest score {over}."


def _bars(parts: Any) -> views.View:
    count = len(parts.images)
    labels = ["image" if count == 1 else f"image {n + 1}" for n in range(count)]
    return views.bars_view(
        [*labels, "question", "earlier answer"],
        [*(100 * part for part in parts.images), 100 * parts.question, 100 * parts.answer],
        groups=[*["image"] * count, "text", "text"],
        title="Share of all scores, signs dropped",
        unit="%",
    )
