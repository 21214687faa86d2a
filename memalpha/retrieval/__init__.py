"""Retrieval: text queries over the entries of one memory, by BM25 or by ScaNN.

Both indexes are built once from a list of documents and answer a whole batch of queries:
`index.search(queries, k) -> (ids [Q, k] int32, scores [Q, k] float32)`. Row q holds document
positions, best first; places without a document hold id -1 and score -inf.
"""

from collections.abc import Sequence

from memalpha.retrieval.bm25 import BM25Index
from memalpha.retrieval.scann_index import DIMENSIONS, ScannIndex
from memalpha.retrieval.words import tokenize

RETRIEVERS = ("bm25", "scann")
Index = BM25Index | ScannIndex


def make_index(
    documents: Sequence[str], retriever: str = "bm25", dimensions: int = DIMENSIONS
) -> Index:
    """Builds the index named `retriever` over the documents; `dimensions` is for "scann" only.

    Raises ValueError for an unknown retriever or for documents that are not strings.
    """
    if retriever == "bm25":
        return BM25Index(documents)
    if retriever == "scann":
        return ScannIndex(documents, dimensions)
    raise ValueError(f"unknown retriever {retriever!r}; known are: {', '.join(RETRIEVERS)}")


__all__ = ["DIMENSIONS", "RETRIEVERS", "BM25Index", "Index", "ScannIndex", "make_index", "tokenize"]
