"""Retriever and top k: one written memory, read in many ways.

    python -m experiments.sweep --workdir=runs/tiny --top_k=1,2,5,10,20 --out=results/sweep

The writer reads every instance once; then the questions are asked again for every retriever and
every k (entries of each list that the reader gets). Writes sweep.json, sweep.md and sweep.png, and
in RETRIEVER-K/ the rows of each reading, from which the same command continues if it was stopped.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from absl import app, flags

from experiments.compare import interval_text, matrix, wanted_rows
from experiments.evaluate import describe
from experiments.lib import sources as measured
from experiments.lib.command import command
from experiments.lib.failures import check_answers
from experiments.lib.judged import judge_notes
from experiments.lib.pictures import draw_sweep
from experiments.lib.progress import console, progress
from experiments.lib.render import Table, markdown
from experiments.lib.results import Results, Row
from experiments.lib.systems import WRITERS, Run, System, applies, open_systems, open_workdir
from experiments.lib.workdir import write_json
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode
from memalpha.paths import user_path
from memalpha.reading import finish, recall_all

Reading = tuple[str, int]  # retriever, top k


def read_again(env: Environment, episodes: Sequence[Episode]) -> list[Episode]:
    """The same memories read in another environment: new answers, scores and r1."""
    instances = [episode.instance for episode in episodes]
    recalls = [
        replace(episode.recall, requests=recall.requests)
        for episode, recall in zip(
            episodes, recall_all(env, instances, [e.view for e in episodes]), strict=True
        )
    ]
    return finish(env, instances, recalls, [episode.steps for episode in episodes])


def sweep(
    run: Run,
    name: str,
    system: System,
    sources: Mapping[str, Sequence[Instance]],
    readings: Mapping[Reading, Results],
    batch: int,
) -> None:
    """Measures what is missing in each reading: a batch is written once and read in every way.

    Raises ReaderFailureError if more than `config.max_failed_share` of a reading has no answer;
    nothing of that reading of the batch is stored.
    """
    work = [
        (source, instances[start : start + batch])
        for source, instances in sources.items()
        for start in range(0, len(instances), batch)
    ]
    done, total = 0, sum(len(i.chunks) for _, part in work for i in part)
    with progress("chunks", total) as report:
        for source, part in work:
            lacks = {r: [results.missing(name, i) for i in part] for r, results in readings.items()}
            lacks = {reading: missing for reading, missing in lacks.items() if any(missing)}
            if lacks:
                began = time.perf_counter()
                episodes = system.run(
                    part, Clock(), lambda n, _, s=source, d=done: report(d + n, f"writing {s}")
                )
                writing = (time.perf_counter() - began) / len(part)
            done += sum(len(instance.chunks) for instance in part)
            for (retriever, k), missing in lacks.items():
                what, began = f"{retriever}, top {k}", time.perf_counter()
                again = read_again(run.env.replace(retriever=retriever, top_k=k), episodes)
                check_answers(run.config, again, f"{what} on {source}")
                seconds = time.perf_counter() - began
                asked = sum(len(instance.questions) for instance in part)
                new = [e for e, ask in zip(again, missing, strict=True) if ask]
                results = readings[retriever, k]
                results.add(name, new, (writing + seconds / len(part), seconds / asked))
                report(done, f"{source}: {what}")


def summarise(rows: Mapping[Reading, Sequence[Row]]) -> list[dict[str, Any]]:
    """One result per reading: r1 of each source and their mean, the difference to the first reading
    on the same instances, memory tokens and reader tokens."""
    runs = matrix(rows)["runs"]
    return [{"retriever": retriever, "top_k": k} | run for (retriever, k), run in runs.items()]


def sweep_table(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    """r1 of each source, their mean with its interval, and the tokens of the reader."""
    sources = [name for name in results[0]["r1"] if name != "mean"]
    short = [name.removeprefix("synthetic_") for name in sources]
    rows = []
    for result in results:
        r1 = result["r1"]
        cells = ["" if r1[source] is None else f"{r1[source][0]:.3f}" for source in sources]
        told = interval_text(r1["mean"]), interval_text(result["difference"])
        read = f"{result['reader_tokens']:.0f}"
        rows.append((result["retriever"], str(result["top_k"]), *cells, *told, read))
    heads = ("retriever", "top k", *short, "Avg.", "difference to the first", "reader tokens")
    note = f"Memory: {results[0]['memory_tokens']:.0f} tokens, written once."
    return Table(title, heads, tuple(rows), (note,))


def main(argv: list[str]) -> None:
    args, folder = flags.FLAGS, user_path(flags.FLAGS.out)
    with command(argv):
        run = open_workdir(args.workdir, measured.changes())
        sources, about = measured.from_flags(run.config)
        applicable = {
            name: instances for name, instances in sources.items() if applies(args.system, name)
        }
        if not applicable:
            raise ValueError(f"system {args.system!r} writes on none of {', '.join(sources)}")
        batch = run.config.rl.instances * run.config.rl.rollouts
        systems = open_systems([args.system], run, None, batch)
        with ExitStack() as stack:
            readings = {}
            # Without duplicates, because a results folder can be opened only once.
            asked = dict.fromkeys(itertools.product(args.retrievers, map(int, args.top_k)))
            for retriever, k in asked:
                reads = replace(run, env=run.env.replace(retriever=retriever, top_k=k))
                of = describe(
                    reads, args.split, systems, {name: about[name] for name in applicable}
                )
                readings[retriever, k] = stack.enter_context(
                    Results(folder / f"{retriever}-{k}", of)
                )
            sweep(run, args.system, systems[args.system], applicable, readings, batch)
        rows = {
            reading: wanted_rows(results.folder, args.system, applicable)
            for reading, results in readings.items()
        }
        results = summarise(rows)
        write_json(folder / "sweep.json", {"system": args.system} | {"results": results})
        table = sweep_table(f"Retriever and top k, {args.system}, {args.split} split", results)
        table = replace(table, notes=(*table.notes, *judge_notes(folder, applicable)))
        write_text(folder / "sweep.md", markdown([table]))
    print(markdown([table]))
    console.print(f"picture {draw_sweep(folder, results)}")


def define_flags() -> None:
    measured.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_enum("system", "trained", WRITERS[:3], "Who writes the memory.")
    flags.DEFINE_list("retrievers", ["bm25", "scann"], "Of bm25 and scann.")
    flags.DEFINE_list("top_k", ["1", "2", "5", "10", "20"], "Entries of each list, at most.")
    flags.DEFINE_string("out", None, "Folder of sweep.json, .md, .png and the rows.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
