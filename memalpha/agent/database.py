"""The SQLite file of a store: its schema, its connection, transactions and locks.

One file at rest, no write-ahead log beside it, so that it can be copied; writes are rare and short.
Errors of SQLite become `StoreError`s that name the file.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from memalpha.agent.events import StoreError, StoreLockedError

IN_MEMORY = ":memory:"  # the path of a store that lives in this process alone
VERSION = 1  # of the schema, stored in user_version
APPLICATION = 0x6D656D61  # "mema", stored in application_id: tells our files from other databases
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


class Database:
    """A connection to the file of a store, or to a store in memory; shared by the threads.

    `wait`: seconds to wait for a lock of another process.
    Raises StoreError for a file that is no store or comes from a newer version.
    """

    def __init__(self, path: str, wait: float):
        self.path, self.wait = path, wait
        self.lock = threading.RLock()
        if path != IN_MEMORY:
            _create_private(path)
        try:
            self._connection = sqlite3.connect(
                path, timeout=wait, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise StoreError(f"store {path} cannot be opened: {error}") from error
        try:
            with self.transaction("DEFERRED"):  # a file that can only be read is opened too
                is_new = self._version() == 0
            if is_new:
                with self.transaction():
                    self._create_tables()
            for pragma in ("foreign_keys=ON", "secure_delete=ON", "synchronous=FULL"):
                self.execute(f"PRAGMA {pragma}")
        except BaseException:
            self.close()
            raise

    def _version(self) -> int:
        """Version of the schema, 0 in an empty file. Raises StoreError for the file of another
        program or of a newer version."""
        application, version = (
            self.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        tables = self.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION and (tables or version or application):
            raise StoreError(f"{self.path} is a database of another program; choose another file")
        if version > VERSION:
            raise StoreError(
                f"store {self.path} has schema version {version}, this program reads up to"
                f" {VERSION}: update memalpha; the file was not changed"
            )
        return version

    def _create_tables(self) -> None:
        if self._version():
            return  # another process was first
        for statement in _SCHEMA.split(";\n"):
            self.execute(statement)
        self.execute(f"PRAGMA application_id={APPLICATION}")
        self.execute(f"PRAGMA user_version={VERSION}")

    def execute(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """Everything inside is written, or nothing; other threads wait meanwhile.

        Raises StoreLockedError where another process holds the file, StoreError where SQLite
        cannot read or write it.
        """
        with self.lock:
            try:
                self.execute(f"BEGIN {kind}")
                try:
                    yield
                    self.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self.execute("ROLLBACK")
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

    def backup_to(self, path: str) -> None:
        """Copies all pages into the database at `path`, inside a transaction of this one.

        Raises OSError where it cannot be written.
        """
        try:
            with closing(sqlite3.connect(path)) as target:
                self._connection.backup(target)
        except sqlite3.OperationalError as error:  # such as a full disk
            raise OSError(str(error)) from error

    def close(self) -> None:
        with self.lock:
            self._connection.close()


@contextmanager
def lock_file(path: Path, wait: float) -> Iterator[None]:
    """Locks the database at `path`, if there is one, while a new file takes its place.

    SQLite first rolls back what a killed process left half written there: the journal of the old
    file would be applied to the new one otherwise, and damage it.
    """
    if not path.exists():
        yield
        return
    try:
        old = sqlite3.connect(path, timeout=wait, isolation_level=None)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"no copy could be written to {path}: {error}") from error
    with closing(old):
        try:
            old.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            raise StoreError(f"no copy could be written to {path}: {error}") from error
        yield


def _create_private(path: str) -> None:
    """Creates a missing file that only its owner can read: memories are private.

    A file that is there may be one that can only be read, such as one on a read-only disk.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        if os.path.isfile(path) and os.access(path, os.R_OK):
            return
        raise StoreError(f"store {path} cannot be opened: {error}") from error
