"""The lower half of the ablation tab: a game, or ROAD, in the background."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from torch import Tensor

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded, guarded_steps
from lvlm_probe.app.inputs import Number, choice, whole
from lvlm_probe.app.jobs import Cancelled, Progress, Report
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.ablation_results import empty_game, empty_road, show_game, show_road
from lvlm_probe.app.telling import bar, note
from lvlm_probe.app.widgets import bars, lines, patch_map, words
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.recipe import available_recipes
from lvlm_probe.recipes.game import make_players
from lvlm_probe.recipes.road import PROTOCOLS, Road, RoadCurve, baselines
from lvlm_probe.target import Target

__all__ = ["Runs"]

GAMES = {
    "shapley": ("players", "removal", "worth", "evaluations", "seed", "cache"),
    "banzhaf": ("players", "removal", "worth", "evaluations", "seed", "cache"),
    "contiguous": ("players", "removal", "worth", "evaluations", "seed", "cache"),
    "occlusion": ("players", "removal", "worth", "cache"),
    "greedy": ("players", "removal", "worth", "cache"),
    "rise": ("removal", "worth", "evaluations", "seed"),
}
"""The options that each takes."""

PLAYERS = ["patches", "cells:6", "cells:4", "superpixels:25", "words", "cells:4+words"]
REMOVALS = ["mean", "blur", "constant", "impute", "knockout", "embedding"]
WORTHS = [
    ("what the desk explains", "target"),
    ("probability of the picked words", "likelihood"),
    ("probability of the whole answer", "answer"),
]
MAPS = ("relevancy", "attention", "rollout", "tam", "gradient-x-input", "grad-cam", "causal")
LAST_GAME = "the last game"


@dataclass(eq=False)
class Results:
    """What this session found for one question.

    Attributes:
        game: The last one's values.
        road: Curves of each map.
    """

    game: Attribution | None = None
    road: dict[str, RoadCurve] = field(default_factory=dict[str, RoadCurve])
    missing: str = ""


class Steps:
    """Counts on through a work's several requests, each of which counts from nothing.

    Args:
        report: Of the job.
        expected: Steps in all, at a guess.
    """

    def __init__(self, report: Report, expected: int = 0) -> None:
        self.report, self.expected = report, expected
        self._before = self._done = self._total = 0

    def __call__(self, done: int, total: int) -> None:
        if done <= self._done:
            self._before += self._total
        self._done, self._total = done, total
        self.report(self._before + done, max(self.expected, self._before + total))


class Runs:
    """Components of games and ROAD, and what they do.

    Args:
        desk: Of the page.
        name: Of the tab.
    """

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk, self.service, self.name = desk, desk.service, name
        known = {info.name for info in available_recipes()}
        self.maps = [name for name in MAPS if name in known]

    def ask_and_show(self) -> None:
        """Forms and results."""
        with gr.Tabs(elem_id="ablate-runs"):
            with gr.Tab("Game", id="ablate-game"):
                self.game_form()
                self.game_result()
            with gr.Tab("ROAD", id="ablate-road"):
                self.road_form()
                self.road_result()

    def game_form(self) -> None:
        """What to play."""
        with gr.Row():
            self.method = gr.Dropdown(
                list(GAMES), value="shapley", label="Value", elem_id="game-method", min_width=160
            )
            self.players = gr.Dropdown(
                PLAYERS, value="patches", label="Players", allow_custom_value=True, elem_id="game-players",
                min_width=170,
            )  # fmt: skip
            self.removal = gr.Dropdown(
                REMOVALS, value="mean", label="Removal", allow_custom_value=True, elem_id="game-removal",
                min_width=160,
            )  # fmt: skip
            self.worth = gr.Dropdown(
                WORTHS, value="target", label="Worth", elem_id="game-worth", min_width=230, scale=2
            )
            self.evaluations = gr.Number(
                1000, precision=0, label="Evaluations", elem_id="game-evaluations", min_width=130
            )
            self.seed = gr.Number(0, precision=0, label="Seed", elem_id="game-seed", min_width=110)
        with gr.Row():
            self.play = gr.Button("Play", variant="primary", elem_id="game-start", scale=2)
            self.end = gr.Button("Cancel", interactive=False, elem_id="game-cancel", scale=1)
        self.status = gr.HTML(elem_id="game-status", padding=False)

    def game_result(self) -> None:
        """Where the values are shown."""
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self.map = patch_map("game-map")
                self.words = words("game-words")
            with gr.Column(scale=5, min_width=300):
                self.told = gr.HTML(elem_id="game-told", padding=False)
                self.bars = bars("game-bars")
                self.curves = lines("game-curves")
                with gr.Accordion("All players", open=False, visible=False) as self.whole:
                    self.table = gr.HTML(elem_id="game-table", padding=False)

    def road_form(self) -> None:
        """Which maps to compare."""
        with gr.Row():
            self.chosen = gr.CheckboxGroup(
                [*self.maps, LAST_GAME], value=self.maps[:2], label="Maps, beside a random one and the picture's centre",
                elem_id="road-maps", scale=4,
            )  # fmt: skip
            self.protocol = gr.Dropdown(
                list(PROTOCOLS),
                value="rong2022",
                label="Protocol",
                elem_id="road-protocol",
                min_width=130,
            )
            self.road_seed = gr.Number(
                0, precision=0, label="Seed", elem_id="road-seed", min_width=110
            )
        with gr.Row():
            self.go = gr.Button("Compare", variant="primary", elem_id="road-start", scale=2)
            self.road_end = gr.Button("Cancel", interactive=False, elem_id="road-cancel", scale=1)
        self.road_status = gr.HTML(elem_id="road-status", padding=False)

    def road_result(self) -> None:
        """Where the curves are shown."""
        with gr.Row():
            with gr.Column(min_width=320):
                self.morf = lines("road-morf")
            with gr.Column(min_width=320):
                self.lerf = lines("road-lerf")
        self.areas = gr.HTML(elem_id="road-areas", padding=False)

    def wire(self) -> None:
        """Connect it."""
        session = self.desk.session
        game = [self.map, self.words, self.told, self.bars, self.curves, self.whole, self.table]
        road = [self.morf, self.lerf, self.areas]
        self.desk.shows(self.name, self.draw, [*game, *road])
        form = [self.method, self.players, self.removal, self.worth, self.evaluations, self.seed]
        self.play.click(
            guarded_steps(self.run_game), [session, *form], [self.play, self.end, self.status, *game],
            show_progress="hidden",
        )  # fmt: skip
        self.go.click(
            guarded_steps(self.run_road),
            [session, self.chosen, self.protocol, self.road_seed],
            [self.go, self.road_end, self.road_status, *road],
            show_progress="hidden",
        )
        for button in (self.end, self.road_end):
            button.click(
                guarded(self.cancel), session, None, queue=False,
                show_progress="hidden",
            )  # fmt: skip
        self.method.input(_fields, self.method, form[1:], queue=False, show_progress="hidden")

    def draw(self, session: Session) -> list[Any]:
        """What was found for the question at hand."""
        if session.question is None:
            return [*empty_game(), *empty_road()]
        found = _results(session, session.question)
        return [*_game(found, session), *_road(found)]

    def run_game(
        self,
        session: Session,
        method: str,
        players: str,
        removal: str,
        worth: str,
        evaluations: Number,
        seed: Number,
    ) -> Iterator[list[Any]]:
        """Play in the background."""
        question, target = need(session), session.target
        case = question.need_case()
        takes = GAMES[choice(method, "Value", list(GAMES))]
        folder = self.service.folder / "games"
        folder.mkdir(parents=True, exist_ok=True)
        given: dict[str, Any] = {
            "players": (players or "").strip(),
            "removal": (removal or "").strip(),
            "worth": choice(worth, "Worth", [value for _, value in WORTHS]),
            "evaluations": whole(evaluations, "Evaluations", 2, 1_000_000),
            "seed": whole(seed, "Seed", 0, 2**31),
            "cache": folder / f"{question.key[:24]}.sqlite",
        }
        options = {name: value for name, value in given.items() if name in takes}
        expected = 0
        if method == "greedy":
            count = len(make_players(case, given["players"]))
            expected = count * (count + 1)  # each step tries what is left, alone and without it

        def work(report: Report) -> Attribution:
            steps = Steps(report, expected)
            return self.service.cached(
                question,
                ("game", method, target, repr(sorted(options.items(), key=str))),
                lambda: case.explain(method, target, progress=steps, **options),
            )

        kept = "What was evaluated is kept: play the same again, and it goes on from there."
        if "cache" not in takes:
            kept = "RISE keeps no masks: it would begin anew."
        for step, found in self.watched(session, "Evaluations", work, kept):
            if found is None:
                yield [*step, *[gr.skip()] * 7]
            else:
                results = _results(session, question)
                results.game = found
                yield [*step, *_game(results, session)]

    def run_road(
        self, session: Session, chosen: list[str], protocol: str, seed: Number
    ) -> Iterator[list[Any]]:
        """Compare maps in the background."""
        question, image, target = need(session), session.image, session.target
        case = question.need_case()
        plan = PROTOCOLS[choice(protocol, "Protocol", list(PROTOCOLS))]
        start = whole(seed, "Seed", 0, 2**31)
        results = _results(session, question)
        names = [name for name in chosen if name in (*self.maps, LAST_GAME)]
        skip = [gr.skip()] * 3
        yield [*_buttons(running=True), bar(None, "Making the maps"), *skip]
        try:
            maps, missing = self.maps_of(question, names, results, target, image)
            maps |= baselines(case, start, image)
        except Exception:
            yield [*_buttons(running=False), note("Not finished."), *skip]
            raise

        def work(report: Report) -> dict[str, RoadCurve]:
            steps = Steps(report, 2 * len(plan.shares) * len(maps))
            road: Road | None = None
            curves: dict[str, RoadCurve] = {}
            for name, scores in maps.items():
                told = ("road", plan, image, start, name, scores.numpy().tobytes())

                def curve(scores: Any = scores) -> RoadCurve:
                    nonlocal road
                    road = road or Road(case, plan, image=image, progress=steps)
                    return road(scores, start)

                curves[name] = self.service.cached(question, told, curve)
            return curves

        kept = "Finished curves are kept: compare the same again, and it goes on from there."
        for step, curves in self.watched(session, "Pictures", work, kept):
            if curves is None:
                yield [*step, *skip]
            else:
                results.road, results.missing = curves, " ".join(missing)
                yield [*step, *_road(results)]

    def maps_of(
        self, question: Question, names: list[str], results: Results, target: Target, image: int
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Maps to be compared, on the picture's pixels; and what could not be made, and why."""
        maps: dict[str, Tensor] = {}
        missing: list[str] = []
        for name in names:
            if name == LAST_GAME and results.game is None:
                missing.append("No game was played about this question yet.")
                continue
            try:
                found = results.game if name == LAST_GAME else None
                found = found or self.service.explain(question, name, target)
                maps[name] = found.pixels(image)
            except LvlmProbeError as error:
                missing.append(f"{name}: {error}.")
        return maps, missing

    def cancel(self, session: Session) -> None:
        """End what runs, at its next step."""
        session.cancel(self.name)

    def watched(
        self, session: Session, what: str, work: Callable[[Report], Any], kept: str
    ) -> Iterator[tuple[list[Any], Any]]:
        """Values of the buttons and the status as a job goes on, and at last its result.

        Raises:
            Cancelled: If it was.
        """
        last: Progress | None = None
        yield [*_buttons(running=True), bar(None, "Starting")], None
        try:
            for progress, found in self.desk.background(session, self.name, work):
                if found is not None:
                    yield [*_buttons(running=False), note("Done.")], found
                    return
                last = progress
                yield [gr.skip(), gr.skip(), bar(progress, what)], None
        except Cancelled:
            done = (
                "before the first step"
                if not last or not last.done
                else f"after {last.done} of {last.total}"
            )
            yield [*_buttons(running=False), note(f"Cancelled {done}. {kept}")], None
            raise
        except Exception:
            yield [*_buttons(running=False), note("Not finished.")], None
            raise


def _results(session: Session, question: Question) -> Results:
    kept: dict[str, Results] = session.shelf.setdefault("ablation runs", {})
    return kept.setdefault(question.key, Results())


def _game(found: Results, session: Session) -> list[Any]:
    return empty_game() if found.game is None else show_game(found.game, session.image)


def _road(found: Results) -> list[Any]:
    return show_road(found.road, found.missing) if found.road else empty_road()


def _buttons(*, running: bool) -> list[Any]:
    return [gr.update(interactive=not running), gr.update(interactive=running)]


def _fields(method: str) -> list[Any]:
    """Only the fields that count."""
    takes = GAMES.get(html.unescape(method or ""), ())
    return [
        gr.update(visible=name in takes)
        for name in ("players", "removal", "worth", "evaluations", "seed")
    ]
