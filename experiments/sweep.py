"""Retriever and top k: one written memory, read in many ways.

    python -m experiments.sweep --workdir=runs/tiny --top_k=1,2,5,10,20 --out=results/sweep

The writer reads every instance once; then the questions are asked again for every retriever and
every k (entries of each list that the reader is given). Leaves sweep.json, sweep.md and sweep.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments import sources as measured
from experiments.evaluate import keep_compiled
from experiments.failures import check_answers
from experiments.intervals import estimate
from experiments.measure import by_source, table_rows
from experiments.pictures import draw_sweep
from experiments.progress import console, progress
from experiments.render import Table, interval, markdown
from experiments.systems import WRITERS, Run, applies, open_systems, open_workdir
from experiments.workdir import write_json
from memalpha.data.files import write_text
from memalpha.rollout import Clock, Environment, Episode, answer, find_evidence


def read_again(env: Environment, episodes: Sequence[Episode]) -> list[Episode]:
    """The same memories, asked through another environment: other answers, scores, r1."""
    again = [replace(episode) for episode in episodes]
    requests = [find_evidence(env, episode.instance, episode.view) for episode in again]
    answer(env, again, requests, [episode.memory_tokens for episode in again])
    return again


def sweep(
    run: Run, episodes: Sequence[Episode], retrievers: Sequence[str], ks: Sequence[int]
) -> list[dict[str, Any]]:
    """One result a retriever and k: means by source, and the mean over sources with its interval.

    Raises ValueError for an unknown retriever or a k below 1, and ReaderFailureError where too many
    questions go unanswered.
    """
    results = []
    with progress("readings", len(retrievers) * len(ks)) as report:
        for retriever in retrievers:
            for k in ks:
                again = read_again(replace(run.env, retriever=retriever, top_k=k), episodes)
                check_answers(run.config, again, f"{retriever}, top {k}")
                judged = [[e.r1 for e in some if e.valid] for some in by_source(again).values()]
                mean = estimate(judged)
                results.append(
                    {
                        "retriever": retriever,
                        "top_k": k,
                        "rows": table_rows(again),
                        "interval": None if mean.low is None else [mean.low, mean.high],
                    }
                )
                report(len(results), f"{retriever}, top {k}")
    return results


def sweep_table(title: str, results: Sequence[dict[str, Any]]) -> Table:
    """r1 of each source, their mean with its interval, and what the reader was given."""
    sources = [name for name in results[0]["rows"] if name != "mean"]
    short = [name.removeprefix("synthetic_") for name in sources]
    rows = []
    for result in results:
        mean = result["rows"]["mean"]
        cells = [f"{result['rows'][source]['r1']:.3f}" for source in sources]
        average = interval(mean["r1"], result["interval"])
        read = f"{mean['reader_tokens']:.0f}"
        rows.append((result["retriever"], str(result["top_k"]), *cells, average, read))
    heads = ("retriever", "top k", *short, "Avg.", "reader tokens")
    note = f"Memory: {results[0]['rows']['mean']['memory_tokens']:.0f} tokens, written once."
    return Table(title, heads, tuple(rows), (note,))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    args, folder = flags.FLAGS, Path(flags.FLAGS.out)
    logging.set_verbosity(logging.ERROR)  # Orbax tells much of every checkpoint
    keep_compiled(args.workdir)
    try:
        run = open_workdir(args.workdir, measured.changes())
        sources, _ = measured.from_flags(run.config)
        some = [i for name, held in sources.items() if applies(args.system, name) for i in held]
        if not some:
            raise ValueError(f"system {args.system!r} writes on none of {', '.join(sources)}")
        rows = run.config.rl.instances * run.config.rl.rollouts
        system = open_systems([args.system], run, None, rows)[args.system]
        with progress("chunks", max(len(i.chunks) for i in some)) as report:
            episodes = system.run(some, Clock(), lambda done, _: report(done, "writing"))
        results = sweep(run, episodes, args.retrievers, [int(k) for k in args.top_k])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sweep.json", {"system": args.system} | {"results": results})
        table = sweep_table(f"Retriever and top k, {args.system}, {args.split} split", results)
        write_text(folder / "sweep.md", markdown([table]))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(markdown([table]))
    console.print(f"picture {draw_sweep(folder, results)}")


def define_flags() -> None:
    measured.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_enum("system", "trained", WRITERS[:3], "Who writes the memory.")
    flags.DEFINE_list("retrievers", ["bm25", "scann"], "Of bm25 and scann.")
    flags.DEFINE_list("top_k", ["1", "2", "5", "10", "20"], "Entries of each list, at most.")
    flags.DEFINE_string("out", None, "Folder of sweep.json, sweep.md and sweep.png.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
