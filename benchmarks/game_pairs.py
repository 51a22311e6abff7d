"""Image–word interactions: is the word X most bound to X in questions for X's colour?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from game_common import SUPERPIXELS, Rows

import lvlm_probe as lp
from lvlm_probe.demo.questions import Question, held_out
from lvlm_probe.demo.scenes import Scene
from lvlm_probe.recipes import game as g

__all__ = ["pairs", "pairs_pixels"]

FEW = 8
REMOVALS = ("knockout", "mean", "impute")


def asked(count: int, most: int) -> Iterator[tuple[int, lp.Case, Scene, Question, g.Players]]:
    """Questions for the colour of the X that are answered right, with at most so many players; numbered from 1."""
    probe = lp.Probe.from_pretrained("demo")
    total = 0
    for scene, question in held_out("colour", 8 * count, seed=0, min_objects=2):
        case = probe.case(scene.image, question.prompt, max_new_tokens=4)
        spoken = g.words(case)
        if case.answer != question.answer or len(spoken) + len(scene.objects) + 1 > most:
            continue
        total += 1
        names = [thing.name for thing in scene.objects]
        yield (
            total,
            case,
            scene,
            question,
            g.objects(case, np.asarray(scene.masks), names) + spoken,
        )
        if total == count:
            return


def strongest(
    case: lp.Case, scene: Scene, question: Question, players: g.Players, removal: str
) -> dict[str, Any]:
    """Which pair is, under one removal."""
    (wanted,) = question.evidence
    found = g.exact_interactions(g.Game(case, players, removal, "target"))
    word = players.names.index(scene.objects[wanted].shape)
    objects = range(len(scene.objects))
    i, j, _ = found.top(list(players.pictured), list(players.words))[0]
    by_word = found.top(list(objects), [word])[0][0]
    by_object = found.top([wanted], list(players.words))[0][1]
    return {
        "prompt": question.prompt,
        "pair": [players.names[i], players.names[j]],
        "top": (i, j) == (wanted, word),
        "object for the word": by_word == wanted,
        "word for the object": players.names[by_object],
        "evaluations": found.evaluations,
        "objects": len(scene.objects),
    }


def pairs(count: int, kept: Rows) -> dict[str, Any]:
    """Which word and which object need each other most, tokens and words knocked out."""
    for number, case, scene, question, players in asked(count, SUPERPIXELS):
        if number not in kept.questions:
            kept.add(number, [strongest(case, scene, question, players, "knockout")])
    return kept.told()


def pairs_pixels(count: int, kept: Rows) -> dict[str, Any]:
    """The same with objects taken away at the pixels (words are knocked out all the same), on shorter questions."""
    for number, case, scene, question, players in asked(count, FEW):
        if number not in kept.questions:
            rows = [
                {"removal": removal, **strongest(case, scene, question, players, removal)}
                for removal in REMOVALS
            ]
            kept.add(number, rows)
    return kept.told()
