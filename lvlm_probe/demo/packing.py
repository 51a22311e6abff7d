"""Training batches: several questions about an image share its visual tokens.

A row of a batch reads ``<s> USER: <image>...`` once, then question after question, each with its answer. The mask
lets a question see the image and itself; its positions continue from the image's, as if it stood there alone. So a row
gives every question the logits it would have had in a sequence of its own, at a tenth of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaProcessor

from lvlm_probe.demo import easy_vqa
from lvlm_probe.demo.architecture import END, GRID, IMAGE, IMAGE_TOKENS, PATCH, START
from lvlm_probe.demo.questions import KINDS, TRAINING_SEEDS, ask
from lvlm_probe.demo.scenes import COLOURS, SHAPES, SIZE, Scene, make_scene

COLOUR_WORDS = (*COLOURS, *(colour for colour in easy_vqa.COLOURS if colour not in COLOURS))
"""Every colour that a training image shows."""

SHAPE_WORDS = (*SHAPES, *(shape for shape in easy_vqa.SHAPES if shape not in SHAPES))
"""Every shape that a training image shows."""

IGNORED = -100
"""The label of a position, or of a patch, that no loss counts."""

PREFIX = 3 + IMAGE_TOKENS
"""Tokens of a row before its first question: ``<s>``, ``USER``, ``:`` and the image."""

SUFFIX = 156
"""Tokens of a row for questions and answers."""

_COVERED = 0.35
_SCENES_PER_SEED = 2**24
_BLUNT = 0.08


class Encoder:
    """Turns questions and answers into token numbers, as the processor would.

    Args:
        processor: Its chat template and tokenizer are used.
    """

    def __init__(self, processor: LlavaProcessor) -> None:
        self._processor = processor
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._answers: dict[str, tuple[int, ...]] = {}
        start, user, colon, image = self._ids(f"{START}USER: {IMAGE}")
        self.prefix: tuple[int, ...] = (start, user, colon, *[image] * IMAGE_TOKENS)
        """The tokens that every row starts with, PREFIX of them."""

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, question: str) -> tuple[int, ...]:
        """The tokens after the image, up to where the answer starts."""
        if question not in self._prompts:
            content: Any = [{"type": "image"}, {"type": "text", "text": question}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            self._prompts[question] = self._ids(text.partition(IMAGE)[2])
        return self._prompts[question]

    def answer(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, ``</s>`` at the end."""
        if answer not in self._answers:
            self._answers[answer] = self._ids(answer + END)
        return self._answers[answer]


@dataclass(frozen=True, slots=True)
class Shown:
    """One object of an image.

    Attributes:
        colour: One of COLOUR_WORDS.
        shape: One of SHAPE_WORDS.
        mask: The pixels it touches, [96, 96].
        centre: x and y in pixels.
    """

    colour: str
    shape: str
    mask: NDArray[np.bool_]
    centre: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Asked:
    """An image with the questions of a row.

    Attributes:
        pixels: Normalised as the image processor does, [3, 96, 96].
        questions: Kind, question and answer of each.
        shown: All of the image's objects.
    """

    pixels: NDArray[np.float32]
    questions: Sequence[tuple[str, str, str]]
    shown: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed questions, and what their patches show.

    Attributes:
        pixels: [B, 3, 96, 96].
        ids: Token numbers, [B, N].
        positions: Position numbers, [B, N].
        segments: 0 for the prefix, 1, 2, ... for the row's questions, -1 for padding, [B, N].
        labels: The token to predict at each position, IGNORED outside of answers, [B, N].
        kinds: The kind of each row's questions.
        patch_colours: Index into COLOUR_WORDS, their number for background, IGNORED at outlines, [B, P].
        patch_shapes: The same for SHAPE_WORDS, [B, P].
        patch_centres: Centre of the object that a patch shows, in -1 ... 1, x then y, [B, P, 2].
    """

    pixels: Tensor
    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    kinds: tuple[tuple[str, ...], ...]
    patch_colours: Tensor
    patch_shapes: Tensor
    patch_centres: Tensor

    def mask(self) -> Tensor:
        """What each position may attend to, as a term added to the scores, [B, 1, N, N]."""
        length = self.segments.shape[1]
        rows, columns = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((columns == 0) | (columns == rows)) & torch.ones(length, length).tril().bool()
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(seen.shape).masked_fill_(~seen, lowest)[:, None]


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the demo model's image processor makes of a 96 by 96 picture: [3, 96, 96] in -1 ... 1."""
    return (pixels.astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


@dataclass
class Source:
    """Draws training batches; the same seed and step give the same batch.

    Attributes:
        encoder: For the questions.
        seed: Of the whole training.
        easy: easy-VQA images, normalised, and their questions; may be empty.
    """

    encoder: Encoder
    seed: int
    easy: Sequence[Asked] = field(default_factory=tuple)

    def scene_seeds(self, step: int, scenes: int) -> range:
        """The seeds of the scenes of one step.

        Raises:
            ValueError: If one of them is not set apart for training.
        """
        first = self.seed * _SCENES_PER_SEED + step * scenes
        if first not in TRAINING_SEEDS or first + scenes > TRAINING_SEEDS.stop:
            raise ValueError(f"step {step} of seed {self.seed} needs scenes outside TRAINING_SEEDS")
        return range(first, first + scenes)

    def batch(self, step: int, scenes: int, easy: int, weights: Mapping[str, float]) -> Batch:
        """The batch of one step.

        Args:
            step: Counted over the whole training.
            scenes: Rows about scenes.
            easy: Rows about easy-VQA images.
            weights: How often each kind is asked, relative to 1; kinds left out count 1.

        Raises:
            ValueError: If the step would leave the seeds set apart for training.
        """
        rng = np.random.default_rng([self.seed, step])
        seeds = self.scene_seeds(step, scenes)
        odds = np.array([weights.get(kind, 1.0) for kind in KINDS])
        asked = [self._about(make_scene(seed), rng, odds / odds.sum()) for seed in seeds]
        asked += [self._easy(rng) for _ in range(easy)]
        return pack(asked, self.encoder)

    def _about(self, scene: Scene, rng: np.random.Generator, odds: NDArray[np.float64]) -> Asked:
        questions: list[tuple[str, str, str]] = []
        room = SUFFIX
        for kind in rng.choice(KINDS, size=24, p=odds):
            question = ask(scene, str(kind), rng)
            if question is None:
                continue
            prompt = question.prompt if rng.random() > _BLUNT else question.prompt[:-1]
            room -= len(self.encoder.prompt(prompt)) + len(self.encoder.answer(question.answer))
            if room < 0:
                break
            questions.append((str(kind), prompt, question.answer))
        return Asked(normalise(scene.pixels), questions, scene_objects(scene))

    def _easy(self, rng: np.random.Generator) -> Asked:
        item = self.easy[int(rng.integers(len(self.easy)))]
        chosen: list[tuple[str, str, str]] = []
        room = SUFFIX
        for index in rng.permutation(len(item.questions)):
            kind, prompt, answer = item.questions[index]
            room -= len(self.encoder.prompt(prompt)) + len(self.encoder.answer(answer))
            if room < 0:
                break
            chosen.append((kind, prompt, answer))
        return Asked(item.pixels, chosen, item.shown)


def pack(asked: Sequence[Asked], encoder: Encoder) -> Batch:
    """Rows of a batch from images and their questions.

    Args:
        asked: One entry a row.
        encoder: For the questions.

    Raises:
        ValueError: If a row's questions need more than SUFFIX tokens.
    """
    shape = (len(asked), PREFIX + SUFFIX)
    ids = np.full(shape, encoder.prefix[0], dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    ids[:, :PREFIX] = encoder.prefix
    positions[:, :PREFIX] = np.arange(PREFIX)
    segments[:, :PREFIX] = 0
    for row, item in enumerate(asked):
        start = PREFIX
        for number, (_, question, answer) in enumerate(item.questions, 1):
            prompt, reply = encoder.prompt(question), encoder.answer(answer)
            stop = start + len(prompt) + len(reply)
            if stop > shape[1]:
                raise ValueError(f"row {row} needs more than the {SUFFIX} tokens that a row has")
            ids[row, start:stop] = prompt + reply
            positions[row, start:stop] = PREFIX + np.arange(stop - start)
            segments[row, start:stop] = number
            labels[row, stop - len(reply) - 1 : stop - 1] = reply
            start = stop
    colours, shapes, centres = zip(*(_patches(item.shown) for item in asked), strict=True)
    return Batch(
        pixels=torch.from_numpy(np.stack([item.pixels for item in asked])),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        labels=torch.from_numpy(labels),
        kinds=tuple(tuple(kind for kind, _, _ in item.questions) for item in asked),
        patch_colours=torch.from_numpy(np.stack(colours)),
        patch_shapes=torch.from_numpy(np.stack(shapes)),
        patch_centres=torch.from_numpy(np.stack(centres)),
    )


_Patches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def scene_objects(scene: Scene) -> list[Shown]:
    """A scene's objects, for :class:`Asked`."""
    return [
        Shown(thing.colour, thing.shape, mask, (thing.x, thing.y))
        for thing, mask in zip(scene.objects, scene.masks, strict=True)
    ]


def _patches(things: Sequence[Shown]) -> _Patches:
    """What each patch of an image shows; see :class:`Batch`."""
    colours = np.full(IMAGE_TOKENS, IGNORED, dtype=np.int64)
    shapes = colours.copy()
    centres = np.zeros((IMAGE_TOKENS, 2), dtype=np.float32)
    masks = np.array([thing.mask for thing in things]).reshape(-1, GRID, PATCH, GRID, PATCH)
    cover = masks.mean(axis=(2, 4)).reshape(-1, IMAGE_TOKENS)
    colours[cover.sum(axis=0) == 0] = len(COLOUR_WORDS)
    shapes[cover.sum(axis=0) == 0] = len(SHAPE_WORDS)
    for thing, share in zip(things, cover, strict=True):
        covered = share >= _COVERED
        colours[covered] = COLOUR_WORDS.index(thing.colour)
        shapes[covered] = SHAPE_WORDS.index(thing.shape)
        centres[covered] = np.array(thing.centre) / (SIZE / 2) - 1
    return colours, shapes, centres
