"""Which instances a training step sees: a pure function of (seed, step), so nothing is stored."""

import numpy as np


def batch_indices(num_instances: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices, in [0, num_instances), of the `batch_size` instances of a step.

    Args:
        num_instances: of the pool that is drawn from.
        batch_size: instances a step; the same in every call of a run.
        seed: of the order.
        step: number of the batch, counted from 0. For batches of whole training steps it is the
            number of the training step, which is the number of the checkpoint that a resumed run
            starts from. A caller that takes one instance at a time (batch_size = 1) passes how many
            it took before.

    Steps walk through epochs without a gap: every epoch is a permutation of all instances that
    depends on (seed, epoch) alone, and a batch that crosses the end of an epoch goes on with the
    next one (through several, if `batch_size > num_instances`).
    """
    for name, value in (("num_instances", num_instances), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for name, value in (("seed", seed), ("step", step)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, not {value}")
    first = step * batch_size
    last = first + batch_size - 1
    indices: list[int] = []
    for epoch in range(first // num_instances, last // num_instances + 1):
        order = _permutation(num_instances, seed, epoch)
        start = epoch * num_instances
        indices += order[max(first - start, 0) : last - start + 1].tolist()
    return indices


def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """[size] int64. Sorted raw bits: unlike Generator.permutation, fixed in all numpy versions."""
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(size), kind="stable")
