"""The memory of an episode: padded arrays and pure operations on them.

Axes: R rows (episodes), N entries a list can hold (capacity), L tokens an entry can hold,
C tokens the core can hold, O operations of one step, W width of an operation's content
(W >= max(C, L)), M tokens of the cut mark. All arrays are int32.

Mem-alpha, section 3.2: one core paragraph and two lists of entries, semantic and episodic. The
lists are stacked on an axis of size 2, so that memory type t is at index t - 1. Entries fill the
slots from 0; a slot at or past `count` is spare, never read, and left zero. Ids only grow, so the
order of insertion is that of the ids and not of the slots: when an entry is deleted, the entry of
the last slot moves into the gap. So no operation writes more than two slots, and the hash tables in
`chains` say which: its cost does not depend on N.

Masked writes go to index N, which `mode="drop"` discards: under vmap a conditional write would
become a select that copies the whole array.
"""

from enum import IntEnum
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from memalpha.memory import hash_tables
from memalpha.memory.hash_tables import content_hash

CORE, SEMANTIC, EPISODIC = 0, 1, 2
MEMORY_NAMES = ("core", "semantic", "episodic")
TABLES = 4  # of `chains`: 2 * list for the ids, 2 * list + 1 for the contents


class OpKind(IntEnum):
    """What an operation asks for. NONE is padding; MALFORMED is a call that did not parse."""

    NONE = 0
    INSERT = 1
    UPDATE = 2
    DELETE = 3
    MALFORMED = 4


class Outcome(IntEnum):
    """The result of an operation. Only OK changed the memory; NONE is padding, not a call."""

    NONE = 0
    OK = 1
    DUPLICATE = 2
    UNKNOWN_ID = 3
    WRONG_TYPE = 4
    FULL = 5
    TOO_LONG = 6
    MALFORMED = 7


@flax.struct.dataclass
class MemoryState:
    """The memory of one episode; a batch has a leading axis R on every leaf."""

    core: jax.Array  # [C]
    core_len: jax.Array  # []
    tokens: jax.Array  # [2, N, L]
    length: jax.Array  # [2, N] tokens
    id: jax.Array  # [2, N]
    written_at: jax.Array  # [2, N] index of the chunk that last wrote the entry
    count: jax.Array  # [2] entries
    next_id: jax.Array  # [] one counter for both lists
    chains: jax.Array  # [12 * N] hash tables (`hash_tables`) of entries by id and by content

    @property
    def size(self) -> jax.Array:
        """Tokens of core and entries (the size in r3): [], of a batch [R]."""
        used = np.arange(self.length.shape[-1]) < self.count[..., None]
        return self.core_len + (self.length * used).sum(axis=(-2, -1))


@flax.struct.dataclass
class Newest:
    """What a writer sees: the newest entries of each list, at most K, newest first, and the size of
    the whole memory. A batch has a leading axis R on every leaf."""

    core: jax.Array  # [C]
    core_len: jax.Array  # []
    tokens: jax.Array  # [2, K, L]
    length: jax.Array  # [2, K] tokens
    id: jax.Array  # [2, K]
    written_at: jax.Array  # [2, K]
    count: jax.Array  # [2] entries of the memory
    size: jax.Array  # [] tokens of the memory


@flax.struct.dataclass
class Ops:
    """The operations of one step in order; a batch has a leading axis R on every leaf."""

    kind: jax.Array  # [O] OpKind
    target: jax.Array  # [O] memory type
    id: jax.Array  # [O] entry to update or delete
    tokens: jax.Array  # [O, W] content, cut to W
    length: jax.Array  # [O] tokens of the content before it was cut to W


@flax.struct.dataclass
class _Content:
    """What the operations would write; each step of the scan gets one, without the axis O."""

    words: jax.Array  # [O, L] to a list, zero-padded
    length: jax.Array  # [O]
    hash: jax.Array  # [O]
    core: jax.Array  # [O, C] to the core, cut
    core_len: jax.Array  # [O]


def init(
    rows: int,
    capacity: int,
    entry_tokens: int,
    core_tokens: int,
    first_id: int | np.ndarray | jax.Array = 1,
) -> MemoryState:
    """Empty memories of `rows` episodes, every leaf with leading axis R.

    `capacity` entries a list, `entry_tokens` an entry, `core_tokens` for the core; `first_id`
    is one int or an array [R]. Raises ValueError for a size below 1 or a negative first id.
    """
    sizes = dict(rows=rows, capacity=capacity, entry_tokens=entry_tokens, core_tokens=core_tokens)
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"memory.init: {name} = {value}; give at least 1")
    first = np.asarray(first_id)
    if first.shape not in ((), (rows,)) or first.dtype.kind not in "iu" or (first < 0).any():
        raise ValueError(
            f"memory.init: first_id must be one int >= 0 or {rows} of them (one a row), "
            f"got shape {first.shape}, dtype {first.dtype}, values {first.ravel()[:4]}"
        )

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), jnp.int32)

    return MemoryState(
        core=zeros(core_tokens),
        core_len=zeros(),
        tokens=zeros(2, capacity, entry_tokens),
        length=zeros(2, capacity),
        id=zeros(2, capacity),
        written_at=zeros(2, capacity),
        count=zeros(2),
        next_id=zeros() + jnp.asarray(first, jnp.int32),
        chains=zeros(3 * TABLES * capacity),
    )


def _check(state: MemoryState, ops: Ops, chunk_index, cut_mark, enabled) -> None:
    """Assert ranks, shapes and types of the arguments for one episode."""
    leaves = jax.tree.leaves((state, ops)) + [chunk_index, cut_mark]
    assert all(x.dtype == jnp.int32 for x in leaves), "memory arrays must be int32"
    assert state.core.ndim == 1 and state.tokens.ndim == 3, "one episode has no row axis"
    entries = (2, state.tokens.shape[1])
    assert state.tokens.shape[0] == 2 and state.count.shape == (2,)
    assert state.length.shape == state.id.shape == state.written_at.shape == entries
    assert state.chains.shape == (3 * TABLES * entries[1],), "see `reindex`"
    assert state.core_len.shape == state.next_id.shape == chunk_index.shape == ()
    assert ops.tokens.ndim == 2 and ops.tokens.shape[0] >= 1, "at least one (padding) operation"
    steps, width = ops.tokens.shape
    assert ops.kind.shape == ops.target.shape == ops.id.shape == ops.length.shape == (steps,)
    assert width >= max(state.core.shape[0], state.tokens.shape[2]), "W >= max(C, L)"
    assert cut_mark.ndim == 1 and cut_mark.shape[0] <= state.core.shape[0], "the mark fits in C"
    assert enabled.shape == (3,) and enabled.dtype == jnp.bool_


def _same(tokens: jax.Array, length: jax.Array, words: jax.Array, size: jax.Array) -> jax.Array:
    """[] bool: are tokens [L] of length [] the same as `words` [L] of length `size`?"""
    padding = jnp.arange(words.shape[0]) >= size
    return jnp.all((tokens == words) | padding) & (length == size)


def _cut_core(
    words: jax.Array, size: jax.Array, core_tokens: int, cut_mark: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Content words [W] as a core ([C], []): zero-padded, or cut so that it ends in the mark."""
    length = jnp.minimum(size, core_tokens)
    fitted = jnp.where(jnp.arange(core_tokens) < length, words[:core_tokens], 0)
    marked = fitted.at[core_tokens - cut_mark.shape[0] :].set(cut_mark)
    return jnp.where(size > core_tokens, marked, fitted), length


def apply_ops(
    state: MemoryState,
    ops: Ops,
    chunk_index: jax.Array,
    cut_mark: jax.Array,
    enabled: jax.Array,
) -> tuple[MemoryState, jax.Array, jax.Array]:
    """Apply the operations of one step to the memory of one episode, in order.

    Args:
      state: the memory.
      ops: O operations; an unknown kind counts as MALFORMED.
      chunk_index: [] int32, stored as `written_at` of what is written.
      cut_mark: [M] int32, the last tokens of a core that was cut to C.
      enabled: [3] bool, which memory types may be written.

    Returns:
      state, outcomes [O] int32 (`Outcome`), ids [O] int32 (the entry written, updated or
      deleted, else -1). The first rule that applies decides: MALFORMED; WRONG_TYPE (no such
      memory, a disabled one, an insert on core); UNKNOWN_ID (also the delete of an empty core);
      TOO_LONG; DUPLICATE (the list has an entry with the same tokens, or the core is the same
      after the cut); FULL. A failed operation changes nothing.

    Mem-alpha, section 3.2. In place where the state is donated, at a cost independent of N.
    """
    chunk_index, cut_mark, enabled = map(jnp.asarray, (chunk_index, cut_mark, enabled))
    _check(state, ops, chunk_index, cut_mark, enabled)
    entry_tokens = state.tokens.shape[2]
    padding = jnp.arange(entry_tokens) >= ops.length[:, None]
    words = jnp.where(padding, 0, ops.tokens[:, :entry_tokens])
    cut = partial(_cut_core, core_tokens=state.core.shape[0], cut_mark=cut_mark)
    cores = jax.vmap(cut)(ops.tokens, ops.length)
    contents = _Content(words, ops.length, content_hash(words, ops.length), *cores)

    def step(state: MemoryState, inputs: tuple[Ops, _Content]):
        return _apply_one(state, *inputs, chunk_index, enabled)

    state, (outcomes, ids) = jax.lax.scan(step, state, (ops.replace(tokens=None), contents))
    return state, outcomes, ids


def _apply_one(
    state: MemoryState, op: Ops, content: _Content, chunk_index: jax.Array, enabled: jax.Array
) -> tuple[MemoryState, tuple[jax.Array, jax.Array]]:
    """One operation; -> state, (outcome, id)."""
    insert, update, delete = (op.kind == k for k in (OpKind.INSERT, OpKind.UPDATE, OpKind.DELETE))
    write = insert | update
    is_core = op.target == CORE
    which = jnp.clip(op.target - 1, 0, 1)
    slot, in_list = _find(state, which, op.id, content)
    same_core = _same(state.core, state.core_len, content.core, content.core_len)

    outcome = jnp.int32(Outcome.OK)
    for code, applies in (  # later rules override earlier ones
        (Outcome.FULL, insert & (state.count[which] >= state.id.shape[1])),
        (Outcome.DUPLICATE, write & jnp.where(is_core, same_core, in_list)),
        (Outcome.TOO_LONG, write & ~is_core & (op.length > state.tokens.shape[2])),
        (
            Outcome.UNKNOWN_ID,
            jnp.where(is_core, delete & (state.core_len == 0), ~insert & (slot < 0)),
        ),
        (
            Outcome.WRONG_TYPE,
            (op.target != jnp.clip(op.target, 0, 2))
            | ~enabled[jnp.clip(op.target, 0, 2)]
            | (insert & is_core),
        ),
        (Outcome.MALFORMED, ~(write | delete)),
        (Outcome.NONE, op.kind == OpKind.NONE),
    ):
        outcome = jnp.where(applies, jnp.int32(code), outcome)

    ok = outcome == Outcome.OK
    on_core, on_list = ok & is_core, ok & ~is_core
    entry_id = jnp.where(insert, state.next_id, op.id)
    kinds = tuple(on_list & kind for kind in (insert, update, delete))
    state = _change_list(state, which, slot, entry_id, content, chunk_index, kinds)
    state = state.replace(
        core=jnp.where(on_core, jnp.where(delete, 0, content.core), state.core),
        core_len=jnp.where(on_core, jnp.where(delete, 0, content.core_len), state.core_len),
        next_id=state.next_id + (on_list & insert),
    )
    return state, (outcome, jnp.where(on_list, entry_id, -1))


def _find(
    state: MemoryState, which: jax.Array, entry_id: jax.Array, content: _Content
) -> tuple[jax.Array, jax.Array]:
    """The slot of an entry, -1 where there is none; and whether the list has this content."""
    capacity = state.id.shape[1]
    tables = 2 * which + jnp.arange(2, dtype=jnp.int32)
    by_id, by_hash = hash_tables.bucket_of(tables, jnp.stack([entry_id, content.hash]), capacity)

    def has_id(node: jax.Array) -> jax.Array:
        return state.id[which, node - tables[0] * capacity] == entry_id

    def has_content(node: jax.Array) -> jax.Array:  # other contents can share this bucket
        at = which, node - tables[1] * capacity
        return _same(state.tokens[at], state.length[at], content.words, content.length)

    node = hash_tables.find(state.chains, by_id, has_id)
    slot = jnp.where(node < 0, -1, node - tables[0] * capacity)
    return slot, hash_tables.find(state.chains, by_hash, has_content) >= 0


def _change_list(
    state: MemoryState,
    which: jax.Array,
    slot: jax.Array,
    entry_id: jax.Array,
    content: _Content,
    chunk_index: jax.Array,
    kinds: tuple[jax.Array, jax.Array, jax.Array],
) -> MemoryState:
    """Insert, update or delete the entry in `slot`, or nothing, as `kinds` ([] bool each) say."""
    insert, update, delete = kinds
    capacity, count = state.id.shape[1], state.count[which]
    last = jnp.maximum(count - 1, 0)
    place = jnp.where(insert, count, slot)
    close_up = delete & (place != last)
    # Masked writes go to index N, which `mode="drop"` discards.
    slots = jnp.stack(
        [jnp.where(insert | update | close_up, place, capacity), jnp.where(delete, last, capacity)]
    )

    def put(leaf: jax.Array, value: jax.Array) -> jax.Array:
        value = jnp.where(delete, leaf[which, last], value)
        return leaf.at[which, slots].set(jnp.stack([value, jnp.zeros_like(value)]), mode="drop")

    tables = 2 * which + jnp.arange(2, dtype=jnp.int32)
    buckets = hash_tables.bucket_of(tables, jnp.stack([entry_id, content.hash]), capacity)
    node, last_node = tables * capacity + place, tables * capacity + last
    # The id of an updated entry stays in its chain; its content moves to another one.
    chains = hash_tables.remove(state.chains, node, jnp.stack([delete, delete | update]))
    added = jnp.stack([insert | close_up, insert | update | close_up])
    chains = hash_tables.add(chains, buckets, node, added, last_node, close_up)
    change = insert.astype(jnp.int32) - delete.astype(jnp.int32)
    return state.replace(
        tokens=put(state.tokens, content.words),
        length=put(state.length, content.length),
        id=put(state.id, entry_id),
        written_at=put(state.written_at, chunk_index),
        count=state.count + jnp.where(jnp.arange(2) == which, change, 0),
        chains=chains,
    )


# state, ops [R, ...], chunk_index [R], cut_mark [M], enabled [3] -> state, outcomes and ids [R, O].
# The state is donated: use only the one returned.
apply_batch = jax.jit(jax.vmap(apply_ops, in_axes=(0, 0, 0, None, None)), donate_argnums=0)
