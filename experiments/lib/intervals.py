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


def _resampled_means(rng: np.random.Generator, column: np.ndarray) -> np.ndarray:
    """[DRAWS] float64, means of resampled columns; the counts of the instances are multinomial."""
    count = len(column)
    return rng.multinomial(count, np.full(count, 1 / count), DRAWS) @ column / count
