"""Means with bootstrap intervals over instances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, which is None if a column has fewer than two instances."""

    mean: float
    low: float | None = None
    high: float | None = None


def estimate(columns: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean over columns of the mean over the instances of each, as in the paper's tables.

    The interval is the percentile bootstrap: as many instances as a column has are drawn from it
    with replacement. The same values and seed give the same interval.

    Args:
        columns: one column per source, with one value per instance; no empty column and no NaN.
    """
    values = [np.asarray(column, np.float64) for column in columns]
    if not values or any(not len(column) or np.isnan(column).any() for column in values):
        raise ValueError("estimate: every column needs a value, and none may be NaN")
    mean = float(np.mean([column.mean() for column in values]))
    if any(len(column) < 2 for column in values):
        return Estimate(mean)
    rng = np.random.default_rng(seed)
    drawn = np.mean([_resampled_means(rng, column) for column in values], axis=0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))


def pooled(groups: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of all values of all groups, where questions count alike and not instances.

    The interval draws whole groups with replacement, since the questions of one instance rise and
    fall together; it is None for fewer than two groups that have values.

    Raises ValueError if there is no value or one is NaN.
    """
    filled = [np.asarray(group, np.float64) for group in groups if len(group)]
    if not filled or any(np.isnan(group).any() for group in filled):
        raise ValueError("pooled: some group needs a value, and none may be NaN")
    sums = np.array([group.sum() for group in filled])
    counts = np.array([len(group) for group in filled], np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(filled) < 2:
        return Estimate(mean)
    size = len(filled)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), DRAWS)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))


def _resampled_means(rng: np.random.Generator, column: np.ndarray) -> np.ndarray:
    """[DRAWS] float64, means of resampled columns; the counts of the instances are multinomial."""
    count = len(column)
    return rng.multinomial(count, np.full(count, 1 / count), DRAWS) @ column / count
