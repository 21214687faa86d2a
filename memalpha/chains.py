"""Chained hash tables on the device: which of N slots holds a key, whatever N is.

Axes: M tables, N slots, K writes. A node is a slot of a table: table * N + slot. A table has N
buckets, numbered in the same way. Cells 0 to MN - 1 are the buckets, cell MN + node is that of a
node; a cell points to the next node of its chain. All of this is for one episode; vmap it.

Indices that are not to be written are put past the end, where a scatter drops them: under vmap a
condition would be a select that copies the whole table.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Chains:
    """Zeros are empty tables. A batch has a leading axis R on both."""

    after: jax.Array  # [2MN] of every cell: the node it points to, plus 1; 0: the chain ends
    before: jax.Array  # [MN] of every node in a chain: the cell that points to it


def bucket_of(table: jax.Array, key: jax.Array, slots: int) -> jax.Array:
    """The bucket of int32 keys, in tables of N = `slots`."""
    spread = key.astype(jnp.uint32) % jnp.uint32(slots)
    return table * slots + spread.astype(jnp.int32)


def build(buckets: jax.Array, used: jax.Array) -> Chains:
    """Tables of all nodes at once: buckets [MN] int32 of the nodes, used [MN] bool."""
    nodes = len(buckets)
    end = 2 * nodes
    order = jnp.argsort(jnp.where(used, buckets, end))  # stable: the nodes of a bucket in a row
    bucket = jnp.where(used, buckets, end)[order]
    follows = jnp.concatenate([jnp.zeros(1, bool), bucket[1:] == bucket[:-1]])
    cell = jnp.where(follows & (bucket < end), nodes + jnp.roll(order, 1), bucket)
    return Chains(
        after=jnp.zeros(end, jnp.int32).at[cell].set(order + 1, mode="drop"),
        before=jnp.zeros(nodes, jnp.int32).at[order].set(jnp.where(used[order], cell, 0)),
    )


def find(chains: Chains, bucket: jax.Array, is_it: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The first node of a bucket's chain for which `is_it` holds, else -1: [] int32."""
    nodes = len(chains.before)
    go_on = lambda pointer: (pointer > 0) & ~is_it(pointer - 1)
    advance = lambda pointer: chains.after[nodes + pointer - 1]
    return jax.lax.while_loop(go_on, advance, chains.after[bucket]) - 1


def add(chains: Chains, bucket: jax.Array, node: jax.Array, do: jax.Array) -> Chains:
    """Puts nodes in front of the chains of their buckets: all [K], where `do` holds.

    Here and below the K nodes are of different tables, so no two of them meet in a chain.
    """
    nodes = len(chains.before)
    first = chains.after[bucket]
    node = jnp.where(do, node, nodes)
    return Chains(
        after=_put(
            chains.after, (jnp.where(do, bucket, 2 * nodes), node + 1), (nodes + node, first)
        ),
        before=_put(chains.before, (node, bucket), (_target(first, do, nodes), nodes + node)),
    )


def remove(chains: Chains, node: jax.Array, do: jax.Array) -> Chains:
    """Takes nodes [K] out of their chains where `do` [K] holds."""
    nodes = len(chains.before)
    cell, following = chains.before[node], chains.after[nodes + node]
    node = jnp.where(do, node, nodes)
    cell = jnp.where(do, cell, 2 * nodes)
    return Chains(
        after=_put(chains.after, (cell, following), (nodes + node, 0)),
        before=_put(chains.before, (_target(following, do, nodes), cell), (node, 0)),
    )


def move(chains: Chains, old: jax.Array, new: jax.Array, do: jax.Array) -> Chains:
    """Nodes `new` [K], which are in no chain, take the places of `old` [K] where `do` [K] holds."""
    nodes = len(chains.before)
    cell, following = chains.before[old], chains.after[nodes + old]
    old, new = jnp.where(do, old, nodes), jnp.where(do, new, nodes)
    cell = jnp.where(do, cell, 2 * nodes)
    return Chains(
        after=_put(chains.after, (cell, new + 1), (nodes + new, following), (nodes + old, 0)),
        before=_put(
            chains.before, (new, cell), (_target(following, do, nodes), nodes + new), (old, 0)
        ),
    )


def _target(pointer: jax.Array, do: jax.Array, nodes: int) -> jax.Array:
    """The node of a pointer, past the end where there is none or nothing is to be done."""
    return jnp.where(do & (pointer > 0), pointer - 1, nodes)


def _put(x: jax.Array, *writes: tuple[jax.Array, jax.Array | int]) -> jax.Array:
    """x with values [K] at indices [K]; one scatter for all of them."""
    where = jnp.concatenate([index for index, _ in writes])
    values = jnp.concatenate([jnp.broadcast_to(value, index.shape) for index, value in writes])
    return x.at[where].set(values, mode="drop")
