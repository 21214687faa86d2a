"""The memory: each rule by hand, all rules against a plain-Python model, and equivalences."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha import memory
from memalpha.memory import CORE, EPISODIC, SEMANTIC, OpKind, Ops, Outcome
from memalpha.memory.hash_tables import content_hash
from tests.test_hash_tables import decode

INSERT, UPDATE, DELETE = OpKind.INSERT, OpKind.UPDATE, OpKind.DELETE
OK, DUPLICATE, UNKNOWN_ID = Outcome.OK, Outcome.DUPLICATE, Outcome.UNKNOWN_ID
WRONG_TYPE, FULL, TOO_LONG = Outcome.WRONG_TYPE, Outcome.FULL, Outcome.TOO_LONG

R, N, L, C, O = 61, 3, 2, 5, 8  # noqa: E741 (the axes of memory/state.py)
MARK = (8, 9)
ALL_ON = np.array([True, True, True])


def pack(rows, width=C, steps=O):
    """Rows of (kind, target, id, content) as Ops [R, O, ...], padded with NONE."""
    shape = (len(rows), steps)
    kind, target, ids, length = (np.zeros(shape, np.int32) for _ in range(4))
    tokens = np.zeros((*shape, width), np.int32)
    for r, row in enumerate(rows):
        for o, (k, t, i, content) in enumerate(row):
            kind[r, o], target[r, o], ids[r, o], length[r, o] = k, t, i, len(content)
            tokens[r, o, : len(content)] = content[:width]
    return Ops(kind=kind, target=target, id=ids, tokens=tokens, length=length)


def contents(state, row=0):
    """A row as plain Python: core, semantic, episodic [(id, content, written_at)], next id."""
    one = jax.tree.map(lambda x: np.asarray(x)[row], state)
    lists = [
        [
            (int(one.id[w, n]), tuple(one.tokens[w, n, : one.length[w, n]]), int(x))
            for n, x in enumerate(one.written_at[w, : one.count[w]])
        ]
        for w in (0, 1)
    ]
    lists = [sorted(entries) for entries in lists]  # the order is that of the ids
    return tuple(one.core[: one.core_len]), *lists, int(one.next_id)


def run(*calls, state=None, chunk=0, enabled=ALL_ON, capacity=N):
    """Apply calls to one memory; -> (state, outcomes, ids)."""
    state = memory.init(1, capacity, L, C) if state is None else state
    state, outcomes, ids = memory.apply_batch(
        state, pack([calls]), np.array([chunk], np.int32), np.array(MARK, np.int32), enabled
    )
    count = len(calls)
    assert not outcomes[0, count:].any() and (ids[0, count:] == -1).all()
    return state, outcomes[0, :count].tolist(), ids[0, :count].tolist()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def without_chains(state):
    """The state but for the order inside its chains, which depends on how it came about."""
    return state.replace(chains=None)


def chain_lengths(state, row=0):
    """Nodes of every bucket that has any, of a row; fails where its chains do not fit its
    entries."""
    one = jax.tree.map(lambda x: np.asarray(x)[row], state)
    slots = one.id.shape[1]
    hashes = np.asarray(content_hash(jnp.asarray(one.tokens), jnp.asarray(one.length)))
    keys = np.stack([one.id, hashes], axis=1).reshape(4, slots).view(np.uint32)
    chains = decode(one.chains, slots)
    for bucket, chain in chains.items():
        for table, slot in (divmod(node, slots) for node in chain):
            assert bucket == table * slots + keys[table, slot] % slots
    count = np.repeat(one.count, 2)
    expected = [table * slots + slot for table in range(4) for slot in range(count[table])]
    nodes = sorted(node for chain in chains.values() for node in chain)
    assert nodes == expected, "every entry is in one chain of either table"
    return [len(chain) for chain in chains.values()]


# --- each rule, worked by hand ---


def test_insert_keeps_order_and_counts_ids_over_both_lists():
    state, outcomes, ids = run(
        (INSERT, SEMANTIC, -1, (1, 2)), (INSERT, EPISODIC, -1, (3,)), (INSERT, SEMANTIC, -1, (4,))
    )
    assert (outcomes, ids) == ([OK] * 3, [1, 2, 3])
    assert contents(state) == ((), [(1, (1, 2), 0), (3, (4,), 0)], [(2, (3,), 0)], 4)


def test_first_ids_are_given_per_row():
    assert memory.init(2, N, L, C, np.array([100, 7])).next_id.tolist() == [100, 7]
    assert memory.init(2, N, L, C, 5).next_id.tolist() == [5, 5]


def test_duplicate_is_word_for_word_and_per_list():
    state, outcomes, ids = run(
        (INSERT, SEMANTIC, -1, (1, 0)),
        (INSERT, SEMANTIC, -1, (1, 0)),  # stands since this very step
        (INSERT, EPISODIC, -1, (1, 0)),  # the other list does not count
        (INSERT, SEMANTIC, -1, (1,)),  # only the length tells it from (1, 0)
    )
    assert (outcomes, ids) == ([OK, DUPLICATE, OK, OK], [1, -1, 2, 3])
    state, outcomes, _ = run(
        (INSERT, EPISODIC, -1, (1, 0)),  # stands since the step before
        (UPDATE, SEMANTIC, 1, (1,)),  # stands as entry 3
        (UPDATE, SEMANTIC, 1, (1, 0)),  # is the entry itself
        state=state,
        chunk=5,
    )
    assert outcomes == [DUPLICATE] * 3
    assert contents(state) == ((), [(1, (1, 0), 0), (3, (1,), 0)], [(2, (1, 0), 0)], 4)


def test_content_that_was_deleted_or_replaced_is_free_again():
    _, outcomes, ids = run(
        (INSERT, SEMANTIC, -1, (1,)),
        (UPDATE, SEMANTIC, 1, (2,)),
        (INSERT, SEMANTIC, -1, (1,)),
        (DELETE, SEMANTIC, 1, ()),
        (INSERT, SEMANTIC, -1, (2,)),
        (INSERT, SEMANTIC, -1, (1,)),
    )
    assert (outcomes, ids) == ([OK] * 5 + [DUPLICATE], [1, 1, 2, 1, 3, -1])


def test_update_keeps_id_and_place_and_sets_provenance():
    state, _, _ = run((INSERT, EPISODIC, -1, (1,)), (INSERT, EPISODIC, -1, (2,)), chunk=3)
    assert contents(state)[2] == [(1, (1,), 3), (2, (2,), 3)]
    state, outcomes, ids = run((UPDATE, EPISODIC, 1, (7, 7)), state=state, chunk=4)
    assert (outcomes, ids) == ([OK], [1])
    assert contents(state) == ((), [], [(1, (7, 7), 4), (2, (2,), 3)], 3)
    state, _, _ = run(
        (UPDATE, EPISODIC, 1, (5,)), (UPDATE, EPISODIC, 1, (6,)), state=state, chunk=9
    )
    assert contents(state)[2] == [(1, (6,), 9), (2, (2,), 3)]


def test_delete_keeps_the_others_in_order_and_never_gives_an_id_twice():
    state, _, _ = run(*((INSERT, SEMANTIC, -1, (k,)) for k in (1, 2, 3)))
    state, outcomes, ids = run(
        (DELETE, SEMANTIC, 2, ()),
        (DELETE, SEMANTIC, 3, ()),
        (INSERT, SEMANTIC, -1, (4,)),
        state=state,
        chunk=1,
    )
    assert (outcomes, ids) == ([OK] * 3, [2, 3, 4])
    assert contents(state) == ((), [(1, (1,), 0), (4, (4,), 1)], [], 5)


def test_the_last_slot_closes_the_gap_and_the_view_stands_in_the_order_of_ids():
    state, _, _ = run(*((INSERT, SEMANTIC, -1, (k,)) for k in (5, 6, 7)))
    state, outcomes, _ = run((DELETE, SEMANTIC, 1, ()), state=state)
    assert outcomes == [OK] and state.id[0, 0].tolist() == [3, 2, 0]
    assert state.tokens[0, 0, :, 0].tolist() == [7, 6, 0]
    for last, ids in ((None, [2, 3]), (1, [3])):
        view = memory.view(jax.device_get(state), 0, str, last)
        assert [entry.id for entry in view.semantic] == ids
    state, outcomes, _ = run(
        (UPDATE, SEMANTIC, 3, (8,)),  # where it stands now
        (INSERT, SEMANTIC, -1, (6,)),
        (INSERT, SEMANTIC, -1, (7,)),
        (DELETE, SEMANTIC, 4, ()),  # in the last slot
        (DELETE, SEMANTIC, 2, ()),
        (DELETE, SEMANTIC, 3, ()),
        state=state,
    )
    assert outcomes == [OK, DUPLICATE, OK, OK, OK, OK]
    assert not any(np.any(x) for x in (state.id, state.tokens, state.chains))


def test_unknown_id():
    _, outcomes, ids = run(
        (INSERT, SEMANTIC, -1, (1,)),
        (UPDATE, SEMANTIC, 0, (2,)),  # 0 is what spare slots hold
        (DELETE, SEMANTIC, 2, ()),  # not given out yet
        (DELETE, EPISODIC, 1, ()),  # is in the other list
        (DELETE, SEMANTIC, 1, ()),
        (DELETE, SEMANTIC, 1, ()),  # gone
        (UPDATE, SEMANTIC, 1, (2,)),
    )
    assert outcomes == [OK] + [UNKNOWN_ID] * 3 + [OK] + [UNKNOWN_ID] * 2
    assert ids == [1, -1, -1, -1, 1, -1, -1]


def test_full_until_something_is_deleted():
    state, outcomes, _ = run(
        *((INSERT, SEMANTIC, -1, (k,)) for k in range(4)),
        (INSERT, EPISODIC, -1, (1,)),  # the lists fill apart
        (INSERT, SEMANTIC, -1, (2,)),  # a duplicate needs no room
        (DELETE, SEMANTIC, 1, ()),
        (INSERT, SEMANTIC, -1, (3,)),
    )
    assert outcomes == [OK, OK, OK, FULL, OK, DUPLICATE, OK, OK]
    assert contents(state)[1] == [(2, (1,), 0), (3, (2,), 0), (5, (3,), 0)]


def test_too_long_entry_is_refused():
    state, outcomes, ids = run(
        (INSERT, SEMANTIC, -1, (1, 2)),
        (INSERT, SEMANTIC, -1, (1, 2, 3)),  # its first two tokens stand already
        (UPDATE, SEMANTIC, 1, (4,) * 9),  # longer than the operation can carry
    )
    assert (outcomes, ids) == ([OK, TOO_LONG, TOO_LONG], [1, -1, -1])
    assert contents(state) == ((), [(1, (1, 2), 0)], [], 2)


def test_core_is_replaced_cut_and_cleared():
    state, outcomes, ids = run((UPDATE, CORE, -1, (1, 2, 3, 4, 5)))
    assert (outcomes, ids, contents(state)[0]) == ([OK], [-1], (1, 2, 3, 4, 5))
    state, outcomes, _ = run((UPDATE, CORE, -1, (1, 2, 3, 4, 5, 6)), state=state)
    assert (outcomes, contents(state)[0]) == ([OK], (1, 2, 3, *MARK))
    state, outcomes, _ = run(
        (UPDATE, CORE, -1, (1, 2, 3, 4, 5, 6)),  # cut again, it would change nothing
        (UPDATE, CORE, -1, (1, 2, 3, *MARK)),
        (INSERT, CORE, -1, (1,)),
        (UPDATE, CORE, -1, (1,)),
        (UPDATE, CORE, -1, (1, 0)),
        state=state,
    )
    assert outcomes == [DUPLICATE, DUPLICATE, WRONG_TYPE, OK, OK]
    assert contents(state)[0] == (1, 0)
    state, outcomes, _ = run((DELETE, CORE, -1, ()), (DELETE, CORE, -1, ()), state=state)
    assert (outcomes, contents(state)[0]) == ([OK, UNKNOWN_ID], ())


def test_disabled_or_unknown_memory_is_a_wrong_type():
    calls = [(INSERT, t, -1, (1,)) for t in (SEMANTIC, EPISODIC, 3, -1, -2, 99)]
    calls.append((UPDATE, CORE, -1, (1,)))
    _, outcomes, _ = run(*calls, enabled=np.array([False, True, False]))
    assert outcomes == [OK] + [WRONG_TYPE] * 6
    _, outcomes, _ = run(*calls, enabled=np.array([True, False, True]))
    assert outcomes == [WRONG_TYPE, OK] + [WRONG_TYPE] * 4 + [OK]


def test_malformed_and_padding_operations():
    state, outcomes, ids = run(
        (OpKind.NONE, 99, 1, (1,)),
        (OpKind.MALFORMED, 99, 1, (1,)),
        (17, SEMANTIC, 1, (1,)),
        (-1, SEMANTIC, 1, (1,)),
    )
    assert outcomes == [Outcome.NONE] + [Outcome.MALFORMED] * 3
    assert ids == [-1] * 4
    assert_equal(state, memory.init(1, N, L, C))


# --- all rules against a plain-Python model ---


class Model:
    """The rules once more, on lists, for one memory."""

    def __init__(self, capacity, entry_tokens, core_tokens, first_id):
        self.sizes = capacity, entry_tokens, core_tokens
        self.core, self.lists, self.next_id = (), {SEMANTIC: [], EPISODIC: []}, first_id

    def apply(self, call, chunk, enabled):
        kind, target, entry_id, content = call
        capacity, entry_tokens, core_tokens = self.sizes
        if kind == OpKind.NONE:
            return Outcome.NONE, -1
        if kind not in (INSERT, UPDATE, DELETE):
            return Outcome.MALFORMED, -1
        if target not in (CORE, SEMANTIC, EPISODIC) or not enabled[target]:
            return WRONG_TYPE, -1
        if target == CORE:
            return self._apply_core(kind, tuple(content), core_tokens), -1
        entries = self.lists[target]
        at = next((n for n, e in enumerate(entries) if e[0] == entry_id), None)
        if kind != INSERT and at is None:
            return UNKNOWN_ID, -1
        if kind == DELETE:
            del entries[at]
            return OK, entry_id
        if len(content) > entry_tokens:
            return TOO_LONG, -1
        if any(e[1] == tuple(content) for e in entries):
            return DUPLICATE, -1
        if kind == UPDATE:
            entries[at] = (entry_id, tuple(content), chunk)
            return OK, entry_id
        if len(entries) == capacity:
            return FULL, -1
        entries.append((self.next_id, tuple(content), chunk))
        self.next_id += 1
        return OK, self.next_id - 1

    def _apply_core(self, kind, content, core_tokens):
        if kind == INSERT:
            return WRONG_TYPE
        if kind == DELETE:
            outcome, self.core = (OK if self.core else UNKNOWN_ID), ()
            return outcome
        if len(content) > core_tokens:
            content = content[: core_tokens - len(MARK)] + MARK
        outcome, self.core = (DUPLICATE if content == self.core else OK), content
        return outcome

    def contents(self):
        return self.core, self.lists[SEMANTIC], self.lists[EPISODIC], self.next_id


def random_rows(rng, rows=R, steps=O, entries=()):
    """Rows of calls over three words, short contents and few ids, so that every rule is met.

    `entries`: contents to choose from for the lists; else any."""

    def call():
        kind = rng.choice(6, p=[0.05, 0.5, 0.2, 0.15, 0.05, 0.05])
        target = rng.choice([0, 1, 2, 3, -1], p=[0.2, 0.35, 0.35, 0.05, 0.05])
        longest = C + 2 if target == CORE else L + 1
        content = tuple(rng.integers(0, 3, rng.integers(0, longest + 1)).tolist())
        if entries and target != CORE and len(content) <= L:
            content = entries[rng.integers(len(entries))]
        return int(kind), int(target), int(rng.integers(-1, 9)), content

    return [[call() for _ in range(rng.integers(0, steps + 1))] for _ in range(rows)]


def play(seed, enabled, chunks=3, capacity=N, entries=()):
    """R random sequences of `chunks` steps on model and arrays; returns how often each outcome
    came, and the longest chain of the rows that were checked."""
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 3, R)
    state = memory.init(R, capacity, L, C, first)
    models = [Model(capacity, L, C, int(f)) for f in first]
    all_outcomes, issued, longest = [], [[] for _ in range(R)], 0
    for chunk in range(chunks):
        rows = random_rows(rng, entries=entries)
        state, outcomes, ids = memory.apply_batch(
            state,
            pack(rows),
            np.full(R, chunk, np.int32),
            np.array(MARK, np.int32),
            enabled,
        )
        host, outcomes, ids = jax.device_get((state, outcomes, ids))
        for r, (row, model) in enumerate(zip(rows, models, strict=True)):
            expected = [model.apply(call, chunk, enabled) for call in row]
            expected += [(Outcome.NONE, -1)] * (O - len(row))
            got = list(zip(outcomes[r].tolist(), ids[r].tolist(), strict=True))
            assert got == expected, (row, contents(host, r))
            assert contents(host, r) == model.contents()
            issued[r] += [
                i for call, (_, i) in zip(row, got, strict=False) if call[0] == INSERT and i >= 0
            ]
        all_outcomes.append(outcomes)
        longest = max(longest, *(max(chain_lengths(host, r), default=0) for r in range(0, R, 8)))
        spare = np.arange(capacity) >= host.count[:, :, None]
        assert not any(x[spare].any() for x in (host.tokens, host.length, host.id, host.written_at))
    assert all(x == sorted(set(x)) for x in issued), "an id was issued twice"
    return np.bincount(np.concatenate(all_outcomes).ravel(), minlength=len(Outcome)), longest


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_any_sequence_agrees_with_the_model(seed, enabled):
    play(seed, np.array(enabled))


def test_random_sequences_meet_every_outcome():
    assert (play(0, ALL_ON)[0] >= 5).all()


def test_contents_of_one_bucket_are_told_apart():
    """All contents share a bucket of the table, so that one chain holds a whole list."""
    capacity = 7
    pairs = np.array([(a, b) for a in range(12) for b in range(12)], np.int32)
    hashes = np.asarray(content_hash(pairs, np.full(len(pairs), 2, np.int32))).view(np.uint32)
    entries = [tuple(pair) for pair in pairs[hashes % capacity == 0].tolist()]
    assert len(entries) > capacity
    outcomes, longest = play(1, ALL_ON, capacity=capacity, entries=entries[: capacity + 3])
    assert longest >= 3 and (np.delete(outcomes, FULL) >= 5).all()


# --- equivalences ---


def random_memories(seed, rows=R, capacity=N):
    """Memories after a random step, with the operations of the next one."""
    rng = np.random.default_rng(seed)
    state = memory.init(rows, capacity, L, C)
    state, _, _ = memory.apply_batch(state, pack(random_rows(rng, rows)), *rest(rows))
    return jax.device_get(state), pack(random_rows(rng, rows))


def rest(rows, chunk=1):
    return np.full(rows, chunk, np.int32), np.array(MARK, np.int32), ALL_ON


def test_vmapped_is_one_at_a_time():
    state, ops = random_memories(1)
    together = jax.device_get(memory.apply_batch(state, ops, *rest(R)))
    one = jax.jit(memory.apply_ops)
    for r in range(7):
        at = partial(jax.tree.map, lambda x, r=r: x[r])
        assert_equal(one(at(state), at(ops), jnp.int32(1), *rest(1)[1:]), at(together))


def test_one_step_is_its_operations_one_by_one():
    state, ops = random_memories(2)
    together, outcomes, ids = memory.apply_batch(state, ops, *rest(R))
    for o in range(O):
        single = jax.tree.map(lambda x, o=o: x[:, o : o + 1], ops)
        state, outcome, entry_id = memory.apply_batch(state, single, *rest(R))
        assert_equal((outcome[:, 0], entry_id[:, 0]), (outcomes[:, o], ids[:, o]))
    assert_equal(state, together)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_exactly_the_ok_operations_change_the_memory(seed):
    before, ops = random_memories(seed)
    for o in range(O):
        single = jax.tree.map(lambda x, o=o: x[:, o : o + 1], ops)
        after, outcomes, _ = jax.device_get(memory.apply_batch(before, single, *rest(R, o + 2)))
        differ = jax.tree.map(lambda a, b: (a != b).reshape(R, -1).any(1), before, after)
        changed = np.any(jax.tree.leaves(differ), axis=0)
        np.testing.assert_array_equal(changed, outcomes[:, 0] == OK)
        before = after


def test_capacity_growth_changes_nothing():
    rng = np.random.default_rng(3)
    small, large = memory.init(R, 16, L, C), memory.init(R, 16, L, C)
    for chunk in range(3):
        ops = pack(random_rows(rng))
        large = memory.grow(large, 17 if chunk else 0)
        small, *small_out = memory.apply_batch(small, ops, *rest(R, chunk))
        large, *large_out = memory.apply_batch(large, ops, *rest(R, chunk))
        assert_equal(small_out, large_out)
    assert (small.tokens.shape[2], large.tokens.shape[2]) == (16, 32)
    assert_equal(without_chains(memory.grow(small, 32)), without_chains(large))
    for r in range(0, R, 16):
        chain_lengths(memory.grow(small, 32), r), chain_lengths(large, r)


def test_rebuilt_chains_are_as_good():
    state, ops = random_memories(10)
    lost = np.full_like(state.chains, 10**6)
    rebuilt = memory.reindex(state.replace(chains=lost))
    assert isinstance(rebuilt.chains, np.ndarray)
    for r in range(0, R, 16):
        chain_lengths(rebuilt, r)
    one, *one_out = memory.apply_batch(state, ops, *rest(R))
    other, *other_out = memory.apply_batch(rebuilt, ops, *rest(R))
    assert_equal(one_out, other_out)
    assert_equal(without_chains(one), without_chains(other))


def test_what_stands_in_spare_slots_and_padding_is_never_read():
    state, ops = random_memories(4)
    rng = np.random.default_rng(4)

    def dirty(x, spare):
        return np.where(spare, rng.integers(0, 3, x.shape, np.int32), x)

    free = np.arange(N) >= state.count[:, :, None]
    dirty_state = state.replace(
        core=dirty(state.core, np.arange(C) >= state.core_len[:, None]),
        tokens=dirty(state.tokens, np.arange(L) >= np.where(free, 0, state.length)[..., None]),
        length=dirty(state.length, free),
        id=dirty(state.id, free),
        written_at=dirty(state.written_at, free),
    )
    dirty_ops = ops.replace(tokens=dirty(ops.tokens, np.arange(C) >= ops.length[..., None]))
    clean, *clean_out = memory.apply_batch(state, ops, *rest(R))
    other, *other_out = memory.apply_batch(dirty_state, dirty_ops, *rest(R))
    assert_equal(clean_out, other_out)
    assert [contents(clean, r) for r in range(R)] == [contents(other, r) for r in range(R)]
    assert_equal(dirty_state.size, state.size)
    padded, *_ = memory.apply_batch(state, dirty_ops, *rest(R))
    assert_equal(padded, clean)  # bit for bit: the padding of an operation is not stored
    words = partial(memory.view, row=0, decode=str)
    assert words(dirty_state) == words(state)


def test_the_host_copy_survives_the_donated_state():
    state, ops = random_memories(5)
    device = jax.tree.map(jnp.asarray, state)
    host = jax.device_get(device)
    copy = jax.tree.map(np.copy, host)
    after, _, _ = memory.apply_batch(device, ops, *rest(R))
    assert_equal(host, copy)
    assert contents(after) != contents(host)


# --- cost ---


def test_the_state_is_donated():
    state = memory.init(1, N, L, C)
    memory.apply_batch(state, pack([[]]), *rest(1))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_refilled_rows_are_empty_and_the_others_stay():
    state, _ = random_memories(5)
    before, odd = [contents(state, row) for row in range(R)], np.arange(R) % 2 == 1
    state = memory.refill(state, odd, np.arange(R, dtype=np.int32))
    after = [contents(state, row) for row in range(R)]
    assert after[::2] == before[::2] != after[1::2]
    assert after[1::2] == [((), [], [], row) for row in range(1, R, 2)] != before[1::2]
    one = jax.tree.map(lambda x: x[7:8], state)
    assert_equal(one, memory.init(1, N, L, C, 7))  # the padding too


def test_taken_rows_are_those_memories_in_that_order():
    state, _ = random_memories(5)
    taken = memory.take(state, np.arange(R)[::-2])
    assert [contents(taken, row) for row in range(R // 2)] == [
        contents(state, row) for row in range(R - 1, 0, -2)
    ]


def test_one_trace_a_shape():
    traces = []

    @jax.jit
    def apply(state, ops, *others):
        traces.append(state.tokens.shape)
        return jax.vmap(memory.apply_ops, (0, 0, 0, None, None))(state, ops, *others)

    state, ops = random_memories(9)
    for seed in range(3):
        chunk, mark, _ = rest(R, seed)
        state, _, _ = apply(state, ops, chunk, mark + seed, np.array([seed > 1, True, False]))
    assert len(traces) == 1
    apply(memory.grow(state, N + 1), ops, *rest(R))
    assert len(traces) == 2


def test_no_array_is_larger_than_the_lists():
    entries, steps, words = 1009, 5, 17
    ops = pack([[(INSERT, SEMANTIC, -1, (1,))]], words, steps)
    state = memory.init(1, entries, words, C)
    program = str(jax.make_jaxpr(memory.apply_batch)(state, ops, *rest(1)))
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"i32\[([\d,]+)\]", program)]
    assert max(map(np.prod, shapes)) == np.prod(state.tokens.shape) > entries


def test_operations_need_no_room_for_a_list():
    """In place: beside the donated state there is not even one array of N numbers."""
    entries = 2**15
    state = jax.eval_shape(lambda: memory.init(2, entries, L, C))
    compiled = memory.apply_batch.lower(state, pack([[], []]), *rest(2)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * entries


# --- host side ---


def letters(tokens):
    return "".join(chr(ord("a") + t) for t in tokens)


def test_view_shows_the_last_entries_and_counts_them_all():
    state, _, _ = run(
        (UPDATE, CORE, -1, (0, 1, 2)),
        *((INSERT, SEMANTIC, -1, (k, k)) for k in (1, 2, 3)),
        (INSERT, EPISODIC, -1, (4,)),
        chunk=6,
    )
    host = jax.device_get(state)
    semantic = tuple(memory.Entry(k, letters((k, k)), 6) for k in (1, 2, 3))
    episodic = (memory.Entry(4, "e", 6),)
    whole = memory.view(host, 0, letters)
    assert whole == memory.MemoryView("abc", semantic, episodic, 3, 1, 10)
    assert memory.view(host, 0, letters, 2) == memory.MemoryView(
        "abc", semantic[1:], episodic, 3, 1, 10
    )
    assert memory.view(host, 0, letters, 0) == memory.MemoryView("abc", (), (), 3, 1, 10)
    assert memory.view(host, 0, letters, 99) == whole
    assert state.size.tolist() == [10]


@pytest.mark.parametrize("last", [0, 1, N + 5])
def test_the_newest_entries_show_what_the_whole_state_shows(last):
    state, _ = random_memories(6)
    newest = jax.device_get(memory.newest(state, last))
    assert newest.tokens.shape[2] == min(last, N)
    for r in range(0, R, 7):
        assert memory.view(newest, r, letters, last) == memory.view(state, r, letters, last)


def test_view_reads_its_row():
    state, _ = random_memories(6)
    for r in range(0, R, 15):
        view = memory.view(state, r, letters)
        core, semantic, episodic, _ = contents(state, r)
        assert view.core == letters(core)
        for entries, expected in ((view.semantic, semantic), (view.episodic, episodic)):
            assert [(e.id, e.text, e.written_at) for e in entries] == [
                (i, letters(words), at) for i, words, at in expected
            ]
        assert view.tokens == int(state.size[r])


def test_capacity_bucket():
    assert [memory.capacity_bucket(n) for n in (0, 1, 16, 17, 32, 33, 16000)] == [
        *(16, 16, 16, 32, 32, 64, 16384)
    ]


def test_needed_capacity():
    state, _, _ = run(*((INSERT, EPISODIC, -1, (k,)) for k in range(3)))
    assert memory.needed_capacity(state, 0) == 3
    assert memory.needed_capacity(state, 4) == 7
    assert memory.needed_capacity(state, np.array([[9, 1]])) == 9


def test_grow_pads_on_host_and_device_and_never_shrinks():
    state, _ = random_memories(7)
    host = memory.grow(state, N + 1)
    device = memory.grow(jax.tree.map(jnp.asarray, state), N + 1)
    assert isinstance(host.tokens, np.ndarray) and isinstance(device.tokens, jax.Array)
    assert host.tokens.shape == (R, 2, 16, L) and host.id.shape == (R, 2, 16)
    assert host.tokens.dtype == device.id.dtype == np.int32
    assert_equal(host, device)
    assert [contents(host, r) for r in range(R)] == [contents(state, r) for r in range(R)]
    assert memory.grow(state, N) is state


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: memory.init(0, N, L, C), "rows = 0"),
        (lambda: memory.init(1, N, L, 0), "core_tokens = 0"),
        (lambda: memory.init(2, N, L, C, np.array([1, 2, 3])), "first_id"),
        (lambda: memory.init(1, N, L, C, -1), "first_id"),
        (lambda: memory.init(1, N, L, C, 0.5), "first_id"),
        (lambda: memory.view(memory.init(2, N, L, C), 2, letters), "row = 2"),
        (lambda: memory.view(memory.init(2, N, L, C), 0, letters, -1), "last = -1"),
        (lambda: memory.newest(memory.init(2, N, L, C), -1), "newest: last = -1"),
        (lambda: memory.grow(jax.tree.map(lambda x: x[0], memory.init(1, N, L, C)), 9), "R, 2"),
    ],
)
def test_errors_name_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_shapes_and_types_are_refused():
    state, ops = random_memories(8, rows=1)
    chunk, mark, enabled = rest(1)
    wrong = [
        (state, ops.replace(tokens=ops.tokens[..., : C - 1]), chunk, mark, enabled),
        (state, ops.replace(kind=ops.kind[:, 1:]), chunk, mark, enabled),
        (state, ops.replace(id=ops.id.astype(np.float32)), chunk, mark, enabled),
        (state, ops, chunk[:, None], mark, enabled),
        (state, ops, chunk, np.zeros(C + 1, np.int32), enabled),
        (state, ops, chunk, mark, enabled[:2]),
        (state, ops, chunk, mark, enabled.astype(np.int32)),
        (state.replace(count=state.count[:, :1]), ops, chunk, mark, enabled),
    ]
    for arguments in wrong:
        with pytest.raises(AssertionError):
            memory.apply_batch(*arguments)
