"""A memory as text, and back: `view` and `from_view`."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from memalpha.memory.rows import capacity_bucket, reindex
from memalpha.memory.state import (
    EPISODIC,
    MEMORY_NAMES,
    SEMANTIC,
    MemoryState,
    Newest,
    init,
)


@dataclass(frozen=True)
class Entry:
    """One entry as text; `written_at` is the index of the chunk that last wrote it."""

    id: int
    text: str
    written_at: int


@dataclass(frozen=True)
class MemoryView:
    """A memory as text, whole or the newest entries; the totals and `tokens` are of the whole."""

    core: str
    semantic: tuple[Entry, ...]
    episodic: tuple[Entry, ...]
    semantic_total: int
    episodic_total: int
    tokens: int


EMPTY_VIEW = MemoryView("", (), (), 0, 0, 0)  # of a memory that holds nothing


def view(
    host_state: MemoryState | Newest,
    row: int,
    decode: Callable[[list[int]], str],
    last: int | None = None,
) -> MemoryView:
    """The memory of row `row` of a batch as text; `decode` turns token ids into a string.

    `host_state`: the batch as numpy (`jax.device_get(state)`: fetch it once, view every row); a
    `Newest` has at most its K entries to view.
    `last`: only so many of the newest entries of each list; None: all. Raises ValueError for a row
    or `last` out of range.
    """
    rows = host_state.tokens.shape[0]
    if not 0 <= row < rows:
        raise ValueError(f"memory.view: row = {row}; the state has rows 0 to {rows - 1}")
    if last is not None and last < 0:
        raise ValueError(f"memory.view: last = {last}; give None or at least 0")
    one = jax.tree.map(lambda x: np.asarray(x[row]), host_state)
    totals = [int(n) for n in one.count]

    def text(tokens: np.ndarray, length: np.ndarray) -> str:
        return decode(tokens[: int(length)].tolist())

    def entries(which: int) -> tuple[Entry, ...]:
        tokens, length = one.tokens[which], one.length[which]
        ids, written_at = one.id[which][: totals[which]], one.written_at[which]
        first = 0 if last is None else max(len(ids) - last, 0)
        return tuple(
            Entry(int(ids[n]), text(tokens[n], length[n]), int(written_at[n]))
            for n in np.argsort(ids)[first:].tolist()
        )

    return MemoryView(
        core=text(one.core, one.core_len),
        semantic=entries(SEMANTIC - 1),
        episodic=entries(EPISODIC - 1),
        semantic_total=totals[SEMANTIC - 1],
        episodic_total=totals[EPISODIC - 1],
        tokens=int(one.size),
    )


def from_view(
    whole: MemoryView,
    encode: Callable[[str], list[int]],
    entry_tokens: int,
    core_tokens: int,
    next_id: int,
) -> MemoryState:
    """The memory of a whole view, one row [1, ...] of numpy arrays: the inverse of `view`.

    A core over `core_tokens` is cut: one that was cut before can have more tokens when its text is
    encoded again.

    Raises:
        ValueError: an entry is longer than `entry_tokens`, or the ids of a list do not increase.
    """
    lists = (whole.semantic, whole.episodic)
    capacity = capacity_bucket(max(map(len, lists)))
    state = jax.tree.map(np.array, init(1, capacity, entry_tokens, core_tokens, next_id))
    core = encode(whole.core)[:core_tokens]
    state.core[0, : len(core)], state.core_len[0] = core, len(core)
    for which, entries in enumerate(lists):
        state.count[0, which] = len(entries)
        ids = [entry.id for entry in entries]
        if ids != sorted(set(ids)):
            raise ValueError(f"{MEMORY_NAMES[which + 1]} ids {ids[:8]}: they have to grow")
        for n, entry in enumerate(entries):
            tokens = encode(entry.text)
            if len(tokens) > entry_tokens:
                raise ValueError(
                    f"{MEMORY_NAMES[which + 1]} entry [{entry.id}] has {len(tokens)} tokens, this"
                    f" writer holds at most {entry_tokens} an entry: shorten it, or use the writer"
                    " that wrote it"
                )
            state.tokens[0, which, n, : len(tokens)] = tokens
            state.length[0, which, n] = len(tokens)
            state.id[0, which, n], state.written_at[0, which, n] = entry.id, entry.written_at
    return reindex(state)
