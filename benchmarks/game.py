"""The cooperative game of patches: how right its estimators are, what they cost, and what they are good for.

    python benchmarks/game.py speed | coverage | budget | paper | pairs | methods [--count N] [--json FILE]
    python benchmarks/game.py page FOLDER

*speed*: coalitions a second, against running the whole model anew for each. *coverage*: how often exact Shapley values
of 12 superpixels lie in the estimators' intervals. *budget*: evaluations and seconds to a given error there, and to a
given ROAD area on 144 cells. *paper*: the published recipe (700 coalitions, surrogate) against ours with a fifth of the
evaluations. *pairs*: image–word interactions. *methods*: ROAD, insertion and deletion of many recipes.

Each part writes one JSON file; ``page`` makes a page of the documentation of those in a folder (``game-PART.json``), and
of the rows (``PART.jsonl``) of parts that have not come to their end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import facts
from localisation import KINDS, on_grid
from PIL import Image
from rich.console import Console
from rich.progress import track

import lvlm_probe as lp
from lvlm_probe.demo.questions import Question, held_out
from lvlm_probe.demo.scenes import Scene
from lvlm_probe.recipes import game as g
from lvlm_probe.recipes import road
from lvlm_probe.recipes.evaluate.truth import rank_accuracy

SIDE = 12
SUPERPIXELS = 12
TENTHS = replace(
    road.ZHU_2025, name="zhu2025 at 10 %", shares=tuple(step / 10 for step in range(11))
)
COARSE = replace(road.ZHU_2025, name="zhu2025, 6 steps", shares=(0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0))

console = Console(stderr=True)
Asked = tuple[lp.Case, Scene, Question]


def questions(probe: lp.Probe, count: int, seed: int = 0) -> Iterator[tuple[int, Asked]]:
    """Numbered; answered right, evenly of each kind with one object as evidence, kinds taking turns."""
    each = -(-count // len(KINDS))

    def right(kind: str) -> Iterator[Asked]:
        for scene, question in held_out(kind, 4 * each, seed=seed, min_objects=2):
            case = probe.case(scene.image, question.prompt, max_new_tokens=24)
            if case.answer == question.answer:
                yield case, scene, question

    streams = [right(kind) for kind in KINDS]
    for turn in range(each):
        for kind, stream in enumerate(streams):
            number = each * kind + turn
            if number < count:
                yield number, next(stream)


class Rows:
    """Rows of a part that takes long, kept question by question, so that it can be stopped and started again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        known = path is not None and path.suffix == ".jsonl" and path.exists()
        lines = path.read_text("utf-8").splitlines() if known else []
        self.questions: dict[int, list[dict[str, Any]]] = dict(json.loads(line) for line in lines)

    def add(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Those of one question."""
        self.questions[number] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, rows]) + "\n")

    def told(self) -> dict[str, Any]:
        """As a part's result."""
        rows = [row for number in sorted(self.questions) for row in self.questions[number]]
        return {"rows": rows, "questions": len(self.questions)}


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    known = np.array(values, dtype=float)
    low, high = np.quantile(rng.choice(known, (2000, len(known))).mean(1), [0.025, 0.975])
    return [float(known.mean()), float(low), float(high)]


def evidence(case: lp.Case, scene: Scene, question: Question) -> torch.Tensor:
    """The patches that the evidence touches."""
    mask = torch.from_numpy(np.asarray(scene.masks)[list(question.evidence)].any(0))
    return on_grid(mask, case.layout.images[0].tokens[0])


# speed


def naive(case: lp.Case, players: g.Players, coalitions: torch.Tensor) -> Callable[[], None]:
    """A picture, a processor call and a whole forward pass for each coalition; shares nothing with the engine."""
    pixels, labels = np.array(case.images[0]), players.regions[0].numpy()
    mean = pixels.mean((0, 1)).round().astype(np.uint8)

    def run() -> None:
        for row in coalitions.numpy():
            shown = np.where(row[labels][..., None], pixels, mean)
            made = case.probe.processor.image_processor(
                images=[Image.fromarray(shown)], return_tensors="pt"
            )
            with torch.inference_mode():
                case.probe.model(**{**case.inputs, "pixel_values": made["pixel_values"]})

    return run


def larger() -> lp.Case:
    """A random LLaVA with as many visual tokens as LLaVA 1.5 (576) and a system prompt of 35 tokens before them."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=9, num_attention_heads=6, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=12,
        num_attention_heads=8,
        vocab_size=1000,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999)
    probe = lp.Probe(LlavaForConditionalGeneration(config).eval())

    class Processor:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))
    pixels = Processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    words = torch.randint(0, 900, (1, 65))
    ids = torch.cat([words[:, :35], torch.full((1, 576), 999), words[:, 35:]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    case = probe.case_from_inputs(inputs, ids.shape[1] - 5, picture)
    probe.processor = Processor()  # pictures can now be changed
    return case


def speed(count: int) -> dict[str, Any]:
    """Coalitions a second, each way of running them."""
    probe = lp.Probe.from_pretrained("demo")
    rows: list[dict[str, Any]] = []
    small = next(questions(probe, 1))[1][0]
    for name, case, number in (
        ("demo model", small, count),
        ("random LLaVA", larger(), max(32, count // 16)),
    ):
        players = g.cells(case, SIDE)
        generator = torch.Generator().manual_seed(0)
        coalitions = torch.rand(number, len(players), generator=generator) < 0.5
        runs: dict[str, Callable[[], Any]] = {
            "whole model, one by one": naive(case, players, coalitions)
        }
        engines = {"pixels, engine": g.Game(case, players, "mean", "answer")}
        engines["tokens masked"] = g.Game(case, players, "knockout", "answer")
        engines["tokens masked"].asker.forward.shortens = False
        engines["tokens left out"] = g.Game(case, players, "knockout", "answer")
        for way, game in engines.items():
            runs[way] = partial(game, coalitions)
        for way, run in track(runs.items(), name, console=console):
            start = time.perf_counter()
            run()
            rows.append({"model": name, "way": way, "rate": number / (time.perf_counter() - start)})
        rows[-1] |= {
            "tokens": case.layout.length,
            "reused": engines["tokens left out"].asker.forward.reused,
            "parameters": sum(p.numel() for p in case.probe.model.parameters()),
        }
        masked, shortened = (engines[w](coalitions) for w in ("tokens masked", "tokens left out"))
        rows[-1]["largest difference"] = float((masked - shortened).abs().max())
    return {"rows": rows, "coalitions": count}


# coverage and budget


ESTIMATORS: dict[str, Callable[[g.Worths, int, int], g.Estimate]] = {
    "permutation": g.permutation,
    "smooth": g.smooth,
    "surrogate": lambda game, evaluations, seed: g.surrogate(
        game, evaluations, seed, epochs=100, orders=40
    ),
    "kernelshap": lambda game, evaluations, seed: g.through_shapiq(game, "KernelSHAP", evaluations, seed),
    "unbiased-kernelshap": lambda game, evaluations, seed: g.through_shapiq(
        game, "UnbiasedKernelSHAP", evaluations, seed
    ),
    "banzhaf": g.banzhaf,
}  # fmt: skip


class Tabled:
    """A table that knows where its players are."""

    def __init__(self, table: g.Table, players: g.Players) -> None:
        self.table, self.players = table, players

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, coalitions: torch.Tensor) -> torch.Tensor:
        """Looked up."""
        return self.table(coalitions)


def tables(count: int, kept: Rows) -> list[Tabled]:
    """Every worth of 12 superpixels, for some questions."""
    probe = lp.Probe.from_pretrained("demo")
    found: list[Tabled] = []
    for _, (case, _, _) in track(
        questions(probe, count, seed=2), "tables", total=count, console=console
    ):
        players = g.superpixels(case, SUPERPIXELS)
        game = g.Game(case, players, "knockout", "answer", cache=kept.path)
        found.append(Tabled(g.Table(game(g.all_coalitions(SUPERPIXELS))), players))
    return found


def coverage(count: int, kept: Rows, evaluations: int = 400) -> dict[str, Any]:
    """How often exact values lie in the intervals."""
    games = tables(4, kept)
    rows: list[dict[str, Any]] = []
    for name, estimator in track(ESTIMATORS.items(), "estimators", console=console):
        each: list[float] = []
        players: list[torch.Tensor] = []
        together: list[float] = []
        errors: list[float] = []
        for run in range(count):
            game = games[run % len(games)]
            values = game.table.values
            truth = g.banzhaf_values(values) if name == "banzhaf" else g.shapley_values(values)
            found = estimator(game, evaluations, 100 + run)
            rounding = 1e-9
            low, high = found.interval()
            inside = (low - rounding <= truth) & (truth <= high + rounding)
            each.append(float(inside.double().mean()))
            players.append(inside.double())
            low, high = found.interval(together=True)
            together.append(float(((low - rounding <= truth) & (truth <= high + rounding)).all()))
            errors.append(float((found.values - truth).abs().mean()))
        rows.append(
            {
                "estimator": name,
                "each": interval(each),
                "worst player": float(torch.stack(players).mean(0).min()),
                "together": interval(together),
                "error": interval(errors),
            }
        )
    return {"rows": rows, "runs": count, "evaluations": evaluations, "questions": len(games)}


def budget(count: int, kept: Rows) -> dict[str, Any]:
    """Evaluations and seconds to a mean error of 2 % of the worth of all, at 12 players."""
    games = tables(count, kept)
    budgets = (30, 60, 100, 200, 400, 800, 1600)
    rows: list[dict[str, Any]] = []
    for name, estimator in track(ESTIMATORS.items(), "estimators", console=console):
        if name == "banzhaf":
            continue
        for evaluations in budgets:
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
    return {"rows": rows, "questions": len(games)}


# paper


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


# pairs


def pairs(count: int, kept: Rows) -> dict[str, Any]:
    """Which word and which object need each other most, in questions for an object's colour."""
    probe = lp.Probe.from_pretrained("demo")
    total = 0
    for scene, question in held_out("colour", 8 * count, seed=0, min_objects=2):
        (wanted,) = question.evidence
        case = probe.case(scene.image, question.prompt, max_new_tokens=4)
        spoken = g.words(case)
        if case.answer != question.answer or len(spoken) + len(scene.objects) + 1 > SUPERPIXELS:
            continue
        total += 1
        if total in kept.questions:
            continue
        names = [thing.name for thing in scene.objects]
        players = g.objects(case, np.asarray(scene.masks), names) + spoken
        game = g.Game(case, players, "knockout", "target")
        found = g.exact_interactions(game)
        word = players.names.index(scene.objects[wanted].shape)
        objects = range(len(names))
        i, j, _ = found.top(list(players.pictured), list(players.words))[0]
        by_word = found.top(list(objects), [word])[0][0]
        by_object = found.top([wanted], list(players.words))[0][1]
        kept.add(
            total,
            [
                {
                    "prompt": question.prompt,
                    "pair": [players.names[i], players.names[j]],
                    "top": (i, j) == (wanted, word),
                    "object for the word": by_word == wanted,
                    "word for the object": players.names[by_object],
                    "evaluations": found.evaluations,
                    "objects": len(names),
                }
            ],
        )
        if total == count:
            break
    return kept.told()


# methods


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


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], int]] = {
    "speed": (speed, 512),
    "coverage": (coverage, 100),
    "budget": (budget, 8),
    "paper": (paper, 50),
    "pairs": (pairs, 50),
    "methods": (methods, 200),
}


def main() -> None:
    """Run one part, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "page"])
    parser.add_argument("folder", nargs="?", type=Path, help="for page: with one JSON file a part")
    parser.add_argument("--count", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--rows",
        type=Path,
        help="where a part that takes long keeps what it has found, and goes on from",
    )
    options = parser.parse_args()
    if options.part == "page":
        from game_page import page

        files = {name: options.folder / f"game-{name}.json" for name in PARTS}
        found = {name: json.loads(f.read_text("utf-8")) for name, f in files.items() if f.exists()}
        for name in ("paper", "pairs", "methods"):
            rows = Rows(options.folder / f"{name}.jsonl")
            if name not in found and rows.questions:
                found[name] = {**rows.told(), **facts()}
        Path("docs/game-results.md").write_text(page(found, interval), encoding="utf-8")
        return
    torch.set_num_threads(1)
    run, default = PARTS[options.part]
    start = time.perf_counter()
    count = default if options.count is None else options.count
    kept = Rows(options.rows)
    found = run(count, kept) if options.part != "speed" else run(count)
    found |= {"part": options.part, "minutes": (time.perf_counter() - start) / 60, **facts()}
    text = json.dumps(found, indent=1) + "\n"
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        Console().print(text)


if __name__ == "__main__":
    main()
