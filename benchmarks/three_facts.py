"""A new user's first minutes: facts told in bare sentences, asked for in another session.

    python -m benchmarks.three_facts
    python -m benchmarks.three_facts --checkpoint=runs/tiny --reader=smollm2 --show

Ten tries of three facts each, in sentences of our own that no training data holds. Told to a fresh
store; the store is opened again, and each fact is asked for once. A try is right where all three
replies hold what was told. Printed too: seconds a message, and the memory that the process used.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from memalpha.agent.loading import open_agent
from memalpha.agent.memory_agent import MemoryAgent
from memalpha.agent.store import Store
from memalpha.agent.terminal import DEFAULT_WRITER
from memalpha.agent.writers import keep_compiled
from memalpha.metrics import normalize

TRIES = (  # (what is said, what is asked, what the reply has to hold)
    (
        ("My sister Ilka moved to Trieste.", "Where does my sister Ilka live?", "Trieste"),
        ("I'm allergic to cashews.", "What am I allergic to?", "cashews"),
        ("The dentist is on 14 May at 8:40.", "When is the dentist?", "14 May"),
    ),
    (
        ("our dog is called Pepper", "What is our dog called?", "Pepper"),
        ("I work at the Nordlicht bakery.", "Where do I work?", "Nordlicht"),
        ("the gate code is 7719", "What is the gate code?", "7719"),
    ),
    (
        ("My favourite composer is Smetana.", "Who is my favourite composer?", "Smetana"),
        ("We fly to Lisbon on 3 August.", "When do we fly to Lisbon?", "3 August"),
        ("My landlord's name is Mr Okoro.", "What is my landlord's name?", "Okoro"),
    ),
    (
        ("I drive an old yellow Saab.", "What car do I drive?", "Saab"),
        ("My mother was born in Tartu.", "Where was my mother born?", "Tartu"),
        ("Rent is 940 euros a month.", "How much is the rent?", "940"),
    ),
    (
        ("hi! my name is Joris", "What is my name?", "Joris"),
        ("I play the bassoon in an orchestra.", "Which instrument do I play?", "bassoon"),
        ("Yoga is every Tuesday at 18:15.", "When is yoga?", "Tuesday"),
    ),
    (
        ("My daughter Wanda is seven.", "How old is my daughter Wanda?", "seven"),
        ("I don't eat pork.", "What do I not eat?", "pork"),
        ("Parcel 55-0921 is at the kiosk.", "Where is parcel 55-0921?", "kiosk"),
    ),
    (
        ("Ben lent me 60 dollars.", "How much did Ben lend me?", "60"),
        ("I'm learning Georgian.", "Which language am I learning?", "Georgian"),
        ("My doctor is Dr Achterberg.", "Who is my doctor?", "Achterberg"),
    ),
    (
        ("We named the boat Kingfisher.", "What did we name the boat?", "Kingfisher"),
        ("My brother Tam studies geology.", "What does my brother Tam study?", "geology"),
        ("The spare key is under the fern.", "Where is the spare key?", "fern"),
    ),
    (
        ("I take my coffee with oat milk.", "How do I take my coffee?", "oat milk"),
        ("My visa expires on 9 January 2031.", "When does my visa expire?", "9 January 2031"),
        ("Uncle Rolf sells clocks.", "What does Uncle Rolf sell?", "clocks"),
    ),
    (
        ("My train leaves at 6:52.", "When does my train leave?", "6:52"),
        ("I grew up in a village called Hebden.", "Where did I grow up?", "Hebden"),
        ("Our new flat is on the fourth floor.", "On which floor is our new flat?", "fourth"),
    ),
)  # fmt: skip


def attempt(options, facts, folder: Path) -> tuple[list[bool], list[float]]:
    """Whether each fact came back, and the seconds of each message."""
    store, seconds = str(folder / "memory.db"), []
    agent = options.agent(store)
    for said, _, _ in facts:
        begin = time.perf_counter()
        agent.observe(said)
        seconds.append(time.perf_counter() - begin)
    right = []
    again = options.agent(store)
    for said, asked, wanted in facts:
        reply = again.ask(asked).text
        right.append(f" {normalize(wanted)} " in f" {normalize(reply)} ")
        if options.show:
            print(f"  {'ok ' if right[-1] else 'NO '} {said!r} -> {asked!r}: {reply!r}")
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
    parser.add_argument("--tries", type=int, default=len(TRIES))
    parser.add_argument("--show", action="store_true", help="every reply and memory")
    options = parser.parse_args()
    keep_compiled()
    begin = time.perf_counter()
    first = open_agent(options.checkpoint, ":memory:", "default", options.reader)
    loading = time.perf_counter() - begin

    # The same models, on a store that is opened anew.
    options.agent = lambda store: MemoryAgent(first.env, first.writer, Store(store))
    results, seconds = [], []
    for facts in TRIES[: options.tries]:
        with tempfile.TemporaryDirectory() as folder:
            right, took = attempt(options, facts, Path(folder))
        results.append(right)
        seconds += took
        print(f"{sum(right)} of {len(right)} right", flush=True)
    whole = sum(all(right) for right in results)
    print(
        f"{options.checkpoint}: all three right in {whole} of {len(results)} tries,"
        f" {np.mean(results):.2f} of the facts; loaded in {loading:.1f} s; a message takes"
        f" {np.median(seconds[1:]):.1f} s (median; the first {seconds[0]:.1f} s), the longest"
        f" {max(seconds[1:]):.1f} s; memory at most"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
