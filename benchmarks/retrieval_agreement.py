"""The agreement of ScaNN over hashed BM25 vectors with exact BM25, and the time of each.

    python benchmarks/retrieval_agreement.py [--documents FILE] [--sizes 10,100,1000,10000]

Prints one Markdown table. Documents are 20 to 40 words drawn from a Zipf vocabulary, or the lines
of FILE; each query is six words of one of the documents. `overlap@k` is the share of BM25's
top k that ScaNN returns (any of the documents that tie with the k-th place will do), `top-1` the
share of queries whose first document has BM25's best score. Times are medians of one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memalpha.retrieval import BM25Index, ScannIndex

QUERY_WORDS = 6
ZIPF_EXPONENT, ZIPF_WORDS = 1.07, 30_000  # about that of English running text


def zipf_documents(count: int, rng: np.random.Generator) -> list[str]:
    """Draws `count` documents of 20 to 40 words."""
    share = np.arange(1, ZIPF_WORDS + 1) ** -ZIPF_EXPONENT
    lengths = rng.integers(20, 41, count)
    words = rng.choice(ZIPF_WORDS, size=lengths.sum(), p=share / share.sum())
    return [" ".join(f"w{w}" for w in part) for part in np.split(words, lengths.cumsum()[:-1])]


def draw_queries(documents: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draws `count` queries, each a few words of one document."""
    chosen = [documents[i].split() for i in rng.integers(0, len(documents), count)]
    return [" ".join(rng.choice(w, min(QUERY_WORDS, len(w)), replace=False)) for w in chosen]


def overlap(exact: np.ndarray, ids: np.ndarray, k: int) -> float:
    """Mean share of the top k of `exact` [Q, N] scores that is among `ids` [Q, >= k]."""
    k = min(k, exact.shape[1])
    shares = []
    for scores, row in zip(exact, ids, strict=True):
        kth = np.sort(scores)[-k]
        returned = scores[row[:k]]
        places_for_ties = k - np.sum(scores > kth)
        shares.append((np.sum(returned > kth) + min(np.sum(returned == kth), places_for_ties)) / k)
    return float(np.mean(shares))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def measure(documents: list[str], queries: list[str], dimensions: list[int], ks: list[int]) -> None:
    """Prints the rows of one corpus: BM25, then ScaNN at each number of columns."""
    repeats = 20 if len(documents) <= 1000 else 3
    bm25 = BM25Index(documents)
    exact = bm25.scores(queries)
    terms = len(bm25.postings.vocabulary)
    rows = [("bm25", lambda: BM25Index(documents))]
    for width in dimensions:
        rows.append((f"scann {width}", lambda width=width: ScannIndex(documents, width)))
    for name, build in rows:
        index = build()
        ids, _ = index.search(queries, max(ks))
        first = exact[np.arange(len(queries)), ids[:, 0]]
        figures = [f"{overlap(exact, ids, k):.3f}" for k in ks]
        figures.append(f"{np.mean(first == exact.max(axis=1)):.2f}")
        figures.append(f"{milliseconds(build, repeats):.2f}")
        search = milliseconds(lambda index=index: index.search(queries, max(ks)), repeats)
        figures.append(f"{search / len(queries):.3f}")
        print(f"| {len(documents)} | {terms} | {name} | {' | '.join(figures)} |", flush=True)


def main() -> None:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=Path, help="a text file, one document a line")
    parser.add_argument("--sizes", type=integers, default=[10, 100, 1000, 10_000])
    parser.add_argument("--dimensions", type=integers, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--ks", type=integers, default=[5, 20])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    overlaps = [f"overlap@{k}" for k in args.ks]
    header = ["documents", "terms", "index", *overlaps, "top-1", "build ms", "ms a query"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for size in args.sizes:
        rng = np.random.default_rng([args.seed, size])
        if args.documents is None:
            documents = zipf_documents(size, rng)
        else:
            lines = args.documents.read_text(encoding="utf-8").split("\n")
            documents = [line for line in lines if line.strip()][:size]
            if len(documents) < size:
                parser.error(f"{args.documents} has {len(documents)} lines, fewer than {size}")
        queries = draw_queries(documents, args.queries, rng)
        measure(documents, queries, args.dimensions, args.ks)


if __name__ == "__main__":
    main()
