"""Packing, checkpoints and the command, on a few steps."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lvlm_probe.demo import easy_vqa
from lvlm_probe.demo.architecture import build_model, build_processor, vocabulary
from lvlm_probe.demo.packing import (
    COLOUR_WORDS,
    IGNORED,
    PREFIX,
    SHAPE_WORDS,
    SUFFIX,
    Asked,
    Encoder,
    Source,
    normalise,
    pack,
    scene_objects,
)
from lvlm_probe.demo.questions import HELD_OUT_SEEDS, KINDS, held_out
from lvlm_probe.demo.scenes import make_scene
from lvlm_probe.demo.schedule import PHASES, Phase, decay, place, scaled
from lvlm_probe.demo.train import Trainer, easy_object

SHORT = (
    Phase("look", 2, 1e-3, 1e-3, scenes=2, easy=0, answers=False, patches=1.0),
    Phase("answer", 4, 1e-3, 1e-3, scenes=2, easy=0, answers=True, patches=0.5),
    Phase("polish", 2, 1e-3, 1e-3, scenes=2, easy=0, answers=True, patches=0.0),
)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture
def source(processor):
    return Source(Encoder(processor), seed=3)


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.parts.state_dict().items()}


def test_import_of_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, lvlm_probe.demo, lvlm_probe.demo.questions, lvlm_probe.demo.examples;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_vocabulary_has_every_word_of_questions_and_answers(processor):
    unknown = processor.tokenizer.unk_token_id
    for _, question in held_out(KINDS, 60):
        text = f"{question.prompt} {question.answer}"
        assert unknown not in processor.tokenizer(text)["input_ids"], text
    assert len(set(vocabulary())) == len(vocabulary())


def test_answers_survive_the_tokenizer(processor):
    encoder = Encoder(processor)
    for _, question in held_out(KINDS, 20):
        tokens = encoder.answer(question.answer)
        assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == question.answer


def test_a_packed_question_has_the_logits_it_has_alone(processor):
    """Against the stock forward pass on the stock processor's inputs, one question at a time."""
    torch.manual_seed(0)
    trainer = Trainer(0, SHORT, Source(Encoder(processor), 0), processor)
    trainer.model.eval()
    scene = make_scene(17)
    questions = [
        ("colour", "What color is the star?", "red"),
        ("caption", "Describe.", "a red star"),
    ]
    batch = pack(
        [Asked(normalise(scene.pixels), questions, scene_objects(scene))], Encoder(processor)
    )
    with torch.no_grad():
        patches = trainer.model.model.vision_tower(batch.pixels).last_hidden_state[:, 1:]
        packed = trainer.logits(trainer.model.model.multi_modal_projector(patches), batch)[0]
        for number, (_, prompt, answer) in enumerate(questions, 1):
            turn = {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": prompt}],
            }
            text = processor.apply_chat_template([turn], add_generation_prompt=True)
            inputs = processor(images=scene.image, text=f"{text} {answer}</s>", return_tensors="pt")
            alone = build_model().eval()
            alone.load_state_dict(trainer.model.state_dict())
            logits = alone(**inputs).logits[0, PREFIX:]
            here = batch.segments[0] == number
            assert batch.ids[0, here].tolist() == inputs["input_ids"][0, PREFIX:].tolist()
            torch.testing.assert_close(packed[here], logits, atol=1e-4, rtol=1e-4)


def test_labels_are_the_answers_shifted_by_one(source):
    batch = source.batch(0, scenes=3, easy=0, weights={})
    shifted = torch.roll(batch.ids, -1, dims=1)
    counted = batch.labels != IGNORED
    assert counted.any()
    assert torch.equal(batch.labels[counted], shifted[counted])
    assert batch.ids.shape == (3, PREFIX + SUFFIX)


def test_patches_are_labelled_with_the_object_in_their_middle(source):
    batch = source.batch(5, scenes=4, easy=0, weights={})
    first = 3 * 2**24 + 5 * 4
    labelled = 0
    for row in range(4):
        scene = make_scene(first + row)
        for patch in range(144):
            top, left = 8 * (patch // 12), 8 * (patch % 12)
            cover = scene.masks[:, top : top + 8, left : left + 8].mean(axis=(1, 2))
            colour = int(batch.patch_colours[row, patch])
            if not cover.any():
                assert colour == len(COLOUR_WORDS)
            elif cover.max() > 0.6:
                labelled += 1
                thing = scene.objects[int(cover.argmax())]
                assert COLOUR_WORDS[colour] == thing.colour
                assert SHAPE_WORDS[int(batch.patch_shapes[row, patch])] == thing.shape
                centre = (batch.patch_centres[row, patch] + 1) * 48
                assert centre.tolist() == pytest.approx([thing.x, thing.y], abs=1e-3)
    assert labelled > 10


def test_no_scene_is_asked_about_in_two_steps_and_none_is_held_out(source):
    seen = set()
    start = asked = 0
    for phase in PHASES:
        for step in range(start, start + phase.steps):
            seeds = source.scene_seeds(step, phase.scenes)
            assert seeds[-1] < HELD_OUT_SEEDS.start
            if phase.answers:
                seen.update(seeds)
                asked += len(seeds)
        start += phase.steps
    assert len(seen) == asked


def test_trainings_of_different_seeds_share_no_scene(source):
    steps = sum(phase.steps for phase in PHASES)
    most = max(phase.scenes for phase in PHASES)
    last = source.scene_seeds(steps, most)[-1]
    assert last < Source(source.encoder, seed=4).scene_seeds(0, 1)[0]


def test_the_schedule():
    assert place(SHORT, 0) == (SHORT[0], 0)
    assert place(SHORT, 4) == (SHORT[1], 2)
    for step in (-1, 8):
        with pytest.raises(ValueError, match="has 8 steps"):
            place(SHORT, step)
    assert [phase.steps for phase in scaled(SHORT, 2.0)] == [4, 8, 4]
    assert [phase.steps for phase in scaled(SHORT, 0.01)] == [1, 1, 1]
    shares = [decay(PHASES[1], done) for done in range(PHASES[1].steps)]
    assert max(shares) == pytest.approx(1.0)
    assert shares[0] < 0.02
    assert shares[-1] == pytest.approx(0.01, rel=0.01)
    rising = shares.index(max(shares))
    assert shares[:rising] == sorted(shares[:rising])
    assert shares[rising:] == sorted(shares[rising:], reverse=True)


def test_a_step_outside_the_training_seeds_is_an_error(source):
    with pytest.raises(ValueError, match="TRAINING_SEEDS"):
        Source(source.encoder, seed=256).batch(0, scenes=1, easy=0, weights={})


def test_too_many_questions_for_a_row_is_an_error(source):
    scene = make_scene(1)
    asked = Asked(
        normalise(scene.pixels),
        [("count", "How many objects are there?", "two")] * 40,
        scene_objects(scene),
    )
    with pytest.raises(ValueError, match="row 0"):
        pack([asked], source.encoder)


def test_an_interrupted_training_ends_where_an_unbroken_one_does(processor, source, tmp_path):
    unbroken = Trainer(3, SHORT, source, processor)
    while unbroken.step < unbroken.total:
        unbroken.run(unbroken.fetch(unbroken.step))
    broken = Trainer(3, SHORT, source, processor)
    for _ in range(4):
        broken.run(broken.fetch(broken.step))
    path = tmp_path / "checkpoint.safetensors"
    broken.save(path)
    resumed = Trainer(3, SHORT, source, processor)
    assert resumed.resume(path)
    assert resumed.step == 4
    while resumed.step < resumed.total:
        resumed.run(resumed.fetch(resumed.step))
    for name, value in weights(unbroken).items():
        torch.testing.assert_close(weights(resumed)[name], value, atol=1e-6, rtol=1e-5)


def test_a_checkpoint_of_another_schedule_is_not_taken_up(processor, source, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    Trainer(3, SHORT, source, processor).save(path)
    longer = (dataclasses.replace(SHORT[0], steps=9), *SHORT[1:])
    assert not Trainer(3, longer, source, processor).resume(path)
    assert not Trainer(4, SHORT, source, processor).resume(path)
    assert not Trainer(3, SHORT, source, processor).resume(tmp_path / "none")


@pytest.mark.parametrize(
    ("step", "still"),
    [
        (0, ("language_model", "lm_head", "projector")),
        (2, ()),
        (6, ("vision_tower", "heads.")),
    ],
)
def test_each_phase_trains_its_part_of_the_model(processor, source, step, still):
    trainer = Trainer(3, SHORT, source, processor)
    trainer.step = step
    before = weights(trainer)
    trainer.run(trainer.fetch(step))
    for name, value in weights(trainer).items():
        unmoved = any(part in name for part in (*still, "post_layernorm", "position_ids"))
        assert torch.equal(value, before[name]) == unmoved, name


def easy_item(questions, colour="teal"):
    """A circle as the data set draws it: on one colour, with blended edges."""
    image = Image.new("RGB", (64, 64), (250, 240, 245))
    ImageDraw.Draw(image).ellipse((20, 8, 39, 27), fill=easy_vqa.COLOURS[colour])
    ImageDraw.Draw(image).point([(30, 28)], fill=(200, 210, 215))
    return easy_vqa.EasyVqaItem(0, image, questions)


def test_what_an_easy_vqa_image_shows():
    item = easy_item((("what shape is in the image?", "circle"),))
    assert (item.colour, item.shape) == ("teal", "circle")
    assert item.mask[28, 30]
    assert not item.mask[0].any()
    shown = easy_object(item)
    assert shown.mask.shape == (96, 96)
    assert shown.centre == pytest.approx((45, 27), abs=1.5)
    assert np.count_nonzero(shown.mask) == pytest.approx(2.25 * item.mask.sum(), rel=0.1)


@pytest.mark.parametrize(
    ("questions", "shape"),
    [
        ((("is there a circle?", "yes"),), "circle"),
        ((("is there not a circle?", "no"),), "circle"),
        ((("is no circle present?", "no"),), "circle"),
        ((("is there a circle?", "no"), ("is no triangle present?", "yes")), "rectangle"),
        ((("what is the teal shape?", "triangle"),), "triangle"),
        ((("what color is the rectangle?", "teal"),), "rectangle"),
        ((("is there a circle?", "no"),), None),
        ((("is there a teal shape?", "yes"),), None),
    ],
)
def test_the_shape_follows_from_the_questions(questions, shape):
    assert easy_item(questions).shape == shape


def test_easy_vqa_that_is_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(easy_vqa.EasyVqaMissing, match="pip download --no-deps easy-vqa"):
        easy_vqa.load("test", tmp_path)
