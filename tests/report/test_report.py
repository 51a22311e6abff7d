"""The report, opened from disk with the network off: what words, layers, recipes and heads show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import test_mllama
import test_qformer
import tiny
import torch
from browsing import needs_browser, pixel, quiet_page
from matplotlib import colormaps
from playwright.sync_api import Browser, Locator, Page

import lvlm_probe as lp
from lvlm_probe.demo.scenes import make_scene
from lvlm_probe.errors import OutputError, RecipeError
from lvlm_probe.recipes import contribution
from lvlm_probe.report import report_html, write_report
from lvlm_probe.report.document import document
from lvlm_probe.report.packing import packed, unpacked

mllama = test_mllama.case


@dataclass
class Demo:
    """A scene described object by object, the box of its purple circle, and the report."""

    trace: lp.Trace
    told: contribution.Grounding
    box: tuple[int, int, int, int]
    path: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    from lvlm_probe.demo.examples import load_examples

    folder = tmp_path_factory.mktemp("report")
    probe = lp.Probe.from_pretrained("demo")
    example = next(e for e in load_examples() if e.kind == "caption")
    case = probe.case(example.path, example.prompt)
    case.record(path=folder / "t.safetensors")
    trace, told = lp.load_trace(folder / "t.safetensors"), contribution.grounding(case)
    path = write_report(trace, folder / "report.html", grounding=told)
    assert example.seed is not None
    scene = make_scene(example.seed)
    there = next(n for n, thing in enumerate(scene.objects) if thing.name == "purple circle")
    box = example.evidence_boxes[example.evidence.index(there)]
    return Demo(trace, told, box, path)


def opened(page: Page, path: Path, anchor: str = "") -> Page:
    page.goto(f"file://{path}{anchor}")
    if page.locator("#maps canvas").count():
        page.wait_for_selector("#maps canvas[data-ready=true]")
    return page


@pytest.fixture
def page(chromium: Browser, demo: Demo) -> Iterator[Page]:
    with quiet_page(chromium, viewport={"width": 1280, "height": 900}, color_scheme="light") as new:
        yield opened(new, demo.path)


def word(page: Page, index: int) -> Locator:
    return page.locator(f"#answer button[data-index='{index}']")


def brightness(page: Page, boxes: list[tuple[int, int, int, int]]) -> list[float]:
    """Mean redness of the map over each box of the 96 × 96 picture, which is grey beneath."""
    canvas = page.locator("#maps canvas").first
    return [
        float(
            np.mean(
                [pixel(canvas, x / 96, y / 96)[0] for x in range(a, c, 3) for y in range(b, d, 3)]
            )
        )
        for a, b, c, d in boxes
    ]


# ---- what is shown


@needs_browser
def test_a_focused_word_shows_its_map_at_the_evidence(page: Page, demo: Demo) -> None:
    purple = demo.trace.answer_tokens.index(" purple")
    word(page, 0).focus()
    for _ in range(purple):
        page.keyboard.press("ArrowRight")
    left, top, right, bottom = demo.box
    status = page.locator("#status").inner_text()
    found = re.fullmatch(
        r"“purple”: relevancy, strongest at x (\d+), y (\d+) \(([\d.]+)\)\.", status
    )
    assert found
    assert left <= int(found[1]) < right
    assert top <= int(found[2]) < bottom
    told = demo.trace.explain("relevancy", purple)
    assert float(found[3]) == pytest.approx(float(told.pixels().max()), rel=0.01)
    # The object's half of the map is as bright as nowhere else.
    there, elsewhere = brightness(page, [demo.box, (48, 0, 96, 48)])
    assert there > 1.5 * elsewhere
    assert word(page, purple).get_attribute("aria-pressed") == "false"
    page.keyboard.press("Enter")
    assert word(page, purple).get_attribute("aria-pressed") == "true"
    assert page.url.endswith(f"#word={purple}&recipe=relevancy")


@needs_browser
def test_every_pixel_of_the_map_has_its_score(page: Page, demo: Demo) -> None:
    word(page, 2).click()
    pixels = demo.trace.explain("relevancy", 2).pixels().numpy()
    picture = np.asarray(demo.trace.images[0].convert("L"), np.float64)
    canvas = page.locator("#maps canvas")
    for x, y in ((3, 3), (20, 68), (50, 50), (70, 70), (90, 90), (30, 75)):
        colour = 255 * np.array(colormaps["inferno"](pixels[y, x] / pixels.max())[:3])
        wanted = 0.6 * colour + 0.4 * picture[y, x]
        assert pixel(canvas, (x + 0.5) / 96, (y + 0.5) / 96) == pytest.approx(wanted, abs=6)


@needs_browser
def test_pointing_is_a_look_and_a_click_stays(page: Page) -> None:
    word(page, 5).hover()
    assert page.locator("#numbers-of").inner_text().lower() == "“yellow” in numbers"
    page.locator("h1").hover()
    assert page.locator("#numbers-of").inner_text().lower() == "“a” in numbers"
    word(page, 5).click()
    page.locator("h1").hover()
    assert page.locator("#numbers-of").inner_text().lower() == "“yellow” in numbers"


@needs_browser
def test_slider_shows_each_layer(page: Page, demo: Demo) -> None:
    word(page, 1).click()
    slider = page.get_by_role("slider", name="Layer")
    assert slider.get_attribute("aria-valuetext") == "whole result"
    slider.focus()
    told = demo.trace.explain("relevancy", 1)
    canvas = page.locator("#maps canvas")
    seen = []
    for layer in (3, 2, 1, 0):
        page.keyboard.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == f"after layer {layer} of 4"
        high = float(canvas.get_attribute("data-high") or 0)
        assert high == pytest.approx(float(told.pixels(0, layer).max()), rel=0.01)
        seen.append(high)
    assert len(set(seen)) == 4


@needs_browser
def test_recipes_are_switched(page: Page, demo: Demo) -> None:
    word(page, 1).click()
    canvas = page.locator("#maps canvas")
    for name in ("attention", "rollout", "relevancy"):
        page.get_by_role("radio", name=name).check(force=True)
        high = float(canvas.get_attribute("data-high") or 0)
        assert high == pytest.approx(float(demo.trace.explain(name, 1).pixels().max()), rel=1e-3)
        assert f"purple”: {name}, strongest" in page.locator("#status").inner_text()
    page.get_by_role("radio", name="rollout").check(force=True)
    assert not page.get_by_label("Layer", exact=True).is_visible()  # it keeps no scores per layer
    assert "favours early positions" in page.locator("#recipe-about").inner_text()


@needs_browser
def test_a_head_is_picked_and_left(page: Page, demo: Demo) -> None:
    word(page, 1).click()
    rows = demo.trace.attention("language", 2, [demo.trace.layout.answer_start])[:, 0]
    cells = rows[:, demo.trace.layout.image_positions]
    picked = page.locator("#heads td[data-row='2'][data-column='1']")
    assert float(picked.get_attribute("data-value") or 0) == pytest.approx(
        float(cells[1].sum()), rel=1e-3
    )
    picked.focus()
    page.keyboard.press("Enter")
    canvas = page.locator("#maps canvas")
    assert float(canvas.get_attribute("data-high") or 0) == pytest.approx(
        float(cells[1].max()), rel=0.01
    )
    assert "attention, layer 2, head 1" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Leave layer 2, head 1").click()
    assert "relevancy" in page.locator("#status").inner_text()
    assert not page.locator("#back").is_visible()


@needs_browser
def test_numbers_are_those_of_the_recipe(page: Page, demo: Demo) -> None:
    word(page, 1).click()

    def number(name: str) -> float:
        return float(page.locator(f"dd[data-name='{name}']").inner_text().rstrip(" %"))

    told = demo.told
    assert told.llr is not None
    assert number("llr") == pytest.approx(float(told.llr[1]), rel=0.01)
    assert number("contribution sum") == pytest.approx(float(told.contribution["sum"][1]), rel=0.01)
    assert number("probability") == pytest.approx(
        100 * float(told.beliefs.probability[1]), rel=0.01
    )
    ratio = float(told.layers["sum"][1, 0])
    cell = page.locator("#layers td[data-row='0'][data-column='1']")
    assert float(cell.get_attribute("data-value") or 0) == pytest.approx(
        ratio / (1 + ratio), rel=1e-3
    )
    page.locator("#layers td[data-row='1'][data-column='2']").click()
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "after layer 1 of 4"
    assert "“circle”" in page.locator("#status").inner_text()


@needs_browser
def test_an_address_leads_back(page: Page, demo: Demo) -> None:
    opened(page, demo.path, "#word=6&recipe=attention&layer=1")
    page.reload()
    assert page.locator("#status").inner_text().startswith("“triangle”: attention after layer 1,")
    opened(page, demo.path, "#word=99&recipe=nonsense&layer=x&head=9.9")
    page.reload()
    assert page.locator("#status").inner_text().startswith("“a”: relevancy,")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)

    def contrast(selector: str) -> float:
        shades = page.locator(selector).first.evaluate(
            "e => { const c = getComputedStyle(e).color; let b = e;"
            " while (/, 0\\)|transparent/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;"
            " return [c, getComputedStyle(b).backgroundColor].map(s => s.match(/[\\d.]+/g).slice(0, 3).map(Number)); }"
        )
        linear = [
            [(v / 255 / 12.92) if v < 10.3 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in s]
            for s in shades
        ]
        light, dark = sorted(
            (0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True
        )
        return (light + 0.05) / (dark + 0.05)

    ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    for selector in (
        "h1",
        "h2",
        ".quiet",
        "#status",
        "dt",
        "dd.note",
        "footer",
        "#theme",
        ".lv-readout",
    ):
        assert contrast(selector) >= 4.5, selector
    page.locator("#theme").click()
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") != ground
    assert contrast("h1") >= 4.5
    assert contrast(".quiet") >= 4.5


@needs_browser
def test_for_keyboards_and_screen_readers(page: Page) -> None:
    assert page.locator("html").get_attribute("lang") == "en"
    assert all(image.get_attribute("alt") for image in page.locator("img").all())
    assert page.locator("h1").count() == 1
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, canvas, [role=grid], [role=group]')].filter(e =>"
        " e.offsetParent && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    )
    assert nameless == 0
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "() => { const e = document.activeElement;"
                " return e.closest('#answer, #recipes, #heads, #layers, details')?.id || e.id || e.className || e.tagName; }"
            )
        )
    assert order == [
        "theme",
        "answer",
        "recipes",
        "lv-canvas",
        "lv-toggle",
        "layer",
        "heads",
        "layers",
    ]


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_page(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


# ---- traces that lack something


@needs_browser
def test_hostile_text_stays_text(chromium: Browser, case: lp.Case, tmp_path: Path) -> None:
    trace = case.record()
    hostile = "</script><script>window.hacked = 1</script><!-- \u2028 <img src=x onerror='window.hacked = 1'>"
    trace.meta = {
        **trace.meta,
        "prompt": hostile,
        "tokens": [
            hostile if n >= trace.layout.answer_start else w for n, w in enumerate(trace.words)
        ],
    }
    with quiet_page(chromium) as page:
        opened(page, write_report(trace, tmp_path / "hostile.html"))
        assert page.locator("h1").inner_text() == " ".join(hostile.split())
        assert word(page, 1).inner_text().startswith("</script><script>")
        assert page.evaluate("window.hacked") is None
        assert page.locator("script").count() == 2


@needs_browser
def test_without_gradients_pictures_and_logits(chromium: Browser, tmp_path: Path) -> None:
    probe = lp.Probe(tiny.llava(), tiny.processor())
    made = probe.case(tiny.picture(), "what is this", answer="a red circle")
    case = probe.case_from_inputs(made.inputs, made.layout.answer_start)
    trace = case.record(lp.Capture(targets=(), logits=False))
    with quiet_page(chromium) as page:
        opened(page, write_report(trace, tmp_path / "bare.html"))
        assert page.get_by_role("radio").evaluate_all(
            "all => all.map(e => e.labels[0].textContent)"
        ) == [
            "attention",
            "rollout",
        ]
        assert page.locator(".lv-caption").inner_text().startswith("The picture was not recorded.")
        assert page.locator("canvas").get_attribute("data-shown") == "heat"
        assert not page.locator("#numbers-part").is_visible()
        page.get_by_text("About this trace").click()
        told = page.locator("details").inner_text()
        assert "relevancy: the trace holds no gradient of any answer token" in told
        assert "probabilities: the trace holds no logits" in told


@needs_browser
def test_several_images_share_a_scale(chromium: Browser, probe: lp.Probe, tmp_path: Path) -> None:
    pictures = [tiny.picture(1), tiny.picture(2, (60, 30))]
    trace = probe.case(pictures, "what is this", answer="a red circle").record()
    told = trace.explain("relevancy", 0)
    with quiet_page(chromium) as page:
        opened(page, write_report(trace, tmp_path / "two.html"))
        maps = page.locator("#maps canvas")
        assert maps.count() == 2
        top = max(float(told.pixels(n).max()) for n in (0, 1))
        for canvas in maps.all():
            assert float(canvas.get_attribute("data-high") or 0) == pytest.approx(top, rel=1e-3)
        assert "of image " in page.locator("#status").inner_text()


@needs_browser
def test_queries_and_cross_attention(chromium: Browser, mllama: lp.Case, tmp_path: Path) -> None:
    probe = lp.Probe(test_qformer.build("blip-2"))
    start = test_qformer.QUERIES + test_qformer.TEXT - 3
    queries = probe.case_from_inputs(test_qformer.inputs("blip-2"), start, tiny.picture())
    for name, case in (("queries", queries), ("across", mllama)):
        trace = case.record()
        with quiet_page(chromium) as page:
            opened(page, write_report(trace, tmp_path / f"{name}.html"))
            canvas = page.locator("#maps canvas")
            told = trace.explain("relevancy", 0)
            assert canvas.get_attribute("data-shown") == "heat"  # relevancy goes on to the patches
            high = float(canvas.get_attribute("data-high") or 0)
            assert high == pytest.approx(float(told.pixels().max()), rel=1e-3)
            page.get_by_role("radio", name="attention").check(force=True)
            if name == "across":
                high = float(canvas.get_attribute("data-high") or 0)
                there = trace.explain("attention", 0).pixels().max()
                assert high == pytest.approx(float(there), rel=1e-3)
                page.locator("#heads td[data-row='1'][data-column='0']").click()
                assert (
                    "attention, layer 1 ×, head 0, strongest"
                    in page.locator("#status").inner_text()
                )
            else:
                assert canvas.get_attribute("data-shown") == "picture"
                caption = page.locator(".lv-caption").inner_text()
                assert "No map: the visual tokens of image 0 are queries" in caption


@needs_browser
def test_no_image_at_all(chromium: Browser, probe: lp.Probe, tmp_path: Path) -> None:
    trace = probe.case([], "what is this", answer="a red circle").record()
    with quiet_page(chromium) as page:
        opened(page, write_report(trace, tmp_path / "blind.html"))
        assert "There is no picture" in page.locator("main").inner_text()
        word(page, 1).click()
        scores = page.locator("#question span").evaluate_all(
            "all => all.map(e => Number(e.dataset.score))"
        )
        told = trace.explain("relevancy", 1)
        assert scores == pytest.approx(told.tokens[: len(scores)].tolist(), abs=1e-4)


@needs_browser
def test_several_numbers_of_one_word(chromium: Browser, case: lp.Case, tmp_path: Path) -> None:
    targets = (lp.Target(1), lp.Target(1, "logprob"), lp.Target(0, count=2))
    trace = case.record(lp.Capture(targets=targets))
    with quiet_page(chromium) as page:
        opened(page, write_report(trace, tmp_path / "several.html"), "#word=1")
        choice = page.get_by_label("What is explained")
        assert sorted(choice.locator("option").all_inner_texts()) == sorted(
            t.describe() for t in targets
        )
        canvas = page.locator("#maps canvas")
        for target in targets:
            choice.select_option(label=target.describe())
            high = float(canvas.get_attribute("data-high") or 0)
            assert high == pytest.approx(
                float(trace.explain("relevancy", target).pixels().max()), rel=1e-3
            )
        word(page, 2).click()
        assert "relevancy was not recorded for this word" in page.locator("#status").inner_text()


# ---- the file


def test_one_small_file_that_fetches_nothing(demo: Demo) -> None:
    text = demo.path.read_text("utf-8")
    assert len(text) < 5_000_000
    assert (
        re.findall(
            r"(?:src|href)\s*=\s*[\"']?(?!data:)\S+",
            re.sub(r"<script.*?</script>", "", text, flags=re.S),
        )
        == []
    )
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_scores_survive_packing() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 33) * torch.tensor([[1e-8], [1.0], [1e6], [0.0]])
    for bits in (8, 16):
        back = unpacked(packed(scores, bits))
        step = (scores.amax(1) - scores.amin(1)) / (2**bits - 1)
        # Ends are written with seven digits.
        assert (
            (back - scores).abs() <= 0.5 * step[:, None] + 1e-6 * scores.abs().amax(1)[:, None]
        ).all()
    json.dumps(packed(torch.tensor([[float("nan"), 1.0]])), allow_nan=False)


def test_a_budget_leaves_layers_and_heads_out(demo: Demo) -> None:
    told = document(demo.trace, budget=40_000)
    (relevancy,) = [r for r in told["recipes"] if r["name"] == "relevancy"]
    assert len(relevancy["layers"]) < 4
    assert relevancy["layers"][-1] == 3
    results = told["heads"]["results"]
    assert 1 <= len(results[0]["which"]) < 16
    totals = unpacked(results[0]["totals"])
    kept = [float(totals[layer, head]) for layer, head in results[0]["which"]]
    assert min(kept) >= sorted(totals.flatten().tolist())[-len(kept)] - 1e-5
    assert len(report_html(demo.trace, budget=40_000)) < len(report_html(demo.trace))


def test_what_cannot_be_written(demo: Demo, case: lp.Case, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'shapley' runs the model"):
        report_html(demo.trace, recipes=["shapley"])
    with pytest.raises(OutputError, match=r"choose a folder that you may write to"):
        write_report(demo.trace, tmp_path / "no" / "report.html")
    told = contribution.grounding(case)
    with pytest.raises(RecipeError, match=r"the grounding is of the answer"):
        report_html(demo.trace, grounding=told)
