"""Results kept by what they were computed from, the least recently used dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Cache"]


class Cache:
    """A bounded table, safe to use from several threads.

    Args:
        size: Entries kept at most.
        dropped: Called with each entry's value when it leaves.
    """

    def __init__(self, size: int, dropped: Callable[[Any], None] | None = None) -> None:
        self.size = size
        self._dropped = dropped
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value; the oldest goes if there are too many."""
        gone: list[Any] = []
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self.size:
                gone.append(self._entries.popitem(last=False)[1])
        if self._dropped is not None:
            for value in gone:
                self._dropped(value)
