"""What a self-test found: one line a check, and the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

__all__ = ["Check", "CheckReport", "Status", "judged"]

Status = Literal["passed", "failed", "warned", "skipped"]

_COLOURS: Mapping[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "warned": "yellow",
    "skipped": "dim",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: As docs/check.md lists it.
        status: ``"warned"`` where nothing is wrong with what is captured, but the user should know; ``"skipped"`` where
            it could not be looked at, which ``detail`` gives the reason for.
        detail: In words: what was found, and where.
        value: The number that was judged, if there is one.
        limit: What it was held against.
    """

    name: str
    status: Status
    detail: str
    value: float | None = None
    limit: float | None = None


def judged(name: str, value: float, limit: float, detail: str) -> Check:
    """Passed if ``value`` is at most ``limit``; NaN fails."""
    return Check(name, "passed" if value <= limit else "failed", detail, value, limit)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :meth:`lvlm_probe.Probe.check` returns; prints as a table.

    Attributes:
        checks: In the order in which they were made.
        model: Its name.
        about: Adapter, kernel, type, and the sequence that was looked at.
        seconds: It took.
    """

    checks: tuple[Check, ...]
    model: str
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of that name.

        Raises:
            KeyError: If there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {', '.join(c.name for c in self.checks)}")

    def to_json(self) -> dict[str, Any]:
        """As plain values; a number that is not finite, which JSON has no word for, as None."""
        return {
            "model": self.model,
            "ok": self.ok,
            "about": dict(self.about),
            "seconds": self.seconds,
            "checks": [{n: _finite(v) for n, v in asdict(check).items()} for check in self.checks],
        }

    def __repr__(self) -> str:
        counts = {status: sum(c.status == status for c in self.checks) for status in _COLOURS}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"CheckReport({self.model!r}: {told}; {self.seconds:.1f} s)"

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def __rich__(self) -> Group:
        table = Table("check", "status", "value", "limit", "what was found")
        for check in self.checks:
            status = Text(check.status, style=_COLOURS[check.status])
            numbers = (_number(check.value), _number(check.limit))
            table.add_row(check.name, status, *numbers, Text(check.detail))
        head = ", ".join(f"{name} {value}" for name, value in self.about.items())
        return Group(Text(f"{self.model}: {head}"), table)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
