"""Estimators against exact values of 12 superpixels, and against ROAD on 144 cells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from game_common import SIDE, SUPERPIXELS, Rows, console, interval, questions
from game_maps import COARSE
from rich.progress import track

import lvlm_probe as lp
from lvlm_probe.recipes import game as g
from lvlm_probe.recipes import road

__all__ = ["areas", "budget", "coverage"]

Estimator = Callable[[g.Worths, int, int], g.Estimate]

# A stream of questions; intervals were made on streams 2 and 7, before this one was looked at.
COVERED, QUESTIONS = 11, 8

ESTIMATORS: dict[str, Estimator] = {
    "permutation": g.permutation,
    "kernelshap": g.kernelshap,
    "banzhaf": g.banzhaf,
    "smooth": g.smooth,
    "unbiased-kernelshap": lambda game, evaluations, seed: g.through_shapiq(
        game, "UnbiasedKernelSHAP", evaluations, seed
    ),
    "surrogate": lambda game, evaluations, seed: g.surrogate(
        game, evaluations, seed, epochs=100, orders=40
    ),
}


class Tabled:
    """A table that knows where its players are."""

    def __init__(self, table: g.Table, players: g.Players) -> None:
        self.table, self.players = table, players

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, coalitions: torch.Tensor) -> torch.Tensor:
        """Looked up."""
        return self.table(coalitions)


def tables(count: int, kept: Rows, seed: int) -> list[Tabled]:
    """Every worth of 12 superpixels, for some questions."""
    probe = lp.Probe.from_pretrained("demo")
    cache = None if kept.path is None else kept.path.with_suffix(".sqlite")
    found: list[Tabled] = []
    for _, (case, _, _) in track(
        questions(probe, count, seed=seed), "tables", total=count, console=console
    ):
        players = g.superpixels(case, SUPERPIXELS)
        game = g.Game(case, players, "knockout", "answer", cache=cache)
        found.append(Tabled(g.Table(game(g.all_coalitions(SUPERPIXELS))), players))
    return found


def coverage(count: int, kept: Rows, evaluations: int = 400) -> dict[str, Any]:
    """How often exact values lie in the intervals, ``count`` runs a question; a row an estimator."""
    games = tables(QUESTIONS, kept, COVERED)
    for number, (name, estimator) in enumerate(track(ESTIMATORS.items(), console=console)):
        if number in kept.questions:
            continue
        inside = torch.zeros(QUESTIONS, count, SUPERPIXELS)
        together = torch.zeros(QUESTIONS, count)
        errors: list[float] = []
        for place, game in enumerate(games):
            values = game.table.values
            truth = g.banzhaf_values(values) if name == "banzhaf" else g.shapley_values(values)
            for run in range(count):
                found = estimator(game, evaluations, 100 + run)
                inside[place, run] = within(truth, *found.interval())
                together[place, run] = within(truth, *found.interval(together=True)).all()
                errors.append(float((found.values - truth).abs().mean()))
        rates = inside.mean(1)
        row = {
            "estimator": name,
            "questions": QUESTIONS,
            "evaluations": evaluations,
            "runs": count,
            "each": interval(rates.mean(1).tolist()),
            "worst player": float(rates.min()),
            "below 0.9": int((rates < 0.9).sum()),
            "together": interval(together.mean(1).tolist()),
            "error": float(np.mean(errors)),
        }
        kept.add(number, [row])
    return kept.told()


def within(truth: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Which values lie between the ends, up to rounding."""
    return (low - 1e-9 <= truth) & (truth <= high + 1e-9)


def budget(count: int, kept: Rows) -> dict[str, Any]:
    """The mean error, as a share of the worth of all, that each budget leaves at 12 players."""
    games = tables(count, kept, 2)
    rows: list[dict[str, Any]] = []
    for name, estimator in track(ESTIMATORS.items(), "estimators", console=console):
        if name == "banzhaf":
            continue
        for evaluations in (30, 60, 100, 200, 400, 800, 1600):
            if name == "surrogate" and evaluations > 400:
                break  # learning takes minutes
            errors: list[float] = []
            seconds: list[float] = []
            used: list[float] = []
            for number, game in enumerate(games):
                start = time.perf_counter()
                try:
                    found = estimator(game, evaluations, number)
                except lp.LvlmProbeError:
                    break
                seconds.append(time.perf_counter() - start)
                truth = g.shapley_values(game.table.values)
                scale = float(game.table.values[-1] - game.table.values[0])
                errors.append(float((found.values - truth).abs().mean()) / abs(scale))
                used.append(found.evaluations)
            if errors:
                rows.append(
                    {
                        "estimator": name,
                        "budget": evaluations,
                        "evaluations": float(np.mean(used)),
                        "error": interval(errors),
                        "seconds": float(np.mean(seconds)),
                    }
                )
    return {"rows": rows, "questions": count}


LARGE: dict[str, tuple[Estimator, tuple[int, ...]]] = {
    "contiguous": (g.contiguous, (20, 40, 70, 140, 280)),
    "smooth": (g.smooth, (20, 40, 70, 140, 280)),
    "leave-one-out": (lambda game, _, __: g.leave_one_out(game), (146,)),
    "permutation": (g.permutation, (700,)),
    "kernelshap": (g.kernelshap, (700,)),
    "surrogate": (
        lambda game, evaluations, seed: g.surrogate(
            game, evaluations, seed, networks=2, epochs=60, orders=40
        ),
        (700,),
    ),
}


def areas(count: int, kept: Rows) -> dict[str, Any]:
    """The ROAD areas that each budget buys on 144 cells, tokens knocked out; nothing is shared between runs."""
    probe = lp.Probe.from_pretrained("demo")
    asked = track(questions(probe, count, seed=COVERED), "areas", total=count, console=console)
    for number, (case, _, _) in asked:
        if number in kept.questions:
            continue
        rows: list[dict[str, Any]] = []
        players = g.cells(case, SIDE)
        image = case.layout.images[0]
        measure = road.Road(case, COARSE)
        for name, (estimator, budgets) in LARGE.items():
            for evaluations in budgets:
                start = time.perf_counter()
                found = estimator(g.Game(case, players, "knockout", "answer"), evaluations, number)
                seconds = time.perf_counter() - start
                scores = found.values.float().view(SIDE, SIDE)
                curve = measure(image.tokens[0].on_pixels(scores, image.size), number)
                rows.append(
                    {
                        "estimator": name,
                        "budget": evaluations,
                        "evaluations": found.evaluations,
                        "seconds": seconds,
                        "morf": curve.area("morf"),
                        "lerf": curve.area("lerf"),
                    }
                )
        kept.add(number, rows)
    return kept.told()
