"""Worths that were computed once, kept in a file.

An SQLite database, because a batch is then written whole or not at all, whenever the process dies. One file holds any
number of games; a game is found again by a digest of all that its worths depend on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_probe.errors import OutputError

__all__ = ["Ledger", "digest"]

SCHEMA = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS game (digest TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS worth (
    game TEXT NOT NULL REFERENCES game, coalition BLOB NOT NULL, worths BLOB NOT NULL, PRIMARY KEY (game, coalition)
) WITHOUT ROWID;
"""


def digest(facts: Mapping[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> str:
    """SHA-256 of plain values and arrays, types and shapes included."""
    found = sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


class Ledger:
    """One game's worths in a file.

    Args:
        path: The database; made if it does not exist.
        game: The game's digest.
        description: What it is, for whoever opens the file.

    Raises:
        OutputError: If the file cannot be written, or is no such database.
    """

    def __init__(self, path: Path, game: str, description: Mapping[str, Any]) -> None:
        self.path, self.game = path, game
        with closing(self._open()) as database, database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA):
                raise OutputError(
                    f"{str(path)!r} was written in schema {version}, and this version reads {SCHEMA}: "
                    "choose another file"
                )
            database.executescript(_TABLES)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
            database.execute(
                "INSERT OR IGNORE INTO game VALUES (?, ?)",
                (game, json.dumps(description, default=str)),
            )

    def load(self) -> dict[bytes, NDArray[np.float64]]:
        """Every worth that is known, by coalition."""
        with closing(self._open()) as database:
            rows = database.execute(
                "SELECT coalition, worths FROM worth WHERE game = ?", (self.game,)
            )
            return {bytes(key): np.frombuffer(worths, dtype="<f8").copy() for key, worths in rows}

    def add(self, rows: Mapping[bytes, NDArray[np.float64]]) -> None:
        """Keep a batch, whole or not at all."""
        told = [(self.game, key, worths.astype("<f8").tobytes()) for key, worths in rows.items()]
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO worth VALUES (?, ?, ?)", told)

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(self.path, timeout=60)
            database.execute("SELECT name FROM sqlite_master").fetchall()
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot keep worths in {str(self.path)!r} ({error}): choose a file in a folder that you may write to, "
                "or one that this program wrote"
            ) from error
        return database
