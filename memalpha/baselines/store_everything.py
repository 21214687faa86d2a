"""Store everything: every line of the stream is an entry of the memory, read with the usual top k.

The reader gets as many entries as from a written memory, but without any selection when writing.
For a summary it gets the stream from its beginning, as much of it as the reader has room for.
"""

from collections.abc import Sequence

from memalpha import scoring
from memalpha.baselines.chats import cut
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.memory import Entry, MemoryView
from memalpha.reader import BUDGET
from memalpha.reading import find_evidence


def recall(
    env: Environment, instances: Sequence[Instance], *, budget: int | None = None
) -> list[Recall]:
    """One request per question; the memory is all chunks.

    budget: tokens that the reader has room for; None: as many as of another memory, but the stream
    of a summary is shown whole.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"store_everything: budget = {budget}; give at least 1 token")
    return [_recall(env, instance, budget) for instance in instances]


def _recall(env: Environment, instance: Instance, budget: int | None) -> Recall:
    memory_tokens = sum(count_tokens(env, chunk) for chunk in instance.chunks)
    summary = scoring.category(instance.source) == "summary"
    entries = tuple(
        Entry(n, line, chunk)
        for n, (chunk, line) in enumerate(
            (chunk, unit) for chunk, text in enumerate(instance.chunks) for unit in units(text)
        )
    )
    core = "\n".join(instance.chunks) if summary else ""
    core = core if budget is None else cut(env, core, budget)
    view = MemoryView(core, entries, (), len(entries), 0, memory_tokens)
    most = BUDGET if budget is None else min(budget, BUDGET)
    return Recall(find_evidence(env, instance, view, budget_tokens=most), memory_tokens)


def units(chunk: str) -> list[str]:
    """Lines of a chunk; a line with a label is joined to the sentence before it."""
    units: list[str] = []
    for line in filter(str.strip, chunk.split("\n")):
        if line.startswith(("Label:", "Labels:")) and units:
            units[-1] += " " + line
        else:
            units.append(line)
    return units
