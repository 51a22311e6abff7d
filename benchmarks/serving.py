"""How quick is the app, and does it keep its sessions apart?

    python benchmarks/serving.py [--sessions 8] [--questions 20] [--rounds 5] [--out docs]

The app runs in a process of its own, ``lvlm-probe app``, and is used through headless Chromium as people use it.

*start*: from the command to the page, and to the first answer shown in it. *views*: from a click on a word of a caption
to its map on the screen, by the page's own clock; in the first round each map is computed from the question's trace, in
later ones it is there already. *sessions*: that many pages at once, each asks that many questions, about scenes that no
other page has; every answer and the largest score of every map are held against the library's own. The server's memory
is read after five questions a page to warm up, with those pages closed, and after the last page closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facts import facts, signature
from playwright.async_api import Browser, Page, async_playwright, expect
from rich.console import Console

import lvlm_probe as lp
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.demo.questions import held_out

TIMEOUT = 10 * 60_000
KINDS = ("colour", "shape", "count", "exists-yes")
SEED = 711
console = Console()
expect.set_options(timeout=TIMEOUT)


@dataclass(frozen=True)
class Asked:
    """A question that a page will ask, and what the library says to it."""

    path: Path
    prompt: str
    answer: str
    word: str
    highest: float


def prepare(probe: lp.Probe, folder: Path, count: int) -> list[Asked]:
    """Questions about as many scenes."""
    found: list[Asked] = []
    each = -(-count // len(KINDS))
    for kind in KINDS:
        for scene, question in held_out(kind, each, seed=SEED):
            path = folder / f"{kind}-{len(found):03}.png"
            scene.image.save(path)
            case = probe.case(path, question.prompt)
            attribution = case.explain("relevancy")
            highest = float(attribution.image(0).abs().max())
            found.append(
                Asked(path, question.prompt, case.answer, attribution.word.strip(), highest)
            )
    # Pages shall not all ask the same kind at the same time.
    return [found[(n * each + n // len(KINDS)) % len(found)] for n in range(count)]


class Server:
    """``lvlm-probe app`` in a process of its own."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        command = [str(Path(sys.executable).with_name("lvlm-probe")), "app", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = ""
        while not self.url:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("the app ended before it served a page")
            told = re.search(r"http://\S+", line)
            self.url = told.group() if told else ""
        self.ready = time.monotonic() - self.start

    def memory(self) -> float:
        """Resident, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found is not None
        return int(found.group(1)) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


async def opened(chromium: Browser, url: str) -> Page:
    """A page of a person of their own."""
    context = await chromium.new_context(viewport={"width": 1300, "height": 1000})
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT)
    await page.goto(url)
    await page.locator("#line textarea").wait_for()
    return page


async def ask(page: Page, number: int, prompt: str, path: Path) -> str:
    """The answer."""
    # The picture of the question before has left the line when its answer shows, or soon after.
    await expect(page.locator("#line img")).to_have_count(0)
    await page.locator("#line input[type=file]").set_input_files(str(path))
    await expect(page.locator("#line img")).to_have_count(1)
    await page.locator("#line textarea").fill(prompt)
    await page.locator("#line textarea").press("Enter")
    turns = page.locator("#turns input")
    await expect(turns).to_have_value(re.compile(rf"^{number}\. {re.escape(prompt)} → .+"))
    return (await turns.input_value()).rsplit(" → ", 1)[1]


CLICK = """async (index) => {
    const button = document.querySelector(`#answer button[data-index="${index}"]`);
    const other = document.querySelector('#answer button[aria-pressed=true]');
    const wanted = `“${button.textContent.trim()}”`;
    const caption = () => document.querySelector('#chat-map .lv-caption')?.textContent ?? '';
    const ready = () => document.querySelector('#chat-map canvas')?.dataset.ready === 'true';
    const from = performance.now();
    button.click();
    while (!(caption().endsWith(wanted) && ready())) {
        if (performance.now() - from > 20000) throw new Error(`no map of ${wanted}: ${caption()}`);
        await new Promise(requestAnimationFrame);
    }
    return performance.now() - from;
}"""


async def views(chromium: Browser, url: str, rounds: int) -> dict[str, Any]:
    """Milliseconds from click to map."""
    example = next(e for e in load_examples() if e.kind == "caption")
    page = await opened(chromium, url)
    await ask(page, 1, example.prompt, example.path)
    await page.locator("#chat-map canvas[data-ready=true]").wait_for()
    await page.wait_for_timeout(3000)
    buttons = page.locator("#answer button")
    texts = await buttons.all_inner_texts()
    # Neighbours have different words: else the map's caption would not tell that it changed.
    order = [n for n in range(1, len(texts)) if texts.count(texts[n]) == 1]
    times: list[list[float]] = []
    for _ in range(rounds):
        times.append([await page.evaluate(CLICK, index) for index in order])
    await page.context.close()
    first, later = times[0], [t for row in times[1:] for t in row]
    return {"words": len(order), "first": told(first), "cached": told(later)}


async def sessions(
    chromium: Browser, server: Server, questions: Sequence[Sequence[Asked]]
) -> dict[str, Any]:
    """Pages at once."""
    wrong: list[str] = []
    seconds: list[float] = []

    async def one(mine: Sequence[Asked]) -> int:
        page = await opened(chromium, server.url)
        for number, asked in enumerate(mine, start=1):
            start = time.monotonic()
            answer = await ask(page, number, asked.prompt, asked.path)
            seconds.append(time.monotonic() - start)
            canvas = page.locator("#chat-map canvas[data-ready=true]")
            await expect(page.locator("#chat-map .lv-caption")).to_contain_text(f"“{asked.word}”")
            try:
                await expect(canvas).to_have_attribute(
                    "data-high", re.compile("^" + re.escape(str(asked.highest)[:6])), timeout=60_000
                )
            except AssertionError:
                high = await canvas.get_attribute("data-high")
                wrong.append(f"{asked.path.name}: highest {high}, not {asked.highest:.6g}")
            if answer != asked.answer:
                wrong.append(f"{asked.path.name}: {answer!r}, not {asked.answer!r}")
        await page.context.close()
        return len(mine)

    # As many as fill what the app keeps at most.
    warm = [mine[:5] for mine in questions]
    await asyncio.gather(*(one(mine) for mine in warm))
    await asyncio.sleep(5)
    before, start = server.memory(), time.monotonic()
    seconds.clear()
    answered = sum(await asyncio.gather(*(one(mine) for mine in questions)))
    took = time.monotonic() - start
    await asyncio.sleep(5)
    return {
        "sessions": len(questions),
        "answered": answered,
        "asked": sum(map(len, questions)),
        "wrong": wrong,
        "seconds": took,
        "wait": told([1000 * s for s in seconds]),
        "memory_before": before,
        "memory_after": server.memory(),
    }


def told(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, of milliseconds."""
    ordered = sorted(times)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "count": len(ordered),
    }


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything."""
    probe = lp.Probe.from_pretrained("demo")
    each = options.questions
    asked = prepare(probe, folder, options.sessions * each)
    shares = [asked[n * each : (n + 1) * each] for n in range(options.sessions)]
    del probe
    server = Server()
    try:
        async with async_playwright() as play:
            chromium = await play.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = await opened(chromium, server.url)
            example = load_examples()[0]
            await ask(page, 1, example.prompt, example.path)
            first = time.monotonic() - server.start
            await page.context.close()
            found = {
                "start": {"page": server.ready, "first_answer": first},
                "views": await views(chromium, server.url, options.rounds),
                "sessions": await sessions(chromium, server, shares),
            }
            await chromium.close()
    finally:
        server.stop()
    return {**found, **facts()}


def page_of(found: dict[str, Any]) -> str:
    """The page of the documentation."""
    start, view, many = found["start"], found["views"], found["sessions"]
    grown = 100 * (many["memory_after"] / many["memory_before"] - 1)
    return f"""# The app: figures

Written by `python benchmarks/serving.py`; do not edit. The demo model, headless Chromium on the same machine.

| what | figure |
|---|---|
| from the command to the page | {start["page"]:.1f} s |
| to the first answer in it | {start["first_answer"]:.1f} s |
| click on a word to its map, computed from the trace ({view["first"]["count"]} clicks) | median {view["first"]["median"]:.0f} ms, p95 {view["first"]["p95"]:.0f} ms |
| the same, cached ({view["cached"]["count"]} clicks) | median {view["cached"]["median"]:.0f} ms, p95 {view["cached"]["p95"]:.0f} ms |
| {many["sessions"]} pages at once: questions answered | {many["answered"]} of {many["asked"]} in {many["seconds"]:.0f} s |
| answers or maps that were not the library's own for that picture | {len(many["wrong"])} |
| wait for an answer meanwhile | median {many["wait"]["median"] / 1000:.1f} s, p95 {many["wait"]["p95"] / 1000:.1f} s |
| the server's memory, before and after | {many["memory_before"]:.0f} MB, {many["memory_after"]:.0f} MB ({grown:+.1f} %) |

{signature(found)}
"""


def main() -> None:
    """Measure, print, and write a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options, Path(folder)))
    console.print_json(data=found)
    if options.out is not None:
        (options.out / "app-speed.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (options.out / "app-speed.md").write_text(page_of(found), encoding="utf-8")


if __name__ == "__main__":
    main()
