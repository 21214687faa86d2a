"""Retrieval: text queries over the entries of one memory, by BM25 or by ScaNN.

Both indexes are built once from a list of documents and answer a whole batch of queries:
`index.search(queries, k) -> (ids [Q, k] int32, scores [Q, k] float32)`. Row q holds document
positions, best first; places without a document hold id -1 and score -inf.

Axes: N documents, Q queries, V distinct terms, P postings (distinct term-document pairs),
D vector columns, S signs a term.
"""

import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

K1, B, EPSILON = 1.5, 0.75, 0.25  # Okapi constants (Mem-alpha, section 4: reward evaluation)
DIMENSIONS = 4096  # 0.9 of BM25's top 20 at 10,000 documents: benchmarks/retrieval_agreement.py
BRUTE_FORCE_BELOW = 50_000  # documents; above it asymmetric hashing is the faster of the two
SIGNS = 4  # hashed columns a term: one collision costs a quarter of a match, not a whole one
_BLOCK_CELLS = 4_000_000  # scores held at once, 32 MB of float64
_BLOCK_DOCUMENTS = 32  # documents whose best is looked at first
_WORDS = re.compile(r"\w+")


def tokenize(text: str) -> list[str]:
    r"""Returns the lower-cased runs of `\w` characters, in order."""
    return _WORDS.findall(text.lower())


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
            known = [self.vocabulary[w] for w in tokenize(query) if w in self.vocabulary]
            terms += known
            rows += [row] * len(known)
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
        postings = self.postings = count_postings(_texts("documents", documents))
        # What a posting adds to the score of its document: [P] float64.
        self._gain = np.repeat(postings.idf, postings.frequency) * postings.weight

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of each query: ids [Q, k] int32, scores [Q, k] float32.

        Documents without a word of the query are ranked too, with score 0. Places past the last
        document hold -1 and -inf. Raises ValueError when k < 1 or a query is not a string.
        """
        queries = _texts("queries", queries)
        ids, scores = _unfilled(len(queries), k)
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


class ScannIndex:
    """ScaNN dot-product search over N documents as vectors.

    By default a document is the vector of its BM25 weights and a query that of its idf: their dot
    product is the BM25 score. It is exact, to float32 rounding, while the documents have at most
    `dimensions` distinct terms; beyond that an unbiased estimate by hashing (`sketch_columns`).

    Up to `brute_force_below` documents ScaNN scores every vector, above it ScaNN uses asymmetric
    hashing with exact reordering. ScaNN keeps one float32 copy: 16 KB a document at 4,096 columns,
    and as much again while it builds.

    Args:
      documents: N texts; N = 0 builds no ScaNN searcher, every search then finds nothing.
      dimensions: most columns of the hashed vectors; not used with `encode`.
      encode: a text encoder to search with instead, list of texts -> [n, D] array, called for the
        documents and for each batch of queries. Its vectors are scaled to unit length.
      brute_force_below: number of documents from which asymmetric hashing is used.

    Raises:
      ValueError: dimensions < 1; texts that are not strings; encoder output that is not [n, D]
        or not finite.
    """

    def __init__(
        self,
        documents: Sequence[str],
        dimensions: int = DIMENSIONS,
        encode: Callable[[list[str]], np.ndarray] | None = None,
        brute_force_below: int = BRUTE_FORCE_BELOW,
    ):
        if dimensions < 1:
            raise ValueError(f"ScannIndex: dimensions is {dimensions}; it must be at least 1")
        documents = _texts("documents", documents)
        self._size = len(documents)
        self._approximate = self._size >= brute_force_below
        self._encode = encode
        if self._size == 0:
            return
        if encode is None:
            self._postings = count_postings(documents)
            self._columns, self._factors, self._width = sketch_columns(self._postings, dimensions)
            vectors = self._document_vectors()
        else:
            vectors = _unit_vectors("documents", encode(documents), len(documents))
            self._width = vectors.shape[1]
        self._searcher = _build_searcher(vectors, self._approximate)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of each query: ids [Q, k] int32, scores [Q, k] float32.

        Scores are dot products. Equal scores come in document order. Places past the last document
        hold -1 and -inf. Raises ValueError when k < 1, a query is not a string, or the encoder's
        vectors are not finite or not as wide as the documents'.
        """
        queries = _texts("queries", queries)
        ids, scores = _unfilled(len(queries), k)
        if self._size == 0 or not queries:
            return ids, scores
        found, value = self._searcher.search_batched(
            self._query_vectors(queries),
            final_num_neighbors=k,
            # Hashed scores are coarse: reorder many more than are asked for.
            pre_reorder_num_neighbors=max(200, 10 * k) if self._approximate else None,
        )
        missing = np.isnan(value)  # ScaNN fills a short result with id 0 and NaN
        width = found.shape[1]  # at most k
        ids[:, :width] = np.where(missing, -1, found.astype(np.int32))
        scores[:, :width] = np.where(missing, -np.inf, value)
        return ids, scores

    def _document_vectors(self) -> np.ndarray:
        postings = self._postings
        term = np.repeat(np.arange(len(postings.vocabulary)), postings.frequency)
        return self._scatter(postings.size, postings.document, term, postings.weight)

    def _query_vectors(self, queries: list[str]) -> np.ndarray:
        if self._encode is None:
            rows, terms = self._postings.query_terms(queries)
            return self._scatter(len(queries), rows, terms, self._postings.idf[terms])
        vectors = _unit_vectors("queries", self._encode(queries), len(queries))
        if vectors.shape[1] != self._width:
            raise ValueError(
                f"ScannIndex: encode gave queries {vectors.shape[1]} columns and documents"
                f" {self._width}; use one encoder for both"
            )
        return vectors

    def _scatter(self, size: int, row, term, value) -> np.ndarray:
        """Adds each (row, term, value) into the term's columns: [size, D] float32."""
        vectors = np.zeros((size, self._width), np.float32)
        cells = row[:, None] * self._width + self._columns[term]
        values = (value[:, None] * self._factors[term]).astype(np.float32)
        np.add.at(vectors.reshape(-1), cells.reshape(-1), values.reshape(-1))
        return vectors


def sketch_columns(postings: Postings, dimensions: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Gives every term its columns and factors in vectors of at most `dimensions` columns.

    With V <= dimensions each term has a column to itself. Otherwise the terms found in most
    documents, which cause most collisions, get the first half of the columns to themselves, and
    the others S signed columns in the second half, one in each of S equal blocks (a sparse
    Johnson-Lindenstrauss or "count sketch" projection: the dot product is right in the mean, with a
    variance of at most 2 |x|^2 |y|^2 / (D / 2)). Columns and signs come from a hash of the
    term's text alone, so they are the same in every process.

    Returns (columns [V, S] int64, factors [V, S] float32, D), D at most `dimensions`. A term's
    vector holds its factors, added up where its columns coincide, and has length 1.
    """
    count = len(postings.vocabulary)
    if count <= dimensions:
        return np.arange(count)[:, None], np.ones((count, 1), np.float32), max(1, count)
    owned = dimensions // 2
    signs = min(SIGNS, dimensions - owned)
    width = (dimensions - owned) // signs
    digests = b"".join(map(_digest, postings.vocabulary))
    bits = np.frombuffer(digests, "<u8").reshape(count, SIGNS)[:, :signs]
    columns = ((bits >> np.uint64(1)) % np.uint64(width)).astype(np.int64)
    columns += owned + width * np.arange(signs)
    factors = (1 - 2 * (bits & np.uint64(1)).astype(np.float32)) / np.float32(math.sqrt(signs))
    common = np.argsort(-postings.frequency, kind="stable")[:owned]
    columns[common] = np.arange(owned)[:, None]
    factors[common] = 1 / signs
    return columns, factors, owned + width * signs


@functools.lru_cache(maxsize=1 << 18)
def _digest(term: str) -> bytes:
    """64 stable bits for each sign of a term."""
    return hashlib.blake2b(term.encode(), digest_size=8 * SIGNS).digest()


def _build_searcher(vectors: np.ndarray, approximate: bool):
    """Builds the ScaNN searcher of [N, D] float32 vectors; N >= 1."""
    from scann.scann_ops.py import scann_ops_pybind

    # The number of neighbours is given at search; the builder only wants a default.
    builder = scann_ops_pybind.builder(vectors, 1, "dot_product")
    if not approximate:
        # One thread: starting a pool takes longer than building the usual index of 30 entries.
        return builder.set_n_training_threads(1).score_brute_force().build()
    # Two columns a code block: 4 or 8 lose 5 to 30 % of the exact top 20. A training sample of
    # 10,000 vectors loses 1 % and saves a third of the build.
    builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=10_000)
    return builder.reorder(200).build()


def _unit_vectors(what: str, vectors, count: int) -> np.ndarray:
    """Checks an encoder's output and scales it: [count, D] float32, contiguous, length 1 or 0."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != count or vectors.shape[1] == 0:
        raise ValueError(
            f"ScannIndex: encode gave an array of shape {vectors.shape} for {count} {what};"
            f" it must return [{count}, D] with D >= 1"
        )
    vectors = vectors.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"ScannIndex: encode gave NaN or infinite values for {what}[{bad[0]}]"
            f" ({len(bad)} of {count}); ScaNN needs finite vectors"
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(length > 0, length, 1), np.float32)


RETRIEVERS = ("bm25", "scann")


def make_index(
    documents: Sequence[str], retriever: str = "bm25", dimensions: int = DIMENSIONS
) -> BM25Index | ScannIndex:
    """Builds the index named `retriever` over the documents; `dimensions` is for "scann" only.

    Raises ValueError for an unknown retriever or for documents that are not strings.
    """
    if retriever == "bm25":
        return BM25Index(documents)
    if retriever == "scann":
        return ScannIndex(documents, dimensions)
    raise ValueError(f"unknown retriever {retriever!r}; known are: {', '.join(RETRIEVERS)}")


def _texts(what: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"retrieval: {what} is one string; give a list of strings")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"retrieval: {what}[{position}] is {type(text).__name__}; it must be a string"
            )
    return texts


def _unfilled(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    if k < 1:
        raise ValueError(f"retrieval: k is {k}; it must be at least 1")
    return np.full((rows, k), -1, np.int32), np.full((rows, k), -np.inf, np.float32)
