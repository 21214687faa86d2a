"""Length generalisation: the trained writer on streams much longer than those of training.

    python -m experiments.length --workdir=runs/tiny --factors=1,13,40 --tokens=400000

Reads config and checkpoint of a finished run and writes length.json, length.md and length.png to
its workdir: r1 of each source at each length, memory tokens / chunk tokens, and time per chunk. If
the command is run again, only missing lengths are measured.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.lib.command import command
from experiments.lib.failures import check_answers
from experiments.lib.instances import build_every, build_instances
from experiments.lib.measure import table_rows
from experiments.lib.objects import open_trained
from experiments.lib.pictures import draw_lengths
from experiments.lib.progress import console, progress
from experiments.lib.render import Table, markdown
from experiments.lib.workdir import write_json
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.episode import Clock, count_tokens
from memalpha.paths import user_path
from memalpha.rollout import run_episodes


def length_table(results: Sequence[Mapping]) -> Table:
    """One row per length: r1 of each source and their mean, size of the memory, time of writing."""
    names = dict.fromkeys(source for result in results for source in result["rows"])
    sources = [source for source in names if source != "mean"]
    rows = []
    for result in results:
        of_source, mean = result["rows"], result["rows"]["mean"]
        r1 = [f"{of_source[s]['r1']:.3f}" if s in of_source else "" for s in (*sources, "mean")]
        share = f"{mean['memory_tokens'] / mean['chunk_tokens']:.2f}"
        sizes = f"{result['chunks']}", f"{mean['chunk_tokens']:.0f}"
        pace = f"{1e3 * result['seconds_a_chunk']:.0f}"
        rows.append((result["name"], *sizes, *r1, f"{mean['r2']:.3f}", share, pace))
    short = [source.removeprefix("synthetic_") for source in sources]
    heads = ("length", "chunks", "tokens", *short, "mean", "r2", "memory/chunk", "ms a chunk")
    return Table("Length", heads, tuple(rows), ("ms a chunk: of all streams at once.",))


def measured(path: Path, of: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> result, for the lengths in the file that have the same writer and settings."""
    if not path.exists():
        return {}
    try:
        return {r["name"]: r for r in json.loads(path.read_text()) if r.get("of") == of}
    except (ValueError, TypeError, KeyError, AttributeError):
        console.print(f"{path} cannot be read and is made anew", markup=False)
        return {}


def main(argv: list[str]) -> None:
    with command(argv):
        measure_lengths(flags.FLAGS)


def measure_lengths(args: flags.FlagValues) -> None:
    """Measures every length that length.json does not have yet, and draws the picture."""
    folder = user_path(args.workdir)
    config, policy = open_trained(folder)
    config.data.max_questions, env = args.questions, policy.env
    of = {
        "writer": policy.name,
        "temperature": config.eval.temperature,
        "instances": args.instances,
        "questions": args.questions,
        "source": args.source,
    }
    done, results = measured(folder / "length.json", of), []

    def measure(name: str, instances: list[Instance]) -> None:
        if name in done:
            results.append(done[name])
            console.print(f"{name}: measured before, {folder / 'length.json'}", markup=False)
            return
        writer = policy.writer(len(instances), config.eval.temperature)
        clock = Clock()
        chunks, began = max(len(i.chunks) for i in instances), time.perf_counter()
        with progress(name, sum(len(i.chunks) for i in instances)) as report:
            episodes = run_episodes(
                env, instances, writer, clock=clock, on_chunk=lambda done, _: report(done)
            )
        check_answers(config, episodes, name)
        rows = table_rows(episodes)
        reading = clock["retrieve"] + clock["read"]
        pace = (time.perf_counter() - began - reading) / chunks
        results.append(
            {"name": name, "of": of, "chunks": chunks, "seconds_a_chunk": pace, "rows": rows}
        )
        mean = rows["mean"]
        share = mean["memory_tokens"] / mean["chunk_tokens"]
        of_source = {s.removeprefix("synthetic_"): round(r["r1"], 3) for s, r in rows.items()}
        console.print(
            f"{name}: {mean['chunk_tokens']:.0f} tokens, r1 {of_source}, r2 {mean['r2']:.3f},"
            f" r4 {mean['r4']:.3f}, memory/chunk {share:.2f}, {pace * 1e3:.0f} ms a chunk"
        )
        write_json(folder / "length.json", results)
        write_text(folder / "length.md", markdown([length_table(results)]))

    for factor in map(int, args.factors):
        chunks = config.data.chunks * factor
        instances = build_every(config, "test", args.instances, first=1000, chunks=chunks)
        measure(f"{factor} x", instances)
    if args.tokens:
        sample = build_instances(config, args.source, "test", 1, first=2000, chunks=50)[0]
        a_chunk = sum(count_tokens(env, chunk) for chunk in sample.chunks) / 50
        chunks = int(1.01 * args.tokens / a_chunk)
        measure(
            f"{args.tokens} tokens",
            build_instances(config, args.source, "test", 1, first=2000, chunks=chunks),
        )
    print(markdown([length_table(results)]))
    console.print(f"picture {draw_lengths(folder, results)}")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("factors", ["1", "13", "40"], "Lengths, in training lengths.")
    flags.DEFINE_integer("instances", 8, "Instances of each family at each length.")
    flags.DEFINE_integer("tokens", 0, "Also one stream of this many tokens; 0: none.")
    flags.DEFINE_string("source", "synthetic_facts", "What that stream is made of.")
    flags.DEFINE_integer("questions", 100, "The most questions an instance.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
