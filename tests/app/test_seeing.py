"""The tab of what the image made of each word, against the library's numbers and sums over scores by hand."""

from __future__ import annotations

import math

import gradio as gr
import pytest
from app_pages import SECONDS, ask, open_tab
from browsing import needs_browser
from PIL import Image
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.app.desk import Desk
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.app.tabs.seeing import Seeing
from lvlm_probe.conversation import Turn
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.recipes import contribution, lens

CAPTION = next(example for example in load_examples() if example.kind == "caption")
expect.set_options(timeout=SECONDS)
# gradio leaves the event loops of its blocks open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def case() -> lp.Case:
    probe = lp.Probe.from_pretrained("demo")
    return probe.case(Image.open(CAPTION.path).convert("RGB"), CAPTION.prompt)


def by_hand(case: lp.Case, index: int) -> float:
    """Relevance on the image's tokens over that on all others before the word."""
    scores = case.explain("relevancy", index).tokens.tolist()
    place = case.probe.processor.image_token
    before = range(case.layout.answer_start + index)
    image = [scores[p] for p in before if place in case.words[p]]
    text = [scores[p] for p in before if place not in case.words[p]]
    assert len(image) == 144
    return sum(image) / sum(text)


def columns(page: Page) -> list[list[str]]:
    rows = page.locator("#seeing-beliefs tbody tr")
    return rows.evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )


@needs_browser
def test_numbers_are_the_library_s(page: Page, case: lp.Case) -> None:
    ask(page, CAPTION.prompt, CAPTION.path)
    open_tab(page, "Seeing it or not")
    words = [word.strip() for word in case.answer_tokens]
    heads = page.locator("#seeing-contribution tr:has(td) th")
    expect(heads).to_have_text(words)
    last = page.locator("#seeing-contribution td[data-column='3']")
    shown = [float(cell) for cell in last.evaluate_all("cells => cells.map(c => c.dataset.value)")]
    assert shown == pytest.approx([by_hand(case, n) for n in range(len(words))], rel=1e-4)
    # "a purple circle": what colour it is can only be seen.
    assert words[:2] == ["a", "purple"]
    assert shown[1] > 3 * shown[0]
    rows = columns(page)
    assert [row[0] for row in rows] == words
    blind = case.knockout("image", "text")
    for index, row in enumerate(rows):
        seen, unseen = (run.score(lp.Target(index, "logprob")) for run in (case, blind))
        margins = [run.score(lp.Target(index, "margin")) for run in (case, blind)]
        assert float(row[1]) == pytest.approx(math.exp(seen), abs=6e-4)
        assert float(row[4]) == pytest.approx(math.exp(unseen), abs=6e-4)
        assert [float(row[2]), float(row[5])] == pytest.approx(margins, abs=0.06)
        assert float(row[7]) == pytest.approx(seen - unseen, abs=6e-3)


@needs_browser
def test_a_word_its_layers_and_the_patches(page: Page, case: lp.Case) -> None:
    ask(page, CAPTION.prompt, CAPTION.path)
    open_tab(page, "Seeing it or not")
    page.locator("#seeing-contribution td[data-row='1'][data-column='2']").click()
    expect(page.locator("#answer button[aria-pressed=true]")).to_have_text("purple")
    expect(page.locator("#seeing-evolution")).to_contain_text("When the model came to “purple”")
    dots = page.locator("#seeing-evolution circle title").evaluate_all(
        "all => all.map(t => t.textContent)"
    )
    told = [float(dot.rsplit(": ", 1)[1]) for dot in dots]
    assert told == pytest.approx(lens.evolution(case, 1).tolist(), rel=6e-3, abs=1e-6)
    reading = lens.read_layers(case, [case.layout.answer_start], count=5)
    first = page.locator("#seeing-likeliest tbody tr td:first-of-type")
    expect(first).to_have_text(
        [
            f"{word.strip()} {share:.2f}"
            for word, share in (reading.at(case.layout.answer_start, n)[0] for n in reading.layers)
        ]
    )
    # The cell that was clicked says after which layer patches are read.
    expect(page.locator("#seeing-layer input[type=number]")).to_have_value("2")
    expect(page.locator("#seeing-words")).to_contain_text("after layer 2")
    patches = lens.read_layers(case, "image", count=1)
    canvas = page.locator("#seeing-words canvas[data-ready=true]")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    for row, column in ((0, 5), (6, 6), (11, 0)):
        canvas.hover(position={"x": (column + 0.5) * box["width"] / 12, "y": (row + 0.5) * box["height"] / 12})  # fmt: skip
        word, share = patches.at(case.layout.image_positions[row * 12 + column], 2)[0]
        readout = page.locator("#seeing-words .lv-readout")
        expect(readout).to_contain_text(f"row {row + 1}, column {column + 1}, “{word.strip()}”")
        assert float(readout.inner_text().rsplit(": ", 1)[1]) == pytest.approx(share, rel=6e-3)
    page.locator("#seeing-removal input").click()
    page.get_by_role("option", name="The image in its mean colour").click()
    ratio = contribution.log_likelihood_ratio(case, "mean")
    expect(page.locator("#seeing-beliefs tbody tr").nth(1)).to_contain_text(f"{ratio[1]:+.2f}")


def test_a_trace_alone(case: lp.Case) -> None:
    """What a trace holds is shown; what needs the model is told once."""
    maker, reader = Service(case.probe), Service(None)
    path = maker.folder / "caption.safetensors"
    case.record(path=path)
    question, session = reader.open(path), Session()
    session.add(Asked(question, Turn(question.prompt, question.answer)))
    with gr.Blocks():
        tab = Seeing(Desk(reader))
        tab.grounding()
        tab.reading()
    matrix, table, *rest = tab.draw(session, "max", "knockout", 0)
    assert matrix["values"][1][3] == pytest.approx(contribution.grounding(case).layers["max"][1, 3].item(), rel=1e-5)  # fmt: skip
    assert "without it" not in table
    assert rest[0] is None
    assert rest[2:4] == [None, None]
    said = "".join(part for part in (table, rest[1], rest[4]) if part)
    assert said.count("here is only a trace") == 1
    assert tab.draw(Session(), "sum", "knockout", 0)[0] is None
    maker.close()
    reader.close()
