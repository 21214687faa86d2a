"""Measure systems on sources: one row per question, one row per instance.

    python -m experiments.evaluate --workdir=runs/tiny --out=results/tiny
    python -m experiments.evaluate --workdir=runs/tiny --systems=trained,rag_top2 --data=BUILT \\
        --sources=squad,nlu --split=validation --instances=20 --out=results/real

Systems: `trained`, the writer of the run; `untrained`, its warm start; `perfect`, which stores the
notes of synthetic text; `flat`, the writer of a second run (--flat); and the baselines. Sources:
synthetic ones, and real ones from the published files (data.dir of the config) or from the output
of `python -m memalpha.data build` (--data). The same command continues a run that was stopped, and
adds new systems, sources and instances to a folder. `experiments.tables` makes tables from one or
more such folders.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict
from rich.table import Table

from experiments.lib import sources as measured
from experiments.lib.command import command
from experiments.lib.failures import check_answers
from experiments.lib.judged import describe_check, is_judged, not_measured, read_checks, total
from experiments.lib.progress import console, progress
from experiments.lib.provenance import prompt_hashes, versions
from experiments.lib.readers import describe_usage
from experiments.lib.results import Results, read_results
from experiments.lib.systems import (
    BASELINES,
    BUDGET,
    WRITERS,
    Run,
    System,
    applies,
    describe_reading,
    describe_reward,
    open_systems,
    open_workdir,
)
from memalpha.data.instance import Instance
from memalpha.episode import Clock
from memalpha.paths import user_path


def evaluate(
    config: ConfigDict,
    systems: Mapping[str, System],
    sources: Mapping[str, Sequence[Instance]],
    results: Results,
    batch: int,
) -> None:
    """Measures what is missing in `results`, a batch of instances of one source at a time.

    Batches always consist of the same instances, so that a run that was stopped and continued gives
    the same rows as an uninterrupted one. Questions without an answer are masked and counted.

    Raises:
        ReaderFailureError: more than `config.max_failed_share` of a batch has no answer; nothing of
            that batch is written.
    """
    work = [
        (name, system, source, instances[start : start + batch])
        for source, instances in sources.items()
        for name, system in systems.items()
        if applies(name, source)
        for start in range(0, len(instances), batch)
    ]
    sizes = [sum(len(instance.chunks) for instance in part) for *_, part in work]
    missing = [[results.missing(name, instance) for instance in part] for name, _, _, part in work]
    done = sum(size for size, wanted in zip(sizes, missing, strict=True) if not any(wanted))
    with progress("chunks", sum(sizes), done) as report:
        for (name, system, source, part), size, wanted in zip(work, sizes, missing, strict=True):
            if not any(wanted):
                continue
            where, clock, began = f"{name} on {source}", Clock(), time.perf_counter()

            def on_chunk(chunks: int, _: int, where=where, before=done) -> None:
                report(before + chunks, where)

            episodes = system.run(part, clock, on_chunk)
            seconds = time.perf_counter() - began
            check_answers(config, episodes, where)
            questions = sum(len(instance.questions) for instance in part)
            # Baselines are not timed stage by stage, so all of their time counts as reading.
            reading = clock["retrieve"] + clock["read"] if episodes[0].steps else seconds
            new = [episode for episode, ask in zip(episodes, wanted, strict=True) if ask]
            results.add(name, new, (seconds / len(part), reading / questions))
            done += size
            report(done, where)


def results_overview(folder: Path) -> Table:
    """Mean r1 of each system on each source of a results folder, for the terminal. Below it stands
    what is known of the judge, where one scored any of it."""
    about, rows = read_results(folder)
    sources = list(dict.fromkeys(row["source"] for row in rows))
    table = Table(title=f"r1, {about['split']} split")
    if judged := sorted(filter(is_judged, sources)):
        judge = about["reading"]["judge"]
        checks = read_checks([folder], judge).values()
        table.caption = describe_check(total(checks)) if checks else not_measured(judge, judged)
    table.add_column("system")
    for source in sources:
        table.add_column(source.removeprefix("synthetic_"), justify="right")
    for name in about["systems"]:
        cells = []
        for source in sources:
            mine = [r for r in rows if (r["system"], r["source"]) == (name, source)]
            judged = [r["r1"] for r in mine if r["r1"] is not None]
            cells.append(f"{sum(judged) / len(judged):.3f}" if judged else "")
        table.add_row(name, *cells)
    return table


def describe(
    run: Run, split: str, systems: Mapping[str, System], sources: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that the rows depend on. sources: name -> settings of its instances."""
    return {
        "title": run.config.title,
        "split": split,
        "seed": run.config.seed,
        "reading": describe_reading(run.env),
        "prompts": prompt_hashes(run.env.prompt, run.config),
        "versions": [versions()],
        "reward": describe_reward(run.config),
        "systems": {name: system.about for name, system in systems.items()},
        "sources": dict(sources),
    }


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv, args.debug):
        run = open_workdir(args.workdir, measured.changes())
        flat = open_workdir(args.flat, measured.changes()) if args.flat else None
        sources, about = measured.from_flags(run.config)
        batch = args.batch or run.config.rl.instances * run.config.rl.rollouts
        systems = open_systems(args.systems, run, flat, batch, args.budget)
        with Results(args.out, describe(run, args.split, systems, about)) as results:
            evaluate(run.config, systems, sources, results, batch)
    console.print(results_overview(user_path(args.out)))
    for line in [line for used in (run, flat) if used for line in describe_usage(used.engines)]:
        console.print(line)
    console.print(f"rows {args.out}; tables: python -m experiments.tables --results={args.out}")


def define_flags() -> None:
    measured.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a run of run_experiment.py.", required=True)
    flags.DEFINE_string("flat", "", "Workdir of a second run, for the system flat.")
    names = ("trained", "untrained", "store_everything", "rag_top2", "no_memory")
    known = ", ".join((*WRITERS, *BASELINES))
    flags.DEFINE_list("systems", list(names), f"Of {known}.")
    flags.DEFINE_integer("budget", BUDGET, "Tokens that rag_matched shows its reader, at most.")
    flags.DEFINE_integer("batch", 0, "Instances at once; 0: rows of a training step.")
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
