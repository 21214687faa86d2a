"""Retrieval for the reward: BM25 over the entries of one memory, a batch of questions.

    python -m benchmarks.retrieval [--quick] [--entries 10000] [--questions 100]

Entries are 20 to 40 words of a Zipf vocabulary, questions six words of one of them, top 20. Ours
with the index built for the memory, and with the index kept; rank_bm25 as the code released with
Mem-alpha uses it (all entries tokenised and indexed again for every question, all scores sorted; a
tenth of the questions is measured in each round and multiplied), and with its index kept; bm25s.
Rankings are compared: ours has to equal rank_bm25's, place by place.
"""

import sys

import numpy as np

from benchmarks.retrieval_agreement import draw_queries, zipf_documents
from benchmarks.timing import Contender, Timing, arguments, run, table, write

TOP = 20
BM25, BM25S = ("rank-bm25",), ("bm25s",)
CONTENDERS = (
    Contender("memalpha", "benchmarks.retrieval:ours"),
    Contender("memalpha, index kept", "benchmarks.retrieval:ours", (), {"reuse": True}),
    Contender("rank_bm25, index rebuilt for every question", "benchmarks.retrieval:rebuilt", BM25),
    Contender("rank_bm25, index kept", "benchmarks.retrieval:rank_bm25", BM25),
    Contender("bm25s", "benchmarks.retrieval:bm25s", BM25S),
    Contender("bm25s, index kept", "benchmarks.retrieval:bm25s", BM25S, {"reuse": True}),
)


def draw(settings: dict) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    documents = zipf_documents(settings["entries"], rng)
    return documents, draw_queries(documents, settings["questions"], rng)


def ours(settings: dict, rounds) -> None:
    from memalpha.retrieval import make_index

    documents, queries = draw(settings)
    index = make_index(documents) if settings.get("reuse") else None
    for _ in rounds:
        ids, _ = (index or make_index(documents)).search(queries, TOP)
        rounds.note(ranking=ids.tolist())


def rank_bm25(settings: dict, rounds) -> None:
    from memalpha.retrieval import tokenize

    documents, queries = draw(settings)
    score = _okapi(documents)
    for _ in rounds:
        rounds.note(ranking=[_sorted(score(tokenize(query))) for query in queries])


def rebuilt(settings: dict, rounds) -> None:
    from memalpha.retrieval import tokenize

    documents, queries = draw(settings)
    part = -(-len(queries) // 10)
    for number, _ in enumerate(rounds):
        rounds.share = part / len(queries)
        for place in range(number * part, (number + 1) * part):
            _sorted(_okapi(documents)(tokenize(queries[place % len(queries)])))


def _okapi(documents: list[str]):
    from rank_bm25 import BM25Okapi

    from memalpha.retrieval import tokenize

    return BM25Okapi([tokenize(document) for document in documents]).get_scores


def _sorted(scores: np.ndarray) -> list[int]:
    """The best places by sorting all of them, as the released code does."""
    pairs = sorted(enumerate(scores), key=lambda pair: pair[1], reverse=True)
    return [place for place, _ in pairs[:TOP]]


def bm25s(settings: dict, rounds) -> None:
    import bm25s as library

    from memalpha.retrieval import tokenize

    documents, queries = draw(settings)

    def build():
        index = library.BM25()
        index.index([tokenize(document) for document in documents], show_progress=False)
        return index

    built = build() if settings.get("reuse") else None
    for _ in rounds:
        words = [tokenize(query) for query in queries]
        best, _ = (built or build()).retrieve(words, k=TOP, show_progress=False)
        rounds.note(ranking=np.asarray(best).tolist())


def agreement(timings: list[Timing]) -> str:
    """How the rankings compare with rank_bm25's; ends the program where ours is not the same."""
    rankings = {}
    for timing in timings:
        told = [note.pop("ranking", None) for note in timing.notes]  # too long for the JSON
        rankings[timing.name] = told[-1] if told else None
    reference = rankings.get("rank_bm25, index kept")
    if reference is None:
        return "ranking not compared: rank_bm25 did not run"
    lines = []
    for name, ranking in rankings.items():
        if ranking is None or name.startswith("rank_bm25"):
            continue
        overlap = np.mean([len({*a} & {*b}) / TOP for a, b in zip(ranking, reference, strict=True)])
        same = ranking == reference
        lines.append(f"{name}: top {TOP} {'the same' if same else f'shares {overlap:.2f}'}")
        if name.startswith("memalpha") and not same:
            sys.exit(f"{name} does not rank like rank_bm25")
    return "compared with rank_bm25: " + "; ".join(lines)


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--entries", type=int, default=10_000, help="(default %(default)s)")
    parser.add_argument("--questions", type=int, default=100, help="(default %(default)s)")
    args = parser.parse_args()
    if args.entries < TOP or args.questions < 1:
        parser.error(f"give at least {TOP} entries and one question")
    given = {"entries": args.entries, "questions": args.questions}
    if args.quick:
        given = {"entries": 200, "questions": 20}
    timings = run(args, CONTENDERS, given)
    compared = agreement(timings)
    print(f"\n{given['entries']} entries, {given['questions']} questions, min / median / max\n")
    print(table(timings, given["questions"], "questions/s"))
    others = timings[1:]
    if others and others[0].seconds:
        print(f"\n{table(others, given['questions'], 'questions/s')}")
    print(f"\n{compared}")
    write(args, "retrieval", given, {"retrieval": timings}, CONTENDERS)


if __name__ == "__main__":
    main()
