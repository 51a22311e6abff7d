"""Patching: a clean and a corrupted picture, and which activations bring the clean answer back."""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded, guarded_steps
from lvlm_probe.app.inputs import choice, colour
from lvlm_probe.app.jobs import Cancelled, Report
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.widgets import heat, lines, patch_map, picked
from lvlm_probe.errors import AnswerError, InputError, LayoutError, TraceError
from lvlm_probe.intervene import Editable
from lvlm_probe.positions import Region
from lvlm_probe.recipes import patching
from lvlm_probe.target import Target
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "patching"
WAYS = (
    ("Erase: fill it in from around", "erase"),
    ("Recolour, its shading kept", "recolour"),
    ("Blur", "blur"),
    ("Noise on all of the image's tokens", "noise"),
)
SITES = (
    ("residual", "residual stream"),
    ("attention", "attention heads"),
    ("mlp", "feed-forward"),
)
METHODS = (
    ("Each patch tried (activation patching)", "activation"),
    ("Estimated from one backward pass (attribution patching)", "attribution"),
)
HELP = (
    "Put the clean run's activations into the corrupted run, one place at a time: what brings the answer back carries what "
    "the corruption took away."
)

Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Made:
    """A corrupted run beside the clean one.

    Attributes:
        key: What it was made from.
        question: Whose answer is to come back.
        region: What was corrupted.
        corrupted: The same answer on the corrupted input.
        written: What the model itself writes there.
        probabilities: Of the clean answer, in the clean and in the corrupted run.
        note: What the corrupted picture does not show.
    """

    key: Hashable
    question: Question
    region: Region
    corrupted: Editable
    written: str
    probabilities: tuple[float, float]
    note: str = ""

    @property
    def pictures(self) -> tuple[Image.Image, Image.Image]:
        """The clean one and the corrupted one."""
        which = self.region.image
        return self.question.images[which], self.corrupted.plain.images[which]


@dataclass(eq=False)
class Bench:
    """What one page has on this tab.

    Attributes:
        cells: Chosen ones, by question and image.
        made: The corrupted run.
        effects: Of the sweep.
        asked: The target that the sweep was about.
        at: Site, layer and group that is looked at, as numbers.
    """

    cells: dict[tuple[str, int], Cells] = field(default_factory=dict[tuple[str, int], Cells])
    made: Made | None = None
    effects: patching.Effects | None = None
    asked: Target | None = None
    at: tuple[int, int, int] = (0, 0, 0)


def build(desk: Desk) -> None:
    """The tab."""
    tab = Patching(desk)
    with desk.tab(NAME, "Patching"):
        tab.corruption()
        tab.sweeping()
        tab.results()
    tab.wire()


class Patching:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def corruption(self) -> None:
        """Both pictures, and how the corrupted one is made."""
        gr.Markdown(HELP, elem_id="patching-help")
        with gr.Row():
            with gr.Column(min_width=240):
                self.clean = patch_map("patching-clean")
            with gr.Column(min_width=240):
                self.corrupted = patch_map("patching-corrupted")
            with gr.Column(min_width=280):
                self.hint = gr.HTML(elem_id="patching-hint")
                self.how = gr.Dropdown(
                    list(WAYS),
                    value="erase",
                    label="Corrupt what was chosen",
                    elem_id="patching-how",
                )
                self.colour = gr.ColorPicker(
                    "#e6194b", label="New colour", visible=False, elem_id="patching-colour"
                )
                with gr.Row():
                    self.clear = gr.Button("Choose nothing", size="sm", elem_id="patching-clear")
                    self.corrupt = gr.Button("Corrupt", size="sm", elem_id="patching-corrupt")
                self.told = gr.HTML(elem_id="patching-told")

    def sweeping(self) -> None:
        """What is swept over."""
        with gr.Row(equal_height=True):
            self.method = gr.Dropdown(
                list(METHODS),
                value="activation",
                label="Patches",
                scale=3,
                min_width=300,
                elem_id="patching-method",
            )
            self.tower = gr.Dropdown(
                [("Language model", "language"), ("Vision encoder", "vision")], value="language",
                label="Layers of the", scale=2, min_width=200, elem_id="patching-tower",
            )  # fmt: skip
            self.sites = gr.CheckboxGroup(
                [(title, name) for name, title in SITES], value=[name for name, _ in SITES], label="What is patched",
                scale=4, min_width=430, elem_id="patching-sites",
            )  # fmt: skip
        with gr.Row(equal_height=True):
            self.run = gr.Button(
                "Run the sweep", variant="primary", scale=1, elem_id="patching-run"
            )
            self.stop = gr.Button("Cancel", scale=0, min_width=110, elem_id="patching-cancel")
            self.progress = gr.HTML(elem_id="patching-progress")

    def results(self) -> None:
        """The sweep as heatmaps, one patch looked at, and the region's curve."""
        with gr.Column(visible=False, elem_id="patching-found") as self.found:
            self.measured = gr.HTML(elem_id="patching-measured")
            with gr.Row():
                self.heats = [heat(f"patching-heat-{name}", min_width=310) for name, _ in SITES]
            with gr.Row():
                with gr.Column(scale=2, min_width=240):
                    self.detail = patch_map("patching-detail")
                with gr.Column(scale=3, min_width=300):
                    self.said = gr.HTML(elem_id="patching-said")
                    self.curve = lines("patching-curve")

    def wire(self) -> None:
        """Connect it."""
        session = self.desk.session
        made = [self.corrupted, self.told]
        found = [self.found, self.measured, *self.heats, self.detail, self.said, self.curve]
        settings = [self.how, self.colour]
        self.desk.shows(
            NAME, self.draw, [self.clean, self.hint, self.how, *made, self.progress, *found]
        )
        self.how.input(_shows_colour, self.how, self.colour, show_progress="hidden")
        self.clean.pick(guarded(self.choose), session, self.hint, show_progress="hidden")
        self.clear.click(
            guarded(self.choose_nothing), session, [self.clean, self.hint], show_progress="hidden"
        )
        self.corrupt.click(guarded(self.make), [session, *settings], [*made, *found])
        self.run.click(
            guarded_steps(self.sweep),
            [session, *settings, self.method, self.tower, self.sites],
            [self.progress, *made, *found],
            show_progress="hidden",
        )
        self.stop.click(guarded(self.cancel), session, None, queue=False, show_progress="hidden")
        for number, part in enumerate(self.heats):
            part.pick(guarded(self._pointing(number)), session, found, show_progress="hidden")

    # What is shown

    def draw(self, session: Session) -> list[Any]:
        """Everything, as it stands for the question at hand."""
        question = session.question
        if question is None:
            return [None, "", gr.skip(), None, "", "", *self._nothing()]
        bench = _bench(session)
        ways = [*WAYS, *_edited(session)]
        return [
            self._clean(session, question), _hint(session), gr.update(choices=ways), *self._made(session, bench.made),
            "", *self._found(session),
        ]  # fmt: skip

    def _clean(self, session: Session, question: Question) -> Any:
        if not question.images:
            return None
        picture = question.images[session.image]
        caption = "Clean. Drag over what the answer rests on; click to add or take away a token."
        try:
            return views.grid_view(
                None, question.layout, session.image, grids=patching.grids_of(question.layout, session.image),
                picture=views.picture_uri(picture, 1152), pick="cells", picked=_cells(session), alt="The clean picture",
                caption=caption,
            )  # fmt: skip
        except LayoutError:
            return views.picture_view(picture, "The clean picture", "Clean.")

    def _made(self, session: Session, made: Made | None) -> list[Any]:
        if made is None or made.question.key != need(session).key:
            return [None, ""]
        picture = made.pictures[1]
        caption = f"Corrupted. {made.note}".strip()
        return [views.picture_view(picture, "The corrupted picture", caption), _answers(made)]

    def _nothing(self) -> list[Any]:
        return [gr.update(visible=False), "", *[None] * len(SITES), None, "", None]

    def _found(self, session: Session) -> list[Any]:
        bench = _bench(session)
        effects, made = bench.effects, bench.made
        if effects is None or made is None or made.question.key != need(session).key:
            return self._nothing()
        if bench.asked != session.target:
            return self._nothing()
        return [
            gr.update(visible=True), _measured(effects), *_heats(effects, bench.at), *self._looked_at(bench),
            _curve(effects),
        ]  # fmt: skip

    def _looked_at(self, bench: Bench) -> list[Any]:
        """The corrupted picture with the patched part as it was, and what that restores."""
        effects, made = bench.effects, bench.made
        assert effects is not None
        assert made is not None
        site, layer, group = (
            list(names)[number]
            for names, number in zip(effects.axes.values(), bench.at, strict=True)
        )
        positions = effects.positions[bench.at[2]]
        share = float(effects.values[bench.at])
        title = f"{dict(SITES)[site].capitalize()} of {effects.tower} layer {layer}, at {_article(group)}{group}"
        if share != share:
            return [None, f"<p>{html.escape(title)}: this layer has none.</p>"]
        written = self._written(made, effects.tower, site, int(layer), positions)
        value = effects.corrupted + share * (effects.clean - effects.corrupted)
        told = (
            f"<p><strong>{html.escape(title)}, patched back in: {share:.0%} restored.</strong> "
            f"{html.escape(effects.metric)}: {value:.3g}, between {effects.corrupted:.3g} corrupted and "
            f"{effects.clean:.3g} clean. {html.escape(_words(effects, group, positions))}"
            f"With this patch the model writes {written}.</p>"
        )
        return [self._patched(made, effects, positions, f"{group}, {site}, layer {layer}: {share:.0%} restored"), told]  # fmt: skip

    def _patched(
        self, made: Made, effects: patching.Effects, positions: Sequence[int], caption: str
    ) -> Any:
        image, layout = made.region.image, made.corrupted.plain.layout
        span = layout.image(image)
        grids = span.patches if effects.tower == "vision" else span.tokens
        chosen = set(positions)
        cells = [
            (number, cell)
            for number, grid in enumerate(grids)
            for cell, position in enumerate(grid.positions)
            if position in chosen
        ]
        clean, corrupted = made.pictures
        if not cells:
            return views.picture_view(corrupted, "The corrupted picture", caption)
        part = patching.region_of(layout, cells, image, grids)
        picture = patching.put_back(clean, corrupted, part)
        return views.grid_view(
            None, layout, image, grids=grids, picture=views.picture_uri(picture, 1152), picked=cells,
            alt="The corrupted picture with the patched part as it was", caption=caption,
        )  # fmt: skip

    def _written(
        self, made: Made, tower: str, site: str, layer: int, positions: Sequence[int]
    ) -> str:
        clean = made.question.need_case()

        def run() -> str:
            with self.service.turnstile.front():
                edited = patching.patched_back(
                    clean, made.corrupted, positions, site=site, layer=layer, tower=tower
                )
                return _generated(edited, made.question)

        key = ("patched back", made.key, tower, site, layer, tuple(positions))
        return f"“{html.escape(self.service.cached(made.question, key, run))}”"

    # What is done

    def choose(self, session: Session, event: gr.EventData) -> str:
        """Keep what was picked on the picture."""
        question = need(session)
        (cells,) = picked(event)
        chosen = tuple((int(grid), int(cell)) for grid, cell in cells)
        patching.region_of(question.layout, chosen, session.image)
        _bench(session).cells[question.key, session.image] = chosen
        return _hint(session)

    def choose_nothing(self, session: Session) -> list[Any]:
        """Forget what was picked."""
        question = need(session)
        _bench(session).cells.pop((question.key, session.image), None)
        return [self._clean(session, question), _hint(session)]

    def make(self, session: Session, how: str, new_colour: str) -> list[Any]:
        """Make the corrupted run, and ask it."""
        bench = _bench(session)
        made = self._corrupted(session, how, new_colour)
        if bench.made is not made:
            bench.made, bench.effects = made, None
        return [*self._made(session, made), *self._found(session)]

    def sweep(
        self,
        session: Session,
        how: str,
        new_colour: str,
        method: str,
        tower: str,
        sites: list[str],
    ) -> Iterator[list[Any]]:
        """Make the corrupted run if it is not there, and patch it.

        Raises:
            InputError: If nothing is to be patched.
            Cancelled: If it was cancelled.
        """
        chosen = [name for name, _ in SITES if name in sites]
        if not chosen:
            raise InputError(
                "nothing is to be patched: tick the residual stream, attention or feed-forward"
            )
        choice(method, "Patches", [value for _, value in METHODS])
        choice(tower, "Layers of the", ["language", "vision"])
        bench, target = _bench(session), session.target
        made = self._corrupted(session, how, new_colour)
        bench.made, bench.effects = made, None
        waiting = [gr.skip()] * (len(SITES) + 5)
        yield ["Starting …", *self._made(session, made), *waiting]
        work = self._work(made, target, method, tower, tuple(chosen))
        try:
            for progress, result in self.desk.background(session, NAME, work):
                if result is None:
                    yield [f"Patches: {progress}", gr.skip(), gr.skip(), *waiting]
                    continue
                bench.effects, bench.asked, bench.at = result, target, (0, 0, 0)
                yield [_counted(result), gr.skip(), gr.skip(), *self._found(session)]
        except Cancelled:
            yield ["Cancelled.", gr.skip(), gr.skip(), *self._nothing()]
            raise

    def _work(
        self, made: Made, target: Target, method: str, tower: str, sites: tuple[str, ...]
    ) -> Callable[[Report], patching.Effects]:
        clean = made.question.need_case()
        plain = target.kind == "margin" and target.count == 1
        groups = patching.groups_of(made.corrupted.plain, made.region, tower=tower)
        options: dict[str, Any] = {
            "sites": sites, "tower": tower, "positions": groups, "target": target.index if plain else target,
        }  # fmt: skip

        def work(report: Report) -> patching.Effects:
            def compute() -> patching.Effects:
                if method == "attribution":
                    report(0, 1)
                    return patching.attribution_patching(clean, made.corrupted, **options)
                return patching.activation_patching(
                    clean, made.corrupted, progress=report, **options
                )

            key = ("patching", made.key, target, method, tower, sites)
            return self.service.cached(made.question, key, compute)

        return work

    def cancel(self, session: Session) -> None:
        """End the sweep at its next patch."""
        session.cancel(NAME)

    def _pointing(self, site: int) -> Callable[..., list[Any]]:
        def point(session: Session, event: gr.EventData) -> list[Any]:
            bench = _bench(session)
            layer, group = (int(number) for number in picked(event))
            if bench.effects is not None:
                names = bench.effects.axes["site"]
                here = names.index(SITES[site][0])
                shape = bench.effects.values.shape
                if 0 <= layer < shape[1] and 0 <= group < shape[2]:
                    bench.at = (here, layer, group)
            return self._found(session)

        return point

    def _corrupted(self, session: Session, how: str, new_colour: str) -> Made:
        question = need(session)
        question.need_case()
        edited = _edited(session)
        choice(how, "Corrupt what was chosen", [value for _, value in (*WAYS, *edited)])
        cells = _cells(session)
        paint = colour(new_colour, "New colour") if how == "recolour" else None
        other = session.asked[int(how.removeprefix("asked "))].question if how.startswith("asked ") else None  # fmt: skip
        key = ("corrupted", how, paint, cells, session.image, other and other.key)

        def compute() -> Made:
            with self.service.turnstile.front():
                return _made(key, question, session.image, cells, how, paint, other)

        return self.service.cached(question, key, compute)


def _made(
    key: Hashable,
    question: Question,
    image: int,
    cells: Cells,
    how: str,
    paint: tuple[int, int, int] | None,
    other: Question | None,
) -> Made:
    clean = question.need_case()
    note = ""
    if other is not None:
        region = patching.difference(clean, other.images)
        run = patching.another_image(clean, other.images[region.image], which=region.image)
        if cells:
            region = patching.region_of(question.layout, cells, image)
    else:
        region = patching.region_of(question.layout, cells, image)
        given = () if how == "noise" else (region,) if paint is None else (region, paint)
        run = patching.corrupted(clean, how, *given)
        if how == "noise":
            note = "The noise is on the image's tokens, so the picture looks the same."
    every = Target(0, "prob", count=len(question.answer_tokens))
    written = _generated(run, question)
    return Made(key, question, region, run, written, (clean.score(every), run.score(every)), note)


def _generated(run: Editable, question: Question) -> str:
    """What the model writes; a message in brackets where that is nothing."""
    try:
        return run.generate(max(16, 2 * len(question.answer_tokens)))
    except AnswerError as error:
        return f"[{error}]"


def _bench(session: Session) -> Bench:
    return session.shelf.setdefault(NAME, Bench())


def _cells(session: Session) -> Cells:
    return _bench(session).cells.get((need(session).key, session.image), ())


def _hint(session: Session) -> str:
    question = need(session)
    try:
        question.need_case()
        grids = patching.grids_of(question.layout, session.image)
    except (LayoutError, TraceError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    chosen, count = len(_cells(session)), sum(grid.rows * grid.columns for grid in grids)
    if not chosen:
        return f"<p>Nothing is chosen of {count} tokens: the whole picture is corrupted.</p>"
    return f"<p>{chosen} of {count} tokens chosen.</p>"


def _edited(session: Session) -> list[tuple[str, str]]:
    """Questions about an edited version of this one's picture, or that it is an edited version of."""
    if not session.asked:
        return []
    here = session.asked[session.at]
    return [
        (f"The picture of question {n + 1} (→ {asked.question.answer})", f"asked {n}")
        for n, asked in enumerate(session.asked)
        if n != session.at and (asked.origin == session.at or here.origin == n)
    ]


def _shows_colour(how: str) -> Any:
    return gr.update(visible=how == "recolour")


def _answers(made: Made) -> str:
    answer = html.escape(made.question.answer)
    rows = zip(("clean", "corrupted"), (made.question.answer, made.written), made.probabilities, strict=True)  # fmt: skip
    body = "".join(
        f"<tr><th scope='row'>{run}</th><td>{html.escape(written)}</td><td>{share:.3f}</td></tr>"
        for run, written, share in rows
    )
    return (
        f"<table><thead><tr><th>run</th><th>the model writes</th><th>probability of “{answer}”</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _measured(effects: patching.Effects) -> str:
    return (
        f"<p><strong>{html.escape(effects.metric)}</strong>: {effects.clean:.3g} clean, {effects.corrupted:.3g} corrupted. "
        "Effect = (patched − corrupted) / (clean − corrupted): 0 as corrupted, 1 as clean. Click a cell to look at it.</p>"
    )


def _heats(effects: patching.Effects, at: tuple[int, int, int]) -> list[Any]:
    """One a site, on one scale around 0, so that 0 looks the same everywhere."""
    known = effects.values[effects.values.isfinite()]
    top = max(1.0, views.scale_of(known)["high"])
    drawn: list[Any] = []
    for name, title in SITES:
        if name not in effects.axes["site"]:
            drawn.append(None)
            continue
        number = effects.axes["site"].index(name)
        drawn.append(
            views.heat_view(
                effects.values[number], effects.axes["layer"], effects.axes["position"],
                scale={"low": -top, "high": top}, title=title.capitalize(), row_title="layer", digits=2,
                picked=at[1:] if at[0] == number else None,
            )
        )  # fmt: skip
    return drawn


def _curve(effects: patching.Effects) -> Any:
    site = effects.axes["site"][0]
    shown = [n for n in effects.axes["position"] if n in ("region", "image", "as many others")]
    if not shown:
        return None
    layers = [int(layer) for layer in effects.axes["layer"]]
    values = {name: effects.of(site=site, position=name).tolist() for name in shown}
    named = {"as many others": "as many other image tokens"}
    return views.lines_view(
        layers,
        {named.get(name, name): curve for name, curve in values.items()},
        x_title=f"{effects.tower} layer whose {dict(SITES)[site]} is patched",
        y_title="share restored",
        title=f"{dict(SITES)[site].capitalize()}: what a patch restores, by layer",
    )


def _counted(effects: patching.Effects) -> str:
    meta = effects.meta
    tried = f"{meta['patches']} patches in " if "patches" in meta else ""
    return f"Done: {tried}{meta['forward passes']} forward and {meta['backward passes']} backward passes."


def _article(group: str) -> str:
    return {"as many others": "", "other images": "", "last": "the prompt's "}.get(group, "the ")


def _words(effects: patching.Effects, group: str, positions: Sequence[int]) -> str:
    """Which words were patched, where the group is of words."""
    count = f"{len(positions)} position{'' if len(positions) == 1 else 's'}"
    if group not in ("question", "last"):
        return f"{count}. "
    return f"{count}: “{''.join(effects.words[p] for p in positions).strip()}”. "
