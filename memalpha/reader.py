"""The frozen reader: questions and a memory go in, one answer a question comes out.

Mem-alpha, section 3.2: the core is shown whole, beside the entries that a retriever finds for the
question. `gather` collects that evidence as `Request`s, `read` asks an answerer for the replies. An
answerer is any function from a list of requests to a list of replies (None where it failed): the
offline one of `reader_rules`, or a language model. It gets the questions of all episodes at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memalpha.memory import Entry, MemoryView
from memalpha.retrieval import Index

BUDGET = 30_000  # tokens of a question's evidence, at most (Mem-alpha, released code)


@dataclass(frozen=True)
class Evidence:
    """What an answerer sees of a memory: the core, and the entries retrieved, best first."""

    core: str = ""
    semantic: tuple[Entry, ...] = ()
    episodic: tuple[Entry, ...] = ()
    semantic_scores: tuple[float, ...] = ()
    episodic_scores: tuple[float, ...] = ()
    tokens: int = 0  # of the core and the entries, by the counter given to `gather`

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.semantic + self.episodic


@dataclass(frozen=True)
class Request:
    """One question with its evidence; it holds nothing of the gold answer.

    `asked_at`: the date it is asked on, or empty. Nothing was retrieved by it.
    """

    question: str
    source: str
    evidence: Evidence
    asked_at: str = ""


@dataclass(frozen=True)
class Answer:
    """The reply (None: the answerer failed, mask the question) and what it was based on."""

    text: str | None
    ids: tuple[int, ...]  # entry ids, semantic then episodic, best first in each
    scores: tuple[float, ...]  # of the retriever, in the order of `ids`
    tokens: int  # of the evidence


Answerer = Callable[[Sequence[Request]], list[str | None]]


def gather(
    questions: Sequence[str],
    source: str,
    view: MemoryView,
    indexes: tuple[Index | None, Index | None],
    top_k: int = 20,
    budget_tokens: int = BUDGET,
    *,
    count_tokens: Callable[[str], int],
) -> list[Request]:
    """Retrieves the evidence for every question: core, top_k semantic and top_k episodic entries.

    Args:
        questions: of one instance. source: its name.
        view: the final memory, all of it (`last=None`).
        indexes: `retrieval.make_index` over the texts of `view.semantic` and over those of
            `view.episodic`, in their order; None stands for an empty list.
        top_k: entries from each list. Where the evidence passes budget_tokens, top_k shrinks by one
            until it fits, down to the core alone (Mem-alpha, released code).
        count_tokens: str -> tokens.

    Raises:
        ValueError: top_k < 1, an index missing, or a view that shows only part of the memory.
    """
    if top_k < 1:
        raise ValueError(f"reader: top_k = {top_k}; give at least 1")
    _check_whole(view, indexes)
    semantic = _search(view.semantic, indexes[0], questions, top_k)
    episodic = _search(view.episodic, indexes[1], questions, top_k)
    core_tokens = count_tokens(view.core) if view.core else 0
    counted: dict[int, int] = {}  # entry id -> tokens: questions share many entries

    def tokens(entries: list[Entry]) -> list[int]:
        return [
            counted[e.id] if e.id in counted else counted.setdefault(e.id, count_tokens(e.text))
            for e in entries
        ]

    requests = []
    for question, (facts, fact_scores), (events, event_scores) in zip(
        questions, semantic, episodic, strict=True
    ):
        lengths = tokens(facts), tokens(events)
        k, total = top_k, core_tokens + sum(map(sum, lengths))
        while k and total > budget_tokens:
            k -= 1
            total = core_tokens + sum(sum(length[:k]) for length in lengths)
        lists = (tuple(values[:k]) for values in (facts, events, fact_scores, event_scores))
        requests.append(Request(question, source, Evidence(view.core, *lists, total)))
    return requests


def _check_whole(view: MemoryView, indexes: tuple[Index | None, Index | None]) -> None:
    for name, entries, total, index in (
        ("semantic", view.semantic, view.semantic_total, indexes[0]),
        ("episodic", view.episodic, view.episodic_total, indexes[1]),
    ):
        if len(entries) != total:
            raise ValueError(
                f"reader: the view shows {len(entries)} of {total} {name} entries; "
                "make it with last=None"
            )
        if entries and index is None:
            raise ValueError(f"reader: {total} {name} entries but no index; build one over them")


def _search(
    entries: tuple[Entry, ...], index: Index | None, questions: Sequence[str], k: int
) -> list[tuple[list[Entry], list[float]]]:
    """The entries of each question, best first, and their scores."""
    if not entries or not questions:
        return [([], [])] * len(questions)
    ids, scores = index.search(questions, k)
    results = []
    for row, row_scores in zip(np.asarray(ids).tolist(), np.asarray(scores).tolist(), strict=True):
        filled = [(i, score) for i, score in zip(row, row_scores, strict=True) if i >= 0]
        results.append(([entries[i] for i, _ in filled], [score for _, score in filled]))
    return results


def read(requests: Sequence[Request], answerer: Answerer) -> list[Answer]:
    """Asks the answerer once for all requests, of one episode or of many.

    Raises ValueError when it gives another number of replies.
    """
    replies = answerer(requests)
    if len(replies) != len(requests):
        raise ValueError(f"reader: {len(requests)} questions but {len(replies)} replies")
    return [
        Answer(
            reply,
            tuple(entry.id for entry in request.evidence.entries),
            request.evidence.semantic_scores + request.evidence.episodic_scores,
            request.evidence.tokens,
        )
        for request, reply in zip(requests, replies, strict=True)
    ]
