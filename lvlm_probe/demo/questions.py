"""Questions about a scene, each with its answer and the objects that decide it.

A question is asked only where it has one answer: the shape or colour that it names is unique, a position is clear of
the boundary between two answers by a margin in pixels. ``ask`` returns None where a scene has no such question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from lvlm_probe.demo.scenes import COLOURS, SHAPES, SIZE, Scene, SceneObject, make_scene

TRAINING_SEEDS = range(2**32)
"""Seeds of the scenes that the demo model was trained on."""

HELD_OUT_SEEDS = range(2**32, 2**33)
"""Seeds of the scenes that :func:`held_out` shows; none is in :data:`TRAINING_SEEDS`."""

NUMBERS = ("zero", "one", "two", "three", "four")
"""How the answers spell counts."""

MIDDLE_MARGIN = 4.0
"""A quadrant is asked only of a centre this far from both midlines, in pixels."""

RELATION_MARGIN = 10.0
"""A relation is asked only if the distance along one axis exceeds the other's by this, in pixels."""

CAPTION_MARGIN = 4.0
"""A caption is asked for only if neighbouring centres are this far apart from left to right, in pixels."""

_STREAM = 2**20


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one scene.

    Attributes:
        kind: One of :data:`KINDS`.
        prompt: The question in English, as a user would type it.
        answer: The one right answer, spelled as the demo model spells it.
        evidence: Indices of the scene's objects that the answer rests on. For a "no", those which
            share the colour or the shape asked for; empty if none does.
    """

    kind: str
    prompt: str
    answer: str
    evidence: tuple[int, ...]


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of a kind about a scene, or None if the scene has none without ambiguity.

    Args:
        scene: What to ask about.
        kind: One of :data:`KINDS`.
        rng: Chooses among the objects that can be asked about, and among phrasings.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in _ASKERS:
        raise ValueError(f"unknown kind of question {kind!r}; the kinds are {', '.join(KINDS)}")
    found = _ASKERS[kind](scene.objects, rng)
    if found is None:
        return None
    prompt, answer, evidence = found
    return Question(kind, prompt, answer, tuple(evidence))


def held_out(
    kinds: str | Sequence[str], count: int, *, seed: int = 0, min_objects: int = 1
) -> Iterator[tuple[Scene, Question]]:
    """Scenes that the demo model was never trained on, with a question each.

    Training takes its scenes' seeds from :data:`TRAINING_SEEDS`, this function from
    :data:`HELD_OUT_SEEDS`; the two ranges have no number in common.

    Args:
        kinds: One of :data:`KINDS`, or several.
        count: Questions of each kind. Within a kind every question has a scene of its own.
        seed: Streams of different seeds share no scene; 0 to 4095.
        min_objects: Leave out scenes with fewer objects.

    Yields:
        Kind after kind in the order given.

    Raises:
        ValueError: If a kind is unknown, or ``seed`` or ``min_objects`` out of range.
    """
    first = HELD_OUT_SEEDS.start + seed * _STREAM
    if first not in HELD_OUT_SEEDS:
        raise ValueError(
            f"seed is {seed}; it must be from 0 to {len(HELD_OUT_SEEDS) // _STREAM - 1}"
        )
    if not 1 <= min_objects <= 4:
        raise ValueError(f"min_objects is {min_objects}; scenes have 1 to 4 objects")
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        found = 0
        for scene_seed in range(first, first + _STREAM):
            if found == count:
                break
            scene = make_scene(scene_seed)
            if len(scene.objects) < min_objects:
                continue
            question = ask(scene, kind, np.random.default_rng([scene_seed, 3]))
            if question is not None:
                found += 1
                yield scene, question


def caption(objects: Sequence[SceneObject]) -> str:
    """The objects' names from left to right, as in "a red circle, an orange star"."""
    ordered = sorted(objects, key=lambda thing: thing.x)
    return ", ".join(f"{article(thing.name)} {thing.name}" for thing in ordered)


def article(word: str) -> str:
    """The indefinite article that goes before ``word``."""
    return "an" if word[0] in "aeiou" else "a"


_Found = tuple[str, str, Sequence[int]]
_Objects = tuple[SceneObject, ...]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _pick_index(rng: np.random.Generator, options: Sequence[int]) -> int | None:
    return options[int(rng.integers(len(options)))] if options else None


def _with_colour(objects: _Objects, colour: str) -> list[int]:
    return [i for i, thing in enumerate(objects) if thing.colour == colour]


def _with_shape(objects: _Objects, shape: str) -> list[int]:
    return [i for i, thing in enumerate(objects) if thing.shape == shape]


def _colour(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    index = _pick_index(
        rng, [i for i, o in enumerate(objects) if len(_with_shape(objects, o.shape)) == 1]
    )
    if index is None:
        return None
    thing = objects[index]
    word = _pick(rng, ("colour", "colour", "color"))
    phrase = _pick(
        rng, ("What {0} is the {1}?", "What {0} is the {1}?", "What is the {0} of the {1}?")
    )
    return phrase.format(word, thing.shape), thing.colour, [index]


def _shape(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    index = _pick_index(
        rng, [i for i, o in enumerate(objects) if len(_with_colour(objects, o.colour)) == 1]
    )
    if index is None:
        return None
    thing = objects[index]
    phrase = _pick(rng, ("What shape is the {} object?", "What is the shape of the {} object?"))
    return phrase.format(thing.colour), thing.shape, [index]


def _quadrant(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    half = SIZE / 2
    clear = [
        i for i, o in enumerate(objects) if min(abs(o.x - half), abs(o.y - half)) >= MIDDLE_MARGIN
    ]
    index = _pick_index(rng, clear)
    if index is None:
        return None
    thing = objects[index]
    phrase = _pick(rng, ("Where is the {}?", "In which corner is the {}?"))
    answer = f"{'top' if thing.y < half else 'bottom'} {'left' if thing.x < half else 'right'}"
    return phrase.format(thing.name), answer, [index]


def _exists(phrase_rng: np.random.Generator, name: str) -> str:
    phrases = ("Is there {0} {1}?", "Is there {0} {1}?", "Is there {0} {1} in the image?")
    return _pick(phrase_rng, phrases).format(article(name), name)


def _exists_yes(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    index = int(rng.integers(len(objects)))
    return _exists(rng, objects[index].name), "yes", [index]


def _exists_no_bound(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    present = {(o.colour, o.shape) for o in objects}
    absent = sorted({(a.colour, b.shape) for a, b in permutations(objects, 2)} - present)
    if not absent:
        return None
    colour, shape = absent[int(rng.integers(len(absent)))]
    sharing = sorted({*_with_colour(objects, colour), *_with_shape(objects, shape)})
    return _exists(rng, f"{colour} {shape}"), "no", sharing


def _exists_no(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    colours, shapes = {o.colour for o in objects}, {o.shape for o in objects}
    absent = [(c, s) for c in COLOURS for s in SHAPES if c not in colours or s not in shapes]
    colour, shape = absent[int(rng.integers(len(absent)))]
    sharing = sorted({*_with_colour(objects, colour), *_with_shape(objects, shape)})
    return _exists(rng, f"{colour} {shape}"), "no", sharing


def _exists_one_yes(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    thing = objects[int(rng.integers(len(objects)))]
    if rng.random() < 0.5:
        return _exists(rng, thing.shape), "yes", _with_shape(objects, thing.shape)
    return _exists(rng, f"{thing.colour} object"), "yes", _with_colour(objects, thing.colour)


def _exists_one_no(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    shapes = [s for s in SHAPES if not _with_shape(objects, s)]
    if shapes and rng.random() < 0.5:
        return _exists(rng, _pick(rng, shapes)), "no", []
    colours = [c for c in COLOURS if not _with_colour(objects, c)]
    return _exists(rng, f"{_pick(rng, colours)} object"), "no", []


def _count_shape(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    present = sorted({o.shape for o in objects})
    shape = _pick(rng, present if rng.random() < 0.75 else SHAPES)
    evidence = _with_shape(objects, shape)
    return f"How many {shape}s are there?", NUMBERS[len(evidence)], evidence


def _count(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    phrase = _pick(rng, ("How many objects are there?", "How many objects are in the image?"))
    return phrase, NUMBERS[len(objects)], range(len(objects))


def _relation(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    options: list[tuple[int, int, str]] = []
    for i, j in permutations(range(len(objects)), 2):
        dx, dy = objects[i].x - objects[j].x, objects[i].y - objects[j].y
        if abs(dx) - abs(dy) >= RELATION_MARGIN:
            options.append((i, j, "left" if dx < 0 else "right"))
        elif abs(dy) - abs(dx) >= RELATION_MARGIN:
            options.append((i, j, "above" if dy < 0 else "below"))
    if not options:
        return None
    i, j, answer = options[int(rng.integers(len(options)))]
    prompt = f"Where is the {objects[i].name} relative to the {objects[j].name}?"
    return prompt, answer, [i, j]


def _caption(objects: _Objects, rng: np.random.Generator) -> _Found | None:
    across = sorted(thing.x for thing in objects)
    if any(right - left < CAPTION_MARGIN for left, right in pairwise(across)):
        return None
    phrase = _pick(
        rng, ("Describe the image from left to right.", "Describe the objects from left to right.")
    )
    return phrase, caption(objects), range(len(objects))


_ASKERS: dict[str, Callable[[_Objects, np.random.Generator], _Found | None]] = {
    "colour": _colour,
    "shape": _shape,
    "quadrant": _quadrant,
    "exists-yes": _exists_yes,
    "exists-no-bound": _exists_no_bound,
    "exists-no": _exists_no,
    "exists-one-yes": _exists_one_yes,
    "exists-one-no": _exists_one_no,
    "count-shape": _count_shape,
    "count": _count,
    "relation": _relation,
    "caption": _caption,
}

KINDS = tuple(_ASKERS)
"""The kinds of question.

==================  ===========================================  =================
kind                for example                                  answer
==================  ===========================================  =================
``colour``          What colour is the circle?                   red
``shape``           What shape is the red object?                circle
``quadrant``        Where is the red circle?                     top left
``exists-yes``      Is there a red circle?                       yes
``exists-no-bound`` the same; red and circle are there, apart    no
``exists-no``       the same; red or circle is not there         no
``exists-one-yes``  Is there a circle?                           yes
``exists-one-no``   Is there a red object?                       no
``count-shape``     How many circles are there?                  two
``count``           How many objects are there?                  three
``relation``        Where is the red circle relative to the ...  left
``caption``         Describe the image from left to right.       a red circle, ...
==================  ===========================================  =================
"""
