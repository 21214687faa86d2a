"""Answers of language models on disk, so that no answer is paid for twice."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memalpha.paths import user_path

BUSY_SECONDS = 60.0  # another process may be writing


class DiskCache:
    """JSON values by key in one SQLite file, without eviction. Safe to use from threads and from
    several processes.

    Raises OSError that names the file where it cannot be used.
    """

    def __init__(self, path: str | Path):
        self.path = user_path(path).absolute()
        self._lock = threading.Lock()
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")

    def get(self, key: str) -> Any | None:
        with self._lock, self._named():
            row = self._file.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        with self._lock, self._named():
            self._file.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, text))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OSError(
                f"cache {self.path}: {error}; remove the file or choose another"
            ) from error
