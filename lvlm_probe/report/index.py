"""A page that lists explanations: HTML beside its pictures, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lvlm_probe.files import write_text

__all__ = ["Entry", "write_page"]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #ffd24d; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 0; }
article { border-top: 1px solid var(--line); padding: 1.2rem 0; }
.asked { display: flex; gap: 1rem; align-items: center; margin-bottom: .8rem; }
.asked img { width: 96px; image-rendering: pixelated; border-radius: 4px; }
.kind { color: #888; font-size: .85rem; text-transform: uppercase; letter-spacing: .05em; }
.answer { font-weight: 600; } .wrong { color: #c0392b; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One question and what explains its answer.

    Attributes:
        kind: Of the question.
        image: Path of the picture, as the page refers to it.
        prompt: The question.
        answer: The model's.
        expected: The true answer, where it is known.
        maps: (token, path of its picture) for each explained token.
        report: Path of its report, where there is one.
    """

    kind: str
    image: str
    prompt: str
    answer: str
    expected: str | None
    maps: Sequence[tuple[str, str]]
    report: str | None = None


def write_page(path: Path, title: str, intro: str, entries: Sequence[Entry]) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file; the entries' pictures lie beside or below it.
        title: Of the page.
        intro: A paragraph above the entries.
        entries: In the order shown.

    Raises:
        OutputError: If it cannot be written.
    """
    body = "\n".join(_entry(entry) for entry in entries)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n{body}\n</body>\n</html>\n"
    )
    return write_text(path, page)


def _entry(entry: Entry) -> str:
    wrong = entry.expected is not None and entry.expected != entry.answer
    told = (
        f' <span class="wrong">(true answer: {escape(entry.expected or "")})</span>'
        if wrong
        else ""
    )
    report = (
        ""
        if entry.report is None
        else f'<a class="report" href="{escape(entry.report)}">Look at it word by word, layer by layer, head by head</a>'
    )
    maps = "\n".join(
        f'<figure><img src="{escape(source)}" loading="lazy" '
        f'alt="Which pixels and words made the answer token “{escape(token)}”"></figure>'
        for token, source in entry.maps
    )
    return (
        f'<article>\n<div class="asked"><img src="{escape(entry.image)}" alt="The picture asked about">'
        f'<div><div class="kind">{escape(entry.kind)}</div><h2>{escape(entry.prompt)}</h2>'
        f'<div class="answer">{escape(entry.answer)}{told}</div>{report}</div></div>\n'
        f'<div class="maps">\n{maps}\n</div>\n</article>'
    )
