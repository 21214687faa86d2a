"""Batches are a pure function of (seed, step)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.data.batches import batch_indices

# Seven instances, seed 5: one epoch and the start of the next. Resumed runs rely on it.
GOLDEN = [4, 1, 2, 0, 3, 5, 6, 5, 6]


def walk(num_instances, batch_size, seed, steps):
    return [i for s in range(steps) for i in batch_indices(num_instances, batch_size, seed, s)]


def test_golden_order_stays_the_same_in_every_version():
    assert batch_indices(7, 3, seed=5, step=0) == GOLDEN[:3]
    assert batch_indices(7, 3, seed=5, step=1) == GOLDEN[3:6]
    assert batch_indices(7, 3, seed=5, step=2) == GOLDEN[6:]  # crosses into the second epoch


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 23), st.integers(1, 31), st.integers(0, 2**40), st.integers(1, 5))
def test_every_epoch_holds_every_instance_once(num_instances, batch_size, seed, epochs):
    steps = -(-epochs * num_instances // batch_size)
    stream = walk(num_instances, batch_size, seed, steps)
    assert len(stream) == steps * batch_size
    for epoch in range(epochs):
        part = stream[epoch * num_instances : (epoch + 1) * num_instances]
        assert sorted(part) == list(range(num_instances))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_the_stream_does_not_depend_on_the_batch_size(num_instances, one, two, seed):
    assert walk(num_instances, one, seed, two) == walk(num_instances, two, seed, one)


def test_a_batch_larger_than_the_set_wraps_through_several_epochs():
    batch = batch_indices(3, 11, seed=0, step=0)
    assert Counter(batch) in [
        Counter({a: 4, b: 4, 3 - a - b: 3}) for a in range(3) for b in range(a)
    ]


def test_a_late_step_needs_no_earlier_one():
    assert batch_indices(101, 8, seed=1, step=10**9) == batch_indices(101, 8, seed=1, step=10**9)
    assert set(batch_indices(101, 8, seed=1, step=10**9)) <= set(range(101))


def test_seeds_and_epochs_differ():
    orders = {tuple(batch_indices(29, 29, seed, epoch)) for seed in range(6) for epoch in range(6)}
    assert len(orders) == 36
    # A seed of more than 32 bits is not the epoch of a smaller one.
    assert batch_indices(29, 29, 5 + (1 << 32), 0) != batch_indices(29, 29, 5, 1)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((0, 1, 0, 0), "num_instances"),
        ((1, 0, 0, 0), "batch_size"),
        ((1, 1, -1, 0), "seed"),
        ((1, 1, 0, -1), "step"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        batch_indices(*arguments)
