"""Length generalisation: the trained writer on streams many times as long as it was trained on.

    python -m experiments.length --workdir=runs/tiny --factors=1,13,40 --tokens=400000

Reads config and checkpoint of a finished run and writes length.json and length.png beside them:
r1 of each family at each length, memory over chunk tokens, and seconds a chunk.
"""

import time
from pathlib import Path

import jax
from absl import app, flags

from experiments.evaluate import table_rows
from experiments.pictures import draw_lengths
from experiments.progress import console, progress
from experiments.setup import build_every, build_instances, open_run
from experiments.workdir import write_json
from memalpha.data.instance import Instance
from memalpha.rollout import Clock, count_tokens, run_episodes

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
FACTORS = flags.DEFINE_list("factors", ["1", "13", "40"], "Lengths, in training lengths.")
INSTANCES = flags.DEFINE_integer("instances", 8, "Instances of each family at each length.")
TOKENS = flags.DEFINE_integer("tokens", 0, "Also one stream of this many tokens; 0: none.")
SOURCE = flags.DEFINE_string("source", "synthetic_facts", "What that stream is made of.")
QUESTIONS = flags.DEFINE_integer("questions", 100, "The most questions an instance.")


def main(_) -> None:
    jax.config.update(
        "jax_compilation_cache_dir", str(Path(WORKDIR.value).absolute() / "jax_cache")
    )
    folder = Path(WORKDIR.value)
    config, policy = open_run(folder)
    config.data.max_questions, env = QUESTIONS.value, policy.env
    results = []

    def measure(name: str, instances: list[Instance]) -> None:
        writer = policy.writer(len(instances), config.eval.temperature)
        clock = Clock()
        chunks, began = max(len(i.chunks) for i in instances), time.perf_counter()
        with progress(name, sum(len(i.chunks) for i in instances)) as report:
            episodes = run_episodes(
                env, instances, writer, clock=clock, on_chunk=lambda done, _: report(done)
            )
        rows = table_rows(episodes)
        reading = clock["retrieve"] + clock["read"]
        pace = (time.perf_counter() - began - reading) / chunks
        results.append({"name": name, "chunks": chunks, "seconds_a_chunk": pace, "rows": rows})
        mean = rows["mean"]
        share = mean["memory_tokens"] / mean["chunk_tokens"]
        of_source = {s.removeprefix("synthetic_"): round(r["r1"], 3) for s, r in rows.items()}
        console.print(
            f"{name}: {mean['chunk_tokens']:.0f} tokens, r1 {of_source}, r2 {mean['r2']:.3f},"
            f" r4 {mean['r4']:.3f}, memory/chunk {share:.2f}, {pace * 1e3:.0f} ms a chunk"
        )
        write_json(folder / "length.json", results)

    for factor in map(int, FACTORS.value):
        chunks = config.data.chunks * factor
        instances = build_every(config, "test", INSTANCES.value, first=1000, chunks=chunks)
        measure(f"{factor} x", instances)
    if TOKENS.value:
        sample = build_instances(config, SOURCE.value, "test", 1, first=2000, chunks=50)[0]
        a_chunk = sum(count_tokens(env, chunk) for chunk in sample.chunks) / 50
        chunks = int(1.01 * TOKENS.value / a_chunk)
        measure(
            f"{TOKENS.value} tokens",
            build_instances(config, SOURCE.value, "test", 1, first=2000, chunks=chunks),
        )
    console.print(f"picture {draw_lengths(folder, results)}")


if __name__ == "__main__":
    app.run(main)
