"""Measure systems on sources: one row per question, one row per instance.

    python -m experiments.evaluate --workdir=runs/tiny --out=results/tiny
    python -m experiments.evaluate --workdir=runs/tiny --systems=trained,rag_top2 --data=BUILT \\
        --sources=squad,nlu --split=validation --instances=20 --out=results/real
    python -m experiments.evaluate --config=configs/reproduce.py --systems=rag_top2 --data=BUILT \\
        --checkpoints=memalpha-smollm2 --out=results/shipped

Systems: `trained`, the writer of the run; `untrained`, its warm start; `perfect`, which stores the
notes of synthetic text; `flat`, the writer of a second run (--flat); `prompted`, a language model
with memory tools, untrained; the baselines; and any writer of --checkpoints, by its name. Without
a workdir, --config says how memories are read. Sources:
synthetic ones, and real ones from the published files (data.dir of the config) or from the output
of `python -m memalpha.data build` (--data). The same command continues a run that was stopped, and
adds new systems, sources and instances to a folder. `experiments.tables` makes tables from one or
more such folders. --against=SYSTEM prints how far the others are from it on the same instances.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from configs.common import finish
from experiments.lib import sources as measured
from experiments.lib.command import command
from experiments.lib.failures import check_answers
from experiments.lib.intervals import estimate
from experiments.lib.judged import describe_check, is_judged, not_measured, read_checks, total
from experiments.lib.progress import console, progress
from experiments.lib.provenance import prompt_hashes, versions
from experiments.lib.readers import describe_usage
from experiments.lib.results import Results, Row, read_results
from experiments.lib.systems import (
    BASELINES,
    BUDGET,
    WRITERS,
    Run,
    System,
    add_roles,
    applies,
    describe_reading,
    describe_reward,
    open_config,
    open_systems,
    open_workdir,
)
from memalpha.data.instance import Instance
from memalpha.episode import Clock
from memalpha.paths import user_path
from memalpha.pieces import cut_chunks

CONTROLS = ("store_everything", "rag_top2", "no_memory")  # baselines that are measured by default
COMPARED = ("r1", "r2", "r4", "exact")  # by --against
DEFAULT = ("trained", "untrained", *CONTROLS)


@dataclass(frozen=True)
class Work:
    """A batch of instances for one system, and where its rows go.

    source: the sources of its instances. missing: which of the instances have no row yet. size:
    chunks, or another measure of effort, by which progress is told.
    """

    name: str
    system: System
    source: str
    part: Sequence[Instance]
    results: Results
    missing: Sequence[bool]
    size: int


def list_work(
    systems: Mapping[str, System],
    sources: Mapping[str, Sequence[Instance]],
    results: Results,
    batch: int,
    size: Callable[[str, Sequence[Instance]], int] | None = None,
    mixed: bool = False,
) -> list[Work]:
    """All batches, those that were measured before too. They consist of the same instances each
    time, so that a run that was stopped and continued gives the same rows as an uninterrupted one.

    size: (system, instances) -> effort; None: chunks. mixed: batches may hold instances of several
    sources, which costs a model that writes for few instances of each less; where sources are added
    later, a batch that they join is run again, and rows that are there stay.
    """
    size = size or (lambda _, part: sum(len(instance.chunks) for instance in part))
    groups = [list(sources)] if mixed else [[source] for source in sources]
    work = []
    for group in groups:
        for name, system in systems.items():
            chosen = [i for source in group if applies(name, source) for i in sources[source]]
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                missing = [results.missing(name, instance) for instance in part]
                told = ", ".join(dict.fromkeys(instance.source for instance in part))
                work.append(Work(name, system, told, part, results, missing, size(name, part)))
    return work


def evaluate(
    config: ConfigDict,
    systems: Mapping[str, System],
    sources: Mapping[str, Sequence[Instance]],
    results: Results,
    batch: int,
) -> None:
    """Measures what is missing in `results`, a batch of instances of one source at a time. Raises:
    see `measure`."""
    measure(config, list_work(systems, sources, results, batch))


def measure(
    config: ConfigDict,
    work: Iterable[Work],
    unit: str = "chunks",
    after: Callable[[Work], None] = lambda _: None,
) -> None:
    """Measures what is missing, in order. Questions without an answer are masked and counted; the
    terminal gets a line for each system and its sources with chunks that were read in pieces.

    unit: of `Work.size`. after: called after each batch.

    Raises:
        ReaderFailureError: more than `config.max_failed_share` of a batch has no answer; nothing of
            that batch is written.
    """
    work = list(work)
    left = [one for one in work if any(one.missing)]
    total = sum(one.size for one in work)
    done = total - sum(one.size for one in left)
    cut: Counter[str] = Counter()
    with progress(unit, total, done) as report:
        for one in left:
            where, clock, began = f"{one.name} on {one.source}", Clock(), time.perf_counter()

            def on_chunk(chunks: int, of: int, where=where, before=done, size=one.size) -> None:
                report(before + size * chunks // of, where)

            episodes = one.system.run(one.part, clock, on_chunk)
            seconds = time.perf_counter() - began
            check_answers(config, episodes, where)
            cut[where] += cut_chunks(episodes)
            questions = sum(len(instance.questions) for instance in one.part)
            # Baselines are not timed stage by stage, so all of their time counts as reading.
            reading = clock["retrieve"] + clock["read"] if episodes[0].steps else seconds
            new = [episode for episode, ask in zip(episodes, one.missing, strict=True) if ask]
            one.results.add(one.name, new, (seconds / len(one.part), reading / questions))
            done += one.size
            report(done, where)
            after(one)
    for where, chunks in cut.items():
        if chunks:
            line = f"{where}: {chunks} long chunks were read in pieces"
            console.print(line, markup=False)


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


def differences_overview(folder: Path, against: str) -> Table:
    """Mean differences to a system on the instances that both read, with 95 % bootstrap intervals
    over instances; each source counts alike. A mean is followed by its count of instances where
    these are not all, and the caption names the systems that share no instance with it."""
    rows = read_results(folder)[1]
    of = {(row["system"], row["source"], row["instance"]): row for row in rows}
    table = Table(title=f"difference to {against}, 95 % interval")
    for column in ("system", "instances", *COMPARED):
        table.add_column(column, justify="left" if column == "system" else "right")
    alone = []
    for name in dict.fromkeys(row["system"] for row in rows if row["system"] != against):
        pairs = [
            (row, other)
            for row in rows
            if row["system"] == name
            and (other := of.get((against, row["source"], row["instance"])))
        ]
        if pairs:
            table.add_row(name, str(len(pairs)), *(_difference(pairs, m) for m in COMPARED))
        else:
            alone.append(name)
    if alone or not table.rows:
        table.caption = f"no instance that {against} read too: {', '.join(alone) or 'no system'}"
    return table


def _difference(pairs: Sequence[tuple[Row, Row]], metric: str) -> str:
    """The mean of a metric's differences with its interval; empty where a system has none of it."""
    columns: dict[str, list[float]] = {}
    for row, other in pairs:
        if row[metric] is not None and other[metric] is not None:
            columns.setdefault(row["source"], []).append(row[metric] - other[metric])
    if not columns:
        return ""
    found = estimate(list(columns.values()))
    ends = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    count = sum(map(len, columns.values()))
    return f"{found.mean:+.3f}{ends}" + (f" of {count}" if count < len(pairs) else "")


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


def name_checkpoints(texts: Sequence[str]) -> dict[str, str]:
    """{system: checkpoint} of NAME=CHECKPOINT or CHECKPOINT texts, where the name is the last part
    of the path. Raises ValueError for a name that stands twice or is that of another system."""
    named: dict[str, str] = {}
    for text in filter(None, texts):
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (Path(text).name, text)
        if not name or not path or name in named or name in (*BASELINES, *WRITERS):
            raise ValueError(f"--checkpoints: {text!r} needs a name of its own: NAME=CHECKPOINT")
        named[name] = path
    return named


def open_run(args: flags.FlagValues) -> Run:
    """The run of --workdir, or the config of --config; ValueError without either or with both."""
    if bool(args.workdir) == bool(args.config):
        raise ValueError("give --workdir or --config, one of them")
    if args.workdir:
        return open_workdir(args.workdir, measured.changes())
    return open_config(finish(add_roles(args.config), measured.changes(), {}))


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv, args.debug):
        run = open_run(args)
        flat = open_workdir(args.flat, measured.changes()) if args.flat else None
        sources, about = measured.from_flags(run.config)
        batch = args.batch or run.config.rl.instances * run.config.rl.rollouts
        checkpoints = name_checkpoints(args.checkpoints)
        asked = args.systems or list(DEFAULT if run.folder else CONTROLS)
        if args.against and args.against not in (*asked, *checkpoints):
            raise ValueError(f"--against={args.against} is none of the systems measured here")
        systems = open_systems(asked, run, flat, batch, args.budget, checkpoints)
        with Results(args.out, describe(run, args.split, systems, about)) as results:
            evaluate(run.config, systems, sources, results, batch)
    console.print(results_overview(user_path(args.out)))
    if args.against:
        console.print(differences_overview(user_path(args.out), args.against))
    for line in [line for used in (run, flat) if used for line in describe_usage(used.engines)]:
        console.print(line)
    console.print(f"rows {args.out}; tables: python -m experiments.tables --results={args.out}")


def define_flags() -> None:
    measured.define_flags()
    define_run_flags()
    flags.DEFINE_list("checkpoints", [], "Further writers: NAME=CHECKPOINT, or CHECKPOINT.")
    flags.DEFINE_string("flat", "", "Workdir of a second run, for the system flat.")
    known = ", ".join((*WRITERS, *BASELINES))
    default = f"{', '.join(DEFAULT)}; without a workdir the last {len(CONTROLS)}"
    flags.DEFINE_list("systems", [], f"Of {known}. Default: {default}.")
    flags.DEFINE_integer("budget", BUDGET, "Tokens that rag_matched shows its reader, at most.")
    flags.DEFINE_integer("batch", 0, "Instances at once; 0: rows of a training step.")
    flags.DEFINE_string("against", "", "Also print paired differences to this system.")
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


def define_run_flags() -> None:
    """Flags that say how memories are read: as in a run, or by a config."""
    flags.DEFINE_string("workdir", "", "Folder of a run of run_experiment.py.")
    config_flags.DEFINE_config_file(
        "config", None, "Config file that says how memories are read, in place of a workdir."
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
