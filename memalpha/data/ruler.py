"""RULER-style question answering: the documents that answer, among others, up to a target length.

ruler_qa1 takes the paragraphs and questions of SQuAD v2.0, whose unanswerable questions are left
out, ruler_qa2 those of HotpotQA.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path

from memalpha.data import files, hotpotqa, squad, text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

LEAD_IN = "Please remember these documents:"
ACKNOWLEDGEMENT = "I will remember them."


@dataclass(frozen=True)
class Case:
    """A question with all its answers and the documents that hold them."""

    record_id: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Documents:
    """What `load_folder` returns: cases and documents by split, the file hashes, and the number of
    questions and others left out, by reason."""

    source: str
    cases: dict[str, tuple[Case, ...]]
    documents: dict[str, tuple[str, ...]]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load_folder(data_dir: str | Path, source: str = "ruler_qa1") -> Documents:
    """Read squad_v2/dev*.json (ruler_qa1) or hotpotqa/ (ruler_qa2) below `data_dir`."""
    if source == "ruler_qa1":
        folder = user_path(data_dir) / "squad_v2"
        advice = "put dev-v2.0.json of SQuAD v2.0 there"
        articles = squad.load([], files.find(folder, ["dev*.json"], advice), version="v2")
        return _collect(source, _squad_cases(articles), articles)
    items = hotpotqa.load_folder(data_dir)
    return _collect(source, _hotpot_cases(items), items)


def _collect(
    source: str,
    parts: Iterator[tuple[str, list[str], list[Case]]],
    records: squad.Articles | hotpotqa.Items,
) -> Documents:
    cases: dict[str, dict[str, Case]] = {split: {} for split in text.SPLITS}
    documents: dict[str, dict[str, None]] = {split: {} for split in text.SPLITS}
    twins = 0
    for split, texts, asked in parts:
        documents[split].update(dict.fromkeys(texts))
        for case in asked:  # the same words asked of two paragraphs have two different answers
            twins += cases[split].setdefault(case.question, case) is not case
    return Documents(
        source,
        {split: tuple(group.values()) for split, group in cases.items()},
        {split: tuple(group) for split, group in documents.items()},
        records.files,
        records.left_out | ({"questions in the same words": twins} if twins else {}),
    )


def _squad_cases(articles: squad.Articles) -> Iterator[tuple[str, list[str], list[Case]]]:
    for paragraph in articles.paragraphs:
        asked = [
            Case(
                q.record_id,
                q.question,
                tuple(dict.fromkeys(answer for _, answer in q.answers)),
                (paragraph.context,),
            )
            for q in paragraph.questions
            if q.answers
        ]
        yield paragraph.split, [paragraph.context], asked


def _hotpot_cases(items: hotpotqa.Items) -> Iterator[tuple[str, list[str], list[Case]]]:
    for item in items.items:
        texts = [f"{title}\n{body}" for title, body in item.paragraphs]
        support = tuple(f"{title}\n{body}" for title, body in item.support())
        yield item.split, texts, [Case(item.record_id, item.question, (item.answer,), support)]


def build(
    records: Documents,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    target_tokens: int = 0,
    repeat: bool = False,
) -> Iterator[Draft]:
    """Yield `sizes.count` instances of `target_tokens` tokens, or of chunks * chunk_tokens.

    Numbered documents in a random order: those of the questions asked, and others of the split,
    then of the other splits, until the next one would pass the target; the length is at most the
    target and a few per cent below it. `sizes.chunks` only sets the default target.
    With `repeat`, documents come again where there are not enough. Errors: ValueError if the
    documents asked about do not fit, or there are too few.
    """
    target = target_tokens or sizes.chunks * sizes.chunk_tokens
    pool = records.cases[split]
    if not pool:
        raise ValueError(
            f"{records.source}: no question in the {split!r} split of {sorted(records.files)}"
        )
    frame_tokens = count_tokens(_frame(0, ""))
    for index in range(sizes.count):
        asked = [
            case
            for case in text.shuffled(pool, lambda case: case.record_id, "ask", seed, index)
            if all(
                _size(document, count_tokens) <= sizes.chunk_tokens - frame_tokens
                for document in case.documents
            )
        ][: sizes.questions]
        needed = list(dict.fromkeys(d for case in asked for d in case.documents))
        others = _others(records, split, set(needed), (seed, index), repeat)
        try:
            chunks, documents = _pad(
                needed, others, target, sizes.chunk_tokens, count_tokens, (seed, index)
            )
        except ValueError as error:
            raise ValueError(f"{records.source}: {error} ({sorted(records.files)})") from None
        facts = {
            "question_ids": [case.record_id for case in asked],
            "target_tokens": target,
            "documents": documents,
        }
        questions = tuple(Question(case.question, case.answers) for case in asked)
        yield Draft(chunks, questions, facts)


def _pad(
    needed: list[str],
    others: Iterator[str],
    target: int,
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
    seeds: tuple[int, int],
) -> tuple[tuple[str, ...], int]:
    """The chunks of the needed documents and as many others as the target allows, and the number
    of documents in them; ValueError if there are too few documents, or already too many."""

    def size(document: str) -> int:
        return _size(document, count_tokens)

    # What the frame of its chunk adds to a document, on average.
    overhead = chunk_tokens / max(chunk_tokens - count_tokens(_frame(0, "")), 1)
    fillers = _fill(others, size, target - sum(map(size, needed)) * overhead)
    if fillers is None:
        raise ValueError(
            f"all documents together do not reach {target:,} tokens; add files, or allow documents"
            " to come again (repeat)"
        )
    while True:
        chunks = _chunks([*needed, *fillers], seeds, chunk_tokens, count_tokens)
        excess = sum(map(count_tokens, chunks)) - target
        if excess <= 0:
            return chunks, len(needed) + len(fillers)
        if not fillers:
            raise ValueError(
                f"the documents of the questions have {target + excess:,} tokens; the target is"
                f" {target:,}; ask fewer questions"
            )
        while excess > 0 and fillers:  # chunks are less full than was reckoned with
            excess -= size(fillers.pop())


def _frame(index: int, content: str) -> str:
    return text.dialogue_chunk(LEAD_IN, ACKNOWLEDGEMENT, index, content)


def _size(document: str, count_tokens: Callable[[str], int]) -> int:
    """Tokens of a document in a chunk, with a number of five digits."""
    return count_tokens(text.SEPARATOR + _number(10_000, document))


def _number(number: int, document: str) -> str:
    return f"Document {number}:\n{document}"


def _others(
    records: Documents, split: str, needed: set[str], seeds: tuple[int, int], repeat: bool
) -> Iterator[str]:
    """Documents to fill up with: of the split, then of the others; again and again if `repeat`."""
    for turn in numbers():
        fresh = 0
        for name in (split, *(s for s in text.SPLITS if s != split)):
            for document in text.shuffled(records.documents[name], str, "fill", turn, *seeds):
                if document not in needed:
                    fresh += 1
                    yield document
        if not repeat or not fresh:
            return


def _fill(others: Iterator[str], size: Callable[[str], int], room: float) -> list[str] | None:
    """Documents until the next one has no room; None if they end before."""
    fillers: list[str] = []
    for document in others:
        room -= size(document)
        if room < 0:
            return fillers
        fillers.append(document)
    return None


def _chunks(
    documents: list[str],
    seeds: tuple[int, int],
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
) -> tuple[str, ...]:
    """The documents in a random order, numbered, packed into chunks."""
    places = sorted(
        range(len(documents)), key=lambda i: text.rank("order", *seeds, i, documents[i][:200])
    )
    items = [_number(number, documents[place]) for number, place in enumerate(places, start=1)]
    packed = text.pack(items, _frame, len(items), chunk_tokens, count_tokens)
    return tuple(chunk for chunk, _ in packed)
