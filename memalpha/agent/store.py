"""Memories on disk: one SQLite file, one namespace per user, every change recorded.

Memories are stored as text, because a store outlives the tokenizer of its writer. Every change is
an event: an observed chunk, an edit by a person, or an undo. An event is written whole or not at
all, together with the texts that it replaced. An entry's `written_at` is the number of the event
that last wrote it, and so leads to the chunk it came from. Entries of a list are in the order of
their ids, which only grow.

A writer needs seconds for a step, and the file is not locked meanwhile. `commit` is therefore told
the memory that the change is based on, and raises ConflictError if that has changed.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from memalpha.agent.database import IN_MEMORY, Database, lock_file
from memalpha.agent.events import (
    Change,
    ConflictError,
    Event,
    Key,
    Snapshot,
    StoreError,
    UnknownNamespaceError,
)
from memalpha.memory import CORE, EPISODIC, SEMANTIC, Entry
from memalpha.paths import user_path
from memalpha.tools import clean

CORE_ID = -1  # the core is the entry of this id


# Zero-width non-joiner and joiner: invisible, but parts of Persian words and of emoji.
JOINERS = "\u200c\u200d"


def check_namespace(name: str) -> None:
    """Raises StoreError for a name that is empty, long, or has characters that nobody can see, such
    as control characters; joiners may stand between others. No name is mended: two users could end
    up with the same one."""
    visible = name.strip(JOINERS) == name and re.sub(f"[{JOINERS}]", "", name).isprintable()
    if not (0 < len(name) <= 200 and visible) or "\ufffd" in name:
        raise StoreError(f"namespace {name[:40]!r}: give 1 to 200 printable characters")


class Store:
    """A store file, or a store in memory (":memory:"). Safe to use from threads.

    `wait`: seconds to wait for a lock of another process.
    Raises StoreError for a file that is no store or comes from a newer version.
    """

    def __init__(self, path: str | Path = IN_MEMORY, wait: float = 5.0):
        self.path = IN_MEMORY if str(path) == IN_MEMORY else str(user_path(path))
        self.wait = wait
        self._db = Database(self.path, wait)

    def namespaces(self) -> list[str]:
        with self._db.transaction("DEFERRED"):
            rows = self._db.execute("SELECT name FROM namespaces ORDER BY name").fetchall()
        return [name for (name,) in rows]

    def create(self, namespace: str, next_id: int = 1) -> None:
        """Creates an empty namespace whose first entry gets the id `next_id`; does nothing if the
        namespace exists.

        Raises StoreError for a name that `check_namespace` refuses.
        """
        check_namespace(namespace)
        with self._db.transaction():
            insert = "INSERT OR IGNORE INTO namespaces VALUES (?, ?, 0)"
            self._db.execute(insert, (namespace, next_id))

    def forget(self, namespace: str) -> None:
        """Deletes a namespace and its history; SQLite overwrites the deleted text with zeros."""
        with self._db.transaction():
            self._require(namespace)
            self._db.execute("DELETE FROM namespaces WHERE name = ?", (namespace,))

    def read(self, namespace: str) -> Snapshot:
        """The current memory. Raises UnknownNamespaceError."""
        with self._db.transaction("DEFERRED"):
            next_id, events = self._require(namespace)
            last_hash = self._hash_of_last(namespace, events)
            rows = self._db.execute(
                "SELECT memory, id, text, event FROM entries WHERE namespace = ?"
                " ORDER BY memory, id",
                (namespace,),
            ).fetchall()
        lists = {
            memory: tuple(Entry(i, text, event) for m, i, text, event in rows if m == memory)
            for memory in (CORE, SEMANTIC, EPISODIC)
        }
        core = lists[CORE][0] if lists[CORE] else Entry(CORE_ID, "", -1)
        return Snapshot(
            core.text, core.written_at, lists[SEMANTIC], lists[EPISODIC], next_id, events, last_hash
        )

    def _hash_of_last(self, namespace: str, events: int) -> str:
        """The hash of the last of `events` events; empty where there is none."""
        row = self._db.execute(
            "SELECT at, action, author, text, response, calls FROM events"
            " WHERE namespace = ? AND number = ?",
            (namespace, events - 1),
        ).fetchone()
        return hashlib.sha256(json.dumps(row).encode()).hexdigest() if row else ""

    def commit(
        self,
        namespace: str,
        event: Event,
        after: Mapping[Key, str | None],
        based_on: Snapshot,
        next_id: int,
    ) -> Event:
        """Writes one event whole; returns it with its number and time.

        `after`: the new text of every entry that the event changes, None for those it deletes.
        `based_on`: the memory that the change was computed from.
        Raises ConflictError if the memory has changed since, UnknownNamespaceError.
        """
        number = based_on.events
        with self._db.transaction():
            events = self._require(namespace)[1]
            last_hash = self._hash_of_last(namespace, events)
            if (events, last_hash) != (number, based_on.last_hash):
                raise ConflictError(
                    f"namespace {namespace!r} was changed by somebody else since it was read:"
                    " read it again"
                )
            states = {k: None if text is None else (text, number) for k, text in after.items()}
            return self._write(namespace, event, number, states, next_id)

    def undo(self, namespace: str, author: str) -> Event | None:
        """Reverts the newest event that is not undone yet, by a new event; None if there is none.

        A second undo reverts the event before that one. Ids are never used twice.
        """
        with self._db.transaction():
            next_id, events = self._require(namespace)
            last = self._db.execute(
                "SELECT max(number) FROM events WHERE namespace = ?1 AND action != 'undo' AND"
                " number NOT IN (SELECT undoes FROM events WHERE namespace = ?1 AND"
                " undoes IS NOT NULL)",
                (namespace,),
            ).fetchone()[0]
            if last is None:
                return None
            states = {
                (c.memory, c.id): None if c.before is None else (c.before, c.before_event)
                for c in self._changes(namespace, last)
            }
            event = Event("undo", author, undoes=last)
            return self._write(namespace, event, events, states, next_id)

    def _write(
        self,
        namespace: str,
        event: Event,
        number: int,
        states: Mapping[Key, tuple[str, int] | None],
        next_id: int,
    ) -> Event:
        """Writes an event, its changes and the resulting entries, inside a transaction.

        Lone surrogates, which SQLite does not take, are replaced here, whoever the text is from.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        event = replace(event, number=number, at=at)
        calls = json.dumps(event.calls, ensure_ascii=False)
        texts = map(clean, (event.action, event.author, event.text, event.response, calls))
        self._db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, number, at, *texts, event.undoes),
        )
        for (memory, entry_id), state in states.items():
            key = (namespace, memory, entry_id)
            where = "WHERE namespace = ? AND memory = ? AND id = ?"
            before = self._db.execute(f"SELECT text, event FROM entries {where}", key).fetchone()
            values = (namespace, number, memory, entry_id, *(before or (None, None)))
            insert = "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            self._db.execute(insert, values + tuple(map(clean, state or (None, None))))
            if state is None:
                self._db.execute(f"DELETE FROM entries {where}", key)
            else:
                values = key + tuple(map(clean, state))
                self._db.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", values)
        self._db.execute(
            "UPDATE namespaces SET next_id = ?, events = ? WHERE name = ?",
            (next_id, number + 1, namespace),
        )
        return event

    def events(self, namespace: str, first: int = 0) -> list[Event]:
        """The events from number `first` on, oldest first. Raises UnknownNamespaceError."""
        with self._db.transaction("DEFERRED"):
            self._require(namespace)
            rows = self._db.execute(
                "SELECT action, author, text, response, calls, undoes, number, at FROM events"
                " WHERE namespace = ? AND number >= ? ORDER BY number",
                (namespace, first),
            ).fetchall()
        return [Event(*row[:4], tuple(json.loads(row[4])), *row[5:]) for row in rows]

    def changes(self, namespace: str, number: int | None = None) -> list[Change]:
        """The changes of all events, or of the one with this number; oldest first."""
        with self._db.transaction("DEFERRED"):
            self._require(namespace)
            return self._changes(namespace, number)

    def _changes(self, namespace: str, number: int | None) -> list[Change]:
        rows = self._db.execute(
            "SELECT number, memory, id, before, before_event, after, after_event FROM changes"
            " WHERE namespace = ?1 AND (?2 IS NULL OR number = ?2) ORDER BY number, memory, id",
            (namespace, number),
        )
        return [Change(*row) for row in rows]

    def _require(self, namespace: str) -> tuple[int, int]:
        row = self._db.execute(
            "SELECT next_id, events FROM namespaces WHERE name = ?", (clean(namespace),)
        ).fetchone()
        if row is None:
            names = [name for (name,) in self._db.execute("SELECT name FROM namespaces LIMIT 5")]
            known = ", ".join(map(repr, names)) or "none"
            raise UnknownNamespaceError(
                f"no namespace {namespace[:200]!r} in store {self.path}; there are: {known}"
            )
        return row

    def copy_to(self, path: str | Path) -> None:
        """Writes a copy beside `path` and renames it, so that `path` is never half a store.

        Raises StoreError where `path` is a file of another kind, or cannot be written.
        """
        if self._is_at(user_path(path)):
            return  # every change is in that file already
        path, aside = user_path(path), None
        with self._db.transaction("DEFERRED"):
            # A read takes the lock, or fails where another process has it; `backup` alone would
            # wait for that process without end.
            self._db.execute("SELECT count(*) FROM namespaces").fetchone()
            try:
                # mkstemp makes a file that only its owner can read.
                handle, aside = tempfile.mkstemp(".tmp", f"{path.name}.", path.parent)
                os.close(handle)
                self._db.backup_to(aside)
                with lock_file(path, self.wait):
                    os.replace(aside, path)
            except OSError as error:
                raise StoreError(f"no copy could be written to {path}: {error}") from error
            finally:
                if aside:
                    Path(aside).unlink(missing_ok=True)

    def copy_from(self, path: str | Path) -> None:
        """Replaces everything in this store by the content of the one at `path`, or nothing.

        Raises StoreError where there is none, or one of a newer version; nothing is changed then.
        """
        path = user_path(path)
        if not path.is_file():
            raise StoreError(f"no store at {path}")
        if self._is_at(path):
            return
        if not os.path.getsize(path):
            raise StoreError(f"{path} is no store: it is empty")
        Store(path, self.wait).close()  # raises where it is no store
        with self._db.lock:
            self._db.execute("ATTACH ? AS saved", (str(path),))
            try:
                with self._db.transaction("DEFERRED"):  # IMMEDIATE would lock the other file too
                    self._db.execute("DELETE FROM namespaces")  # cascades to the other tables
                    for table in ("namespaces", "events", "changes", "entries"):
                        self._db.execute(f"INSERT INTO main.{table} SELECT * FROM saved.{table}")
            finally:
                self._db.execute("DETACH saved")

    def _is_at(self, path: str | Path) -> bool:
        """Whether the file at `path` is this store's own."""
        return os.path.exists(path) and self.path != IN_MEMORY and os.path.samefile(path, self.path)

    def close(self) -> None:
        self._db.close()
