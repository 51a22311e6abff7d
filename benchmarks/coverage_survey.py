"""A row for each architecture, each in a process of its own: what `benchmarks/coverage.py` runs."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from coverage_page import HEADINGS, cells, page
from coverage_row import Row, blank, noted, send
from rich.console import Console

HERE = Path(__file__).parent


@dataclass
class _Job:
    process: Any
    pipe: Connection
    row: Row
    ends: float


def survey(names: Sequence[str], jobs: int = 2, limit: float = 180.0) -> Iterator[Row]:
    """A row for each, as they come in.

    Args:
        names: Of ``zoo.NAMES``.
        jobs: Processes at a time.
        limit: Seconds for each.
    """
    # Imports take longer than most models: they are done once, in the process that all others are forked from. That one
    # does not take over sys.path.
    context = multiprocessing.get_context("forkserver")
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(["zoo.warm"])
    imports = context.Process(target=os.getpid)
    imports.start()
    imports.join()  # nobody's seconds
    waiting, running = list(names), list[_Job]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, waiting.pop(0), limit))
            wait([job.pipe for job in running], timeout=1)
            for job in [job for job in running if _done(job, limit)]:
                running.remove(job)
                yield job.row
    finally:
        for job in running:
            job.process.kill()


def _start(context: Any, name: str, limit: float) -> _Job:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(name, sender))
    process.start()
    sender.close()
    return _Job(process, receiver, blank(name), time.monotonic() + limit)


def _done(job: _Job, limit: float) -> bool:
    """Take what the job has sent; whether it has ended, by itself or now."""
    try:
        while job.pipe.poll():
            job.row = job.pipe.recv()
    except EOFError:
        job.process.join()
        if job.process.exitcode:
            noted(job.row, f"its process ended with {job.process.exitcode}")
        return True
    if time.monotonic() < job.ends:
        return False
    job.process.kill()
    job.process.join()
    job.row["seconds"] = limit
    noted(job.row, f"stopped after {limit:.0f} s")
    return True


WIDTHS = (24, 9, 12, 6, 8, 6, 5, 20, 6, 8, 4)


def main() -> None:
    """Print rows as they come, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="all of them by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for each model")
    parser.add_argument("--json", type=Path, help="file for one object a model")
    parser.add_argument("--out", type=Path, help="folder for models.md")
    given = parser.parse_args()
    import zoo

    unknown = set(given.names) - set(zoo.NAMES)
    if unknown:
        parser.error(
            f"no architecture {', '.join(sorted(unknown))}; there are {', '.join(zoo.NAMES)}"
        )
    console = Console(soft_wrap=True, markup=False, highlight=False)
    rows: list[Row] = []
    console.print(_line(HEADINGS), style="bold")
    for row in survey(given.names or zoo.NAMES, given.jobs, given.limit):
        rows.append(row)
        right = row["captured"] and row["gradients"] and row["atlas"] == "verified"
        console.print(_line(cells(row)), style="green" if right else "yellow")
        if row["notes"]:
            console.print(f"    {row['notes']}", style="dim")
    rows.sort(key=lambda row: row["name"])
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    if given.out:
        (given.out / "models.md").write_text(page(rows))


def _line(told: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(told, WIDTHS, strict=True)).rstrip()
