"""What the systems of the tables ask of their models, before anything is run.

Figures are rough: the sizes of prompts are those of the code, the lengths of replies and the
numbers of facts are assumed (`REPLY`, `ENTRY`, `FACT`).
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.lib.render import Table
from memalpha import cost
from memalpha.baselines import LABELS, chats, long_context, mem0, memgpt
from memalpha.episode import TEXT_SHARE
from memalpha.model_config import ModelConfig

REPLY = 0.5  # of its limit is what a writer's reply takes
ANSWER = 32  # tokens of a reader's reply
ENTRY = 48  # tokens of a stored entry
FACT = 64  # tokens of text that hold a fact (Mem0)
QUESTION = 150  # tokens of a reader's prompt beside the evidence
# With their examples.
INSTRUCTIONS = {"prompted": 800, "memagent": 530, "mem1": 550, "memgpt": 1170, "mem0": 700}
AT_ONCE = 16  # calls that are decoded together
QWEN3 = dict(vocab_size=151_936, num_kv_heads=8, head_dim=128, dtype="bfloat16")
# The writer and the reader of the paper; sizes as in their config.json.
WRITER = ModelConfig(hidden_size=2560, num_layers=36, num_heads=32, mlp_size=9728, **QWEN3)
READER = ModelConfig(hidden_size=5120, num_layers=64, num_heads=64, mlp_size=25_600, **QWEN3)


class Streams(NamedTuple):
    """Instances of a source: how many, and means of one."""

    instances: float
    chunks: float
    chunk_tokens: float
    questions: float

    @property
    def tokens(self) -> float:
        return self.chunks * self.chunk_tokens


class Window(NamedTuple):
    """Tokens of a writer's prompt and reply, of its core and of an entry; of rag_matched and
    long_context; entries that the reader gets."""

    prompt: int = 6144
    reply: int = 2048
    core: int = 512
    budget: int = 1024
    context: int = long_context.BUDGET
    top_k: int = 20


class Calls(NamedTuple):
    """Calls of a model, with mean tokens of a prompt and of a reply."""

    count: float
    prompt: float
    reply: float


def writing(system: str, of: Streams, window: Window) -> list[Calls]:
    """The calls that write the memories of all instances. Any other name than that of a baseline is
    a trained writer."""
    chunks, text = of.instances * of.chunks, of.chunk_tokens
    about, reply = INSTRUCTIONS.get(system, 0), REPLY * window.reply
    if system in ("memagent", "mem1"):
        memory = min(chats.MEMORY, reply)
        return [Calls(chunks, about + memory + text, memory)]
    if system == "mem0":
        facts, before = text / FACT, mem0.SUMMARY + mem0.RECENT
        return [
            Calls(chunks, about + before + text, min(facts * ENTRY, window.reply)),
            Calls(chunks, about + mem0.SUMMARY + text, min(mem0.SUMMARY, window.reply)),
            Calls(chunks * facts, about + mem0.SIMILAR * ENTRY, ENTRY),
        ]
    if system == "memgpt":
        room = _queue(window)
        leaving = of.instances * max(of.tokens - room / 2, 0) / (room / 2)
        summary = min(memgpt.SUMMARY, window.reply)
        return [
            Calls(chunks * max(1.0, text / (room / 2)), window.prompt - room / 4, reply),
            Calls(leaving, about + summary + room / 2, summary),
        ]
    if system == "prompted":
        return [Calls(chunks, min(about + window.core + text, window.prompt), reply)]
    if system in LABELS:
        return []
    return [Calls(chunks * math.ceil(text / (TEXT_SHARE * window.prompt)), window.prompt, reply)]


def reading(system: str, of: Streams, window: Window) -> Calls:
    """The calls that answer the questions of all instances."""
    shown = min(evidence(system, of.chunk_tokens, window), of.tokens)
    return Calls(of.instances * of.questions, QUESTION + shown, ANSWER)


def evidence(system: str, chunk_tokens: float, window: Window) -> float:
    """Tokens that a long stream gives a reader for a question."""
    listed = window.top_k * ENTRY
    return {
        "no_memory": 0,
        "long_context": window.context,
        "rag_top2": 2 * chunk_tokens,
        "rag_matched": window.budget,
        "store_everything": listed,
        "mem0": listed,
        "memagent": min(chats.MEMORY, REPLY * window.reply),
        "mem1": min(chats.MEMORY, REPLY * window.reply),
        "memgpt": window.core + memgpt.SUMMARY + _queue(window) / 2 + memgpt.PAGE * chunk_tokens,
    }.get(system, window.core / 2 + 2 * listed)


def _queue(window: Window) -> float:
    """Tokens of MemGPT's queue of messages."""
    return max(window.prompt - INSTRUCTIONS["memgpt"] - window.core - memgpt.SUMMARY, 64)


def seconds(calls: Iterable[Calls], model: ModelConfig, rates: cost.Rates) -> float:
    """Of one device."""
    return sum(c.count * cost.call_seconds(model, c.prompt, c.reply, rates, AT_ONCE) for c in calls)


def measured_rates(rounds: int = 3) -> cost.Rates:
    """Those of this machine in float32, such that the shares of `cost` of them are what a matrix
    product and a copy reach here."""
    size, length = 1024, 2**24
    square, line = jnp.ones((size, size)), jnp.ones(length)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    taken = [
        min(_timed(work, x) for _ in range(rounds)) for work, x in ((product, square), (copy, line))
    ]
    flops, bandwidth = 2 * size**3 / taken[0], 2 * 4 * length / taken[1]
    return cost.Rates(flops / cost.MATRIX_SHARE, bandwidth / cost.BANDWIDTH_SHARE)


def _timed(work, x) -> float:
    jax.block_until_ready(work(x))
    begun = time.perf_counter()
    jax.block_until_ready(work(x))
    return time.perf_counter() - begun


class Needed(NamedTuple):
    """The calls of a system, and the models that take them; None: one of unknown size."""

    writing: Sequence[Calls]
    reading: Sequence[Calls]
    writer: ModelConfig | None
    reader: ModelConfig | None


def bill(
    title: str, needed: Mapping[str, Needed], rates: cost.Rates, notes: Sequence[str]
) -> Table:
    """Calls, tokens and hours of every system, and of all."""
    rows = [_row(LABELS.get(name, name), [one], rates) for name, one in needed.items()]
    rows.append(_row("all", list(needed.values()), rates))
    heads = ("system", "calls to write", "tokens in", "tokens out")
    heads += ("questions read", "tokens in", "tokens out", "device hours")
    told = (
        f"Estimates: replies of {REPLY:.0%} of their limit, answers of {ANSWER} tokens, entries of"
        f" {ENTRY}, {AT_ONCE} calls at once; without compilation and the host."
    )
    return Table(title, heads, tuple(rows), (told, *notes))


def _row(label: str, needed: Sequence[Needed], rates: cost.Rates) -> tuple[str, ...]:
    parts = [
        [c for one in needed for c in part(one)]
        for part in (lambda n: n.writing, lambda n: n.reading)
    ]
    cells = [
        f"{value:,.0f}"
        for part in parts
        for value in (
            sum(c.count for c in part),
            sum(c.count * c.prompt for c in part),
            sum(c.count * c.reply for c in part),
        )
    ]
    work = [
        (calls, model)
        for n in needed
        for calls, model in ((n.writing, n.writer), (n.reading, n.reader))
    ]
    work = [(calls, model) for calls, model in work if calls]
    known = sum(seconds(calls, model, rates) for calls, model in work if model) / 3600
    more = "+ ?" if any(model is None for _, model in work) else ""
    return (label, *cells, f"{_hours(known)} {more}".strip() if work else "")


def _hours(hours: float) -> str:
    """Two digits, or all before the point: "0.031", "1,234"."""
    if 0 < hours < 0.001:
        return "< 0.001"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
