"""What a store holds of a memory (state, events, changes), and the errors of a store."""

from dataclasses import dataclass

from memalpha.memory import Entry

Key = tuple[int, int]  # memory type, entry id


class StoreError(ValueError):
    """A store that cannot be used, or a request that it refuses. The message says what to do."""


class StoreLockedError(StoreError):
    """Another process had the file locked for longer than `wait`; nothing was written."""


class ConflictError(StoreError):
    """The memory was changed since it was read; nothing was written."""


class UnknownNamespaceError(StoreError):
    """The store has no namespace of this name."""


@dataclass(frozen=True)
class Snapshot:
    """The memory of a namespace after `events` events."""

    core: str
    core_event: int  # number of the event that last wrote the core, -1 where the core is empty
    semantic: tuple[Entry, ...]
    episodic: tuple[Entry, ...]
    next_id: int
    events: int
    # Hash of the last event. It tells a namespace that was deleted and recreated from the old one,
    # which may have had as many events.
    last_hash: str = ""


@dataclass(frozen=True)
class Event:
    """One change of a memory: by whom, when, from which text and by which calls."""

    action: str  # observe, edit, undo
    author: str
    text: str = ""  # the chunk that was observed
    response: str = ""  # of the writer, as text
    calls: tuple[dict, ...] = ()  # name, arguments, error, outcome
    undoes: int | None = None  # number of the event that this one reverts
    number: int = -1  # -1: not committed yet
    at: str = ""  # UTC, ISO 8601; empty: not committed yet


@dataclass(frozen=True)
class Change:
    """What one event did to one entry; a text is None where there was no such entry."""

    number: int
    memory: int
    id: int
    before: str | None
    before_event: int | None
    after: str | None
    after_event: int | None
