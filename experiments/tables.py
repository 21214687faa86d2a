"""The paper's tables 1 to 4 and 6 to 9, published figures beside measured ones.

    python -m experiments.tables --results=results/tiny --out=tables
    python -m experiments.tables --results=results/real,results/beta0.4 --small=results/small \\
        --data=BUILT --out=tables

Reads folders of `experiments.evaluate` and writes tables.md, tables.tex and tables.html. Perf. is
the mean score of the questions, averaged over instances, with a 95 % bootstrap interval over
instances; Mem. is the size of the final memory in thousands of tokens; Avg. is the mean over
columns. A cell that was not measured is empty. Validation instances go to tables 1, 3 and 4, test
instances to tables 2 and 9. Synthetic sources, and all sources of folders under --small, get tables
of the same form without published figures. Folders that differ in beta or gamma are the rows of
tables 4 and 9; the other tables show the beta and gamma of the first folder. Folders that differ
only in the seed are combined.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.lib.below import Shown, below
from experiments.lib.charts import frontier_svg, lengths_svg
from experiments.lib.command import command
from experiments.lib.data_tables import data_tables, small_sizes
from experiments.lib.kinds import kind_tables
from experiments.lib.pool import (
    Cell,
    Key,
    Pool,
    Weights,
    mean_over_columns,
    mean_points,
    performance,
    read_pool,
    shared_sources,
)
from experiments.lib.render import Table, html, interval, latex, markdown
from memalpha import baselines
from memalpha.data.files import write_text
from memalpha.data.sizes import PUBLISHED as SIZES
from memalpha.paths import user_path

PUBLISHED = json.loads(
    (Path(__file__).parent / "lib" / "published.json").read_text(encoding="utf-8")
)
WRITERS = {
    "gpt_4_1_mini": "gpt-4.1-mini, untrained",
    "untrained": "untrained writer",
    "prompted": "prompted writer, untrained",
    "trained": "Mem-α, trained writer",
    "flat": "trained writer, flat memory",
    "perfect": "perfect scripted writer",
}
LABELS = baselines.LABELS | WRITERS
ROWS = ("long_context", "rag_top2", "rag_matched", "memagent", "mem1", "memgpt", "mem0", *WRITERS)
ROWS += ("store_everything", "no_memory")  # the order of the rows; further systems come last
TITLES = {
    "1": "Table 1. Validation set",
    "2": "Table 2. MemoryAgentBench",
    "3": "Table 3. Effect of reinforcement learning, validation set",
    "4": "Table 4. Weights of compression (β) and content (γ), validation set",
    "9": "Table 9. Weights of compression (β) and content (γ), MemoryAgentBench",
}
SPLIT_OF = {"1": "validation", "2": "test", "3": "validation", "4": "validation", "9": "test"}
EFFECT = ("untrained", "prompted", "trained")  # the rows of table 3, before other checkpoints


def paper_tables(pool: Pool) -> list[Table]:
    """Tables 1 to 4 and 9."""
    tables = []
    for number, title in TITLES.items():
        split, published = SPLIT_OF[number], PUBLISHED[number]
        if number in ("4", "9"):
            wanted = [_weights(name) for name in published["systems"]]
            rows = _by_weights([*wanted, *pool.all_weights(split, small=False)])
        else:
            measured = pool.systems(split, small=False)
            others = _effect(pool, split) if number == "3" else _in_order(measured)
            rows = {
                name: (name, pool.main) for name in dict.fromkeys((*published["systems"], *others))
            }
        tables.append(
            system_table(title, pool, split, published["columns"], rows, published["systems"])
        )
    return tables


def small_tables(pool: Pool) -> list[Table]:
    """The same tables for the small columns, without published figures; empty ones are left out."""
    tables = []
    for split in pool.splits():
        columns, systems = pool.small_columns(split), pool.systems(split, small=True)
        wholes = {name: (name, pool.main) for name in _in_order(systems)}
        effect = {name: wholes[name] for name in _effect(pool, split) if name in wholes}
        weights = _by_weights(pool.all_weights(split, small=True))
        for title, rows, least in (
            ("Small version of tables 1 and 2", wholes, 1),
            ("Small version of table 3", effect, 2),
            ("Small version of tables 4 and 9", weights, 2),
        ):
            if len(rows) >= least:
                tables.append(system_table(f"{title}, {split} split", pool, split, columns, rows))
        tables.append(small_sizes(pool, split))
    return tables


def pictures(pool: Pool, lengths: Sequence[str]) -> list[str]:
    """SVG text: score against reader tokens of a split, and against the length of the stream, with
    a point for each of the folders of other lengths, over the sources that all of them have."""
    drawn = []
    main = [f for f, about in pool.abouts.items() if Weights(**about["reward"]) == pool.main]
    for split in dict.fromkeys(about["split"] for about in pool.abouts.values()):
        points = {_label(name): point for name, point in mean_points(main, split, "reader").items()}
        drawn.append(frontier_svg(f"Score against reader tokens, {split} split", points))
        lines: dict[str, list[tuple[float, float]]] = {}
        folders = [*main, *map(user_path, lengths)]
        shared = shared_sources(folders, split)
        for folder in folders:
            for name, point in mean_points([folder], split, "chunk", shared).items():
                lines.setdefault(_label(name), []).append(point)
        drawn.append(lengths_svg(f"Score against length, {split} split", lines))
    return drawn


def _effect(pool: Pool, split: str) -> list[str]:
    """The writers of table 3: untrained ones, the trained one, and other checkpoints."""
    return [*EFFECT, *(name for name in pool.checkpoints(split) if name not in LABELS)]


def _in_order(systems: Sequence[str]) -> list[str]:
    known = [name for name in ROWS if name in systems]
    return [*known, *(name for name in systems if name not in ROWS)]


def _by_weights(weights: Sequence[Weights]) -> dict[str, tuple[str, Weights]]:
    return {f"beta{w.beta}_gamma{w.gamma}": ("trained", w) for w in dict.fromkeys(weights)}


def _weights(name: str) -> Weights:
    """The weights in the name of a published row, such as beta0.05_gamma0.1."""
    beta, gamma = name.removeprefix("beta").split("_gamma")
    return Weights(float(beta), float(gamma))


def system_table(
    title: str,
    pool: Pool,
    split: str,
    columns: Sequence[str],
    rows: Mapping[str, tuple[str, Weights]],
    published: Mapping[str, Mapping[str, list[float]]] | None = None,
) -> Table:
    """Two lines per system, Perf. and Mem.; those of the paper come before ours.

    rows: name -> (system, weights of its reward).
    """
    small, published = published is None, published or {}
    ours = {
        name: [pool.cell(Key(split, weights, system, column), small) for column in columns]
        for name, (system, weights) in rows.items()
    }
    measured = [cells for cells in ours.values() if any(cells)]
    shared = [i for i in range(len(columns)) if measured and all(cells[i] for cells in measured)]
    shared = shared if 0 < len(shared) < len(columns) else []
    extra = [f"Avg. of {len(shared)}"] if shared else []
    heads = ("system", "", *map(_short, columns), "Avg.", *extra, "reader tokens")
    shown = [
        Shown(_label(name), tuple(Key(split, weights, system, column) for column in columns))
        for name, (system, weights) in rows.items()
    ]
    ending, told = below(pool, shown, small)
    lines = []
    for name, cells in ours.items():
        label = _label(name)
        if name in published:
            lines += _published_lines(f"{label} (paper)", published[name], shared)
        lines += _our_lines(f"{label} (ours)" if not small else label, cells, shared)
    notes = [*_sizes(columns, split, measured, not small), *_failures(columns, ours)]
    notes += [_shared_note(columns, shared)] if shared else []
    notes += _odd_averages({name: published[name] for name in ours if name in published})
    return Table(title + ending, heads, tuple(lines), (*notes, *told))


def _published_lines(label: str, figures: Mapping[str, list[float]], shared: Sequence[int]):
    for kind, written in (("perf", "{:.3f}".format), ("mem", str)):
        values = figures[kind]
        cells = [written(value) for value in values]
        if shared:
            mean = np.mean([values[i] for i in shared])
            cells.append(f"{mean:.3f}" if kind == "perf" else f"{mean:.3g}")
        yield (label if kind == "perf" else "", _KIND[kind], *cells, "")


_KIND = {"perf": "Perf.", "mem": "Mem."}


def _our_lines(label: str, cells: Sequence[Cell | None], shared: Sequence[int]):
    whole = list(cells) if all(cells) else []
    part = [cells[i] for i in shared] if all(cells[i] for i in shared) else []
    groups = [[cell] if cell else [] for cell in cells] + [whole] + ([part] if shared else [])
    perf = [interval(performance(group)) if group else "" for group in groups]
    sizes = [mean_over_columns(group, "memory_tokens") if group else None for group in groups]
    size_texts = ["" if size is None else thousands(size) for size in sizes]
    measured = [cell for cell in cells if cell and len(cell.reader_tokens)]
    read = f"{mean_over_columns(measured, 'reader_tokens'):.0f}" if measured else ""
    yield label, "Perf.", *perf, read
    yield "", "Mem.", *size_texts, ""


def thousands(tokens: float) -> str:
    """Tokens in thousands with three significant digits: 0.0304, 10.1, 129."""
    value = tokens / 1000
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _long(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens < 1000 else f"{thousands(tokens)}k"


def _label(name: str) -> str:
    if name.startswith("beta"):
        weights = _weights(name)
        return f"β = {weights.beta:g}, γ = {weights.gamma:g}"
    return LABELS.get(name, name)


def _short(column: str) -> str:
    return column.removeprefix("synthetic_")


def _sizes(
    columns: Sequence[str], split: str, measured: Sequence[Sequence[Cell | None]], paper: bool
):
    """A note with the number and the mean length of the instances of each column."""
    texts = []
    for index, column in enumerate(columns):
        column_cells = [cells[index] for cells in measured if cells[index]]
        if not column_cells:
            continue
        counts = sorted({len(cell.chunk_tokens) for cell in column_cells})
        count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text = f"{_short(column)} {count} of {_long(column_cells[0].chunk_tokens.mean())} tokens"
        if paper and (row := SIZES[split].get(column)):
            text += f" (paper: {row[0]} of {_long(row[1] * row[2])})"
        texts.append(text)
    return [f"Instances: {'; '.join(texts)}."] if texts else []


def _failures(columns: Sequence[str], ours: Mapping[str, Sequence[Cell | None]]) -> list[str]:
    texts = [
        f"{_label(name)} on {_short(column)} {cell.failed} of {cell.questions}"
        for name, cells in ours.items()
        for column, cell in zip(columns, cells, strict=True)
        if cell and cell.failed
    ]
    return [f"Questions without an answer, left out: {'; '.join(texts)}."] if texts else []


def _shared_note(columns: Sequence[str], shared: Sequence[int]) -> str:
    names = ", ".join(_short(columns[i]) for i in shared)
    return (
        f"Avg. of {len(shared)}: mean over the columns that all our rows have ({names}), of the"
        " paper's figures too. Reader tokens: mean over the columns measured."
    )


def _odd_averages(published: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note on the rows of the paper whose stated average is not the mean of their figures."""
    texts = [
        f"{_label(name)}: {rows['perf'][-1]:.3f} (mean {np.mean(rows['perf'][:-1]):.3f})"
        for name, rows in published.items()
        if abs(rows["perf"][-1] - np.mean(rows["perf"][:-1])) > 0.002
    ]
    note = "The paper's Avg. is shown as it gives it; it is not the mean of its row for "
    return [f"{note}{'; '.join(texts)}."] if texts else []


def save(folder: Path, tables: Sequence[Table], drawn: Sequence[str]) -> list[Path]:
    """Writes the tables as Markdown, LaTeX and a page, which begins with the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_text(folder / "tables.md", markdown(tables)),
        write_text(folder / "tables.tex", latex(tables)),
        write_text(folder / "tables.html", html("Results", tables, drawn)),
    ]


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv):
        pool = read_pool(args.results, args.small, args.first_box)
        tables = [*paper_tables(pool), *data_tables(args.data, args.full_data)]
        tables = [*kind_tables(pool, LABELS), *small_tables(pool), *tables]
        written = save(user_path(args.out), tables, pictures(pool, args.lengths))
    print(markdown(tables))
    print("\n".join(map(str, written)))


def define_flags() -> None:
    flags.DEFINE_list("results", [], "Folders of experiments.evaluate; the first is the main one.")
    flags.DEFINE_list("small", [], "Folders whose real sources too go to the small tables.")
    flags.DEFINE_bool(
        "first_box", False, "Score the first of several boxed answers, as the paper's code does."
    )
    flags.DEFINE_list("lengths", [], "Folders of other stream lengths, for the picture alone.")
    flags.DEFINE_string("data", "", "Built folder of tables 7 and 8.")
    flags.DEFINE_string("full_data", "", "Built folder of table 6 (build --full).")
    flags.DEFINE_string("out", "tables", "Folder of tables.md, tables.tex and tables.html.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
