"""Memories on disk: one SQLite file, a namespace a user, every change kept.

Text is the truth here (a store outlives its tokenizer). Every change is an event: an observed
chunk, an edit by a person, or an undo; it is written whole or not at all, with what it replaced.
An entry's `written_at` is the number of the event that last wrote it, so that it leads to the
chunk it came from. Entries of a list stand in the order of their ids, which only grow.

One file at rest, no write-ahead log beside it: it can be copied, and writes are rare and short. A
writer thinks for seconds; the file is not locked meanwhile. `commit` therefore names the memory
that the change is based on and refuses (ConflictError) if it is another by now.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from memalpha.agent.events import (
    Change,
    ConflictError,
    Event,
    Key,
    Snapshot,
    StoreError,
    StoreLockedError,
    UnknownNamespaceError,
)
from memalpha.memory import CORE, EPISODIC, SEMANTIC, Entry

VERSION = 1  # of the schema, kept in user_version
APPLICATION = 0x6D656D61  # "mema", kept in application_id: tells our files from other databases
CORE_ID = -1  # the core is the entry of this id
_SCHEMA = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    next_id INTEGER NOT NULL,   -- of the next entry
    events INTEGER NOT NULL     -- so far; the next event has this number
) WITHOUT ROWID;
CREATE TABLE events (
    namespace TEXT NOT NULL REFERENCES namespaces ON DELETE CASCADE,
    number INTEGER NOT NULL,
    at TEXT NOT NULL,           -- UTC, ISO 8601
    action TEXT NOT NULL,       -- observe, edit, undo
    author TEXT NOT NULL,
    text TEXT NOT NULL,         -- the chunk
    response TEXT NOT NULL,     -- of the writer
    calls TEXT NOT NULL,        -- JSON, with outcomes
    undoes INTEGER,             -- number of the event that this one takes back
    PRIMARY KEY (namespace, number)
) WITHOUT ROWID;
CREATE TABLE changes (
    namespace TEXT NOT NULL,
    number INTEGER NOT NULL,
    memory INTEGER NOT NULL,    -- 0 core, 1 semantic, 2 episodic
    id INTEGER NOT NULL,
    before TEXT,                -- NULL: was not there
    before_event INTEGER,
    after TEXT,                 -- NULL: is gone
    after_event INTEGER,
    PRIMARY KEY (namespace, number, memory, id),
    FOREIGN KEY (namespace, number) REFERENCES events ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE entries (
    namespace TEXT NOT NULL REFERENCES namespaces ON DELETE CASCADE,
    memory INTEGER NOT NULL,
    id INTEGER NOT NULL,
    text TEXT NOT NULL,
    event INTEGER NOT NULL,
    PRIMARY KEY (namespace, memory, id)
) WITHOUT ROWID;
"""


class Store:
    """A store file, or one in memory (":memory:"). One object serves many threads.

    `wait`: seconds to wait for a lock of another process.
    Raises StoreError for a file that is no store or comes from a newer version.
    """

    def __init__(self, path: str | Path = ":memory:", wait: float = 5.0):
        self.path, self.wait = str(path), wait
        self._lock = threading.RLock()
        if self.path != ":memory:":
            _make_private(Path(self.path))
        try:
            self._db = sqlite3.connect(
                self.path, timeout=wait, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise StoreError(f"store {self.path} cannot be opened: {error}") from error
        try:
            with self._transaction():
                self._prepare()
            for pragma in ("foreign_keys=ON", "secure_delete=ON", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {pragma}")
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        application, version = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION and (tables or version or application):
            raise StoreError(f"{self.path} is a database of another program; choose another file")
        if version > VERSION:
            raise StoreError(
                f"store {self.path} has schema version {version}, this program reads up to"
                f" {VERSION}: update memalpha; the file was not changed"
            )
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={APPLICATION}")
            self._db.execute(f"PRAGMA user_version={VERSION}")

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute(f"BEGIN {kind}")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                if "locked" in str(error) or "busy" in str(error):
                    raise StoreLockedError(
                        f"store {self.path} is locked by another process (waited {self.wait:g} s)."
                        " Nothing was written; try again when that one is done"
                    ) from error
                raise StoreError(f"store {self.path}: {error}") from error
            except sqlite3.DatabaseError as error:
                raise StoreError(f"{self.path} is no store, or a damaged one: {error}") from error

    def namespaces(self) -> list[str]:
        with self._transaction("DEFERRED"):
            rows = self._db.execute("SELECT name FROM namespaces ORDER BY name").fetchall()
        return [name for (name,) in rows]

    def create(self, namespace: str, next_id: int = 1) -> None:
        """Makes an empty namespace whose entries count from `next_id`; does nothing if it is there.

        Raises StoreError for a name that is empty, long, or holds control characters.
        """
        if not 0 < len(namespace) <= 200 or not namespace.isprintable():
            raise StoreError(f"namespace {namespace[:40]!r}: give 1 to 200 printable characters")
        with self._transaction():
            insert = "INSERT OR IGNORE INTO namespaces VALUES (?, ?, 0)"
            self._db.execute(insert, (namespace, next_id))

    def forget(self, namespace: str) -> None:
        """Deletes a namespace with all of its history; what it held is overwritten with zeros."""
        with self._transaction():
            self._require(namespace)
            self._db.execute("DELETE FROM namespaces WHERE name = ?", (namespace,))

    def read(self, namespace: str) -> Snapshot:
        """The memory now. Raises UnknownNamespaceError."""
        with self._transaction("DEFERRED"):
            next_id, events = self._require(namespace)
            mark = self._mark(namespace, events)
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
            core.text, core.written_at, lists[SEMANTIC], lists[EPISODIC], next_id, events, mark
        )

    def _mark(self, namespace: str, events: int) -> str:
        """What tells the last of so many events from that of another history."""
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

        `after`: the new text of every entry that it changes, None for those it deletes.
        `based_on`: the memory that the change was made for.
        Raises ConflictError if there are newer events or others, UnknownNamespaceError.
        """
        number = based_on.events
        with self._transaction():
            now = self._require(namespace)[1]
            if (now, self._mark(namespace, now)) != (number, based_on.mark):
                raise ConflictError(
                    f"namespace {namespace!r} was changed by somebody else since it was read:"
                    " read it again"
                )
            states = {k: None if text is None else (text, number) for k, text in after.items()}
            return self._write(namespace, event, number, states, next_id)

    def undo(self, namespace: str, author: str) -> Event | None:
        """Takes back the newest event that stands, by a new event; None if there is nothing left.

        Once more takes back the one before it. Ids that were given out are not given out again.
        """
        with self._transaction():
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
        """The event, what it changes, and the entries after it, inside a transaction."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        done = replace(event, number=number, at=at)
        calls = json.dumps(event.calls, ensure_ascii=False)
        self._db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, number, at, done.action, done.author, done.text, done.response, calls)
            + (done.undoes,),
        )
        for (memory, entry_id), state in states.items():
            key = (namespace, memory, entry_id)
            where = "WHERE namespace = ? AND memory = ? AND id = ?"
            before = self._db.execute(f"SELECT text, event FROM entries {where}", key).fetchone()
            values = (namespace, number, memory, entry_id, *(before or (None, None)))
            insert = "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            self._db.execute(insert, values + (state or (None, None)))
            if state is None:
                self._db.execute(f"DELETE FROM entries {where}", key)
            else:
                self._db.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", key + state)
        self._db.execute(
            "UPDATE namespaces SET next_id = ?, events = ? WHERE name = ?",
            (next_id, number + 1, namespace),
        )
        return done

    def events(self, namespace: str, first: int = 0) -> list[Event]:
        """Events from number `first` on, oldest first."""
        with self._transaction("DEFERRED"):
            self._require(namespace)
            rows = self._db.execute(
                "SELECT action, author, text, response, calls, undoes, number, at FROM events"
                " WHERE namespace = ? AND number >= ? ORDER BY number",
                (namespace, first),
            ).fetchall()
        return [Event(*row[:4], tuple(json.loads(row[4])), *row[5:]) for row in rows]

    def changes(self, namespace: str, number: int | None = None) -> list[Change]:
        """What every event (or the one of this number) did to the entries, oldest first."""
        with self._transaction("DEFERRED"):
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
            "SELECT next_id, events FROM namespaces WHERE name = ?", (namespace,)
        ).fetchone()
        if row is None:
            known = [n for (n,) in self._db.execute("SELECT name FROM namespaces LIMIT 5")]
            there = ", ".join(map(repr, known)) or "none"
            raise UnknownNamespaceError(
                f"no namespace {namespace[:200]!r} in store {self.path}; there are: {there}"
            )
        return row

    def copy_to(self, path: str | Path) -> None:
        """Writes a copy aside and renames it: the file at `path` is the old one or a whole one.

        Raises StoreError where `path` is a file of another kind, or cannot be written.
        """
        if self._is_at(path):
            return  # every change is there already
        path, aside = Path(path), None
        with self._transaction("DEFERRED"):
            # Reading takes the lock, or says that somebody has it; `backup` would wait for ever.
            self._db.execute("SELECT count(*) FROM namespaces").fetchone()
            try:
                handle, aside = tempfile.mkstemp(".tmp", f"{path.name}.", path.parent)  # private
                os.close(handle)
                with closing(sqlite3.connect(aside)) as target:
                    self._db.backup(target)
                with _held(path, self.wait):
                    os.replace(aside, path)
            except OSError as error:
                raise StoreError(f"no copy could be written to {path}: {error}") from error
            finally:
                if aside:
                    Path(aside).unlink(missing_ok=True)

    def copy_from(self, path: str | Path) -> None:
        """Takes over all of the store at `path` in place of what is here, whole or not at all.

        Raises StoreError where there is none, or one of a newer version; nothing is changed then.
        """
        if not Path(path).is_file():
            raise StoreError(f"no store at {path}")
        if self._is_at(path):
            return
        if not os.path.getsize(path):
            raise StoreError(f"{path} is no store: it is empty")
        Store(path, self.wait).close()  # refuses what is no store
        with self._lock:
            self._db.execute("ATTACH ? AS saved", (str(path),))
            try:
                with self._transaction("DEFERRED"):  # nothing is written to the other file
                    self._db.execute("DELETE FROM namespaces")  # and with them all the rest
                    for table in ("namespaces", "events", "changes", "entries"):
                        self._db.execute(f"INSERT INTO main.{table} SELECT * FROM saved.{table}")
            finally:
                self._db.execute("DETACH saved")

    def _is_at(self, path: str | Path) -> bool:
        """Whether the file at `path` is this store's own."""
        return (
            os.path.exists(path) and self.path != ":memory:" and os.path.samefile(path, self.path)
        )

    def close(self) -> None:
        with self._lock:
            self._db.close()


@contextmanager
def _held(path: Path, wait: float) -> Iterator[None]:
    """Nobody writes to the store at `path`, and what a killed process left half written there is
    taken back: the journal of the old file would spoil the one that takes its place."""
    if not path.exists():
        yield
        return
    with closing(sqlite3.connect(path, timeout=wait, isolation_level=None)) as old:
        try:
            old.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            raise StoreError(f"no copy could be written to {path}: {error}") from error
        yield


def _make_private(path: Path) -> None:
    """Makes the file if it is missing, for its owner alone: memories are private."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"store {path} cannot be opened: {error}") from error
