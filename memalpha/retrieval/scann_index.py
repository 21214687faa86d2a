"""ScaNN over the BM25 weights of a text as a vector, hashed where there are many terms.

Axes: N documents, Q queries, V distinct terms, D vector columns, S signs a term.
"""

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from memalpha.retrieval.bm25 import Postings, count_postings
from memalpha.retrieval.common import check_texts, empty_result

DIMENSIONS = 4096  # 0.9 of BM25's top 20 at 10,000 documents: benchmarks/retrieval_agreement.py
BRUTE_FORCE_BELOW = 50_000  # documents; above it asymmetric hashing is the faster of the two
SIGNS = 4  # hashed columns a term: one collision costs a quarter of a match, not a whole one


class ScannIndex:
    """ScaNN dot-product search over N documents as vectors.

    A document is the vector of its BM25 weights and a query that of its idf: their dot product is
    the BM25 score. It is exact, to float32 rounding, while the documents have at most `dimensions`
    distinct terms; beyond that an unbiased estimate by hashing (`sketch_columns`).

    Up to `brute_force_below` documents ScaNN scores every vector, above it ScaNN uses asymmetric
    hashing with exact reordering. ScaNN keeps one float32 copy: 16 KB a document at 4,096 columns,
    and as much again while it builds.

    Args:
      documents: N texts; N = 0 builds no ScaNN searcher, every search then finds nothing.
      dimensions: most columns of the hashed vectors.
      brute_force_below: number of documents from which asymmetric hashing is used.

    Raises:
      ValueError: dimensions < 1; texts that are not strings.
    """

    def __init__(
        self,
        documents: Sequence[str],
        dimensions: int = DIMENSIONS,
        brute_force_below: int = BRUTE_FORCE_BELOW,
    ):
        if dimensions < 1:
            raise ValueError(f"ScannIndex: dimensions is {dimensions}; it must be at least 1")
        documents = check_texts("documents", documents)
        self._size = len(documents)
        self._approximate = self._size >= brute_force_below
        if self._size == 0:
            return
        self._postings = count_postings(documents)
        self._columns, self._factors, self._width = sketch_columns(self._postings, dimensions)
        self._searcher = _build_searcher(self._document_vectors(), self._approximate)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of each query: ids [Q, k] int32, scores [Q, k] float32.

        Scores are dot products. Equal scores come in document order. Places past the last document
        hold -1 and -inf. Raises ValueError when k < 1 or a query is not a string.
        """
        queries = check_texts("queries", queries)
        ids, scores = empty_result(len(queries), k)
        if self._size == 0 or not queries:
            return ids, scores
        nearest, value = self._searcher.search_batched(
            self._query_vectors(queries),
            final_num_neighbors=k,
            # Hashed scores are coarse: reorder many more than are asked for.
            pre_reorder_num_neighbors=max(200, 10 * k) if self._approximate else None,
        )
        missing = np.isnan(value)  # ScaNN fills a short result with id 0 and NaN
        width = nearest.shape[1]  # at most k
        ids[:, :width] = np.where(missing, -1, nearest.astype(np.int32))
        scores[:, :width] = np.where(missing, -np.inf, value)
        return ids, scores

    def _document_vectors(self) -> np.ndarray:
        postings = self._postings
        term = np.repeat(np.arange(len(postings.vocabulary)), postings.frequency)
        return self._scatter(postings.size, postings.document, term, postings.weight)

    def _query_vectors(self, queries: list[str]) -> np.ndarray:
        rows, terms = self._postings.query_terms(queries)
        return self._scatter(len(queries), rows, terms, self._postings.idf[terms])

    def _scatter(self, size: int, row, term, value) -> np.ndarray:
        """Adds each (row, term, value) into the term's columns: [size, D] float32."""
        vectors = np.zeros((size, self._width), np.float32)
        cells = row[:, None] * self._width + self._columns[term]
        values = (value[:, None] * self._factors[term]).astype(np.float32)
        np.add.at(vectors.reshape(-1), cells.reshape(-1), values.reshape(-1))
        return vectors


def sketch_columns(postings: Postings, dimensions: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Gives every term its columns and factors in vectors of at most `dimensions` columns.

    With V <= dimensions each term has a column to itself. Otherwise the terms that most
    documents hold, which cause most collisions, get the first half of the columns to themselves,
    and the others S signed columns in the second half, one in each of S equal blocks (a sparse
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
    return hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8 * SIGNS).digest()


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
