"""How much of a memory is not about its text, by rule: words copied from our prompts, and entries
that are copies of each other. No reward; it shows where a row of a table is about a model that does
not follow a form, and not about the system."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache

from memalpha.memory import MemoryView
from memalpha.prompts import BUILT_IN

RUN = 6  # words in a row that are an echo where they stand in a prompt too


def echoed_share(view: MemoryView) -> float:
    """The share of a memory's words that stand in a run of `RUN` words of one of our prompts; NaN
    for an empty memory."""
    known, found, total = _runs(), 0, 0
    for text in (view.core, *_entries(view)):
        words = _words(text)
        total += len(words)
        echoes = {
            i + k for i, run in enumerate(_windows(words)) if run in known for k in range(RUN)
        }
        found += len(echoes)
    return found / total if total else float("nan")


def repeated_share(view: MemoryView) -> float:
    """The share of a memory's entries whose words are those of an earlier one; NaN without
    entries."""
    texts = [tuple(_words(text)) for text in _entries(view)]
    return 1 - len(set(texts)) / len(texts) if texts else float("nan")


def _entries(view: MemoryView) -> list[str]:
    return [entry.text for entry in (*view.semantic, *view.episodic)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _windows(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[k:] for k in range(RUN)), strict=False)


@cache
def _runs() -> frozenset[tuple[str, ...]]:
    """All runs of words of the prompts that the package brings."""
    texts = [path.read_text(encoding="utf-8") for path in BUILT_IN.rglob("*.txt")]
    for path in BUILT_IN.rglob("*.toml"):
        tables = tomllib.loads(path.read_text(encoding="utf-8")).values()
        texts += [text for table in tables for example in table for text in example.values()]
    parts = (part for text in texts for part in re.split(r"\$\w+", text))
    return frozenset(run for part in parts for run in _windows(_words(part)))
