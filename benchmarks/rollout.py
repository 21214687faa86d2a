"""Episodes of unequal length: rows refilled against lockstep, and a shared prefix against none.

    python benchmarks/rollout.py [--episodes 16] [--rows 8] [--shortest 2] [--longest 20]

One process, a policy of the size of configs/tiny.py with random weights, which writes up to the
limit. The ways take turns; prints rows computed and seconds of each, and the ratio of seconds to
the last way, as min, median, max over the rounds. `lockstep, full batches`: all episodes advance
together and every batch is filled up to `--rows`; `lockstep`: the last batch is as small as its
bucket; `refill`: waiting episodes take the rows of finished ones. The prefix is that of the
built-in instructions for pretrained models. The ways give the same tokens, or the program stops.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from memalpha.batch import row_bucket
from memalpha.data import synthetic
from memalpha.episode import Environment, MemorySpec, Turn, Writer
from memalpha.model import ModelConfig, init_params
from memalpha.prompts import PromptSpec, load_template, template_fragments
from memalpha.rollout import run_episodes
from memalpha.tokenizer import train_tokenizer
from memalpha.tools import fixed_fragments
from memalpha.writer import common_prefix, policy_writer

PROMPT = 160  # tokens, as in configs/tiny.py


def tiny_policy() -> tuple[Environment, ModelConfig, dict]:
    instances = synthetic.generate_many(list(synthetic.GENERATORS), "train", 20)
    phrases = template_fragments(load_template("compact"))
    phrases += [*fixed_fragments("qwen3"), *synthetic.PHRASES]
    corpus = [chunk for instance in instances for chunk in instance.chunks]
    tokenizer = train_tokenizer(corpus, 2048, phrases)
    prompt = PromptSpec(tokenizer, load_template("compact"), recent=2, prompt_tokens=PROMPT)
    env = Environment(prompt, MemorySpec(entry_tokens=48, core_tokens=64, max_calls=16))
    model = ModelConfig(len(tokenizer), 128, 3, 4, 2, 32, 384, rope_theta=1e4)
    return env, model, init_params(model, jax.random.key(0))


def full_batches(writer: Writer, rows: int, computed: list[int]) -> Writer:
    """Turns repeated until they fill whole batches."""

    def write(turns: Sequence[Turn]):
        spare = -len(turns) % rows
        computed.append(len(turns) + spare)
        return writer([*turns, *[turns[0]] * spare])[: len(turns)]

    return write


def in_buckets(writer: Writer, rows: int, computed: list[int]) -> Writer:
    def write(turns: Sequence[Turn]):
        whole, rest = divmod(len(turns), rows)
        computed.append(whole * rows + (row_bucket(rest, rows) if rest else 0))
        return writer(turns)

    return write


def compare(ways: dict[str, Callable[[], list]], rounds: int, computed: dict[str, list]) -> None:
    """Runs each way once to compile, then in turns, and prints the table."""
    written, seconds = {}, {name: [] for name in ways}
    for name, way in ways.items():
        computed[name].clear()
        written[name] = way()
    if len({str(tokens) for tokens in written.values()}) > 1:
        raise SystemExit("the ways did not write the same tokens")
    rows = {name: sum(computed[name]) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    last = seconds[list(ways)[-1]]
    print("| way | rows computed | seconds | ratio to the last: min, median, max |")
    print("|---|---|---|---|")
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[name], last, strict=True)]
        three = min(ratios), statistics.median(ratios), max(ratios)
        ratio_texts = ", ".join(f"{ratio:.2f}" for ratio in three)
        print(f"| {name} | {rows[name]} | {statistics.median(seconds[name]):.2f} | {ratio_texts} |")


def tokens_of(episodes) -> list:
    return [[step.response.tokens for step in episode.steps] for episode in episodes]


def refilling(args, env: Environment, model: ModelConfig, params) -> None:
    lengths = np.linspace(args.shortest, args.longest, args.episodes).round().astype(int)
    instances = [
        synthetic.generate("facts", "train", i, chunks=int(n))
        for i, n in enumerate(np.random.default_rng(0).permutation(lengths))
    ]
    env = env.replace(response_tokens=args.response)
    writer = policy_writer(params, model, env, args.rows, jax.random.key(0))
    names = ("lockstep, full batches", "lockstep", "refill")
    computed = {name: [] for name in names}
    full = full_batches(writer, args.rows, computed[names[0]])
    packed = [in_buckets(writer, args.rows, computed[name]) for name in names[1:]]
    print(f"\n{args.episodes} episodes of {min(lengths)} to {max(lengths)} chunks,"
          f" {sum(lengths)} in all, {args.rows} rows\n")  # fmt: skip
    compare(
        {
            names[0]: lambda: tokens_of(run_episodes(env, instances, full)),
            names[1]: lambda: tokens_of(run_episodes(env, instances, packed[0])),
            names[2]: lambda: tokens_of(run_episodes(env, instances, packed[1], rows=args.rows)),
        },
        args.rounds,
        computed,
    )


def prefix(args, env: Environment, model: ModelConfig, params) -> None:
    env = env.replace(
        template=load_template("full"), prompt_tokens=8192, response_tokens=args.response
    )
    instances = [synthetic.generate("facts", "train", i, chunks=2) for i in range(args.rows)]
    shared = len(common_prefix(env.prompt))
    width = 64 * (shared // 64 + 5)
    env = env.replace(prompt_tokens=width)
    names = {"every row computes it": 0, "computed once a writer": 1}
    computed = {name: [] for name in names}

    def way(name: str, least: int):
        def run():
            key = jax.random.key(0)  # a new writer, as in every step of training
            writer = policy_writer(params, model, env, args.rows, key, min_prefix=least)
            return tokens_of(
                run_episodes(env, instances, in_buckets(writer, args.rows, computed[name]))
            )

        return run

    print(f"\nprompts of {width} tokens, the first {shared} always the same, {args.rows} rows,"
          f" responses of {args.response}\n")  # fmt: skip
    compare({name: way(name, least) for name, least in names.items()}, args.rounds, computed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=2)
    parser.add_argument("--longest", type=int, default=20)
    parser.add_argument("--response", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    policy = tiny_policy()
    refilling(args, *policy)
    prefix(args, *policy)


if __name__ == "__main__":
    main()
