"""Store everything: every line of the stream is an entry of the memory, read with the usual top k.

The reader gets as many entries as from a written memory, but without any selection when writing.
For a summary it gets the stream from its beginning, truncated to the budget of the reader.
"""

from collections.abc import Sequence

from memalpha import scoring
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.memory import Entry, MemoryView
from memalpha.reading import find_evidence


def recall(env: Environment, instances: Sequence[Instance]) -> list[Recall]:
    """One request per question; the memory is all chunks."""
    return [_recall(env, instance) for instance in instances]


def _recall(env: Environment, instance: Instance) -> Recall:
    memory_tokens = sum(count_tokens(env, chunk) for chunk in instance.chunks)
    summary = scoring.category(instance.source) == "summary"
    entries = tuple(
        Entry(n, line, chunk)
        for n, (chunk, line) in enumerate(
            (chunk, unit) for chunk, text in enumerate(instance.chunks) for unit in units(text)
        )
    )
    core = "\n".join(instance.chunks) if summary else ""
    view = MemoryView(core, entries, (), len(entries), 0, memory_tokens)
    return Recall(find_evidence(env, instance, view), memory_tokens)


def units(chunk: str) -> list[str]:
    """Lines of a chunk; a line with a label is joined to the sentence before it."""
    units: list[str] = []
    for line in filter(str.strip, chunk.split("\n")):
        if line.startswith(("Label:", "Labels:")) and units:
            units[-1] += " " + line
        else:
            units.append(line)
    return units
