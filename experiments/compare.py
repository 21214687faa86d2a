"""Several runs on the same instances: transfer between sources, structured against flat memory.

    python -m experiments.compare --runs=structured=runs/tiny,flat=runs/flat --out=results/flat
    python -m experiments.compare --runs=facts=runs/facts,events=runs/events \\
        --sources=synthetic_facts,synthetic_events --out=results/transfer

The result is a matrix with a row per run (NAME=WORKDIR) and a column per source; a cell is r1 of
the trained writer. The instances are those of the first run, and differences are between runs on
the same instances. Writes compare.json, compare.md and compare.png, and in NAME/ the rows of each
run, from which the same command continues if it was stopped.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.evaluate import describe, evaluate
from experiments.lib import sources as measured
from experiments.lib.command import command
from experiments.lib.intervals import Estimate, estimate
from experiments.lib.judged import judge_notes
from experiments.lib.pictures import draw_matrix
from experiments.lib.progress import console
from experiments.lib.render import Table, interval, markdown
from experiments.lib.results import Results, Row, read_results
from experiments.lib.systems import check_reading, open_workdir, trained_system
from experiments.lib.workdir import write_json
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.paths import user_path

SYSTEM = "trained"


def parse_runs(texts: Sequence[str]) -> dict[str, str]:
    """{name: workdir} of NAME=WORKDIR texts; ValueError for another form or a duplicate name."""
    runs: dict[str, str] = {}
    for text in texts:
        name, equals, workdir = text.partition("=")
        if not (name and equals and workdir) or "/" in name or name in runs:
            raise ValueError(f"--runs: {text!r} is no NAME=WORKDIR of a name of its own")
        runs[name] = workdir
    if not runs:
        raise ValueError("--runs is empty: give NAME=WORKDIR,NAME=WORKDIR")
    return runs


def matrix(rows: Mapping[Hashable, Sequence[Row]]) -> dict[str, Any]:
    """Means and intervals of every run on every source, and differences to the first run.

    rows: name -> instance rows. A difference is the mean over the instances that were judged in
    both runs, with its own interval: it is paired, so differences between instances cancel out.
    """
    sources = list(dict.fromkeys(row["source"] for its_rows in rows.values() for row in its_rows))
    first = next(iter(rows))
    r1 = {name: _by_source(its_rows, "r1", sources) for name, its_rows in rows.items()}
    result: dict[str, Any] = {"sources": sources, "runs": {}}
    for name, its_rows in rows.items():
        cells = {s: _estimate([list(r1[name][s].values())]) for s in sources}
        gains = [
            [value - r1[first][s][i] for i, value in r1[name][s].items() if i in r1[first][s]]
            for s in sources
        ]
        result["runs"][name] = {
            "r1": cells | {"mean": _estimate([list(r1[name][s].values()) for s in sources])},
            "difference": None if name == first else _estimate(gains),
        }
        for tokens in ("memory_tokens", "reader_tokens"):
            sizes = _by_source(its_rows, tokens, sources).values()
            means = [np.mean([*of.values()]) for of in sizes if of]
            result["runs"][name][tokens] = float(np.mean(means))
    return result


def _by_source(rows: Sequence[Row], name: str, sources: Sequence[str]) -> dict[str, dict]:
    """{source: {instance: value}}, without missing values."""
    values: dict[str, dict[str, float]] = {source: {} for source in sources}
    for row in rows:
        if row[name] is not None:
            values[row["source"]][row["instance"]] = row[name]
    return values


def _estimate(columns: Sequence[Sequence[float]]) -> list[float | None] | None:
    """[mean, low, high]; None if a column has no judged instance."""
    if not all(columns):
        return None
    result = estimate(columns)
    return [result.mean, result.low, result.high]


def compare_table(title: str, result: Mapping[str, Any], trained_on: Mapping[str, str]) -> Table:
    """The matrix as a table; its notes say what each run was trained on."""
    sources = result["sources"]
    short = [source.removeprefix("synthetic_") for source in sources]
    rows = []
    for name, run in result["runs"].items():
        cells = [interval_text(run["r1"][source]) for source in (*sources, "mean")]
        told = interval_text(run["difference"]), f"{run['memory_tokens']:.0f}"
        rows.append((name, *cells, *told))
    heads = ("run", *short, "Avg.", "difference to the first", "memory tokens")
    notes = [f"{name} was trained on {sources}." for name, sources in trained_on.items()]
    return Table(title, heads, tuple(rows), tuple(notes))


def interval_text(cell: Sequence[float | None] | None) -> str:
    """The text of [mean, low, high]; "" for None."""
    return interval(None if cell is None else Estimate(*cell))


def main(argv: list[str]) -> None:
    args, folder = flags.FLAGS, user_path(flags.FLAGS.out)
    with command(argv):
        workdirs = parse_runs(args.runs)
        runs = {name: open_workdir(path, measured.changes()) for name, path in workdirs.items()}
        check_reading(runs)
        sources, about = measured.from_flags(next(iter(runs.values())).config)
        for name, run in runs.items():
            batch = run.config.rl.instances * run.config.rl.rollouts
            systems = {SYSTEM: trained_system(run, "rl", batch)}
            console.print(f"{name}: {run.config.title}")
            with Results(folder / name, describe(run, args.split, systems, about)) as results:
                evaluate(run.config, systems, sources, results, batch)
        rows = {name: wanted_rows(folder / name, SYSTEM, sources) for name in runs}
        result = matrix(rows)
        write_json(folder / "compare.json", result)
        trained_on = {name: ", ".join(run.config.data.sources) for name, run in runs.items()}
        table = compare_table(f"r1 of trained writers, {args.split} split", result, trained_on)
        table = replace(table, notes=(*table.notes, *judge_notes(folder, sources)))
        write_text(folder / "compare.md", markdown([table]))
    print(markdown([table]))
    console.print(f"picture {draw_matrix(folder, result)}")


def wanted_rows(folder: Path, system: str, sources: Mapping[str, Sequence[Instance]]) -> list[Row]:
    """The rows of a system and of `sources`; the folder may have others from earlier commands."""
    wanted = {(system, s, i.instance_id) for s, instances in sources.items() for i in instances}
    rows = read_results(folder)[1]
    return [r for r in rows if (r["system"], r["source"], r["instance"]) in wanted]


def define_flags() -> None:
    measured.define_flags()
    flags.DEFINE_list("runs", [], "NAME=WORKDIR of every run; differences are to the first.")
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
