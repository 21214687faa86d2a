"""Scores of simple writers on the sources of a config: the range that training can move in.

    python -m benchmarks.without_training --config=configs/real_text.py --config.data.dir=DIR \\
        --workdir=runs/real_text [--instances=60]

Prints two Markdown tables over validation instances: r1, r2 and r4 of the writer that stores every
note, of the poor writer that the warm start imitates, and of the baselines; then the sizes of the
poor writer's prompts and responses against their limits. The tokenizer is that of the workdir.
"""

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from experiments.lib.instances import build_every
from experiments.lib.measure import table_of_baseline, table_of_writer
from experiments.lib.objects import build_environment, build_tokenizer
from experiments.lib.writers import perfect_writer, poor_writer
from experiments.main_job import SIMPLE_MEMORIES
from memalpha.episode import Episode
from memalpha.paths import user_path

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder that keeps the tokenizer.")
INSTANCES = flags.DEFINE_integer("instances", 60, "Validation instances of each source.")
PERCENTILES = (50, 90, 99, 100)


def print_scores(results: dict[str, dict], sources: list[str]) -> None:
    columns = [f"{s.removeprefix('synthetic_')} {r}" for s in sources for r in ("r1", "r2", "r4")]
    print(f"| writer | {' | '.join(columns)} | memory |\n|{'---|' * (len(columns) + 2)}")
    for name, rows in results.items():
        cells = [rows[s].get(r) for s in sources for r in ("r1", "r2", "r4")]
        cells = ["" if cell is None else f"{cell:.3f}" for cell in cells]
        print(f"| {name} | {' | '.join(cells)} | {rows['mean']['memory_tokens']:.0f} |")


def print_sizes(episodes: list[Episode], sources: list[str], limits: tuple[int, int]) -> None:
    names = [f"{what} p{p}" for what in ("prompt", "response") for p in PERCENTILES]
    print(f"\n| poor writer | {' | '.join(names)} | responses over {limits[1]} | empty |")
    print("|" + "---|" * (len(names) + 3))
    for source in sources:
        steps = [step for e in episodes if e.instance.source == source for step in e.steps]
        prompt = np.array([len(step.response.prompt) for step in steps])
        response = np.array([len(step.response.tokens) for step in steps])
        cells = [f"{np.percentile(x, p):.0f}" for x in (prompt, response) for p in PERCENTILES]
        over, empty = np.mean(response > limits[1]), np.mean(response <= 1)
        print(f"| {source} | {' | '.join(cells)} | {over:.1%} | {empty:.1%} |")


def main(argv: list[str]) -> None:
    config = CONFIG.value
    workdir = user_path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    env = build_environment(config, build_tokenizer(config, workdir))
    sources = list(config.data.sources)
    instances = build_every(config, "validation", INSTANCES.value)
    results = {"every note": table_of_writer(env, instances, perfect_writer(env))[0]}
    rng = np.random.default_rng(config.seed)
    results["poor writer"], poor = table_of_writer(env, instances, poor_writer(config, env, rng))
    for name, recall in SIMPLE_MEMORIES.items():
        results[name] = table_of_baseline(env, instances, recall)
    print_scores(results, sources)
    print_sizes(poor, sources, (config.prompt.tokens, config.prompt.response_tokens))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
