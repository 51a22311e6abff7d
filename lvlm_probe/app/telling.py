"""Short pieces of HTML that several tabs show: how far a job is, and what could not be drawn."""

from __future__ import annotations

import html

from lvlm_probe.app.jobs import Progress

__all__ = ["bar", "note", "table"]

QUIET = "opacity: .75; font-size: .93em"
CELL = "border: 0; border-bottom: 1px solid #8885; padding: 3px 10px; font-variant-numeric: tabular-nums"


def bar(progress: Progress | None, what: str) -> str:
    """How far a job is.

    Args:
        progress: Of the job; None before it began.
        what: It does.
    """
    if progress is None:
        return _bar("", html.escape(what))
    known = f' value="{progress.done}" max="{progress.total}"' if progress.total else ""
    return _bar(known, f"{html.escape(what)}: {progress}")


def _bar(known: str, text: str) -> str:
    return (
        f'<div role="status"><progress{known} style="width: 100%; height: 10px"></progress>'
        f'<div style="{QUIET}">{text}</div></div>'
    )


def note(text: str) -> str:
    """A line in place of what cannot be shown, or beside what is; empty for no text."""
    return f'<p style="{QUIET}">{html.escape(text)}</p>' if text else ""


def table(columns: list[str], rows: list[list[str]], height: str | None = None) -> str:
    """A table whose first column names its rows.

    Args:
        columns: Their heads.
        rows: Of cells that are HTML already.
        height: Most of it, as CSS; it scrolls beyond.
    """
    quiet = f"{CELL}; font-weight: 400; opacity: .75"
    head = "".join(f"<th scope='col' style='{quiet}'>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr style='border: 0'><th scope='row' style='{CELL}'>{row[0]}</th>"
        + "".join(f"<td style='{CELL}'>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    scrolls = "overflow-x: auto" if height is None else f"max-height: {height}; overflow: auto"
    return (
        f"<div style='{scrolls}'><table style='border: 0; margin: .3rem 0'><thead><tr style='border: 0'>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
