"""Scores by the kind of question: a table a source, with the corrected key beside the published."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.below import Shown, below
from experiments.lib.intervals import pooled
from experiments.lib.pool import Key, Pool, Weights, column_of
from experiments.lib.render import Table, interval
from experiments.lib.results import INSTANCES, QUESTIONS, Row, read_lines, row_key
from memalpha import scoring

ALL = "all"
CORRECTED = ", corrected key"


class Place(NamedTuple):
    """A question of the data: those of several seeds are one."""

    source: str
    instance: str
    number: int


def kind_tables(pool: Pool, names: Mapping[str, str]) -> list[Table]:
    """A table for each source that says of what kind its questions are; "all" is over all of them.

    Questions count alike, as in LoCoMo's own code; intervals draw whole instances. Folders of other
    reward weights than the first are not shown. names: system -> how a table calls it.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for folder, about in pool.abouts.items():
        if Weights(**about["reward"]) == pool.main:
            for row in question_rows(folder):
                groups.setdefault((row["source"], about["split"]), []).append(row)
    return [
        _table(pool, source, split, rows, names)
        for (source, split), rows in groups.items()
        if any(row.get("kind") for row in rows)
    ]


def question_rows(folder: Path) -> list[Row]:
    """The rows of the questions of finished instances."""
    finished = {row_key(row) for row in read_lines(folder / INSTANCES)}
    return [row for row in read_lines(folder / QUESTIONS) if row_key(row) in finished]


def _table(
    pool: Pool, source: str, split: str, rows: Sequence[Row], names: Mapping[str, str]
) -> Table:
    kinds = [*dict.fromkeys(row["kind"] for row in rows), ALL]
    corrected = any(row.get("corrected") is not None for row in rows)
    cells = [(kind, key) for kind in kinds for key in (("", CORRECTED) if corrected else ("",))]
    counts = {column: len(_values(rows, *column)) for column in cells}
    heads = ("system", *(f"{kind or 'other'}{key} ({counts[kind, key]})" for kind, key in cells))
    systems = dict.fromkeys(row["system"] for row in rows)
    lines = []
    for system in systems:
        mine = [row for row in rows if row["system"] == system]
        lines.append((names.get(system, system), *(_cell(_values(mine, *c)) for c in cells)))
    columns = dict.fromkeys((source, column_of(source)))
    shown = [
        Shown(names.get(system, system), tuple(Key(split, pool.main, system, c) for c in columns))
        for system in systems
    ]
    small = any(key in pool.small for one in shown for key in one.keys)
    ending, told = below(pool, shown, small)
    notes = ["Questions count alike; in brackets how many.", *_notes_of_key(rows, corrected), *told]
    title = f"{source} by the kind of question, {split} split{ending}"
    return Table(title, heads, tuple(lines), tuple(notes))


def _cell(values: dict[Place, list[float]]) -> str:
    """The mean over questions, of each the mean over its seeds."""
    groups: dict[str, list[float]] = {}
    for place, scores in values.items():
        if known := [score for score in scores if score is not None]:
            groups.setdefault(place.instance, []).append(float(np.mean(known)))
    return interval(pooled(list(groups.values()))) if groups else ""


def _values(rows: Iterable[Row], kind: str, key: str) -> dict[Place, list[float | None]]:
    """Question -> its scores by a key, of those that the key has an answer for."""
    values: dict[Place, list[float | None]] = {}
    for row in rows:
        if kind in (ALL, row["kind"]) and (not key or row["corrected"] != []):
            place = Place(row["source"], row["instance"], row["number"])
            values.setdefault(place, []).append(_by_corrected(row) if key else row["score"])
    return values


def _by_corrected(row: Row) -> float | None:
    """The score of a row by the corrected key; the published one where that says the same."""
    if row["score"] is None or row["corrected"] in (None, row["gold"]):
        return row["score"]
    return scoring.score(row["source"], row["prediction"], row["corrected"], kind=row["kind"])


def _notes_of_key(rows: Sequence[Row], corrected: bool) -> list[str]:
    """What the corrected key changes."""
    if not corrected:
        return []
    key = {
        Place(r["source"], r["instance"], r["number"]): (r["gold"], r["corrected"]) for r in rows
    }
    changed = sum(bool(new) and new != old for old, new in key.values())
    without = sum(new == [] for _, new in key.values())
    return [
        f"Corrected key: {changed} of {len(key)} answers are other ones; {without} questions are"
        " left out, since the audit leaves them without an answer."
    ]
