"""The shipped folder, loaded and asked as a user would."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_probe.demo import FOLDER
from lvlm_probe.demo.evaluate import Answerer, erasures
from lvlm_probe.demo.examples import EXAMPLES, load_examples
from lvlm_probe.demo.questions import KINDS, held_out
from lvlm_probe.demo.scenes import make_scene
from lvlm_probe.demo.write_examples import EXAMPLE_SEED

QUESTIONS = 40
SLACK = 0.10
"""What a share of QUESTIONS may lie below the card's: about two standard errors at 90 %."""


def card_table(head):
    """The rows of the card's table whose heading starts with ``head``, as numbers by kind."""
    lines = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head}"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind] = [float(cell.replace(",", "")) for cell in cells]
    return rows


@pytest.fixture(scope="module")
def answerer():
    return Answerer()


@pytest.fixture(scope="module")
def answered(answerer):
    """Kind to its questions, the answers, and the answers with another scene's image."""
    result = {}
    for kind in KINDS:
        scenes, questions = zip(*held_out(kind, QUESTIONS, seed=77), strict=True)
        images = [scene.image for scene in scenes]
        prompts = [question.prompt for question in questions]
        blind = answerer(images[1:] + images[:1], prompts)
        result[kind] = (questions, answerer(images, prompts), blind)
    return result


def share(answers, questions):
    return np.mean([a == question.answer for a, question in zip(answers, questions, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_is_what_the_card_says(answered, kind):
    questions, answers, _ = answered[kind]
    stated = card_table("Kind | Questions | Model")[kind][1] / 100
    assert share(answers, questions) >= stated - SLACK


@pytest.mark.parametrize("kind", ["colour", "shape", "quadrant", "count", "relation", "caption"])
def test_the_model_looks_at_the_image(answered, kind):
    questions, answers, blind = answered[kind]
    assert share(blind, questions) < share(answers, questions) - 0.25


def test_erasing_the_evidence_changes_answers_and_erasing_another_object_does_not(answerer):
    for row in erasures(answerer, 15, seed=78):
        assert row.questions > 0
        assert row.evidence > row.other + 0.25, row


def test_weights_are_half_precision_safetensors_of_a_few_megabytes():
    path = FOLDER / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    assert len(data) < 8e6


def test_no_file_of_the_folder_is_a_pickle():
    suffixes = {path.suffix for path in FOLDER.rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".pyc", ".json", ".jinja", ".md", ".png", ".txt", ".safetensors"}


@pytest.mark.parametrize(
    "prompt",
    ["What color is the circle?", "what colour is the circle", "WHAT COLOUR IS THE CIRCLE ?"],
)
def test_a_question_typed_by_hand(answerer, prompt):
    scene = next(
        scene
        for scene, question in held_out("colour", 50, seed=79)
        if [o.shape for o in scene.objects].count("circle") == 1
    )
    circle = next(thing for thing in scene.objects if thing.shape == "circle")
    assert answerer([scene.image], [prompt]) == [circle.colour]


def test_a_picture_of_another_size_and_mode(answerer):
    scenes = list(held_out("count", 5, seed=79))
    large = [
        scene.image.resize((384, 384), Image.Resampling.BICUBIC).convert("RGBA")
        for scene, _ in scenes
    ]
    prompts = [question.prompt for _, question in scenes]
    assert share(answerer(large, prompts), [question for _, question in scenes]) >= 0.8


def test_the_first_token_of_an_answer_carries_its_content(answerer):
    tokenizer = answerer._processor.tokenizer
    for kind in ("colour", "shape", "quadrant", "exists-yes", "count", "relation"):
        for _, question in held_out(kind, 5):
            first = tokenizer(question.answer, add_special_tokens=False)["input_ids"][0]
            assert tokenizer.decode([first]) == question.answer.split()[0]


def test_numbers_of_images_and_questions_must_agree(answerer):
    with pytest.raises(ValueError, match="1 images for 2 questions"):
        answerer([make_scene(0).image], ["a", "b"])


def test_the_model_gives_the_answers_of_the_examples(answerer):
    examples = load_examples()
    assert {example.kind for example in examples} == {*KINDS, "easy-vqa"}
    images = [Image.open(example.path) for example in examples]
    answers = answerer(images, [example.prompt for example in examples])
    assert answers == [example.answer for example in examples]


def test_scene_examples_are_what_the_generator_makes():
    first = 2**32 + EXAMPLE_SEED * 2**20
    for example in load_examples():
        if example.seed is None:
            continue
        assert first <= example.seed < first + 2**20
        scene = make_scene(example.seed)
        with Image.open(example.path) as picture:
            assert picture.tobytes() == scene.image.tobytes()
        assert len(example.evidence_boxes) == len(example.evidence)
        for (left, top, right, bottom), index in zip(
            example.evidence_boxes, example.evidence, strict=True
        ):
            mask = scene.masks[index]
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top, left:right].any()
            assert mask[bottom - 1, left:right].any()
            assert mask[top:bottom, left].any()
            assert mask[top:bottom, right - 1].any()


def test_the_borrowed_example_is_attributed_and_boxed():
    (example,) = [example for example in load_examples() if example.kind == "easy-vqa"]
    assert "MIT" in example.source
    assert "Victor Zhou" in (EXAMPLES / "LICENSE-easy-vqa.txt").read_text(encoding="utf-8")
    ((left, top, right, bottom),) = example.evidence_boxes
    with Image.open(example.path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    inside = np.median(pixels[top:bottom, left:right], axis=(0, 1))
    outside = pixels.copy()
    outside[top:bottom, left:right] = pixels[0, 0]
    assert np.abs(inside - pixels[0, 0]).max() > 60
    assert np.abs(outside - pixels[0, 0]).max() < 60


def test_missing_examples_say_how_to_write_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="--write-examples"):
        load_examples(tmp_path)


def test_the_folder_loads_without_being_told_a_class():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert type(model).__module__.startswith("transformers.")
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.dtype == torch.float16
    assert model.config.image_seq_length == 144
