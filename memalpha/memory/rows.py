"""Batches of memories: room for more entries, rows that start afresh, and what a prompt shows.

Axes as in `state`: R rows, N entries, L entry length, C core length.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from memalpha.memory import hash_tables
from memalpha.memory.hash_tables import content_hash
from memalpha.memory.state import TABLES, MemoryState, Newest

MIN_CAPACITY = 16  # entries; below it a bucket would save no memory worth a compilation


def capacity_bucket(n: int) -> int:
    """The least power of two that holds n entries, at least 16: few sizes, few compilations."""
    return max(MIN_CAPACITY, 1 << max(n - 1, 0).bit_length())


@jax.jit
@jax.vmap
def _chains_of(tokens: jax.Array, length: jax.Array, ids: jax.Array, count: jax.Array) -> jax.Array:
    capacity = ids.shape[1]
    keys = jnp.stack([ids, content_hash(tokens, length)], axis=1)  # [2, 2, N]
    tables = jnp.arange(TABLES, dtype=jnp.int32).reshape(2, 2, 1)
    used = jnp.broadcast_to(jnp.arange(capacity) < count[:, None, None], keys.shape)
    return hash_tables.build(hash_tables.bucket_of(tables, keys, capacity).ravel(), used.ravel())


def reindex(state: MemoryState) -> MemoryState:
    """The same memories [R, ...] with `chains` built from their entries: for a state that did not
    come from operations. On the device, but numpy leaves come back as numpy."""
    rebuilt = _chains_of(state.tokens, state.length, state.id, state.count)
    on_host = isinstance(state.tokens, np.ndarray)
    return state.replace(chains=jax.device_get(rebuilt) if on_host else rebuilt)


def needed_capacity(state: MemoryState, inserts: int | np.ndarray) -> int:
    """Entries the fullest list would hold after `inserts` more (one int, or [R, 2] a list)."""
    return int(np.max(np.asarray(state.count) + np.asarray(inserts)))


def grow(state: MemoryState, capacity: int) -> MemoryState:
    """The same memories [R, ...] with room for at least `capacity` entries a list.

    Pads with zeros to the bucket of `capacity`, on the host for numpy leaves and else on the
    device, and rebuilds `chains`; a state that is large enough comes back as it is. It never
    shrinks.

    Raises:
        ValueError: the state has no row axis.
    """
    if state.tokens.ndim != 4:
        raise ValueError(
            f"memory.grow: tokens has shape {state.tokens.shape}; give a batch [R, 2, N, L]"
        )
    before = state.tokens.shape[2]
    if capacity <= before:
        return state
    xp = np if isinstance(state.tokens, np.ndarray) else jnp
    extra = (0, capacity_bucket(capacity) - before)

    def pad(x):
        return xp.pad(x, [extra if axis == 2 else (0, 0) for axis in range(x.ndim)])

    return reindex(
        state.replace(
            tokens=pad(state.tokens),
            length=pad(state.length),
            id=pad(state.id),
            written_at=pad(state.written_at),
        )
    )


@partial(jax.jit, donate_argnums=0)
def refill(state: MemoryState, fresh: jax.Array, first_id: jax.Array) -> MemoryState:
    """Empty memories in the rows of `fresh` [R] bool, each with its first id of `first_id` [R];
    the others stay. The state is donated."""

    def clear(x):
        return jnp.where(fresh.reshape(-1, *[1] * (x.ndim - 1)), 0, x)

    next_id = jnp.where(fresh, first_id, state.next_id)
    return jax.tree.map(clear, state).replace(next_id=next_id)


@jax.jit
def take(state: MemoryState, rows: jax.Array) -> MemoryState:
    """The memories `rows` [n] int32 of a batch, in that order."""
    return jax.tree.map(lambda x: x[rows], state)


@partial(jax.jit, static_argnames="last")
def newest(state: MemoryState, last: int) -> Newest:
    """The `last` newest entries of each list of a batch, taken on the device: a prompt needs no
    more, and what is fetched for it does not grow with the memory. Raises ValueError for a negative
    number."""
    if last < 0:
        raise ValueError(f"memory.newest: last = {last}; give at least 0")
    slots = jnp.arange(state.id.shape[-1])

    def pop(ids: jax.Array, _) -> tuple[jax.Array, jax.Array]:
        slot = jnp.argmax(ids, axis=-1)
        return jnp.where(slots == slot[..., None], -2, ids), slot

    # Taken ones are -2, so that spare slots, -1, come after all entries.
    ids = jnp.where(slots < state.count[..., None], state.id, -1)
    # Not `lax.top_k`, which sorts all ids on a CPU: 100 times the time for two of 10,000.
    _, order = jax.lax.scan(pop, ids, length=min(last, len(slots)))
    order = jnp.moveaxis(order, 0, -1)

    def pick(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 3)), axis=2)

    return Newest(
        core=state.core,
        core_len=state.core_len,
        tokens=pick(state.tokens),
        length=pick(state.length),
        id=pick(state.id),
        written_at=pick(state.written_at),
        count=state.count,
        size=state.size,
    )
