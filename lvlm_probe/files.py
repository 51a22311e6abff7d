"""Text into files."""

from __future__ import annotations

from pathlib import Path

from lvlm_probe.errors import OutputError

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> Path:
    """Write a file, and give its path back.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r} ({error.strerror}): choose a folder that you may write to"
        ) from error
    return path
