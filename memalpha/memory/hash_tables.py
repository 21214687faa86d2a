"""Chained hash tables on the device: which of N slots holds a key, at a cost independent of N.

Axes: M tables, N slots of a table, K writes. All of this is for one episode; vmap it.

A node stands for one slot of one table, as the number table * N + slot. Each table has N buckets,
numbered in the same way, and the nodes of a bucket form a doubly linked list, its chain.

All tables are one int32 array [3 M N] of three parts of M N each:
    bucket heads  the first node of each bucket's chain
    next          of each node, the next node of its chain
    previous      of each node, the index in this array that points to it: a bucket head or a "next"
Nodes are stored plus one, so that 0 is the null pointer and an array of zeros is M empty tables.

Masked writes go to index 3 M N, one past the end, which `mode="drop"` discards: under vmap a
conditional write would become a select that copies the whole array.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_HASH_BASE = 0x9E3779B1  # odd; 2^32 over the golden ratio


def content_hash(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """A key for token sequences, tokens [..., L] and length [...]: [...] int32.

    A polynomial in `_HASH_BASE` modulo 2^32; tokens at and after the length do not count.
    """
    positions = np.arange(tokens.shape[-1])
    weights = np.cumprod(np.full(len(positions), _HASH_BASE, np.uint32), dtype=np.uint32)
    terms = jnp.where(positions < length[..., None], tokens.astype(jnp.uint32) + 1, 0) * weights
    total = jnp.sum(terms, axis=-1, dtype=jnp.uint32)
    return (total ^ (total >> 15)).astype(jnp.int32)


def bucket_of(table: jax.Array, key: jax.Array, slots: int) -> jax.Array:
    """The bucket of int32 keys in the given tables of N = `slots`: int32."""
    spread = key.astype(jnp.uint32) % jnp.uint32(slots)
    return table * slots + spread.astype(jnp.int32)


def build(buckets: jax.Array, used: jax.Array) -> jax.Array:
    """Tables of all used nodes at once: the bucket of every node [M N] int32, used [M N] bool."""
    nodes = len(buckets)
    past_end = 3 * nodes
    bucket = jnp.where(used, buckets, past_end)
    order = jnp.argsort(bucket)  # nodes of one bucket become neighbours; each points to the next
    bucket = bucket[order]
    follows = jnp.concatenate([jnp.zeros(1, bool), bucket[1:] == bucket[:-1]])
    pointer = jnp.where(follows & (bucket < past_end), nodes + jnp.roll(order, 1), bucket)
    previous = jnp.where(bucket < past_end, 2 * nodes + order, past_end)
    return _put(jnp.zeros(past_end, jnp.int32), (pointer, order + 1), (previous, pointer))


def find(
    tables: jax.Array, bucket: jax.Array, matches: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The first node of a bucket's chain that `matches`, else -1: [] int32."""
    nodes = len(tables) // 3
    go_on = lambda pointer: (pointer > 0) & ~matches(pointer - 1)
    advance = lambda pointer: tables[nodes + pointer - 1]
    return jax.lax.while_loop(go_on, advance, tables[bucket]) - 1


def remove(tables: jax.Array, node: jax.Array, enabled: jax.Array) -> jax.Array:
    """Take nodes [K], each of which is in a chain, out of it where `enabled` [K].

    Here and in `add` the K nodes are of different tables, so that no two share a chain.
    """
    nodes = len(tables) // 3
    own_next, own_previous = nodes + node, 2 * nodes + node
    following, pointer = tables[own_next], tables[own_previous]
    writes = [
        (pointer, following),
        (_previous_of(following, nodes), pointer),
        (own_next, 0),
        (own_previous, 0),
    ]
    return _put(tables, *((_masked(enabled, index, nodes), value) for index, value in writes))


def add(
    tables: jax.Array,
    bucket: jax.Array,
    node: jax.Array,
    enabled: jax.Array,
    old: jax.Array,
    replace: jax.Array,
) -> jax.Array:
    """Put nodes that are in no chain into one where `enabled`: at the head of the chain of their
    bucket, or, where `replace` [] is True, in the place of the nodes `old`, which leave theirs.
    All but `tables` and `replace` are [K]."""
    nodes = len(tables) // 3
    own_next, own_previous = nodes + node, 2 * nodes + node
    old_next, old_previous = nodes + old, 2 * nodes + old
    pointer = jnp.where(replace, tables[old_previous], bucket)
    following = jnp.where(replace, tables[old_next], tables[bucket])
    writes = [
        (pointer, node + 1),
        (_previous_of(following, nodes), own_next),
        (own_next, following),
        (own_previous, pointer),
        (_masked(replace, old_next, nodes), 0),
        (_masked(replace, old_previous, nodes), 0),
    ]
    return _put(tables, *((_masked(enabled, index, nodes), value) for index, value in writes))


def _previous_of(stored: jax.Array, nodes: int) -> jax.Array:
    """Index of the "previous" of a node as stored (plus one); one past the end for null."""
    return _masked(stored > 0, 2 * nodes + stored - 1, nodes)


def _masked(enabled: jax.Array, index: jax.Array, nodes: int) -> jax.Array:
    """The index, or one past the end where not enabled."""
    return jnp.where(enabled, index, 3 * nodes)


def _put(tables: jax.Array, *writes: tuple[jax.Array, jax.Array | int]) -> jax.Array:
    """The array with values [K] at indices [K], in one scatter that drops indices past the end."""
    indices = jnp.concatenate([index for index, _ in writes])
    values = jnp.concatenate([jnp.broadcast_to(value, index.shape) for index, value in writes])
    return tables.at[indices].set(values, mode="drop")
