"""Reads easy-VQA, a small third-party data set of questions about one coloured shape.

easy-VQA (Victor Zhou, 2019, MIT licence, https://github.com/vzhou842/easy-VQA) has 4,000 training and 1,000 test
images, 64 by 64 pixels, with 38,575 and 9,673 questions. It is needed to train and to evaluate the demo model, not to
use it. Its wheel would also install a package named ``test``, so it is never installed: the data are read from the
wheel's archive as it stands.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

REQUIREMENT = "easy-vqa==1.0"
"""What pip is asked for."""

LICENCE = (
    "easy-VQA, copyright (c) 2019 Victor Zhou, MIT licence, https://github.com/vzhou842/easy-VQA"
)
"""Attribution."""

CACHE = Path("build/easy-vqa")
"""Where the wheel is kept, under the working directory."""

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
