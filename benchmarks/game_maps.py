"""Maps held to ROAD, insertion and deletion: the published recipe against ours, and many recipes side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from game_common import SIDE, Rows, console, evidence, questions
from rich.progress import track

import lvlm_probe as lp
from lvlm_probe.recipes import game as g
from lvlm_probe.recipes import road
from lvlm_probe.recipes.evaluate.truth import rank_accuracy

__all__ = ["COARSE", "TENTHS", "methods", "paper"]

TENTHS = replace(
    road.ZHU_2025, name="zhu2025 at 10 %", shares=tuple(step / 10 for step in range(11))
)
COARSE = replace(road.ZHU_2025, name="zhu2025, 6 steps", shares=(0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0))


def plain_maps(case: lp.Case, number: int) -> dict[str, torch.Tensor]:
    """A random map and a centre prior on the grid."""
    noise = torch.from_numpy(np.random.default_rng(number).random((SIDE, SIDE))).float()
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    centre = -(axis[:, None] ** 2 + axis[None, :] ** 2)
    return {"random map": noise, "centre prior": centre - centre.min()}


def ways_to_score(
    case: lp.Case, players: g.Players, seed: int
) -> dict[str, Callable[[], g.Estimate]]:
    """The published recipe, and ours, each on a game of its own: nothing is shared between them."""

    def fresh(removal: str = "mean", worth: str = "answer") -> g.Game:
        return g.Game(case, players, removal, worth)

    return {
        "published: p = ½, surrogate, 700": lambda: g.surrogate(
            fresh(), 700, seed, "Banzhaf value", networks=2
        ),
        "smooth, Shapley, 140": lambda: g.smooth(fresh(), 140, seed),
        "contiguous, 140": lambda: g.contiguous(fresh(), 140, seed),
        "contiguous, 140, margin, knockout": lambda: g.contiguous(
            fresh("knockout", "target"), 140, seed
        ),
        "leave-one-out, 145": lambda: g.leave_one_out(fresh()),
    }


def paper(count: int, kept: Rows) -> dict[str, Any]:
    """The published recipe and ours, on the same questions."""
    probe = lp.Probe.from_pretrained("demo")
    asked = track(questions(probe, count, seed=0), "paper", total=count, console=console)
    for number, (case, scene, question) in asked:
        if number in kept.questions:
            continue
        rows: list[dict[str, Any]] = []
        truth = evidence(case, scene, question)
        players = g.cells(case, SIDE)

        ways = ways_to_score(case, players, number)
        maps: dict[str, tuple[torch.Tensor, int, float]] = {
            name: (scores, 0, 0.0) for name, scores in plain_maps(case, number).items()
        }
        start = time.perf_counter()
        relevancy = case.explain("relevancy").image()
        maps["relevancy (one backward pass)"] = relevancy, 1, time.perf_counter() - start
        for name, way in ways.items():
            start = time.perf_counter()
            found = way()
            seconds = time.perf_counter() - start
            maps[name] = found.values.float().view(SIDE, SIDE), found.evaluations, seconds
        size = case.layout.images[0].size
        measure = road.Road(case, TENTHS)
        for name, (scores, evaluations, seconds) in maps.items():
            pixels = case.layout.images[0].tokens[0].on_pixels(scores, size)
            curve = measure(pixels, number)
            rows.append(
                {
                    "question": number,
                    "method": name,
                    "evaluations": evaluations,
                    "seconds": seconds,
                    "rank": rank_accuracy(scores, truth),
                    "morf": curve.area("morf"),
                    "lerf": curve.area("lerf"),
                }
            )
        kept.add(number, rows)
    return kept.told()


def methods(count: int, kept: Rows) -> dict[str, Any]:
    """ROAD, insertion and deletion, for many recipes."""
    probe = lp.Probe.from_pretrained("demo")
    recipes: dict[str, tuple[str, dict[str, Any]]] = {
        "relevancy": ("relevancy", {}),
        "attention, last layer": ("attention", {"layer": -1}),
        "occlusion": ("occlusion", {}),
        "Shapley, 12 superpixels": (
            "shapley",
            {"players": "superpixels:12", "evaluations": 250, "removal": "knockout"},
        ),
        "contiguous": ("contiguous", {"removal": "knockout"}),
        "greedy regions": ("greedy", {"players": "superpixels:12", "removal": "knockout"}),
    }
    asked = track(questions(probe, count, seed=0), "methods", total=count, console=console)
    for number, (case, scene, question) in asked:
        if number in kept.questions:
            continue
        rows: list[dict[str, Any]] = []
        truth = evidence(case, scene, question)
        maps = plain_maps(case, number)
        for name, (recipe, options) in recipes.items():
            maps[name] = case.explain(recipe, **options).image()
        game = g.Game(case, g.cells(case, SIDE), "mean", "answer")
        measure = road.Road(case, COARSE)
        for name, scores in maps.items():
            pixels = case.layout.images[0].tokens[0].on_pixels(scores, case.layout.images[0].size)
            curve = measure(pixels, number)
            ranking = scores.flatten().argsort(descending=True, stable=True).tolist()
            areas = g.insertion_deletion(game, ranking, steps=8)
            rows.append(
                {
                    "question": number,
                    "method": name,
                    "morf": curve.area("morf"),
                    "lerf": curve.area("lerf"),
                    "insertion": areas.insertion,
                    "deletion": areas.deletion,
                    "rank": rank_accuracy(scores, truth),
                }
            )
        kept.add(number, rows)
    return kept.told()
