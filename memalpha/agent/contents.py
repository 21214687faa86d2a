"""The memory of one namespace: read, edit, trace back, undo and export it."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict

import jax

from memalpha import memory
from memalpha.agent.events import Change, Event, Key, Snapshot
from memalpha.agent.store import CORE_ID, Store
from memalpha.episode import Environment, count_tokens, encode_text
from memalpha.memory import CORE, MEMORY_NAMES, Entry, MemoryState, MemoryView, Outcome
from memalpha.rollout import apply_calls, whole_view
from memalpha.tools import DELETE, INSERT, UPDATE, Call, clean

_REFUSALS = {
    Outcome.DUPLICATE: "the memory has this text already",
    Outcome.UNKNOWN_ID: "there is no such entry",
    Outcome.WRONG_TYPE: "this memory takes no such change (the core is updated, not inserted)",
    Outcome.TOO_LONG: "the text is too long for one entry of this writer",
    Outcome.MALFORMED: "the text is empty, or the id is no number",
}
# What Markdown interprets: these characters anywhere | what makes a bare address a link | what
# begins a list, heading or rule at the start of a line.
_MARKUP = re.compile(
    r"([\\`*_\[\]<>!#|&~])|(:(?=//)|(?<=www)\.|@)|^([ \t]*)([-+=]|\d+(?=[.)]))", re.MULTILINE
)


class EditRefusedError(ValueError):
    """An edit that the operations of the memory refuse; nothing was changed."""


class Contents:
    """The memory of one namespace; every property reads the store. Its texts are unchecked data."""

    def __init__(self, env: Environment, store: Store, namespace: str):
        self.env, self.store, self.namespace = env, store, namespace

    def view(self) -> MemoryView:
        """The whole memory as text."""
        return view_of(self.store.read(self.namespace), self.env)

    @property
    def core(self) -> str:
        return self.view().core

    @property
    def semantic(self) -> tuple[Entry, ...]:
        return self.view().semantic

    @property
    def episodic(self) -> tuple[Entry, ...]:
        return self.view().episodic

    def insert(self, name: str, text: str, author: str = "user") -> Event:
        """Adds an entry to "semantic" or "episodic".

        Edits go through the operations of the writer's tools. They raise EditRefusedError where
        those refuse, and ConflictError if the memory was changed at the same time.
        """
        return self._edit(Call(INSERT, {"memory_type": name, "content": clean(text)}), author)

    def update(self, name: str, text: str, entry_id: int = CORE_ID, author: str = "user") -> Event:
        """Replaces an entry, or the core (which has no id)."""
        arguments = {"memory_type": name, "new_content": clean(text), "memory_id": entry_id}
        return self._edit(Call(UPDATE, arguments), author)

    def delete(self, name: str, entry_id: int = CORE_ID, author: str = "user") -> Event:
        """Removes an entry, or empties the core."""
        return self._edit(Call(DELETE, {"memory_type": name, "memory_id": entry_id}), author)

    def _edit(self, call: Call, author: str) -> Event:
        before = self.store.read(self.namespace)

        def apply(view: MemoryView, state: MemoryState) -> tuple[MemoryState, Event]:
            state, outcomes = apply_calls(self.env, state, [[call]], before.events)
            outcome = Outcome(int(outcomes[0, 0]))
            if outcome != Outcome.OK:
                reason = _REFUSALS.get(outcome, outcome.name.lower())
                raise EditRefusedError(f"{call.name} {call.arguments}: {reason}")
            record = {"name": call.name, "arguments": call.arguments, "error": "", "outcome": "ok"}
            return state, Event("edit", author, calls=(record,))

        return change_memory(self.env, self.store, self.namespace, before, apply)

    def undo(self, author: str = "user") -> Event | None:
        """Reverts the newest event that is not undone yet; None if there is none."""
        return self.store.undo(self.namespace, author)

    def events(self, first: int = 0) -> list[Event]:
        """The events of the memory from number `first` on, oldest first."""
        return self.store.events(self.namespace, first)

    def history(self, name: str | None = None, entry_id: int | None = None) -> list[Change]:
        """What each event changed, oldest first: of one memory or entry, or of all."""
        if name is not None and name not in MEMORY_NAMES:
            raise ValueError(f"memory {name!r}: choose one of {', '.join(MEMORY_NAMES)}")
        kind = None if name is None else MEMORY_NAMES.index(name)
        return [
            change
            for change in self.store.changes(self.namespace)
            if kind in (None, change.memory) and entry_id in (None, change.id)
        ]

    def to_dict(self) -> dict:
        """The memory and its history as plain data, from one moment."""
        snapshot = self.store.read(self.namespace)
        view = view_of(snapshot, self.env)
        # Others may write meanwhile: drop the events after the snapshot.
        events = [asdict(event) for event in self.events() if event.number < snapshot.events]
        changes = [
            asdict(change) | {"memory": MEMORY_NAMES[change.memory]}
            for change in self.history()
            if change.number < snapshot.events
        ]
        return {
            "format": "memalpha memory 1",
            "namespace": self.namespace,
            "core": view.core,
            "semantic": [asdict(entry) for entry in view.semantic],
            "episodic": [asdict(entry) for entry in view.episodic],
            "tokens": view.tokens,
            "events": events,
            "changes": changes,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def to_markdown(self) -> str:
        """The memory as a page to read; no text in it can act as markup, link or HTML."""
        view = self.view()
        lines = [f"# Memory of {plain_markdown(self.namespace)}", "", "## Core", ""]
        lines += [plain_markdown(view.core) or "(empty)", ""]
        for name in MEMORY_NAMES[1:]:
            entries = getattr(view, name)
            lines += [f"## {name.capitalize()}", ""]
            lines += [_item(entry) for entry in entries] or ["(empty)"]
            lines.append("")
        return "\n".join(lines)


def change_memory(
    env: Environment,
    store: Store,
    namespace: str,
    before: Snapshot,
    apply: Callable[[MemoryView, MemoryState], tuple[MemoryState, Event]],
) -> Event:
    """Applies a change to the memory `before` and commits the difference as one event.

    `apply` gets the memory as text and as arrays of one row; it returns the new arrays and the
    event to record. Raises ConflictError if the store was changed since `before` was read.
    """
    view = view_of(before, env)
    state, event = apply(view, state_of(view, env, before.next_id))
    state = jax.device_get(state)
    after = difference(view, whole_view(env, state, 0))
    return store.commit(namespace, event, after, before, int(state.next_id[0]))


def view_of(snapshot: Snapshot, env: Environment) -> MemoryView:
    """A stored memory in the form that prompts and reader take."""
    lists = (snapshot.semantic, snapshot.episodic)
    tokens = sum(count_tokens(env, entry.text) for entries in lists for entry in entries)
    tokens += count_tokens(env, snapshot.core)
    return MemoryView(snapshot.core, *lists, *map(len, lists), tokens)


def state_of(view: MemoryView, env: Environment, next_id: int) -> MemoryState:
    """The arrays of a memory, one row. ValueError for an entry too long for this writer."""
    encode = lambda text: encode_text(env, text)
    return memory.from_view(view, encode, env.memory.entry_tokens, env.memory.core_tokens, next_id)


def difference(before: MemoryView, after: MemoryView) -> dict[Key, str | None]:
    """The entries that differ: their new texts, None for those that are gone."""
    old, new = texts_of(before), texts_of(after)
    changed = {key: text for key, text in new.items() if old.get(key) != text}
    return dict.fromkeys(old.keys() - new.keys()) | changed


def texts_of(view: MemoryView) -> dict[Key, str]:
    """The text of every entry by its key; the core is left out where it is empty."""
    texts = {(CORE, CORE_ID): view.core} if view.core else {}
    for kind, entries in enumerate((view.semantic, view.episodic), start=1):
        texts |= {(kind, entry.id): entry.text for entry in entries}
    return texts


def plain_markdown(text: str) -> str:
    """Text with everything escaped that Markdown would interpret."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _MARKUP.sub(lambda m: f"\\{m[1] or m[2]}" if m[1] or m[2] else f"{m[3]}\\{m[4]}", text)


def _item(entry: Entry) -> str:
    body = plain_markdown(entry.text).replace("\n", "\n  ")
    return f"- `[{entry.id}]` {body} (event {entry.written_at})"
