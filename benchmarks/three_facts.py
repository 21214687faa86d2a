"""A new user's first minutes: facts told in bare sentences, asked for in another session.

    python -m benchmarks.three_facts
    python -m benchmarks.three_facts --checkpoint=runs/tiny --reader=smollm2 --show

Ten tries of three facts each, told to a fresh store; the store is opened again, and each fact is
asked for once. A try is right where all three replies hold what was told. Printed too: seconds a
message, and the memory that the process used. There are two sets: the tries of `blind` were written
by somebody who knew neither training data nor code, those of `known` by us, who knew both.
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
from memalpha.metrics import normalize

FACTS = Path(__file__).parent / "data" / "three_facts.jsonl"


def read_tries(which: str) -> list[list[dict]]:
    """The tries of a set, each a list of facts: what is `said`, `asked`, and in the right reply."""
    facts = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    chosen = [fact for fact in facts if fact["set"] == which]
    return [list(group) for _, group in itertools.groupby(chosen, itemgetter("try"))]


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
    parser.add_argument("--set", choices=("blind", "known"), default="blind")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="every reply and memory")
    options = parser.parse_args()
    keep_compiled()
    begin = time.perf_counter()
    first = open_agent(options.checkpoint, ":memory:", "default", options.reader)
    loading = time.perf_counter() - begin

    # The same models, on a store that is opened anew.
    options.agent = lambda store: MemoryAgent(first.env, first.writer, Store(store))
    results, seconds = [], []
    for facts in read_tries(options.set)[: options.tries]:
        with tempfile.TemporaryDirectory() as folder:
            right, took = attempt(options, facts, Path(folder))
        results.append(right)
        seconds += took
        print(f"{sum(right)} of {len(right)} right", flush=True)
    whole = sum(all(right) for right in results)
    print(
        f"{options.checkpoint}, {options.set}: all three right in {whole} of {len(results)} tries,"
        f" {np.mean(results):.2f} of the facts; loaded in {loading:.1f} s; a message takes"
        f" {np.median(seconds[1:]):.1f} s (median; the first {seconds[0]:.1f} s), the longest"
        f" {max(seconds[1:]):.1f} s; memory at most"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
