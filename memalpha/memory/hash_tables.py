"""Chained hash tables on the device: which of N slots holds a key, whatever N is.

Axes: M tables, N slots, K writes. A node is a slot of a table: table * N + slot. A table has N
buckets, numbered in the same way. Cells 0 to MN - 1 are the buckets, cell MN + node is that of a
node; a cell points to the next node of its chain. All of this is for one episode; vmap it.

All tables are one int32 array [3MN]: of every cell the node it points to, plus 1 (0: the chain
ends), and behind them, of every node in a chain, the cell that points to it. Zeros: all are empty.

What is not to be written goes past the end, where a scatter drops it: under vmap a condition would
be a select that copies the whole array.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def bucket_of(table: jax.Array, key: jax.Array, slots: int) -> jax.Array:
    """The bucket of int32 keys, in tables of N = `slots`."""
    spread = key.astype(jnp.uint32) % jnp.uint32(slots)
    return table * slots + spread.astype(jnp.int32)


def build(buckets: jax.Array, used: jax.Array) -> jax.Array:
    """Tables of all nodes at once: buckets [MN] int32 of the nodes, used [MN] bool."""
    nodes = len(buckets)
    nowhere = 3 * nodes
    bucket = jnp.where(used, buckets, nowhere)
    order = jnp.argsort(bucket)  # the nodes of a bucket stand in a row, and are chained so
    bucket = bucket[order]
    follows = jnp.concatenate([jnp.zeros(1, bool), bucket[1:] == bucket[:-1]])
    cell = jnp.where(follows & (bucket < nowhere), nodes + jnp.roll(order, 1), bucket)
    pointed = jnp.where(bucket < nowhere, 2 * nodes + order, nowhere)
    return _put(jnp.zeros(nowhere, jnp.int32), (cell, order + 1), (pointed, cell))


def find(
    tables: jax.Array, bucket: jax.Array, is_it: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The first node of a bucket's chain for which `is_it` holds, else -1: [] int32."""
    nodes = len(tables) // 3
    go_on = lambda pointer: (pointer > 0) & ~is_it(pointer - 1)
    advance = lambda pointer: tables[nodes + pointer - 1]
    return jax.lax.while_loop(go_on, advance, tables[bucket]) - 1


def remove(tables: jax.Array, node: jax.Array, do: jax.Array) -> jax.Array:
    """Takes nodes [K] out of their chains where `do` [K] holds.

    Here and below the K nodes are of different tables, so no two of them meet in a chain.
    """
    nodes = len(tables) // 3
    before, own = 2 * nodes + node, nodes + node
    cell, following = tables[before], tables[own]
    writes = [(cell, following), (own, 0), (before, 0), (_before(following, nodes), cell)]
    return _put(tables, *((_only(do, index, nodes), value) for index, value in writes))


def add(
    tables: jax.Array,
    bucket: jax.Array,
    node: jax.Array,
    do: jax.Array,
    old: jax.Array,
    replace: jax.Array,
) -> jax.Array:
    """Puts nodes, which are in no chain, into one where `do` holds: in front of that of their
    bucket, or where `replace` [] holds, in the place of the nodes `old`. All others are [K]."""
    nodes = len(tables) // 3
    cell = jnp.where(replace, tables[2 * nodes + old], bucket)
    following = jnp.where(replace, tables[nodes + old], tables[bucket])
    before, own = 2 * nodes + node, nodes + node
    writes = [(cell, node + 1), (own, following), (before, cell)]
    writes.append((_before(following, nodes), own))
    writes += [(_only(replace, start * nodes + old, nodes), 0) for start in (1, 2)]
    return _put(tables, *((_only(do, index, nodes), value) for index, value in writes))


def _before(pointer: jax.Array, nodes: int) -> jax.Array:
    """Where the cell is kept that points to the node of a pointer; past the end for none."""
    return _only(pointer > 0, 2 * nodes + pointer - 1, nodes)


def _only(do: jax.Array, index: jax.Array, nodes: int) -> jax.Array:
    return jnp.where(do, index, 3 * nodes)


def _put(tables: jax.Array, *writes: tuple[jax.Array, jax.Array | int]) -> jax.Array:
    """The array with values [K] at indices [K]; one scatter for all of them."""
    where = jnp.concatenate([index for index, _ in writes])
    values = jnp.concatenate([jnp.broadcast_to(value, index.shape) for index, value in writes])
    return tables.at[where].set(values, mode="drop")
