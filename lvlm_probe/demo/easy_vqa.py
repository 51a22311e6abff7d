"""Reads easy-VQA, a small third-party data set of questions about one coloured shape.

easy-VQA (Victor Zhou, 2019, MIT licence, https://github.com/vzhou842/easy-VQA) has 4,000 training and 1,000 test
images, 64 by 64 pixels, with 38,575 and 9,673 questions. It is needed to train and to evaluate the demo model, not to
use it. Its wheel would also install a package named ``test``, so it is never installed: the data are read from the
wheel's archive as it stands.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REQUIREMENT = "easy-vqa==1.0"
"""What pip is asked for."""

LICENCE = (
    "easy-VQA, copyright (c) 2019 Victor Zhou, MIT licence, https://github.com/vzhou842/easy-VQA"
)
"""Attribution."""

CACHE = Path("build/easy-vqa")
"""Where the wheel is kept, under the working directory."""

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "blue": (0, 0, 255),
        "black": (0, 0, 0),
        "gray": (128, 128, 128),
        "teal": (0, 128, 128),
        "brown": (165, 42, 42),
        "yellow": (255, 255, 0),
    }
)
"""What its colours look like, as 8-bit RGB."""

SHAPES = ("circle", "rectangle", "triangle")
"""What its images show, one each."""

_WHEEL = "easy_vqa-1.0-py3-none-any.whl"


class EasyVqaMissing(FileNotFoundError):
    """The data set is not there; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class EasyVqaItem:
    """One image with the questions about it.

    Attributes:
        number: The image's number within its split.
        image: RGB, 64 by 64 pixels.
        questions: Pairs of question and answer, as spelled in the data set.
    """

    number: int
    image: Image.Image
    questions: tuple[tuple[str, str], ...]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The shape's pixels, [64, 64]: all but those of the one colour behind it, the image's most frequent."""
        pixels = np.asarray(self.image)
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        return (pixels != colours[counts.argmax()]).any(axis=-1)

    @property
    def colour(self) -> str:
        """The shape's colour: the one of :data:`COLOURS` that most of its pixels have."""
        inside = np.asarray(self.image)[self.mask].astype(np.int64)
        return max(COLOURS, key=lambda colour: int((inside == COLOURS[colour]).all(axis=-1).sum()))

    @property
    def shape(self) -> str | None:
        """Which of :data:`SHAPES` it shows, as its questions tell; None if they leave it open."""
        possible = set(SHAPES)
        for question, answer in self.questions:
            named = set(SHAPES) & {answer, *re.findall(r"\w+", question)}
            if not named:
                continue
            denied = answer in {"yes", "no"} and (" no" in question) == (answer == "yes")
            possible = possible - named if denied else possible & named
        return possible.pop() if len(possible) == 1 else None


def fetch(cache: Path = CACHE) -> Path:
    """The data set's wheel, downloaded with pip unless it is there already.

    Raises:
        EasyVqaMissing: If pip could not download it.
    """
    wheel = cache / _WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        done = subprocess.run(
            [*command, REQUIREMENT, "--dest", str(cache)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not wheel.exists():
            raise EasyVqaMissing(f"pip could not download {REQUIREMENT}: {done.stderr.strip()}")
    return wheel


def load(split: Literal["train", "test"], cache: Path = CACHE) -> list[EasyVqaItem]:
    """One split of the data set, in the order of its images.

    Args:
        split: Which one.
        cache: The folder that holds the wheel.

    Raises:
        EasyVqaMissing: If the wheel is not in ``cache``.
    """
    wheel = cache / _WHEEL
    if not wheel.exists():
        raise EasyVqaMissing(
            f"there is no {wheel}; get it with: pip download --no-deps {REQUIREMENT} --dest {cache}"
        )
    root = f"easy_vqa/data/{split}"
    with zipfile.ZipFile(wheel) as archive:
        rows: list[tuple[str, str, int]] = json.loads(archive.read(f"{root}/questions.json"))
        questions: dict[int, list[tuple[str, str]]] = {}
        for question, answer, number in rows:
            questions.setdefault(number, []).append((question, answer))
        return [
            EasyVqaItem(
                number,
                Image.open(io.BytesIO(archive.read(f"{root}/images/{number}.png"))).convert("RGB"),
                tuple(asked),
            )
            for number, asked in sorted(questions.items())
        ]
