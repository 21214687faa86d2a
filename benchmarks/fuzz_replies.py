"""Passes random and broken replies to every function that reads replies: none may raise.

    python -m benchmarks.fuzz_replies 100000

The replies are valid ones that were spliced, cut or repeated, and random sequences of marks and
brackets. Prints for every reader how many replies it could use, and its time; stops with an error
at the first exception.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial

from memalpha import calls, replies, scoring, tools
from memalpha.baselines import mem0, mem1, memgpt
from memalpha.judge_rules import judge_contents
from memalpha.lm.interface import Generation
from memalpha.lm.roles import lm_content_judge, lm_score_judge, read_verdict
from memalpha.scoring import Claim

PIECES = (
    *replies.MARKS, '"', "'", "\\", "{", "}", "[", "]", ",", ":", "\n", " ", "```json\n", "```",
    '{"', '"}', '": ', '", "', "null", "NaN", "-1", "9" * 5000, "1e999", "12.0", "[{}, ", "[[[[",
    '"facts": [', '"operation": "ADD"', '"id": ', '"VALID": true', '"ISSUES": [', '"name": ',
    '"arguments": {', '"memory_type": "core"', '"content": "', '"memory_id": ', "yes", "no",
    "\ud83d", "\\ud83d", "\\u00", "é", "\u2028", "\x00", "Ida is a boat.", 'said "no", so',
    "<state>", "</state>",
)  # fmt: skip
LONGEST = 100_000  # characters: far above what a writer may say


def sound(rng: random.Random) -> str:
    """A valid reply for one of the readers."""
    text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 5)))
    entry = {"memory_type": rng.choice(["core", "semantic"]), "content": text}
    dialect = rng.choice(calls.DIALECTS)
    call = tools.format_call(tools.INSERT, entry, dialect)
    delete = tools.format_call(tools.DELETE, {"memory_type": "semantic", "memory_id": 3}, dialect)
    append = tools.format_call("core_append", {"content": text, "heartbeat": True}, dialect)
    forms = [
        call, call + "\n" + delete, f"<think>{text}</think>{call}", append,
        json.dumps({"name": tools.INSERT, "arguments": entry}),
        json.dumps({"VALID": rng.random() < 0.5, "ISSUES": [text], "EXPLANATION": text}),
        json.dumps({"facts": [text, "Ida is a boat."]}),
        json.dumps({"operation": "UPDATE", "id": rng.choice([1, "[2]", text]), "text": text}),
        rng.choice(["yes", "No.", "<think>yes</think> no"]), mem1.in_tags(text),
    ]  # fmt: skip
    return rng.choice(forms)


def reply(rng: random.Random) -> str:
    """A random reply, plausible or not."""
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(30)))
    if kind < 0.3:
        times = rng.choice([400, 400, 400, 5_000])
        loop = (rng.choice(PIECES) + rng.choice(PIECES)) * times
        return rng.choice([sound(rng), ""]) + loop[:LONGEST]
    text = sound(rng) + rng.choice(["", "\n", sound(rng)])
    for _ in range(rng.randrange(4)):
        at, gone = rng.randrange(len(text) + 1), rng.choice([0, 0, 1, 3, 30])
        text = text[:at] + rng.choice(PIECES) + text[at + gone :]
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.3 else text


class Says:
    """A language model that always returns the given reply."""

    name = "says"

    def __init__(self):
        self.text = ""

    def generate(self, prompts, max_new_tokens, temperature=0.0, seed=0):
        return [Generation(self.text) for _ in prompts]


def readers() -> dict[str, Callable[[str], object]]:
    """All functions that read replies; each returns a true value if it could use the reply."""
    model, silent = Says(), lambda _: None
    call = tools.Call(tools.INSERT, {"memory_type": "core", "content": "Ida is a boat."})
    claim = Claim("lme_train", "Who?", "Ida", ("Ida",))
    judges = (lm_content_judge(model, on_failure=silent), lm_score_judge(model, on_failure=silent))

    def ask(role, item, text):
        model.text = text
        return role([item])[0]

    def use(parse, dialect, text):
        parsed = parse(text, dialect)
        ends = [0, *(c.end for c in parsed), len(text)]
        assert ends == sorted(ends)
        json.dumps([c.arguments for c in parsed]).encode()
        judge_contents(parsed)
        ops = tools.calls_to_ops([parsed], lambda t: list(t.encode())[:9], 9, 8)
        return (ops.kind[ops.kind > 0] < 4).any()

    def functions(dialect, text):
        return any(not raw.error for raw in memgpt.read_calls(text, dialect))

    named = {}
    for dialect in calls.DIALECTS:
        named[f"{dialect}, trained"] = partial(use, tools.parse_calls, dialect)
        named[f"{dialect}, prompted"] = partial(use, tools.parse_prompted_calls, dialect)
        named[f"MemGPT, {dialect}"] = partial(functions, dialect)
    return named | {
        "Mem0 facts": lambda text: mem0.read_facts(text)[0],
        "Mem0 decision": lambda text: mem0.read_decision(text)[0],
        "MEM1": mem1.last_state,
        "MemAgent and readers": replies.visible,
        "verdict on a content": lambda text: not read_verdict(text).failed,
        "verdict on an answer": lambda text: scoring.verdict(text) == 1,
        "content judge": lambda text: not ask(judges[0], call, text).failed,
        "answer judge": lambda text: ask(judges[1], claim, text),
    }


def run(count: int, seed: int = 0) -> dict[str, list[float]]:
    """Reader -> replies that it used, seconds in all, seconds of the slowest, over `count` replies.

    Raises AssertionError, with reader and reply, where a reader raises anything.
    """
    rng, named = random.Random(seed), readers()
    rows = {name: [0, 0.0, 0.0] for name in named}
    for _ in range(count):
        text = reply(rng)
        for name, read in named.items():
            start, row = time.perf_counter(), rows[name]
            try:
                row[0] += bool(read(text))
            except Exception as error:
                raise AssertionError(f"{name} raised {error!r} on {text[:300]!r}") from error
            seconds = time.perf_counter() - start
            row[1:] = row[1] + seconds, max(row[2], seconds)
    return rows


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for reader, (used, seconds, slowest) in run(number).items():
        print(f"{reader:22} used {used:6} of {number}, {seconds:7.1f} s, slowest {slowest:5.3f} s")
