"""The patching tab: a region corrupted by a drag, the sweep against single patches, an edited picture, other families."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from app_pages import SECONDS, ask, message, open_tab
from browsing import needs_browser, pixel
from PIL import Image
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.app.desk import Desk
from lvlm_probe.app.inputs import colour
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.app.tabs.patching import Patching
from lvlm_probe.conversation import Turn
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.errors import InputError
from lvlm_probe.recipes import patching

COLOUR = load_examples()[0]
LEFT, TOP, RIGHT, BOTTOM = COLOUR.evidence_boxes[0]
expect.set_options(timeout=SECONDS)
# gradio leaves the event loops of its blocks open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SIDE = 8  # pixels of a token's side in the demo model


@pytest.fixture(scope="module")
def probe() -> lp.Probe:
    return lp.Probe.from_pretrained("demo")


@pytest.fixture(scope="module")
def clean(probe: lp.Probe) -> lp.Case:
    return probe.case(Image.open(COLOUR.path).convert("RGB"), COLOUR.prompt)


def mask_of_the_object() -> np.ndarray[Any, Any]:
    """Whole tokens whose middle lies in the object's box."""
    mask = np.zeros((96, 96), dtype=bool)
    for row in range(12):
        for column in range(12):
            x, y = (column + 0.5) * SIDE, (row + 0.5) * SIDE
            if LEFT <= x <= RIGHT and TOP <= y <= BOTTOM:
                mask[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = True
    return mask


def drag_over_the_object(page: Page) -> None:
    canvas = page.locator("#patching-clean canvas[data-ready=true]")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y, size = box["x"], box["y"], box["width"] / 96
    page.mouse.move(x + LEFT * size, y + TOP * size)
    page.mouse.down()
    page.mouse.move(x + (LEFT + RIGHT) / 2 * size, y + (TOP + BOTTOM) / 2 * size)
    page.mouse.move(x + RIGHT * size, y + BOTTOM * size)
    page.mouse.up()
    expect(page.locator("#patching-hint")).to_contain_text("9 of 144 tokens chosen")


def shown(page: Page, site: str) -> list[list[float]]:
    """The numbers behind a matrix's cells."""
    rows = page.locator(f"#patching-heat-{site} tr:has(td)")
    return rows.evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.dataset.value)))"
    )


@needs_browser
def test_corrupt_by_a_drag_and_sweep(page: Page, clean: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Patching")
    drag_over_the_object(page)
    page.locator("#patching-run").click()
    expect(page.locator("#patching-progress")).to_contain_text("Done: 60 patches")
    mask = mask_of_the_object()
    corrupted = patching.erased(clean, mask)
    written = corrupted.generate()
    assert written != "green"
    expect(page.locator("#patching-told tbody tr").nth(0)).to_contain_text("green")
    expect(page.locator("#patching-told tbody tr").nth(1)).to_contain_text(written)
    middle = ((LEFT + RIGHT) / 2 / 96, (TOP + BOTTOM) / 2 / 96)
    before, after = (
        pixel(page.locator(f"#{place} canvas[data-ready=true]"), *middle)
        for place in ("patching-clean", "patching-corrupted")
    )
    assert before[1] > before[0] + 60  # green
    assert after[1] < after[0] + 30
    # Each number from a patched run of its own.
    inside = clean.layout.tokens_in_box(0, lp_box(mask))
    rest = [p for p in clean.layout.image_positions if p not in inside]
    groups = {0: inside, 2: rest, 3: "question", 4: "last"}
    token = int(clean.answer_ids[0])
    rival = clean.token_id(written)

    def margin(run: Any) -> float:
        row = run.logits()[0]
        return float(row[token] - row[rival])

    ends = margin(clean), margin(corrupted)
    for site in ("residual", "attention", "mlp"):
        found = shown(page, site)
        assert np.shape(found) == (4, 5)
        for layer in range(4):
            for column, where in groups.items():
                run = corrupted.patch(f"language.layers.{layer}.{site}", where, source=clean)
                wanted = (margin(run) - ends[1]) / (ends[0] - ends[1])
                assert found[layer][column] == pytest.approx(wanted, abs=1e-3), (site, layer, where)
    region = [row[0] for row in shown(page, "residual")]
    others = [row[1] for row in shown(page, "residual")]
    assert region[0] > 0.9
    assert region[3] < 0.1
    assert max(map(abs, others)) < 0.1
    # What a click shows.
    expect(page.locator("#patching-said")).to_contain_text("the model writes “green”")
    page.locator("#patching-heat-residual td[data-row='3'][data-column='0']").click()
    expect(page.locator("#patching-said")).to_contain_text(
        "layer 3, at the region, patched back in: 0%"
    )
    expect(page.locator("#patching-said")).to_contain_text(f"the model writes “{written}”")
    back = pixel(page.locator("#patching-detail canvas[data-ready=true]"), *middle)
    assert max(abs(a - b) for a, b in zip(before, back, strict=True)) <= 8
    titles = page.locator("#patching-curve circle title").evaluate_all(
        "all => all.map(t => t.textContent)"
    )
    assert titles[0].startswith("region, 0: ")
    assert float(titles[0].split(": ")[1]) == pytest.approx(region[0], rel=5e-3)


def lp_box(mask: np.ndarray[Any, Any]) -> Any:
    """The rectangle that a mask fills."""
    from lvlm_probe.layout import Box

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


@needs_browser
def test_recolour_and_cancel(page: Page, demo: tuple[Service, str], clean: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Patching")
    drag_over_the_object(page)
    page.locator("#patching-how input").click()
    page.get_by_role("option", name="Recolour").click()
    expect(page.locator("#patching-colour")).to_be_visible()
    page.locator("#patching-corrupt").click()
    wanted = patching.recoloured(clean, mask_of_the_object(), (230, 25, 75))
    expect(page.locator("#patching-told tbody tr").nth(1)).to_contain_text(wanted.generate())
    # The sweep waits while somebody stands in the queue, and is cancelled there.
    with demo[0].turnstile.front():
        page.locator("#patching-run").click()
        expect(page.locator("#patching-progress")).to_contain_text("of 60")
        page.locator("#patching-cancel").click()
        page.wait_for_timeout(300)
    expect(page.locator("#patching-progress")).to_contain_text("Cancelled.")
    assert "cancelled" in message(page)
    expect(page.locator("#patching-found")).to_be_hidden()
    # The session goes on.
    page.locator("#patching-run").click()
    expect(page.locator("#patching-progress")).to_contain_text("Done: 60 patches")


def tab_of(service: Service) -> Patching:
    with gr.Blocks():
        tab = Patching(Desk(service))
        tab.corruption()
        tab.sweeping()
        tab.results()
    return tab


def last(steps: Iterator[list[Any]]) -> list[Any]:
    found: list[Any] = []
    for found in steps:
        json.dumps(found, allow_nan=False)
    return found


def test_an_edited_picture(probe: lp.Probe, clean: lp.Case) -> None:
    service = Service(probe)
    edited = patching.recoloured(clean, mask_of_the_object(), (220, 40, 40))
    other = probe.case(edited.images[0], COLOUR.prompt)
    session = Session()
    for case, origin in ((clean, None), (other, 0)):
        question = service.question(case)
        turn = Turn(question.prompt, question.answer, question.images)
        session.add(Asked(question, turn, origin=origin))
    tab = tab_of(service)
    for number, rival in ((1, 0), (0, 1)):
        session.look_at(number)
        ways = tab.draw(session, "erase")[2]["choices"]
        assert ways[-1][1] == f"asked {rival}"
    found = last(
        tab.sweep(session, "asked 1", "#000000", "attribution", "language", ["residual", "mlp"])
    )
    assert found[0] == "Done: 3 forward and 1 backward passes."
    changed = (np.asarray(clean.images[0]) != np.asarray(other.images[0])).any(-1)
    groups = patching.groups_of(clean, patching.difference(clean, other.images))
    under = sorted({3 + (y // SIDE) * 12 + x // SIDE for y, x in np.argwhere(changed).tolist()})
    assert groups["region"] == under
    wanted = patching.attribution_patching(
        clean,
        patching.another_image(clean, other.images[0]),
        sites=("residual", "mlp"),
        positions={"region": under},
    )
    effects = session.shelf["patching"].effects
    torch.testing.assert_close(effects.of(position="region"), wanted.of(position="region"))
    # Another word, another sweep: what was found is no answer to it.
    session.kind = "logprob"
    assert tab.draw(session, "asked 1")[-2:] == ["", None]
    service.close()


def test_what_is_wrong_is_said(probe: lp.Probe, clean: lp.Case) -> None:
    service = Service(probe)
    session = Session()
    question = service.question(clean)
    session.add(Asked(question, Turn(question.prompt, question.answer, question.images)))
    tab = tab_of(service)
    for wrong, match in (
        (("erase", "#000000", "activation", "language", []), "nothing is to be patched"),
        (("melt", "#000000", "activation", "language", ["mlp"]), "'melt'"),
        (("recolour", "red", "activation", "language", ["mlp"]), "New colour is 'red'"),
        (("noise", "#000000", "activation", "vision", ["mlp"]), "behind the vision encoder"),
        (("blur", "#000000", "guess", "language", ["mlp"]), "'guess'"),
    ):
        with pytest.raises(InputError, match=match):
            last(tab.sweep(session, *wrong))
    assert tab.draw(Session(), None)[0] is None
    assert colour("#0a10ff", "it") == colour("rgba(10.2, 16, 255, 1)", "it") == (10, 16, 255)
    with pytest.raises(InputError):
        colour("rgb(1, 2, 300)", "it")
    service.close()


@pytest.mark.parametrize("families", [("llava_next", "blip-2", "florence2")])
def test_other_families(families: tuple[str, ...]) -> None:
    """Tiles, queries, an encoder–decoder: what cannot be shown is told, and the rest stands."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("families.py")), *families],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    told = {row["name"]: row for row in map(json.loads, run.stdout.splitlines())}
    assert set(told) == set(families)
    assert told["llava_next"]["groups"] == ["region", "as many others", "rest of the image", "question", "last"]  # fmt: skip
    assert told["llava_next"]["grids"] > 1
    assert told["llava_next"]["labels"] > 0
    # Queries: the region is corrupted by its pixels, and all of them are patched.
    assert told["blip-2"]["groups"] == ["image", "question", "last"]
    assert told["blip-2"]["queries"] == 8
    # The image lies in the encoder, of which the decoder's layers have no position.
    assert told["florence2"]["groups"] == ["last"]
    assert "take removal" in told["florence2"]["beliefs"]
    assert all(row["contributions"] == row["answer"] for row in told.values())
