"""The offline reader: fixed rules in place of a language model.

It quotes what the memory says and knows nothing else: it never sees a gold answer and its replies
are short, so that a reply holds the answer only if the right entry was retrieved.
"""

import math
from collections.abc import Callable, Sequence

from memalpha import scoring
from memalpha.passages import (
    best_window,
    idf,
    label_examples,
    passages,
    stems,
    strip_label_question,
)
from memalpha.reader import Evidence, Request
from memalpha.retrieval.words import split_pieces

MAX_WORDS = 16  # of a reply to a retrieval question
MAX_SUMMARY_WORDS = 512  # a core holds at most 512 tokens
NEIGHBOURS = 5  # labelled examples that vote
MIN_COVERED = 0.5  # share of a question's terms that a quote has to hold: no guessing
NEAR_TIE = 0.9  # passages this close to the best match the question equally well


def extractive_answers(requests: Sequence[Request]) -> list[str | None]:
    """The offline `reader.Answerer`."""
    return [extractive_reader(r.question, r.source, r.evidence) for r in requests]


def extractive_reader(
    question: str,
    source: str,
    evidence: Evidence,
    max_words: int = MAX_WORDS,
    max_summary_words: int = MAX_SUMMARY_WORDS,
) -> str:
    """A reply quoted from the evidence, by fixed rules; `scoring.without_answer` where it says
    nothing.

    The source decides the kind (`scoring.category`): one or two passages of at most max_words words
    together; a label as `\\boxed{n}`; or the core, cut to max_summary_words words.
    """
    kind = scoring.category(source)
    if kind == "summary":
        words = split_pieces(evidence.core)
        whole = len(words) <= max_summary_words
        return (evidence.core if whole else "".join(words[:max_summary_words])).strip()
    if kind == "labels":
        label = vote_label(question, evidence)
        return "" if label is None else f"\\boxed{{{label}}}"
    return quote(question, evidence, max_words) or scoring.without_answer(source)


def _dated(evidence: Evidence, parse: Callable[[str], tuple]) -> list[tuple[tuple, object]]:
    """Every passage or example with its age: (chunk that wrote it, entry id, place in the entry).

    The core has no chunk of its own, so that an entry wins a tie with it.
    """
    dated = [((-1, -1, i), item) for i, item in enumerate(parse(evidence.core))]
    for entry in evidence.entries:
        for i, item in enumerate(parse(entry.text)):
            dated.append(((entry.written_at, entry.id, i), item))
    return dated


def quote(
    question: str,
    evidence: Evidence,
    max_words: int = MAX_WORDS,
    min_covered: float = MIN_COVERED,
) -> str:
    """The passage that shares most with the question, and the one its names lead to, if needed.

    A shared term counts by its inverse document frequency among the passages; near ties go to the
    newest, because later facts replace earlier ones. Where the first passage leaves terms of the
    question uncovered that others hold, its new names lead to one of those (two-hop questions).
    Empty where the quote would hold less than `min_covered` of the question's terms: what stands in
    memory is then about something else, and guessing from it would reward a writer for what it left
    out. With 0 one shared term is enough, for people who would rather see the closest passage.
    """
    dated = _dated(evidence, passages)
    asked = stems(question).content
    weights = idf(asked, [p.stems.content for _, p in dated])
    first = _best(dated, weights)
    if first is None:
        return ""
    reply, left = best_window(first.text, weights, max_words)

    covered = first.stems.content & asked
    open_terms = {t: w for t, w in weights.items() if t not in covered}
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
            covered |= second.stems.content & asked
            reply = f"{reply} {best_window(second.text, weights, left)[0]}"
    return reply if len(covered) >= min_covered * len(asked) else ""


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
