"""The memory: arrays and operations (`state`), batches of them (`rows`), its text (`text`)."""

from memalpha.memory.rows import (
    capacity_bucket,
    grow,
    needed_capacity,
    newest,
    refill,
    reindex,
    take,
)
from memalpha.memory.state import (
    CORE,
    EPISODIC,
    MEMORY_NAMES,
    SEMANTIC,
    MemoryState,
    Newest,
    OpKind,
    Ops,
    Outcome,
    apply_batch,
    apply_ops,
    init,
)
from memalpha.memory.text import EMPTY_VIEW, Entry, MemoryView, from_view, view

__all__ = [
    "CORE",
    "EMPTY_VIEW",
    "EPISODIC",
    "MEMORY_NAMES",
    "SEMANTIC",
    "Entry",
    "MemoryState",
    "MemoryView",
    "Newest",
    "OpKind",
    "Ops",
    "Outcome",
    "apply_batch",
    "apply_ops",
    "capacity_bucket",
    "from_view",
    "grow",
    "init",
    "needed_capacity",
    "newest",
    "refill",
    "reindex",
    "take",
    "view",
]
