"""A process that changes a store at random and says what it does, to be killed at any moment.

Forks a worker for every line `first last` on its standard input, so that only the first one pays
for the imports. A worker says `pid N`, and for every operation `try {...}` and, once it is on disk,
`ok`; `dead` follows when it has ended.
"""

import json
import os
import random
import select
import sys

from memalpha.agent.events import Event
from memalpha.agent.store import CORE_ID, Store
from memalpha.memory import MEMORY_NAMES

NAMES = ("ana", "bo", "cy")


def say(text: str) -> None:
    line = (text + "\n").encode()
    assert len(line) < select.PIPE_BUF  # one write: a line is there whole or not at all
    os.write(1, line)


def choose(store: Store, rng: random.Random) -> dict:
    """The next operation, as plain data."""
    name = rng.choice(NAMES)
    if name not in store.namespaces():
        return {"do": "create", "name": name}
    do = rng.choices(("commit", "undo", "copy", "forget"), (80, 15, 3, 1))[0]
    if do != "commit":
        return {"do": do, "name": name}
    now = store.read(name)
    after = {(0, CORE_ID): f"core {rng.random()}"} if rng.random() < 0.2 else {}
    for kind in (1, 2):
        for entry in getattr(now, MEMORY_NAMES[kind]):
            if rng.random() < 0.1 and len(after) < 6:
                after[kind, entry.id] = rng.choice((None, f"again {rng.random()}"))
    for new in range(rng.randrange(3)):
        after[rng.choice((1, 2)), now.next_id + new] = f"new {rng.random()}"
    after = [[*key, text] for key, text in after.items()]
    return {"do": do, "name": name, "after": after, "next": now.next_id + 2}


def perform(store: Store, op: dict) -> None:
    name = op["name"]
    if op["do"] == "create":
        store.create(name)
    elif op["do"] == "undo":
        store.undo(name, "me")
    elif op["do"] == "forget":
        store.forget(name)
    elif op["do"] == "copy":
        store.copy_to(store.path + ".copy")
    else:
        after = {(kind, entry): text for kind, entry, text in op["after"]}
        store.commit(name, Event("edit", "me", "why"), after, store.read(name), op["next"])


def work(path: str, first: int, last: int) -> None:
    say(f"pid {os.getpid()}")
    store = Store(path)
    for number in range(first, last):
        op = choose(store, random.Random(number))
        say(f"try {number} {json.dumps(op)}")
        perform(store, op)
        say("ok")


if __name__ == "__main__":
    for line in sys.stdin:
        if pid := os.fork():
            os.waitpid(pid, 0)
            say("dead")
        else:
            work(sys.argv[1], *map(int, line.split()))
            os._exit(0)
