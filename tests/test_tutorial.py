"""docs/where-does-the-colour-live.md: every block runs, and what the page says is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "where-does-the-colour-live.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[str]:
    return pages.run(PAGE, folder)


@pytest.mark.slow
def test_blocks_print_what_the_page_tells(printed: list[str], folder: Path) -> None:
    told = [block.told for block in pages.blocks(PAGE)]
    assert len(told) == 8
    wrong = [line for t, p in zip(told, printed, strict=True) for line in pages.apart(t or "", p, 0.03)]  # fmt: skip
    assert wrong == []
    named = set(re.findall(r"!\[[^]]+\]\(where-does-the-colour-live/([\w.-]+)\)", PAGE.read_text()))
    assert named == {path.name for path in folder.iterdir()}
    assert named == {path.name for path in PAGE.with_suffix("").iterdir()}


@pytest.mark.slow
def test_numbers_of_the_text_are_printed(printed: list[str]) -> None:
    """Fractions in the prose are results, so each is among what the code prints, to the last digit but one."""
    shown = pages.numbers(" ".join(printed))
    told = re.findall(r"[-−]?\d+\.\d+", pages.prose(PAGE))
    assert len(told) > 15
    assert [t for t in told if all(abs(pages.numbers(t)[0] - s) > 0.03 for s in shown)] == []


def test_another_number_or_word_is_seen() -> None:
    assert pages.apart("0 1.00 -0.00\n", "0 0.99 0.00\n", 0.03) == []
    assert pages.apart("0 1.00 0.50\n", "0 1.00 0.40\n", 0.03)
    assert pages.apart("'green' 1", "'red' 1", 0.03)
    assert pages.apart("1\n2", "1", 0.03)
    assert pages.apart("margin −2.73", "margin -2.73", 0.03) == []
