"""Patching: a clean and a corrupted picture, and which activations bring the clean answer back."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded, guarded_steps
from lvlm_probe.app.inputs import choice, colour
from lvlm_probe.app.jobs import Cancelled, Report
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.patching_runs import (
    WAYS,
    Bench,
    Made,
    bench_of,
    cells_of,
    edited,
    generated,
    make,
)
from lvlm_probe.app.tabs.patching_views import (
    SITES,
    answers,
    clean_map,
    counted,
    curve,
    heats,
    hint,
    measured,
    patched_map,
    place,
    words_of,
)
from lvlm_probe.app.widgets import heat, lines, patch_map, picked
from lvlm_probe.errors import InputError
from lvlm_probe.recipes import patching
from lvlm_probe.target import Target
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "patching"
METHODS = (
    ("Each patch tried (activation patching)", "activation"),
    ("Estimated from one backward pass (attribution patching)", "attribution"),
)
HELP = (
    "Put the clean run's activations into the corrupted run, one place at a time: what brings the answer back carries what "
    "the corruption took away."
)


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
            NAME,
            self.draw,
            [self.clean, self.hint, self.how, *made, self.progress, *found],
            [self.how],
        )
        self.how.input(_shows_colour, self.how, self.colour, show_progress="hidden")
        self.desk.picks(NAME, self.clean, self.choose, outputs=[self.hint])
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
            self.desk.picks(NAME, part, self._pointing(number), outputs=found)

    # What is shown

    def draw(self, session: Session, how: str | None) -> list[Any]:
        """Everything, as it stands for the question at hand."""
        question = session.question
        if question is None:
            return [None, "", gr.skip(), None, "", "", *self._nothing()]
        ways = [*WAYS, *edited(session)]
        # Another question may have no edited picture.
        kept = how if how in [value for _, value in ways] else "erase"
        return [
            clean_map(session, question), hint(session), gr.update(choices=ways, value=kept),
            *self._made(session, bench_of(session).made), "", *self._found(session),
        ]  # fmt: skip

    def _made(self, session: Session, made: Made | None) -> list[Any]:
        if made is None or made.question.key != need(session).key:
            return [None, ""]
        picture = made.pictures[1]
        caption = f"Corrupted. {made.note}".strip()
        return [views.picture_view(picture, "The corrupted picture", caption), answers(made)]

    def _nothing(self) -> list[Any]:
        return [gr.update(visible=False), "", *[None] * len(SITES), None, "", None]

    def _found(self, session: Session) -> list[Any]:
        bench = bench_of(session)
        effects, made = bench.effects, bench.made
        if effects is None or made is None or made.question.key != need(session).key:
            return self._nothing()
        if bench.asked != session.target:
            return self._nothing()
        return [
            gr.update(visible=True), measured(effects), *heats(effects, bench.at), *self._looked_at(bench),
            curve(effects),
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
        title = f"{dict(SITES)[site].capitalize()} of {effects.tower} layer {layer}, at {place(group)}{group}"
        if share != share:
            return [None, f"<p>{html.escape(title)}: this layer has none.</p>"]
        written = self._written(made, effects.tower, site, int(layer), positions)
        value = effects.corrupted + share * (effects.clean - effects.corrupted)
        told = (
            f"<p><strong>{html.escape(title)}, patched back in: {share:.0%} restored.</strong> "
            f"{html.escape(effects.metric)}: {value:.3g}, between {effects.corrupted:.3g} corrupted and "
            f"{effects.clean:.3g} clean. {html.escape(words_of(effects, group, positions))}"
            f"With this patch the model writes {written}.</p>"
        )
        return [patched_map(made, effects, positions, f"{group}, {site}, layer {layer}: {share:.0%} restored"), told]  # fmt: skip

    def _written(
        self, made: Made, tower: str, site: str, layer: int, positions: Sequence[int]
    ) -> str:
        clean = made.question.need_case()

        def run() -> str:
            with self.service.turnstile.front():
                run_so = patching.patched_back(
                    clean, made.corrupted, positions, site=site, layer=layer, tower=tower
                )
                return generated(run_so, made.question)

        key = ("patched back", made.key, tower, site, layer, tuple(positions))
        return f"“{html.escape(self.service.cached(made.question, key, run))}”"

    # What is done

    def choose(self, session: Session, event: gr.EventData) -> str:
        """Keep what was picked on the picture."""
        question = need(session)
        (cells,) = picked(event)
        chosen = tuple((int(grid), int(cell)) for grid, cell in cells)
        patching.region_of(question.layout, chosen, session.image)
        bench_of(session).cells[question.key, session.image] = chosen
        return hint(session)

    def choose_nothing(self, session: Session) -> list[Any]:
        """Forget what was picked."""
        question = need(session)
        bench_of(session).cells.pop((question.key, session.image), None)
        return [clean_map(session, question), hint(session)]

    def make(self, session: Session, how: str, new_colour: str) -> list[Any]:
        """Make the corrupted run, and ask it."""
        bench = bench_of(session)
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
            InputError: If nothing is to be patched, or nothing could come of it.
        """
        chosen = [name for name, _ in SITES if name in sites]
        if not chosen:
            raise InputError(
                "nothing is to be patched: tick the residual stream, attention or feed-forward"
            )
        choice(method, "Patches", [value for _, value in METHODS])
        choice(tower, "Layers of the", ["language", "vision"])
        if how == "noise" and tower == "vision":
            raise InputError(
                "the noise comes behind the vision encoder, whose layers can restore nothing of it: corrupt otherwise, or "
                "patch the language model"
            )
        bench, target = bench_of(session), session.target
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
                bench.made, bench.effects = made, result
                bench.asked, bench.at = target, (0, 0, 0)
                yield [counted(result), gr.skip(), gr.skip(), *self._found(session)]
        except Exception as error:
            said = "Cancelled." if isinstance(error, Cancelled) else ""
            yield [said, gr.skip(), gr.skip(), *self._nothing()]
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
            bench = bench_of(session)
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
        ways = [*WAYS, *edited(session)]
        choice(how, "Corrupt what was chosen", [value for _, value in ways])
        cells = cells_of(session)
        paint = colour(new_colour, "New colour") if how == "recolour" else None
        other = session.asked[int(how.removeprefix("asked "))].question if how.startswith("asked ") else None  # fmt: skip
        key = ("corrupted", how, paint, cells, session.image, other and other.key)

        def compute() -> Made:
            with self.service.turnstile.front():
                return make(key, question, session.image, cells, how, paint, other)

        return self.service.cached(question, key, compute)


def _shows_colour(how: str) -> Any:
    return gr.update(visible=how == "recolour")
