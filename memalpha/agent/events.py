"""What a store keeps of a memory: its state, the events that made it, and what can go wrong."""

from dataclasses import dataclass

from memalpha.memory import Entry

Key = tuple[int, int]  # memory type, entry id


class StoreError(ValueError):
    """A store that cannot be used, or a request that it refuses; says what to do."""


class StoreLockedError(StoreError):
    """Another process kept the file locked for longer than `wait`; nothing was written."""


class ConflictError(StoreError):
    """The memory was changed since it was read; nothing was written."""


class UnknownNamespaceError(StoreError):
    """Nobody has written in this namespace."""


@dataclass(frozen=True)
class Snapshot:
    """The memory of a namespace after `events` events."""

    core: str
    core_event: int  # that last wrote it, -1 where there is none
    semantic: tuple[Entry, ...]
    episodic: tuple[Entry, ...]
    next_id: int
    events: int
    mark: str = ""  # of the last event: a namespace forgotten and made anew may have as many


@dataclass(frozen=True)
class Event:
    """What changed a memory: who, when, from what, by which calls."""

    action: str  # observe, edit, undo
    author: str
    text: str = ""
    response: str = ""
    calls: tuple[dict, ...] = ()
    undoes: int | None = None
    number: int = -1  # -1: not committed yet
    at: str = ""


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
