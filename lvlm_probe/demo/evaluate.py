"""Measures the demo model and writes its card: ``python -m lvlm_probe.demo.evaluate``.

The model is loaded as any user would load it, through ``AutoModelForImageTextToText`` and ``AutoProcessor``, and asked
about scenes that it was never trained on and about easy-VQA's test split. The text that the command prints is the
model card, to the letter.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor

from lvlm_probe.demo import FOLDER, easy_vqa
from lvlm_probe.demo.card import Accuracy, Erasure, model_card
from lvlm_probe.demo.examples import EXAMPLES
from lvlm_probe.demo.questions import KINDS, Question, held_out
from lvlm_probe.demo.scenes import SIZE, Scene
from lvlm_probe.demo.write_examples import write_examples

POOLS = {
    kind: "exists-one" if kind.startswith("exists-one") else "exists"
    for kind in KINDS
    if kind.startswith("exists")
}
"""Kinds that sound alike, under one name: the majority answer is taken over all of them."""

ERASED_KINDS = (
    "colour",
    "shape",
    "quadrant",
    "exists-yes",
    "exists-one-yes",
    "count-shape",
    "relation",
)
"""Kinds for which an object can be erased that is not evidence."""

_BATCH = 64
_BLIND = 2000


class Answerer:
    """The model, asked by its public interface.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """The model's answers, decoded greedily.

        Args:
            images: One a question.
            prompts: The questions.

        Raises:
            ValueError: If their numbers differ.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} questions")
        texts = [
            self._processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": prompt}],
                    }
                ],
                add_generation_prompt=True,
            )
            for prompt in prompts
        ]
        answers: list[str] = []
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            inputs = self._processor(
                images=list(images[part]), text=texts[part], padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                tokens = self._model.generate(**inputs)
            fresh = tokens[:, inputs["input_ids"].shape[1] :]
            answers += self._processor.batch_decode(fresh, skip_special_tokens=True)
        return answers


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: str
    image: Image.Image
    prompt: str
    answer: str


def accuracies(
    answerer: Answerer, asked: Sequence[tuple[str, Image.Image, str, str]]
) -> list[Accuracy]:
    """Share of exactly right answers for each kind, beside what three ways of not looking give.

    Args:
        answerer: The model.
        asked: Kind, image, question and answer of each.
    """
    items = [_Asked(*row) for row in asked]
    grey = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    rows: list[Accuracy] = []
    by_pool: dict[str, list[_Asked]] = {}
    for item in items:
        by_pool.setdefault(POOLS.get(item.kind, item.kind), []).append(item)
    kinds = list(dict.fromkeys(item.kind for item in items))
    for kind in track(kinds, "asking", console=Console(stderr=True)):
        own = [item for item in items if item.kind == kind]
        some = own[:: max(1, len(own) // _BLIND)]
        pool = by_pool[POOLS.get(kind, kind)]
        majority = Counter(item.answer for item in pool).most_common(1)[0][0]
        # Half a list away is another scene; for easy-VQA, whose questions come image by image, too.
        others = some[len(some) // 2 :] + some[: len(some) // 2]
        rows.append(
            Accuracy(
                kind=kind,
                questions=len(own),
                right=_share(answerer(_images(own), _prompts(own)), own),
                majority=_share([majority] * len(own), own),
                other_image=_share(answerer(_images(others), _prompts(some)), some),
                no_image=_share(answerer([grey] * len(some), _prompts(some)), some),
            )
        )
    return rows


def _images(items: Sequence[_Asked]) -> list[Image.Image]:
    return [item.image for item in items]


def _prompts(items: Sequence[_Asked]) -> list[str]:
    return [item.prompt for item in items]


def _share(answers: Sequence[str], items: Sequence[_Asked]) -> float:
    return float(np.mean([a == item.answer for a, item in zip(answers, items, strict=True)]))


def erasures(answerer: Answerer, count: int, seed: int) -> list[Erasure]:
    """How often the answer changes when the evidence is erased, and when another object is.

    Erased objects leave the exact background behind. Only questions answered right at first count, in scenes with an
    object that is not evidence.

    Args:
        answerer: The model.
        count: Questions of each kind to start from.
        seed: For :func:`~lvlm_probe.demo.questions.held_out`.
    """
    rows: list[Erasure] = []
    for kind in track(ERASED_KINDS, "erasing", console=Console(stderr=True)):
        pairs = [
            (scene, question)
            for scene, question in held_out(kind, count, seed=seed, min_objects=2)
            if 0 < len(question.evidence) < len(scene.objects)
        ]
        prompts = [question.prompt for _, question in pairs]
        before = answerer([scene.image for scene, _ in pairs], prompts)
        without = answerer([_erase(s, q.evidence).image for s, q in pairs], prompts)
        control = answerer([_erase(s, [_other(s, q)]).image for s, q in pairs], prompts)
        right = [i for i, (_, question) in enumerate(pairs) if before[i] == question.answer]
        rows.append(
            Erasure(
                kind=kind,
                questions=len(right),
                evidence=float(np.mean([without[i] != before[i] for i in right])),
                other=float(np.mean([control[i] != before[i] for i in right])),
            )
        )
    return rows


def _erase(scene: Scene, indices: Iterable[int]) -> Scene:
    for index in sorted(indices, reverse=True):
        scene = scene.without(index)
    return scene


def _other(scene: Scene, question: Question) -> int:
    """An object that is not evidence."""
    return next(i for i in range(len(scene.objects)) if i not in question.evidence)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the demo model and write its card.")
    parser.add_argument("--model", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument(
        "--card", type=Path, help="file to write; MODEL_CARD.md in the model's folder"
    )
    parser.add_argument("--questions", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the held-out scenes")
    parser.add_argument(
        "--write-examples", action="store_true", help="write the shipped examples instead"
    )
    options = parser.parse_args(arguments)

    torch.set_num_threads(2)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    answerer = Answerer(options.model)
    easy_vqa.fetch()
    test = easy_vqa.load("test")
    if options.write_examples:
        write_examples(answerer, test, EXAMPLES)
        console.print(f"wrote {EXAMPLES}")
        return
    asked = [
        (kind, scene.image, question.prompt, question.answer)
        for kind in KINDS
        for scene, question in held_out(kind, options.questions, seed=options.seed)
    ]
    asked += [("easy-VQA test", item.image, *pair) for item in test for pair in item.questions]
    card = model_card(
        parameters=answerer.parameters,
        size=(options.model / "model.safetensors").stat().st_size,
        accuracies=accuracies(answerer, asked),
        erasures=erasures(answerer, options.questions, options.seed),
    )
    console.print(card)
    path = options.card or options.model / "MODEL_CARD.md"
    path.write_text(card, encoding="utf-8")
    Console(stderr=True).print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
