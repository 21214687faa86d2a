"""The frozen answerer: questions and a memory go in, one reply a question comes out.

Mem-alpha, section 3.2: the core is shown whole, beside the entries that a retriever finds for the
question. `gather` collects that evidence as `Request`s, `read` asks an answerer for the replies. An
answerer is any function from a list of requests to a list of replies (None where it failed), so
that a language model can take the place of the offline one, and gets the questions of all episodes
at once.

The offline answerer quotes what the memory says and knows nothing else: it never sees a gold answer
and its replies are short, so that a reply holds the answer only if the right entry was found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memalpha import scoring
from memalpha.memory import Entry, MemoryView
from memalpha.passages import (
    best_window,
    idf,
    label_examples,
    passages,
    stems,
    strip_label_question,
)

MAX_WORDS = 16  # of a reply to a retrieval question
MAX_SUMMARY_WORDS = 512  # a core holds at most 512 tokens
NEIGHBOURS = 5  # labelled examples that vote
MIN_COVERED = 0.5  # share of a question's terms that a quote has to hold: no guessing
NEAR_TIE = 0.9  # passages this close to the best match the question equally well


@dataclass(frozen=True)
class Evidence:
    """What an answerer sees of a memory: the core, and the entries found, best first."""

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


def count_words(text: str) -> int:
    """Whitespace-separated words: the token counter where no tokenizer is given."""
    return len(text.split())


def gather(
    questions: Sequence[str],
    source: str,
    view: MemoryView,
    semantic_index,
    episodic_index,
    top_k: int = 20,
    budget_tokens: int = 30_000,
    count_tokens: Callable[[str], int] = count_words,
) -> list[Request]:
    """Finds the evidence for every question: the core, top_k semantic and top_k episodic entries.

    Args:
        questions: of one instance. source: its name.
        view: the final memory, all of it (`last=None`).
        semantic_index, episodic_index: `retrieval.make_index` over the texts of `view.semantic` and
            `view.episodic` in their order; None stands for an empty list.
        top_k: entries from each list. Where the evidence passes budget_tokens, top_k shrinks by one
            until it fits, down to the core alone (Mem-alpha, released code).
        count_tokens: str -> tokens.

    Raises:
        ValueError: top_k < 1, an index missing, or a view that shows only part of the memory.
    """
    if top_k < 1:
        raise ValueError(f"reader: top_k = {top_k}; give at least 1")
    for name, entries, total, index in (
        ("semantic", view.semantic, view.semantic_total, semantic_index),
        ("episodic", view.episodic, view.episodic_total, episodic_index),
    ):
        if len(entries) != total:
            raise ValueError(
                f"reader: the view shows {len(entries)} of {total} {name} entries; "
                "make it with last=None"
            )
        if entries and index is None:
            raise ValueError(f"reader: {total} {name} entries but no index; build one over them")
    semantic = _search(view.semantic, semantic_index, questions, top_k)
    episodic = _search(view.episodic, episodic_index, questions, top_k)
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
        evidence = Evidence(
            view.core,
            tuple(facts[:k]),
            tuple(events[:k]),
            tuple(fact_scores[:k]),
            tuple(event_scores[:k]),
            total,
        )
        requests.append(Request(question, source, evidence))
    return requests


def _search(
    entries: tuple[Entry, ...], index, questions: Sequence[str], k: int
) -> list[tuple[list[Entry], list[float]]]:
    if not entries or not questions:
        return [([], [])] * len(questions)
    ids, scores = index.search(questions, k)
    found = []
    for row, row_scores in zip(np.asarray(ids).tolist(), np.asarray(scores).tolist(), strict=True):
        kept = [(entries[i], s) for i, s in zip(row, row_scores, strict=True) if i >= 0]
        found.append(([e for e, _ in kept], [s for _, s in kept]))
    return found


def extractive_answers(requests: Sequence[Request]) -> list[str | None]:
    """The offline `Answerer`."""
    return [extractive_reader(r.question, r.source, r.evidence) for r in requests]


def read(requests: Sequence[Request], answerer: Answerer = extractive_answers) -> list[Answer]:
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


def extractive_reader(
    question: str,
    source: str,
    evidence: Evidence,
    max_words: int = MAX_WORDS,
    max_summary_words: int = MAX_SUMMARY_WORDS,
) -> str:
    """A reply quoted from the evidence, by fixed rules; empty where the evidence says nothing.

    The source decides the kind (`scoring.category`): one or two passages of at most max_words words
    together; a label as `\\boxed{n}`; or the core, cut to max_summary_words words.
    """
    kind = scoring.category(source)
    if kind == "summary":
        words = evidence.core.split()
        whole = len(words) <= max_summary_words
        return evidence.core.strip() if whole else " ".join(words[:max_summary_words])
    if kind == "labels":
        label = vote_label(question, evidence)
        return "" if label is None else f"\\boxed{{{label}}}"
    return quote(question, evidence, max_words)


# A passage with its age: (chunk written, entry id, place in the entry). The core has no chunk of
# its own, so that an entry wins a tie with it.
def _dated(evidence: Evidence, parse: Callable[[str], tuple]) -> list[tuple[tuple, object]]:
    dated = [((-1, -1, i), item) for i, item in enumerate(parse(evidence.core))]
    for entry in evidence.entries:
        for i, item in enumerate(parse(entry.text)):
            dated.append(((entry.written_at, entry.id, i), item))
    return dated


def quote(question: str, evidence: Evidence, max_words: int = MAX_WORDS) -> str:
    """The passage that shares most with the question, and the one its names lead to, if needed.

    A shared term counts by its inverse document frequency among the passages; near ties go to the
    newest, because later facts replace earlier ones. Where the first passage leaves terms of the
    question uncovered that others hold, its new names lead to one of those (two-hop questions).
    Empty where the quote would hold less than half of the question's terms: what stands in memory
    is then about something else, and guessing from it would reward a writer for what it left out.
    """
    dated = _dated(evidence, passages)
    asked = stems(question).content
    weights = idf(asked, [p.stems.content for _, p in dated])
    first = _best(dated, weights)
    if first is None:
        return ""
    reply, left = best_window(first.text, weights, max_words)

    found = first.stems.content & asked
    open_terms = {t: w for t, w in weights.items() if t not in found}
    bridge = (first.stems.names or first.stems.content) - asked
    if open_terms and bridge and left:
        weights = open_terms | idf(bridge, [p.stems.content for _, p in dated])
        linked = [
            d
            for d in dated
            if bridge & d[1].stems.content and open_terms.keys() & d[1].stems.content
        ]
        second = _best(linked, weights)
        if second is not None:
            found |= second.stems.content & asked
            reply = f"{reply} {best_window(second.text, weights, left)[0]}"
    return reply if len(found) >= MIN_COVERED * len(asked) else ""


def _best(dated: list, weights: dict[str, float]):
    """Passage with the greatest weight of matched terms, the newest of near ties; None if none."""
    scores = []
    for _, passage in dated:
        terms = passage.stems.content
        scores.append(sum([weight for term, weight in weights.items() if term in terms]))
    best = max(scores, default=0.0)
    if best <= 0:
        return None
    near = [d for d, score in zip(dated, scores, strict=True) if score >= NEAR_TIE * best]
    return max(near, key=lambda d: d[0])[1]


def vote_label(question: str, evidence: Evidence, neighbours: int = NEIGHBOURS) -> int | None:
    """Label by a vote of the most similar labelled examples, weighted by similarity; None if none.

    Similarity: IDF weight of the shared terms over the geometric mean of both texts' weights. Equal
    votes go to the label of the nearest example, equal examples to the newest.
    """
    dated = _dated(evidence, label_examples)
    asked = stems(strip_label_question(question)).all
    weights = idf(asked, [example.stems.all for _, example in dated])
    own = sum(weights.values())
    unseen = math.log1p(len(dated))  # about the weight of a term that one example holds
    ranked = []
    for age, example in dated:
        terms = example.stems.all
        shared = [weight for term, weight in weights.items() if term in terms]
        if shared:
            overlap = sum(shared)
            norm = overlap + unseen * (len(terms) - len(shared))
            ranked.append((overlap / math.sqrt(own * norm), age, example.label))
    nearest = sorted(ranked, reverse=True)[:neighbours]
    votes: dict[int, float] = {}  # in the order of the nearest example, which decides equal votes
    for similarity, _, label in nearest:
        votes[label] = votes.get(label, 0.0) + similarity
    return max(votes, key=votes.__getitem__) if votes else None
