"""A new user's first minutes: facts told in bare sentences, asked for in another session.

    python -m benchmarks.three_facts
    python -m benchmarks.three_facts --checkpoint=runs/tiny --reader=smollm2 --show
    python -m benchmarks.three_facts --set=later --verbatim

Tries of three facts each, told to a fresh store; the store is opened again, and each fact is asked
for once. A try is right where all three replies hold what was told, be they `sure` or not. Printed
too: seconds a message, and the memory that the process used. `--verbatim` puts a writer in the
place of the trained one that stores each message word for word: what is still wrong then is the
reader's.

There are three sets. The 10 tries of `known` were written by us, who knew training data and code,
the 10 of `blind` by somebody who knew neither; the supervised stages of the shipped writer were
chosen by these two. The 20 of `later`, by another such person, were written after that: with them
it was only checked that reinforcement did no harm before its adapters were shipped.
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from operator import itemgetter
from pathlib import Path

import numpy as np

from memalpha.agent.loading import open_agent
from memalpha.agent.memory_agent import MemoryAgent
from memalpha.agent.store import Store
from memalpha.agent.terminal import DEFAULT_WRITER
from memalpha.compilation_cache import keep_compiled
from memalpha.episode import Environment, Turn, Writer
from memalpha.metrics import normalize
from memalpha.rollout import scripted_writer
from memalpha.tools import INSERT, Call, format_response

FACTS = Path(__file__).parent / "data" / "three_facts.jsonl"


def read_tries(which: str) -> list[list[dict]]:
    """The tries of a set, each a list of facts: what is `said`, `asked`, and in the right reply."""
    facts = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    chosen = [fact for fact in facts if fact["set"] == which]
    return [list(group) for _, group in itertools.groupby(chosen, itemgetter("try"))]


def verbatim_writer(env: Environment) -> Writer:
    """Stores what a message says, without the frame that the agent puts around it."""

    def respond(turn: Turn) -> str:
        said = turn.text.partition("<User> ")[2].partition("\n<Assistant>")[0]
        call = Call(INSERT, {"memory_type": "episodic", "content": f"User said: {said}"})
        return format_response([call], env.prompt.dialect)

    return scripted_writer(env, respond)


def attempt(options, facts, folder: Path) -> tuple[list[bool], list[float]]:
    """Whether each fact came back, and the seconds of each message."""
    store, seconds = str(folder / "memory.db"), []
    agent = options.agent(store)
    for fact in facts:
        begin = time.perf_counter()
        agent.observe(fact["said"])
        seconds.append(time.perf_counter() - begin)
    right = []
    again = options.agent(store)
    for fact in facts:
        reply = again.ask(fact["asked"]).text
        right.append(f" {normalize(fact['reply'])} " in f" {normalize(reply)} ")
        if options.show:
            sign = "ok " if right[-1] else "NO "
            print(f"  {sign} {fact['said']!r} -> {fact['asked']!r}: {reply!r}")
    if options.show:
        memory = again.memory
        entries = [entry.text for entry in (*memory.semantic, *memory.episodic)]
        print(f"  core {memory.core!r}", *entries, sep="\n    ")
    return right, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default=DEFAULT_WRITER)
    parser.add_argument("--reader", help="a model that answers; default: the offline rules")
    parser.add_argument("--set", choices=("blind", "known", "later"), default="blind")
    parser.add_argument("--tries", type=int, help="the first so many; default: all of the set")
    parser.add_argument("--verbatim", action="store_true", help="store every message as it is")
    parser.add_argument("--show", action="store_true", help="every reply and memory")
    options = parser.parse_args()
    keep_compiled()
    begin = time.perf_counter()
    first = open_agent(options.checkpoint, ":memory:", "default", options.reader)
    loading = time.perf_counter() - begin

    writer = verbatim_writer(first.env) if options.verbatim else first.writer
    # The same models, on a store that is opened anew.
    options.agent = lambda store: MemoryAgent(first.env, writer, Store(store))
    results, seconds = [], []
    for facts in read_tries(options.set)[: options.tries]:
        with tempfile.TemporaryDirectory() as folder:
            right, took = attempt(options, facts, Path(folder))
        results.append(right)
        seconds += took
        print(f"{sum(right)} of {len(right)} right", flush=True)
    whole = sum(all(right) for right in results)
    name = "word for word" if options.verbatim else options.checkpoint
    print(
        f"{name}, {options.set}: all three right in {whole} of {len(results)} tries,"
        f" {np.mean(results):.2f} of the facts; loaded in {loading:.1f} s; a message takes"
        f" {np.median(seconds[1:]):.1f} s (median; the first {seconds[0]:.1f} s), the longest"
        f" {max(seconds[1:]):.1f} s; memory at most"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
