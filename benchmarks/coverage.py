"""What works with each architecture: every one that ``AutoModelForImageTextToText`` knows, one row each.

    python benchmarks/coverage.py [names] [--jobs N] [--limit SECONDS] [--json FILE] [--out FOLDER]

Each model runs in a process of its own; a crash or a model that takes too long is a row, too.
"""

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

import coverage_row
from rich.console import Console

HERE = Path(__file__).parent
Row = dict[str, Any]


@dataclass
class _Job:
    process: Any
    pipe: Connection
    row: Row
    ends: float


def survey(names: Sequence[str], jobs: int = 2, limit: float = 180) -> Iterator[Row]:
    """A row for each, as they come in.

    Args:
        names: Of :data:`zoo.NAMES`.
        jobs: Processes at a time.
        limit: Seconds for each.
    """
    context = multiprocessing.get_context("forkserver")
    # The server that processes are forked from does not take over sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE), os.environ.get("PYTHONPATH")))
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(["zoo.warm"])
    waiting, running = list(names), []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_start(context, waiting.pop(0), limit))
        wait([job.pipe for job in running], timeout=1)
        for job in list(running):
            if _done(job, limit):
                running.remove(job)
                yield job.row


def _start(context: Any, name: str, limit: float) -> _Job:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=coverage_row.send, args=(name, sender))
    process.start()
    sender.close()
    return _Job(process, receiver, coverage_row.blank(name), time.monotonic() + limit)


def _done(job: _Job, limit: float) -> bool:
    try:
        while job.pipe.poll():
            job.row = job.pipe.recv()
    except EOFError:
        job.process.join()
        if job.process.exitcode:
            _note(job.row, f"the process ended with {job.process.exitcode}")
        return True
    if time.monotonic() < job.ends:
        return False
    job.process.kill()
    job.process.join()
    _note(job.row, f"stopped after {limit:.0f} s")
    return True


def _note(row: Row, text: str) -> None:
    row["notes"] = "; ".join(filter(None, (row["notes"], text)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=180)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    import zoo

    names = given.names or zoo.NAMES
    console = Console()
    rows = []
    for row in survey(names, given.jobs, given.limit):
        rows.append(row)
        console.print(
            f"{row['name']:24} {row['inputs'][:4]} b{row['builds']:d} r{row['runs']:d} c{row['captured']:d} g{row['gradients']:d} "
            f"{row['atlas']:10} {row['relevancy']:8} e{row['eager']} {row['found']}/{row['executed']}/{row['watched']} "
            f"{row['output_error']} {row['weight_error']} {row['gradient_error']} rate {row['rate']} {row['percentile']} m{row['marked']} {row['seconds']} {row['notes'][:400]}",
            markup=False,
            soft_wrap=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
