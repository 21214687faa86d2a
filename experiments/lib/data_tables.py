"""Tables 6 to 8: the published sizes of the data and those of built data."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.lib.pool import Pool, column_of
from experiments.lib.render import Table
from memalpha.data import built_sets
from memalpha.data.sizes import FULL_TRAINING, PUBLISHED

NUMBERS = ("instances", "chunks_per_instance", "tokens_per_chunk", "questions_per_instance")
HEADS = ("instances", "chunks", "tokens a chunk", "questions")
TITLES = {
    "Table 7. Training and validation data": ("train", "validation"),
    "Table 8. Test data": ("test",),
}


def data_tables(data: str = "", full_data: str = "") -> list[Table]:
    """Tables 6, 7 and 8; "" for a folder leaves our cells empty.

    Args:
        data: output folder of `python -m memalpha.data build`, with any splits.
        full_data: output folder of the same command with --full, for table 6.
    """
    return [_full_training(full_data), *(_sizes(t, s, data) for t, s in TITLES.items())]


def built_sizes(folder: str, split: str) -> dict[str, tuple[Mapping[str, float], str]]:
    """Column -> statistics of its built set of a split, and the tokenizer that counted tokens.

    Raises ValueError for a folder without any built set.
    """
    if not folder:
        return {}
    sizes = {}
    for name, path in built_sets.list_sets(folder).get(split, {}).items():
        if name == "stratified":
            continue
        manifest = built_sets.Built(path).manifest
        statistics = manifest["statistics"], manifest["description"].get("tokens", "unknown")
        sizes[column_of(name)] = statistics
    return sizes


def _full_training(folder: str) -> Table:
    built = {name: sizes["instances"] for name, (sizes, _) in built_sizes(folder, "train").items()}
    total = sum(built[name] for name in FULL_TRAINING) if set(FULL_TRAINING) <= set(built) else None
    ours = [built.get(name) for name in FULL_TRAINING] + [total]
    rows = (
        ("paper", *map(str, FULL_TRAINING.values()), str(sum(FULL_TRAINING.values()))),
        ("ours", *("" if count is None else f"{count}" for count in ours)),
    )
    return Table("Table 6. Instances of the training set", ("", *FULL_TRAINING, "all"), rows)


def _sizes(title: str, splits: Sequence[str], folder: str) -> Table:
    rows, counters = [], set()
    for split in splits:
        built = built_sizes(folder, split)
        for source, published in PUBLISHED[split].items():
            sizes, counter = built.get(source, ({}, ""))
            ours = [_figure(sizes.get(name)) for name in NUMBERS]
            pairs = zip(map(_figure, published), ours, strict=True)
            rows.append((f"{source}, {split}", *(cell for pair in pairs for cell in pair)))
            counters |= {counter} - {""}
    heads = [f"{name} ({who})" for name in HEADS for who in ("paper", "ours")]
    notes = (f"Our tokens counted by: {', '.join(sorted(counters))}.",) if counters else ()
    return Table(title, ("source", *heads), tuple(rows), notes)


def small_sizes(pool: Pool, split: str) -> Table:
    """The same sizes for the instances that were measured, for the small tables."""
    rows = []
    for column in pool.small_columns(split):
        measured = {
            name: its_rows[0]
            for key, instances in pool.small.items()
            if (key.split, key.column) == (split, column)
            for name, its_rows in instances.items()
        }
        one = list(measured.values())
        chunks = np.array([row["chunks"] for row in one])
        tokens = sum(row["chunk_tokens"] for row in one) / chunks.sum()
        questions = np.mean([row["questions"] for row in one])
        figures = (len(one), chunks.mean(), tokens, questions)
        rows.append((column.removeprefix("synthetic_"), *map(_figure, figures)))
    return Table(f"Small version of tables 7 and 8, {split} split", ("source", *HEADS), tuple(rows))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}".removesuffix(".0")
