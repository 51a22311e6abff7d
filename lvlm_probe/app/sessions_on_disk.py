"""A session as a file: a trace for each question, in one archive where there are several."""

from __future__ import annotations

import secrets
import zipfile
from pathlib import Path

from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.conversation import Turn
from lvlm_probe.errors import TraceFormatError

__all__ = ["load_session", "opened", "save_session"]

MOST_TRACES = 200
MOST_BYTES = 2 * 10**9


def save_session(service: Service, session: Session) -> Path:
    """Write the session's traces.

    Args:
        service: In whose folder.
        session: With at least one question.

    Returns:
        A ``.safetensors`` file for one question, a ``.zip`` of them for several.
    """
    folder = service.folder / "saved" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    paths = [
        service.trace(asked.question).save(folder / f"question-{number + 1:03}.safetensors")
        for number, asked in enumerate(session.asked)
    ]
    if len(paths) == 1:
        return paths[0]
    archive = folder / "session.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in paths:
            file.write(path, path.name)
            path.unlink()
    return archive


def load_session(service: Service, path: Path) -> list[Asked]:
    """The questions of a file that :func:`save_session` wrote, or of any trace.

    Args:
        service: Which binds them to its model, where it is the one that they were recorded with.
        path: Of the file.

    Raises:
        TraceFormatError: If it is neither, or holds too much.
    """
    if path.suffix == ".zip":
        return [opened(service, trace) for trace in _unpacked(service, path)]
    return [opened(service, path)]


def opened(service: Service, path: Path) -> Asked:
    """The question of one trace, as a session keeps it."""
    question = service.open(path)
    turn = Turn(question.prompt, question.answer, question.images)
    return Asked(question, turn, note="loaded")


def _unpacked(service: Service, path: Path) -> list[Path]:
    folder = service.folder / "loaded" / secrets.token_hex(8)
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            total = sum(entry.file_size for entry in entries)
            wrong = [e.filename for e in entries if not e.filename.endswith(".safetensors")]
            if wrong or not entries or len(entries) > MOST_TRACES or total > MOST_BYTES:
                raise TraceFormatError(
                    f"{path.name} holds {len(entries)} files of {total / 1e6:.0f} MB, {len(wrong)} of them no traces: give a "
                    f"session that was saved here, of up to {MOST_TRACES} traces and {MOST_BYTES / 1e9:.0f} GB"
                )
            folder.mkdir(parents=True)
            unpacked: list[Path] = []
            for number, entry in enumerate(sorted(entries, key=lambda entry: entry.filename)):
                # A name of our own: an archive's may lead out of the folder.
                target = folder / f"{number:03}.safetensors"
                with file.open(entry) as source:
                    target.write_bytes(source.read())
                unpacked.append(target)
            return unpacked
    except zipfile.BadZipFile as error:
        raise TraceFormatError(
            f"{path.name} is no archive ({error}): save the session anew"
        ) from error
