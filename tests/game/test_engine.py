"""Worths against running the model by hand on inputs made by hand; the cache against being killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

import lvlm_probe as lp
from lvlm_probe.ablation.asking import Asker
from lvlm_probe.ablation.forward import Changed, LanguageForward, WholeForward
from lvlm_probe.errors import InputError, LayoutError, OutputError, RecipeError, TargetError
from lvlm_probe.recipes import game


@pytest.fixture(scope="module")
def demo() -> lp.Case:
    probe = lp.Probe.from_pretrained("demo")
    return probe.case("lvlm_probe/demo/examples/colour.png", "What colour is the circle?")


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def some(players: int, count: int = 6, seed: int = 0) -> Tensor:
    drawn = torch.rand(count, players, generator=torch.Generator().manual_seed(seed)) < 0.5
    drawn[0], drawn[1] = True, False
    return drawn


def likelihood(logits: Tensor, case: lp.Case) -> float:
    """Geometric mean probability of the answer, in plain words."""
    start = case.layout.answer_start
    ids = case.inputs["input_ids"][0, start:].tolist()
    probabilities = [
        float(torch.softmax(logits[start - 1 + i].double(), 0)[token])
        for i, token in enumerate(ids)
    ]
    return float(np.prod(probabilities) ** (1 / len(probabilities)))


def by_hand(case: lp.Case, picture: Image.Image | None = None, **inputs: Tensor) -> float:
    """One plain forward pass of the whole model."""
    if picture is not None:
        inputs = dict(case.probe.case(picture, case.prompt, case.answer).inputs)
    with torch.no_grad():
        logits = case.probe.model(**{**case.inputs, **inputs}).logits[0]
    return likelihood(logits, case)


def masked(case: lp.Case, gone: Tensor, removal: str) -> Image.Image:
    """The picture with the pixels gone, pixel by pixel."""
    pixels = np.array(case.images[0]).copy()
    fill = np.rint(pixels.reshape(-1, 3).mean(0)) if removal == "mean" else np.full(3, 51)
    for y, x in gone.nonzero().tolist():
        pixels[y, x] = fill
    return Image.fromarray(pixels)


@pytest.mark.parametrize("removal", ["mean", "constant:0.2"])
@pytest.mark.parametrize("which", ["tiny", "demo"])
def test_pixels_by_hand(case: lp.Case, demo: lp.Case, removal: str, which: str) -> None:
    asked = case if which == "tiny" else demo
    players = game.cells(asked, 3)
    engine = game.Game(asked, players, removal, "answer")
    coalitions = some(9)
    for row, worth in zip(coalitions, engine(coalitions), strict=True):
        gone = torch.isin(players.regions[0], (~row).nonzero().flatten())
        expected = by_hand(asked, masked(asked, gone, removal.split(":")[0]))
        assert float(worth) == pytest.approx(expected, rel=1e-4)
    assert engine.asker.forward.reused > 0


def test_knockout_by_hand(demo: lp.Case) -> None:
    """Hidden by the attention mask of the whole model, as against left out of the language model's sequence."""
    players = game.cells(demo, 4) + game.words(demo)
    engine = game.Game(demo, players, "knockout", "answer")
    assert engine.asker.forward.shortens
    coalitions = some(len(players), 8)
    for row, worth in zip(coalitions, engine(coalitions), strict=True):
        mask = demo.inputs["attention_mask"].clone()
        for player in (~row).nonzero().flatten().tolist():
            mask[0, list(engine.owned[player])] = 0
        assert float(worth) == pytest.approx(by_hand(demo, attention_mask=mask), rel=1e-4)


def test_words_are_hidden_under_removal_of_pixels(demo: lp.Case) -> None:
    players = game.words(demo)
    engine = game.Game(demo, players, "mean", "answer")
    row = torch.tensor([[True, False, True, True, False]])
    mask = demo.inputs["attention_mask"].clone()
    mask[0, [players.positions[1][0], players.positions[4][0]]] = 0
    assert float(engine(row)) == pytest.approx(by_hand(demo, attention_mask=mask), rel=1e-4)


def test_embedding_by_hand(case: lp.Case) -> None:
    players = game.patches(case)
    engine = game.Game(case, players, "embedding", "answer")
    model = case.probe.model
    where = case.layout.images[0].positions
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(case.inputs["input_ids"]).clone()
        features = model.model.get_image_features(
            pixel_values=case.inputs["pixel_values"], vision_feature_layer=-2, vision_feature_select_strategy="default"
        )  # fmt: skip
        features = getattr(features, "pooler_output", features)
        embeddings[0, where] = features[0]
        row = some(16, 3)[2]
        for player, there in enumerate(row.tolist()):
            if not there:
                embeddings[0, where[player]] = features[0].mean(0)
        logits = model(
            inputs_embeds=embeddings, attention_mask=case.inputs["attention_mask"]
        ).logits[0]
    assert float(engine(row[None])) == pytest.approx(likelihood(logits, case), rel=1e-4)


@pytest.mark.parametrize("removal", ["mean", "knockout"])
def test_layers_by_hand(case: lp.Case, removal: str) -> None:
    players = game.cells(case, 2)
    engine = game.Game(case, players, removal, "answer", layers=True)
    everyone = torch.ones(1, 4, dtype=torch.bool)
    found = engine.by_layer(everyone)[0]
    model = case.probe.model
    with torch.no_grad():
        states = model(**case.inputs, output_hidden_states=True).hidden_states
        norm, head = model.model.language_model.norm, model.lm_head
        expected = [likelihood(head(norm(state))[0], case) for state in states[1:-1]]
        expected.append(likelihood(head(states[-1])[0], case))
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert engine.depth == 3
    one = engine.after_layer(1)
    assert float(one(everyone)) == float(found[1])
    assert (len(one), engine.computed) == (4, 1)
    with pytest.raises(InputError, match="layer 3 of a game that reads 3"):
        engine.after_layer(3)


def test_worths_by_definition(demo: lp.Case) -> None:
    everyone = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        logits = demo.probe.model(**demo.inputs).logits[0, demo.layout.answer_start - 1].double()
    token = int(demo.inputs["input_ids"][0, demo.layout.answer_start])
    others = logits.clone()
    others[token] = -torch.inf
    players = game.cells(demo, 2)
    for worth, expected in (
        ("target", float(logits[token] - others.max())),
        ("likelihood", float(torch.softmax(logits, 0)[token])),
        ("answer", by_hand(demo)),
        ("same", 1.0),
        (game.Worth("target", lp.Target(0, "logprob")), float(torch.log_softmax(logits, 0)[token])),
    ):
        engine = game.Game(demo, players, "mean", worth)
        assert float(engine(everyone)) == pytest.approx(expected, abs=1e-4)
    blind = game.Game(demo, players, "mean", "same")(~everyone)
    assert float(blind) in (0.0, 1.0)
    with pytest.raises(RecipeError, match="unknown worth 'money'"):
        game.Worth("money")
    with pytest.raises(TargetError):
        game.Game(demo, players, "mean", game.Worth("target", lp.Target(7)))


def test_imputation_noise_belongs_to_the_coalition(demo: lp.Case) -> None:
    coalitions = some(9)
    players = game.cells(demo, 3)
    forward = game.Game(demo, players, "impute:0.05", "answer")(coalitions)
    backward = game.Game(demo, players, "impute:0.05", "answer")(coalitions.flip(0)).flip(0)
    torch.testing.assert_close(forward, backward, rtol=1e-5, atol=1e-7)
    without = game.Game(demo, players, "impute", "answer")(coalitions)
    assert not torch.allclose(forward, without)


def test_blur_takes_the_detail_away(demo: lp.Case) -> None:
    from lvlm_probe.ablation import Remover

    remover = Remover(demo.images[0], game.Removal.of("blur:6"))
    gone = torch.ones(96, 96, dtype=torch.bool)
    assert np.asarray(remover.without(gone)).std() < np.asarray(demo.images[0]).std()
    half = gone.clone()
    half[:48] = False
    kept = np.asarray(remover.without(half))[:48]
    assert np.array_equal(kept, np.asarray(demo.images[0])[:48])


def test_no_coalition_runs_twice(case: lp.Case) -> None:
    engine = game.Game(case, game.cells(case, 3))
    coalitions = some(9)
    first = engine(torch.cat([coalitions, coalitions]))
    assert (engine.asked, engine.computed) == (6, 6)
    assert torch.equal(engine(coalitions), first[:6])
    assert engine.computed == 6
    with pytest.raises(InputError, match="9 players"):
        engine(torch.ones(1, 8, dtype=torch.bool))


def test_model_is_as_it_was() -> None:
    probe = lp.Probe(tiny.llava(), tiny.processor())
    case = probe.case(tiny.picture(), "what is this", answer="a red circle")
    model = probe.model
    model.train()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    game.Game(case, game.cells(case, 2), "knockout", layers=True)(some(4))
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not any(m.__dict__["_forward_hooks"] or "forward" in m.__dict__ for m in model.modules())


def test_cache_is_shared_by_the_same_game_only(case: lp.Case, tmp_path: Path) -> None:
    file = tmp_path / "worths.sqlite"

    def play(**changes: Any) -> game.Game:
        made = {"players": game.cells(case, 3), "removal": "mean", "worth": "answer", **changes}
        engine = game.Game(case, cache=file, **made)
        engine(some(9))
        return engine

    first = play()
    assert first.computed == 6
    again = play()
    assert again.computed == 0
    assert torch.equal(again(some(9)), first(some(9)))
    for change in (
        {"removal": "blur"}, {"removal": "knockout"}, {"worth": "target"}, {"players": game.cells(case, 1, 9)},
    ):  # fmt: skip
        assert play(**change).computed == 6
    other = case.probe.case(tiny.picture(seed=1), "what is this", answer="a red circle")
    engine = game.Game(other, game.cells(other, 3), "mean", "answer", cache=file)
    engine(some(9))
    assert engine.computed == 6


def test_cache_refuses(case: lp.Case, tmp_path: Path) -> None:
    players = game.cells(case, 2)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database at all" * 100)
    with pytest.raises(OutputError, match="file is not a database"):
        game.Game(case, players, cache=broken)
    with pytest.raises(OutputError, match="cannot keep worths"):
        game.Game(case, players, cache=tmp_path / "nowhere" / "worths.sqlite")
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(OutputError, match="schema 9"):
        game.Game(case, players, cache=newer)


PLAY = """
import os, signal, sys, torch
torch.set_num_threads(1)
import lvlm_probe as lp
from lvlm_probe.recipes import game
case = lp.Probe.from_pretrained("demo").case("lvlm_probe/demo/examples/colour.png", "What colour is the circle?")
batches = 0
def progress(done, total):
    global batches
    batches += 1
    if batches == 2:
        os.kill(os.getpid(), signal.SIGKILL)
made = game.Game(
    case, game.cells(case, 6), sys.argv[2], "answer", cache=sys.argv[1], budget=40_000_000, progress=progress
)
game.smooth(made, 50, seed=1)
"""


@pytest.mark.parametrize("removal", ["mean", "knockout"])
def test_killed_and_started_again_to_the_bit(demo: lp.Case, tmp_path: Path, removal: str) -> None:
    def play(cache: Path | None) -> tuple[game.Game, Tensor]:
        made = game.Game(
            demo, game.cells(demo, 6), removal, "answer", cache=cache, budget=40_000_000
        )
        return made, game.smooth(made, 50, seed=1).values

    file = tmp_path / "worths.sqlite"
    killed = subprocess.run(
        [sys.executable, "-c", PLAY, file, removal], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    undisturbed, expected = play(None)
    again, found = play(file)
    assert torch.equal(found, expected)
    assert 0 < again.computed < undisturbed.computed == again.asked
    once_more, found = play(file)
    assert once_more.computed == 0
    assert torch.equal(found, expected)


def test_budget(case: lp.Case) -> None:
    few = Asker(case, [game.Worth()], budget=400_000)
    many = Asker(case, [game.Worth()])
    assert 1 <= few.batch < many.batch
    with pytest.raises(RecipeError, match="raise it"):
        Asker(case, [game.Worth()], budget=1000)
    changes = [Changed.nothing(case)] * 5
    torch.testing.assert_close(few.ask_all(changes), many.ask_all(changes))


def test_removal_texts() -> None:
    assert game.Removal.of("blur:8") == game.Removal("blur", 8.0)
    assert str(game.Removal.of("impute:0.01")) == "impute:0.01"
    for wrong in ("dissolve", "blur:x", "mean:3", "constant:2", "blur:-1", "knockout:1"):
        with pytest.raises(RecipeError):
            game.Removal.of(wrong)


def test_players_without_a_token_of_their_own(case: lp.Case) -> None:
    with pytest.raises(InputError, match="owns no image token"):
        game.Game(case, game.cells(case, 8), "knockout")


def test_pictures_that_are_not_the_inputs(probe: lp.Probe, case: lp.Case) -> None:
    other = probe.case_from_inputs(case.inputs, case.layout.answer_start, tiny.picture(seed=5))
    with pytest.raises(InputError, match="other 'pixel_values'"):
        game.Game(other, game.cells(other, 2))
    bare = probe.case_from_inputs(case.inputs, case.layout.answer_start)
    with pytest.raises(InputError, match="0 pictures"):
        game.Game(bare, game.cells(bare, 2))
    found = game.Game(bare, game.cells(bare, 2), "knockout", "answer")(some(4))
    expected = game.Game(case, game.cells(case, 2), "knockout", "answer")(some(4))
    torch.testing.assert_close(found, expected)


def test_two_images(probe: lp.Probe) -> None:
    pictures = [tiny.picture(0), tiny.picture(1)]
    case = probe.case(pictures, "what is this", answer="a red circle")
    engine = game.Game(case, game.make_players(case, "cells:2"), "mean", "answer")
    assert len(engine) == 8
    row = torch.tensor([[True] * 4 + [False] * 4])
    seen = case.layout.images[1].seen()
    second = Image.fromarray(
        np.where(seen.numpy()[..., None], np.rint(np.array(pictures[1]).mean((0, 1))), np.array(pictures[1])).astype(np.uint8)
    )  # fmt: skip
    remade = probe.case([pictures[0], second], "what is this", answer="a red circle")
    with torch.no_grad():
        expected = likelihood(probe.model(**remade.inputs).logits[0], case)
    assert float(engine(row)) == pytest.approx(expected, rel=1e-4)


def test_prefix_is_not_used_where_it_gives_other_logits(
    case: lp.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = case.layout.images[0].start
    for kind in (LanguageForward, WholeForward):
        original = kind._expanded_prefix

        def spoiled(self: Any, count: int, original: Any = original) -> Any:
            cache = original(self, count)
            cache.layers[0].values.add_(1.0)
            return cache

        with torch.inference_mode():
            assert kind(case, False, first).reused == first
            monkeypatch.setattr(kind, "_expanded_prefix", spoiled)
            assert kind(case, False, first).reused == 0


def test_tokens_that_are_queries_cannot_be_taken_away() -> None:
    from test_qformer import build, inputs

    probe = lp.Probe(build("instructblip"))
    made = inputs("instructblip")
    asked = probe.case_from_inputs(made, made["input_ids"].shape[1] - 2)
    with pytest.raises(LayoutError, match="queries"):
        game.Game(asked, game.cells(asked, 2), "knockout")
