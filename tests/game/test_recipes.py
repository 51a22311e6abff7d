"""The recipes as users call them, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.demo.questions import held_out
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes import game
from lvlm_probe.recipes.evaluate.truth import rank_accuracy
from lvlm_probe.recipes.game.rise import masks, rise

PICTURE = Path(__file__).parents[2] / "lvlm_probe" / "demo" / "examples" / "colour.png"


@pytest.fixture(scope="module")
def demo() -> lp.Case:
    return lp.Probe.from_pretrained("demo").case(PICTURE, "What colour is the circle?")


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("occlusion", {}),
        ("shapley", {"players": "cells:2+words", "evaluations": 60}),
        ("shapley", {"players": "cells:2", "estimator": "exact", "removal": "knockout"}),
        ("banzhaf", {"players": "superpixels:3", "estimator": "exact"}),
        ("contiguous", {"evaluations": 20}),
        ("rise", {"evaluations": 8, "cells": 3}),
        ("greedy", {"players": "superpixels:3"}),
    ],
)
def test_recipes_give_attributions(
    case: lp.Case, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    found = case.explain(recipe, lp.Target(1, "logprob"), **options)
    assert found.recipe == recipe
    assert found.image().shape == (4, 4)
    assert float(found.tokens[case.layout.answer_start :].abs().sum()) == 0
    assert found.tokens.abs().sum() > 0
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["recipe"] == recipe
    assert found.save(tmp_path / "found.png").stat().st_size > 0


def test_occlusion_by_hand(demo: lp.Case) -> None:
    found = demo.explain("occlusion", lp.Target(0, "logprob"))
    grid = demo.layout.images[0].tokens[0]
    pixels = np.array(demo.images[0])
    mean = np.rint(pixels.mean((0, 1)))
    token = demo.inputs["input_ids"][0, demo.layout.answer_start]

    def logprob(inputs: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            logits = demo.probe.model(**inputs).logits[0, demo.layout.answer_start - 1]
        return float(torch.log_softmax(logits, 0)[token])

    whole = logprob(demo.inputs)
    for row, column in ((0, 0), (5, 5), (7, 3), (11, 11)):
        cell = grid.cell(row, column)
        changed = pixels.copy()
        changed[round(cell.top) : round(cell.bottom), round(cell.left) : round(cell.right)] = mean
        made = demo.probe.case(Image.fromarray(changed), demo.prompt, demo.answer).inputs
        expected = whole - logprob(dict(made))
        assert float(found.image()[row, column]) == pytest.approx(expected, abs=2e-4)


def test_values_are_shared_among_tokens(demo: lp.Case) -> None:
    found = demo.explain("shapley", players="superpixels:4", estimator="exact", removal="knockout")
    told = found.meta["estimate"]
    values = {player["name"]: player["value"] for player in told["players"]}
    assert float(found.tokens.sum()) == pytest.approx(sum(values.values()), abs=1e-3)
    assert sum(values.values()) == pytest.approx(told["worth_of_all"] - told["worth_of_none"])


def test_contiguous_regions_find_the_evidence(demo: lp.Case) -> None:
    """140 evaluations of the language model alone; a random map has the evidence's share, about a tenth."""
    found: list[float] = []
    for scene, question in held_out("colour", 3, seed=3, min_objects=2):
        asked = demo.probe.case(scene.image, question.prompt, question.answer)
        scores = asked.explain("contiguous", removal="knockout").pixels()
        mask = torch.from_numpy(np.array(scene.mask(*question.evidence)))
        found.append(rank_accuracy(scores, mask))
    assert min(found) > 0.3


def test_layers_of_the_game(case: lp.Case) -> None:
    found = case.explain("shapley", players="cells:2", estimator="exact", layers=True)
    assert found.layers is not None
    assert found.layers.shape == (3, case.layout.length)
    torch.testing.assert_close(found.layers[-1], found.tokens)
    assert not torch.allclose(found.layers[0], found.tokens)


def test_options_are_checked(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match="takes no option 'steps'"):
        case.explain("shapley", steps=3)
    with pytest.raises(RecipeError, match="unknown estimator 'best'"):
        case.explain("banzhaf", estimator="best")
    with pytest.raises(RecipeError, match="RISE with 8 masks"):
        case.explain("rise", evaluations=8, removal="knockout")


def test_rise_masks() -> None:
    drawn = masks(400, (30, 40), 5, 0.3, torch.Generator().manual_seed(0))
    assert drawn.shape == (400, 30, 40)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.02)
    steps = (drawn[:, :, 1:] - drawn[:, :, :-1]).abs().max()
    assert float(steps) < 0.2  # smooth


def test_rise_by_hand(demo: lp.Case) -> None:
    found, positions = rise(demo, 6, 5, worth="likelihood")
    drawn = masks(6, (96, 96), 7, 0.5, torch.Generator().manual_seed(5))
    pixels = np.array(demo.images[0]).astype(np.float64)
    mean = np.rint(pixels.mean((0, 1)))
    total = torch.zeros(12, 12, dtype=torch.float64)
    for mask in drawn:
        share = mask.double().numpy()[..., None]
        faded = np.rint(share * pixels + (1 - share) * mean).astype(np.uint8)
        made = demo.probe.case(Image.fromarray(faded), demo.prompt, demo.answer).inputs
        with torch.no_grad():
            logits = demo.probe.model(**made).logits[0, demo.layout.answer_start - 1]
        worth = torch.softmax(logits, 0)[demo.inputs["input_ids"][0, demo.layout.answer_start]]
        total += float(worth) * mask.double().view(12, 8, 12, 8).mean((1, 3))
    torch.testing.assert_close(found.values, total.flatten() / 6 / 0.5, rtol=1e-3, atol=1e-5)
    assert list(positions) == demo.layout.images[0].positions


def test_rise_keeps_its_worths(case: lp.Case, tmp_path: Path) -> None:
    """Stopped after its first batch and started again: the rest is computed, and the result is the same to the bit."""
    budget = 700_000
    assert 1 < game.Game(case, game.cells(case, 2), budget=budget).asker.batch < 10
    file = tmp_path / "worths.sqlite"
    expected, _ = rise(case, 40, 1, budget=budget)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        rise(case, 40, 1, budget=budget, cache=file, progress=stop)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    found, _ = rise(case, 40, 1, budget=budget, cache=file, progress=tell)
    assert torch.equal(found.values, expected.values)
    assert 0 < told[0][1] < 40
    before = len(told)
    rise(case, 40, 1, budget=budget, cache=file, progress=tell)
    assert len(told) == before
    rise(case, 40, 2, budget=budget, cache=file, progress=tell)
    assert told[before][1] == 40


def test_recipes_tell_their_options(case: lp.Case) -> None:
    """Those of every game, and their own."""
    with pytest.raises(RecipeError) as told:
        case.explain("contiguous", nothing=1)
    listed = str(told.value).partition("it takes: ")[2]
    assert listed == "players, removal, worth, cache, progress, evaluations, width, seed"


def test_player_scores(demo: lp.Case) -> None:
    found = demo.explain("relevancy")
    players = game.cells(demo, 4) + game.words(demo)
    scores = game.player_scores(found, players)
    pixels = found.pixels()
    assert float(scores[5]) == pytest.approx(float(pixels[24:48, 24:48].mean()), rel=1e-5)
    assert float(scores[-1]) == pytest.approx(float(found.tokens[players.positions[-1][0]]))


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lvlm-probe")
    return subprocess.run(
        [program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_ablate_on_the_command_line(tmp_path: Path) -> None:
    asked = (
        "ablate",
        PICTURE,
        "What colour is the circle?",
        "--players",
        "superpixels:4",
        "--estimator",
        "exact",
    )
    first = run(*asked, "--out", "found", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "efficiency residual" in first.stdout
    assert "±" in first.stdout
    told = json.loads((tmp_path / "found" / "ablation.json").read_text())
    assert told["meta"]["estimate"]["evaluations"] == 16
    assert (tmp_path / "found" / "ablation.png").exists()
    assert (tmp_path / "found" / "worths.sqlite").exists()


def test_ablate_refuses_what_takes_nothing_away(tmp_path: Path) -> None:
    refused = run("ablate", PICTURE, "What?", "--recipe", "relevancy", cwd=tmp_path)
    assert refused.returncode == 1
    assert "takes nothing away" in refused.stderr


def test_road_on_the_command_line(tmp_path: Path) -> None:
    found = run(
        "road", PICTURE, "What colour is the circle?", "--protocol", "rong2022", "--repeats", "2", "--out", "found",
        cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    told = json.loads((tmp_path / "found" / "road.json").read_text())
    assert set(told) == {"relevancy", "random map", "centre prior"}
    assert len(told["relevancy"]) == 2
    assert told["relevancy"][0]["lerf_over"] == "kept"
    assert (tmp_path / "found" / "road.png").exists()
