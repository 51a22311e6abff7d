"""Every answer is recomputed from the object list by a reader that parses the English of the question."""

import re

import numpy as np
import pytest

from lvlm_probe.demo.questions import HELD_OUT_SEEDS, KINDS, NUMBERS, TRAINING_SEEDS, ask, held_out
from lvlm_probe.demo.scenes import COLOURS, SHAPES, make_scene

ANY_COLOUR = "|".join(COLOURS)
ANY_SHAPE = "|".join(SHAPES)


def matching(objects, text):
    """Indices of the objects that a noun phrase like "red circle", "circle" or "red object" fits."""
    colour = re.search(ANY_COLOUR, text)
    shape = re.search(ANY_SHAPE, text)
    return [
        i
        for i, thing in enumerate(objects)
        if (not colour or thing.colour == colour[0]) and (not shape or thing.shape == shape[0])
    ]


def read(objects, prompt):
    """Answer and evidence of a question, worked out anew."""
    text = prompt.lower().rstrip("?.")
    if " relative to " in text:
        (one,), (two,) = (matching(objects, part) for part in text.split(" relative to "))
        across = objects[one].x - objects[two].x
        down = objects[one].y - objects[two].y
        if abs(across) > abs(down):
            return ("left" if across < 0 else "right"), {one, two}
        return ("above" if down < 0 else "below"), {one, two}
    if text.startswith("describe"):
        order = sorted(range(len(objects)), key=lambda i: objects[i].x)
        names = [f"{objects[i].colour} {objects[i].shape}" for i in order]
        return ", ".join(f"{'an' if n.startswith('o') else 'a'} {n}" for n in names), set(order)
    found = matching(objects, text)
    if text.startswith("how many"):
        return NUMBERS[len(found)], set(found)
    if text.startswith("is there"):
        if found:
            return "yes", set(found)
        if re.search(f"({ANY_COLOUR}) ({ANY_SHAPE})", text):
            colour, shape = re.search(f"({ANY_COLOUR}) ({ANY_SHAPE})", text).groups()
            return "no", {
                i for i, o in enumerate(objects) if o.colour == colour or o.shape == shape
            }
        return "no", set()
    (index,) = found
    thing = objects[index]
    if text.startswith(("where is", "in which corner")):
        return f"{['top', 'bottom'][thing.y > 48]} {['left', 'right'][thing.x > 48]}", {index}
    if "colour" in text or "color" in text:
        return thing.colour, {index}
    assert "shape" in text
    return thing.shape, {index}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_evidence(kind):
    answers = set()
    for scene, question in held_out(kind, 150, seed=9):
        assert question.kind == kind
        answer, evidence = read(scene.objects, question.prompt)
        assert question.answer == answer
        assert set(question.evidence) == evidence
        answers.add(answer)
    expected = {"colour": 8, "shape": 4, "quadrant": 4, "relation": 4, "count": 4, "count-shape": 4}
    assert len(answers) >= expected.get(kind, 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("exists")])
def test_yes_and_no_are_what_the_kind_says(kind):
    answers = {question.answer for _, question in held_out(kind, 50)}
    assert answers == {"yes" if kind.endswith("yes") else "no"}


def test_an_adversarial_no_has_both_attributes_in_the_scene():
    for scene, question in held_out("exists-no-bound", 50):
        colour, shape = re.search(f"({ANY_COLOUR}) ({ANY_SHAPE})", question.prompt).groups()
        assert any(thing.colour == colour for thing in scene.objects)
        assert any(thing.shape == shape for thing in scene.objects)


def test_a_random_no_lacks_an_attribute():
    for scene, question in held_out("exists-no", 50):
        colour, shape = re.search(f"({ANY_COLOUR}) ({ANY_SHAPE})", question.prompt).groups()
        assert (
            {colour, shape}
            - {thing.colour for thing in scene.objects}
            - {thing.shape for thing in scene.objects}
        )


def test_asking_changes_only_with_the_generator():
    scene = make_scene(11)
    once = [ask(scene, kind, np.random.default_rng(5)) for kind in KINDS]
    again = [ask(scene, kind, np.random.default_rng(5)) for kind in KINDS]
    assert once == again


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'weather'.*colour, shape, .*caption"):
        ask(make_scene(0), "weather", np.random.default_rng(0))


def test_held_out_seeds_are_no_training_seeds():
    assert TRAINING_SEEDS.stop <= HELD_OUT_SEEDS.start
    for seed in (0, 1, 4095):
        for scene, _ in held_out(("colour", "caption"), 3, seed=seed):
            assert scene.seed in HELD_OUT_SEEDS
            assert scene.seed not in TRAINING_SEEDS


def test_held_out_streams_share_no_scene():
    streams = [{scene.seed for scene, _ in held_out("count", 100, seed=seed)} for seed in (0, 1, 2)]
    assert not streams[0] & streams[1]
    assert not streams[1] & streams[2]
    assert not streams[0] & streams[2]


def test_held_out_is_reproducible_and_minds_its_arguments():
    first = [(scene.seed, question) for scene, question in held_out("shape", 20, min_objects=3)]
    again = [(scene.seed, question) for scene, question in held_out(["shape"], 20, min_objects=3)]
    assert first == again
    assert len({seed for seed, _ in first}) == 20
    assert all(len(make_scene(seed).objects) >= 3 for seed, _ in first)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 4096}, {"min_objects": 0}, {"min_objects": 5}]
)
def test_held_out_refuses_what_is_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(held_out("colour", 1, **wrong))
