"""Okapi BM25: the statistics of the terms, and the exact index on them.

Axes: N documents, Q queries, V distinct terms, P postings (distinct term-document pairs).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memalpha.retrieval.common import check_texts, empty_result
from memalpha.retrieval.words import tokenize

K1, B, EPSILON = 1.5, 0.75, 0.25  # Okapi constants (Mem-alpha, section 4: reward evaluation)
_BLOCK_CELLS = 4_000_000  # scores in memory at once, 32 MB of float64
_BLOCK_DOCUMENTS = 32  # documents whose best score is looked at first


@dataclass(frozen=True)
class Postings:
    """Okapi BM25 statistics of N documents, grouped by term.

    The score of a document is the sum of idf[term] * weight[posting] over the query's terms.
    """

    size: int  # N
    vocabulary: dict[str, int]  # term -> row, in order of first appearance
    start: np.ndarray  # [V + 1] int64: postings of term t are start[t]:start[t + 1]
    document: np.ndarray  # [P] int64, ascending within a term
    weight: np.ndarray  # [P] float64: saturated, length-normalised term frequency
    idf: np.ndarray  # [V] float64, negative values replaced by the floor

    @property
    def frequency(self) -> np.ndarray:
        """Number of documents that hold each term, [V] int64."""
        return np.diff(self.start)

    def query_terms(self, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (query row, term) of every known word, in reading order, repeats included."""
        rows, terms = [], []
        for row, query in enumerate(queries):
            in_vocabulary = [self.vocabulary[w] for w in tokenize(query) if w in self.vocabulary]
            terms += in_vocabulary
            rows += [row] * len(in_vocabulary)
        return np.array(rows, np.int64), np.array(terms, np.int64)


def count_postings(documents: Sequence[str]) -> Postings:
    """Counts the terms of the documents and weighs them as Okapi BM25 does.

    idf(t) = log(N - n_t + 0.5) - log(n_t + 0.5); where that is negative it becomes EPSILON times
    the mean idf. The order of the sums is that of the textbook loop, so equal scores stay equal
    to the last bit and ties are broken by document order alone. With one or two documents the mean
    is negative or 0, and so is every score: a match then ranks last, as in the reference formula.
    """
    size = len(documents)
    vocabulary: dict[str, int] = {}
    terms, lengths = [], []
    for document in documents:
        words = tokenize(document)
        lengths.append(len(words))
        terms += [vocabulary.setdefault(word, len(vocabulary)) for word in words]
    if not vocabulary:
        empty = np.zeros(0, np.int64)
        return Postings(size, {}, np.zeros(1, np.int64), empty, np.zeros(0), np.zeros(0))

    owners = np.repeat(np.arange(size), lengths)
    pairs, count = np.unique(np.array(terms, np.int64) * size + owners, return_counts=True)
    term, document = pairs // size, pairs % size
    mean_length = sum(lengths) / size
    length = np.array(lengths, np.int64)[document]
    weight = count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean_length))

    frequency = np.bincount(term, minlength=len(vocabulary))
    values, which = np.unique(frequency, return_inverse=True)
    idf = np.array([math.log(size - n + 0.5) - math.log(n + 0.5) for n in values.tolist()])[which]
    floor = EPSILON * (np.cumsum(idf)[-1] / len(idf))  # cumsum adds in order, sum does not
    idf[idf < 0] = floor
    start = np.concatenate([[0], np.cumsum(frequency)])
    return Postings(size, vocabulary, start, document, weight, idf)


class BM25Index:
    """Exact Okapi BM25 over N documents; ties go to the earlier document.

    Source: Mem-alpha, section 4 (the retriever behind the correctness reward).
    """

    def __init__(self, documents: Sequence[str]):
        postings = self.postings = count_postings(check_texts("documents", documents))
        # What a posting adds to the score of its document: [P] float64.
        self._gain = np.repeat(postings.idf, postings.frequency) * postings.weight

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of each query: ids [Q, k] int32, scores [Q, k] float32.

        Documents without a word of the query are ranked too, with score 0. Places past the last
        document hold -1 and -inf. Raises ValueError when k < 1 or a query is not a string.
        """
        queries = check_texts("queries", queries)
        ids, scores = empty_result(len(queries), k)
        if self.postings.size == 0:
            return ids, scores
        block = max(1, _BLOCK_CELLS // self.postings.size)
        for first in range(0, len(queries), block):
            for row, full in enumerate(self.scores(queries[first : first + block]), first):
                best = _best(full, k)
                ids[row, : len(best)], scores[row, : len(best)] = best, full[best]
        return ids, scores

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Returns the BM25 score of every document for every query, [Q, N] float64."""
        postings = self.postings
        scores = np.zeros((len(queries), postings.size))
        rows, terms = postings.query_terms(queries)
        # Term by term: no arrays of all postings of all queries, which take longer than the sums.
        begin, end = postings.start[terms].tolist(), postings.start[terms + 1].tolist()
        for row, first, last in zip(rows.tolist(), begin, end, strict=True):
            scores[row][postings.document[first:last]] += self._gain[first:last]
        return scores


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest of [N] scores, largest first, ties by position."""
    size = len(scores)
    if k >= size:
        return np.argsort(-scores, kind="stable")
    blocks = size // _BLOCK_DOCUMENTS
    leaders = scores
    if blocks >= k:  # the k-th best of the blocks' best is no better than the k-th best of all
        leaders = scores[: blocks * _BLOCK_DOCUMENTS].reshape(blocks, -1).max(axis=1)
    floor = np.partition(leaders, len(leaders) - k)[len(leaders) - k]
    candidates = np.flatnonzero(scores >= floor)  # all ties with the last place are still here
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
