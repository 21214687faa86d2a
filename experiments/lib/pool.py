"""Instance rows of one or more results folders, combined for tables.

Rows of one instance from several runs (seeds) are averaged first, because intervals are over
instances and each instance must count once.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.intervals import Estimate, estimate
from experiments.lib.results import (
    QUESTIONS,
    ResultsError,
    Row,
    read_lines,
    read_results,
    row_key,
)
from experiments.lib.workdir import differences
from memalpha import scoring
from memalpha.paths import user_path
from memalpha.rewards import correctness

# Family of the metric -> name of the table column, where they differ.
COLUMN_OF = {"longmemeval": "longmemeval_s", "clinc150": "clinic150"}


class Weights(NamedTuple):
    """Weights of compression and content in the reward; the rows of the ablation tables."""

    beta: float
    gamma: float


class Key(NamedTuple):
    """Identifies one cell of a table."""

    split: str
    weights: Weights
    system: str
    column: str


@dataclass
class Pool:
    """Rows by cell, then by instance.

    main: reward weights of the first folder. reading: how its memories were read. small: cells of
    the small tables. descriptions: column or system -> its first folder, and its settings. abouts:
    folder -> all of its settings.
    """

    main: Weights
    reading: Row
    rows: dict[Key, dict[str, list[Row]]] = field(default_factory=dict)
    small: dict[Key, dict[str, list[Row]]] = field(default_factory=dict)
    descriptions: dict[tuple, tuple[Path, Row]] = field(default_factory=dict)
    abouts: dict[Path, Row] = field(default_factory=dict)

    def agree(self, place: tuple, folder: Path, description: Row) -> None:
        """Stores the settings of a column or system (the last item of `place`). ResultsError if
        another folder has rows of it with other settings, which must not be averaged."""
        first, before = self.descriptions.setdefault(place, (folder, description))
        ahead = description.get("trained", {}).get("rl", {}).get("overlap", False)
        differ = [d for d in differences(before, description) if not _of_a_seed(d[0], ahead)]
        if differ:
            lines = "; ".join(f"{name}: {old!r} and {new!r}" for name, old, new in sorted(differ))
            raise ResultsError(
                f"{place[-1]!r} of {first} and of {folder} are two things, and a table has one"
                f" place for both ({lines}): make a table of each"
            )

    def systems(self, split: str, small: bool) -> list[str]:
        """Systems measured with the weights of the first folder, ordered by their first row."""
        keys = self.small if small else self.rows
        names = (k.system for k in keys if (k.split, k.weights) == (split, self.main))
        return list(dict.fromkeys(names))

    def checkpoints(self, split: str) -> list[str]:
        """Systems whose writer comes from a checkpoint."""
        names = (
            place[-1]
            for place, (_, about) in self.descriptions.items()
            if place[0] == split and "checkpoint" in about
        )
        return list(dict.fromkeys(names))

    def all_weights(self, split: str, small: bool) -> list[Weights]:
        """The reward weights of all trained writers."""
        keys = self.small if small else self.rows
        weights = (k.weights for k in keys if (k.split, k.system) == (split, "trained"))
        return sorted(dict.fromkeys(weights))

    def small_columns(self, split: str) -> list[str]:
        return list(dict.fromkeys(k.column for k in self.small if k.split == split))

    def splits(self) -> list[str]:
        return list(dict.fromkeys(k.split for k in self.small))

    def rows_of(self, key: Key, small: bool) -> list[Row]:
        """The instance rows of one cell."""
        instances = (self.small if small else self.rows).get(key, {})
        return [row for its_rows in instances.values() for row in its_rows]

    def cell(self, key: Key, small: bool) -> "Cell | None":
        """The values of one cell; None if nothing was measured."""
        instances = (self.small if small else self.rows).get(key)
        return Cell.of(instances.values()) if instances else None


@dataclass(frozen=True)
class Cell:
    """One value per instance: r1 (judged instances only), and sizes in tokens."""

    r1: np.ndarray
    memory_tokens: np.ndarray
    reader_tokens: np.ndarray
    chunk_tokens: np.ndarray
    questions: int
    failed: int

    @classmethod
    def of(cls, instances: Iterable[Sequence[Row]]) -> "Cell":
        instances = list(instances)

        def means(name: str) -> np.ndarray:
            values_of = ([r[name] for r in rows if r[name] is not None] for rows in instances)
            return np.array([np.mean(values) for values in values_of if values])

        def total(name: str) -> int:
            return sum(row[name] for rows in instances for row in rows)

        sizes = map(means, ("memory_tokens", "reader_tokens", "chunk_tokens"))
        return cls(means("r1"), *sizes, total("questions"), total("failed"))


def performance(cells: Sequence[Cell]) -> Estimate | None:
    """Perf.: the mean over columns; None without columns or if one has no judged instance."""
    columns = [cell.r1 for cell in cells]
    return estimate(columns) if columns and all(map(len, columns)) else None


def mean_over_columns(cells: Sequence[Cell], name: str) -> float | None:
    """The mean over columns of the mean size over instances; None if a column has no values."""
    columns = [getattr(cell, name) for cell in cells]
    return float(np.mean([column.mean() for column in columns])) if all(map(len, columns)) else None


def read_pool(folders: Sequence[str], small: Sequence[str] = (), first_box: bool = False) -> Pool:
    """Combines results folders. Synthetic sources and all sources of the folders in `small` go to
    the small tables. The main tables show the reward weights of the first folder. `first_box`: see
    `score_first_boxes`.

    Raises:
        ResultsError: no folder; a folder without results; or folders that differ in the reader or
            in the settings of a column or system.
    """
    pool: Pool | None = None
    for folder, aside in [*((f, False) for f in folders), *((f, True) for f in small)]:
        about, rows = read_results(folder)
        rows = score_first_boxes(folder, rows) if first_box else rows
        weights, reading = Weights(**about["reward"]), dict(about["reading"])
        reading.pop("tokenizer")  # differs between runs
        if pool is None:
            pool = Pool(weights, reading)
        elif differ := differences(pool.reading, reading):
            lines = "; ".join(f"{name}: {old!r} and {new!r}" for name, old, new in sorted(differ))
            raise ResultsError(f"{folder} was read in another way than the first folder: {lines}")
        pool.abouts[user_path(folder)] = about
        _add(pool, user_path(folder), about, weights, rows, aside)
    if pool is None:
        raise ResultsError("no results folder: give at least one")
    return pool


def score_first_boxes(folder: str | Path, rows: Sequence[Row]) -> list[Row]:
    r"""The rows with r1 computed as in Mem-alpha's released code: the first of several `\boxed{}`
    answers counts and not the last (`scoring.scores`). Replies are read from the folder."""
    scored: dict[tuple, list[float]] = {}
    for asked in read_lines(Path(folder) / QUESTIONS):
        if asked["score"] is not None and scoring.reads_box(asked["source"]):
            reply, gold = asked["prediction"], asked["gold"]
            value = scoring.score(asked["source"], reply, gold, first_box=True)
            scored.setdefault(row_key(asked), []).append(value)
    means = {key: float(correctness(np.asarray(values))) for key, values in scored.items()}
    return [row | {"r1": means.get(row_key(row), row["r1"])} for row in rows]


def _add(
    pool: Pool, folder: Path, about: Row, weights: Weights, rows: Sequence[Row], small: bool
) -> None:
    split = about["split"]
    for row in rows:
        source, system = row["source"], row["system"]
        aside = small or source.startswith("synthetic_")
        column = source if aside else column_of(source)
        text = {"source": source} | about["sources"].get(source, {})
        pool.agree((split, aside, column), folder, text)
        written = about["systems"].get(system, {})
        pool.agree((split, aside, weights, system), folder, written)
        key = Key(split, weights, system, column)
        cells = (pool.small if aside else pool.rows).setdefault(key, {})
        cells.setdefault(f"{row['instance']} {row['digest']}", []).append(row)


def _of_a_seed(name: str, ahead: bool) -> bool:
    """Whether a field may differ between runs that are combined as seeds. With `rl.overlap`
    (`ahead`) no batch is sampled ahead of a checkpoint, so their number changes the result."""
    free = ("seed", "rows", "trained.seed", "trained.data.dir")
    free += () if ahead else ("trained.checkpoint_every",)
    return name in free or name.startswith("trained.eval.")


def mean_points(
    folders: Iterable[Path], split: str, tokens: str, shared: Collection[str] | None = None
) -> dict[str, tuple[float, float]]:
    """System -> (tokens, r1), means over its sources of the means over instances.

    tokens: "reader" for those of a question's evidence, "chunk" for those of a stream. Only systems
    that were measured on every source of the folders. shared: these sources alone; None: all.
    """
    field = f"{tokens}_tokens"
    values: dict[str, dict[str, list[tuple[float, float]]]] = {}
    sources: set[str] = set()
    for folder in folders:
        about, rows = read_results(folder)
        for row in rows if about["split"] == split else ():
            if shared is not None and row["source"] not in shared:
                continue
            sources.add(row["source"])
            if row["r1"] is not None and row[field] is not None:
                of_system = values.setdefault(row["system"], {})
                of_system.setdefault(row["source"], []).append((row[field], row["r1"]))
    return {
        system: tuple(np.mean([np.mean(pairs, axis=0) for pairs in of.values()], axis=0).tolist())
        for system, of in values.items()
        if of.keys() == sources
    }


def shared_sources(folders: Iterable[Path], split: str) -> set[str]:
    """The sources that all folders of a split have rows of."""
    read = [read_results(folder) for folder in folders]
    each = [{row["source"] for row in rows} for about, rows in read if about["split"] == split]
    return set.intersection(*each) if each else set()


def column_of(source: str) -> str:
    """The column of the paper's tables that a source belongs to, published variants included."""
    family = scoring.family(source)
    return COLUMN_OF.get(family, family)
