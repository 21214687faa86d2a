"""The hash tables of the memory, each operation against a dictionary of lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memalpha.memory import hash_tables

M, N, K = 3, 5, 2  # tables, slots of a table, nodes written at once
NODES = M * N


def decode(tables, slots):
    """The array of any number of tables as {bucket: its nodes in the order of the chain}.

    Fails where a "previous" does not point back, or a free node points anywhere.
    """
    nodes = len(tables) // 3
    pointers, previous = tables[: 2 * nodes], tables[2 * nodes :]
    chains = {}
    for bucket in range(nodes):
        index, chain = bucket, []
        while stored := int(pointers[index]):
            assert previous[stored - 1] == index
            assert (stored - 1) // slots == bucket // slots, "a chain stays in its table"
            chain.append(stored - 1)
            index = nodes + stored - 1
        if chain:
            chains[bucket] = chain
    used = [node for chain in chains.values() for node in chain]
    assert len(used) == len(set(used)), "a node is in one chain at most"
    free = np.setdiff1d(np.arange(nodes), used)
    assert not previous[free].any() and not pointers[nodes + free].any()
    return chains


class Oracle:
    """The same tables as a plain dictionary of lists."""

    def __init__(self):
        self.chains = {}

    def chain_with(self, node):
        return next((chain for chain in self.chains.values() if node in chain), None)

    def remove(self, node):
        self.chain_with(node).remove(node)

    def add(self, bucket, node):
        self.chains.setdefault(bucket, []).insert(0, node)

    def replace(self, old, node):
        chain = self.chain_with(old)
        chain[chain.index(old)] = node

    def find(self, bucket, wanted):
        return next((node for node in self.chains.get(bucket, []) if wanted[node]), -1)

    def contents(self):
        return {bucket: chain for bucket, chain in self.chains.items() if chain}


build = jax.jit(hash_tables.build)
remove = jax.jit(hash_tables.remove)
add = jax.jit(hash_tables.add)


@jax.jit
def find(tables, bucket, wanted):
    """The first node of a chain that is one of `wanted` [NODES] bool."""
    return hash_tables.find(tables, bucket, lambda node: wanted[node])


def draw_buckets(rng, nodes):
    """A bucket of each node's own table, out of few, so that chains are long."""
    return nodes // N * N + rng.integers(0, 2, len(nodes))


def filled(rng):
    """Tables that were built at once, and their oracle."""
    used, nodes = rng.random(NODES) < 0.6, np.arange(NODES)
    buckets, oracle = draw_buckets(rng, nodes), Oracle()
    for node in nodes[used][::-1]:  # at the head, so that chains are in the order of their nodes
        oracle.add(int(buckets[node]), int(node))
    return np.asarray(build(buckets.astype(np.int32), used)), oracle


def pick(rng, nodes):
    """K nodes of K different tables, or fewer where the tables have none of `nodes`."""
    tables = rng.permutation(M)[:K]
    of_table = ([node for node in nodes if node // N == table] for table in tables)
    return [int(rng.choice(choice)) if choice else -1 for choice in of_table]


def test_no_tables_are_zeros():
    nothing = build(jnp.zeros(NODES, jnp.int32), np.zeros(NODES, bool))
    assert nothing.shape == (3 * NODES,) and not nothing.any()
    assert int(find(nothing, 0, np.ones(NODES, bool))) == -1


@pytest.mark.parametrize("seed", range(5))
def test_every_operation_does_what_it_does_to_a_dictionary(seed):
    rng = np.random.default_rng(seed)
    tables, oracle = filled(rng)
    assert decode(tables, N) == oracle.contents()
    for _ in range(20):
        used = [node for chain in oracle.contents().values() for node in chain]
        free = sorted(set(range(NODES)) - set(used))
        operation = rng.choice(["remove", "add", "replace"])
        nodes = np.array(pick(rng, used if operation == "remove" else free), np.int32)
        enabled = (nodes >= 0) & (rng.random(K) < 0.8)
        old = np.zeros(K, np.int32)
        if operation == "replace":  # each by a free node of its own table
            of_table = [[u for u in used if u // N == node // N] for node in nodes]
            enabled &= [bool(choice) for choice in of_table]
            old = np.array([rng.choice(c) if c else 0 for c in of_table], np.int32)
        buckets = draw_buckets(rng, nodes).astype(np.int32)
        if operation == "remove":
            tables = remove(tables, nodes, enabled)
        else:
            tables = add(tables, buckets, nodes, enabled, old, operation == "replace")
        for bucket, node, is_enabled, before in zip(buckets, nodes, enabled, old, strict=True):
            if is_enabled and operation == "remove":
                oracle.remove(node)
            elif is_enabled and operation == "add":
                oracle.add(int(bucket), int(node))
            elif is_enabled:
                oracle.replace(before, int(node))
        tables = np.asarray(tables)
        assert decode(tables, N) == oracle.contents(), operation
        wanted = rng.random(NODES) < 0.5
        for bucket in range(NODES):
            assert int(find(tables, bucket, wanted)) == oracle.find(bucket, wanted)


def test_buckets_are_those_of_unsigned_keys():
    keys = np.array([0, 7, -1, -(2**31)], np.int32)
    got = hash_tables.bucket_of(jnp.int32(2), keys, N)
    assert got.tolist() == [2 * N + int(key) % 2**32 % N for key in keys]


def test_the_hash_by_hand():
    def by_hand(tokens):
        total = sum((t + 1) * 0x9E3779B1 ** (n + 1) for n, t in enumerate(tokens)) % 2**32
        return total ^ (total >> 15)

    tokens = np.array([[3, 0, 5], [3, 0, 9], [3, 1, 5]], np.int32)
    got = hash_tables.content_hash(tokens, np.array([3, 2, 1], np.int32))
    want = [by_hand(t) for t in ([3, 0, 5], [3, 0], [3])]  # what is past the length is not read
    assert np.asarray(got).view(np.uint32).tolist() == want
