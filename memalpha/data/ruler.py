"""RULER-style question answering: the documents that answer, among others, up to a target length.

ruler_qa1 takes the paragraphs and questions of SQuAD, ruler_qa2 those of HotpotQA.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count as numbers
from pathlib import Path

from memalpha.data import hotpotqa, squad, text
from memalpha.data.instance import Instance, Question

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
    """What `load_folder` returns: cases and documents by split, and the file hashes."""

    source: str
    cases: dict[str, tuple[Case, ...]]
    documents: dict[str, tuple[str, ...]]
    files: dict[str, str]


def load_folder(data_dir: str | Path, source: str = "ruler_qa1") -> Documents:
    """Read squad/ (ruler_qa1) or hotpotqa/ (ruler_qa2) below `data_dir`."""
    if source == "ruler_qa1":
        articles = squad.load_folder(data_dir)
        return _collect(source, _squad_cases(articles), articles.files)
    items = hotpotqa.load_folder(data_dir)
    return _collect(source, _hotpot_cases(items), items.files)


def _collect(
    source: str, found: Iterator[tuple[str, list[str], list[Case]]], digests: dict[str, str]
) -> Documents:
    cases: dict[str, dict[str, Case]] = {split: {} for split in text.SPLITS}
    documents: dict[str, dict[str, None]] = {split: {} for split in text.SPLITS}
    for split, shown, asked in found:
        documents[split].update(dict.fromkeys(shown))
        for case in asked:  # the same words asked of two paragraphs have two different answers
            cases[split].setdefault(case.question, case)
    return Documents(
        source,
        {split: tuple(some.values()) for split, some in cases.items()},
        {split: tuple(some) for split, some in documents.items()},
        digests,
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
        shown = [f"{title}\n{body}" for title, body in item.paragraphs]
        support = tuple(f"{title}\n{body}" for title, body in item.support())
        yield item.split, shown, [Case(item.record_id, item.question, (item.answer,), support)]


def build(
    records: Documents,
    count: int,
    seed: int,
    chunks: int,
    chunk_tokens: int,
    questions: int,
    count_tokens: Callable[[str], int],
    split: str = "test",
    target_tokens: int = 0,
    repeat: bool = False,
) -> Iterator[Instance]:
    """Yield `count` instances of `target_tokens` tokens, or of chunks * chunk_tokens.

    Numbered documents in a random order: those of the questions asked, and others of the split,
    then of the other splits, until the next one would pass the target; the length is at most the
    target and a few per cent below it. `chunks` only sets the default target.
    With `repeat`, documents come again where there are not enough. Errors: ValueError if the
    documents asked about do not fit, or there are too few.
    """
    text.check_request(split, count, chunks, chunk_tokens, questions)
    target = target_tokens or chunks * chunk_tokens
    pool = records.cases[split]
    if not pool:
        raise ValueError(
            f"{records.source}: no question in the {split!r} split of {sorted(records.files)}"
        )
    count_cached = lru_cache(maxsize=2**18)(count_tokens)
    frame = partial(text.dialogue_chunk, LEAD_IN, ACKNOWLEDGEMENT)
    frame_tokens = count_cached(frame(0, ""))
    # What the frame of its chunk adds to a document, on average.
    overhead = chunk_tokens / max(chunk_tokens - frame_tokens, 1)

    def size(document: str) -> int:
        return count_cached(text.SEPARATOR + _number(10_000, document))

    for index in range(count):
        order = text.shuffled(pool, lambda case: case.record_id, "ask", seed, index)
        asked = [
            case
            for case in order
            if all(size(d) <= chunk_tokens - frame_tokens for d in case.documents)
        ][:questions]
        needed = list(dict.fromkeys(d for case in asked for d in case.documents))
        others = _others(records, split, set(needed), (seed, index), repeat)
        fillers = _fill(others, size, target - sum(map(size, needed)) * overhead)
        if fillers is None:
            raise ValueError(
                f"{records.source}: all documents of {sorted(records.files)} together do not reach"
                f" {target:,} tokens; add files, or allow documents to come again (repeat)"
            )
        while True:
            places = (seed, index)
            texts = _chunks([*needed, *fillers], places, frame, chunk_tokens, count_cached)
            excess = sum(map(count_cached, texts)) - target
            if excess <= 0:
                break
            if not fillers:
                raise ValueError(
                    f"{records.source}: the documents of {len(asked)} questions have"
                    f" {target + excess:,} tokens; the target is {target:,}; ask fewer questions"
                )
            while excess > 0 and fillers:  # chunks are less full than was reckoned with
                excess -= size(fillers.pop())
        asked_now = tuple(Question(case.question, case.answers) for case in asked)
        yield text.make_instance(
            records.source,
            split,
            seed,
            index,
            texts,
            asked_now,
            records.files,
            question_ids=[case.record_id for case in asked],
            target_tokens=target,
            documents=len(needed) + len(fillers),
        )


def _number(number: int, document: str) -> str:
    return f"Document {number}:\n{document}"


def _others(
    records: Documents, split: str, needed: set[str], seeds: tuple[int, int], repeat: bool
) -> Iterator[str]:
    """Documents to fill up with: of the split, then of the others; again and again if `repeat`."""
    for turn in numbers():
        found = 0
        for name in (split, *(s for s in text.SPLITS if s != split)):
            for document in text.shuffled(records.documents[name], str, "fill", turn, *seeds):
                if document not in needed:
                    found += 1
                    yield document
        if not repeat or not found:
            return


def _fill(others: Iterator[str], size: Callable[[str], int], room: float) -> list[str] | None:
    """Documents until the next one has no room; None if they end before."""
    shown: list[str] = []
    for document in others:
        room -= size(document)
        if room < 0:
            return shown
        shown.append(document)
    return None


def _chunks(
    shown: list[str],
    seeds: tuple[int, int],
    frame: Callable[[int, str], str],
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
) -> tuple[str, ...]:
    """The documents in a random order, numbered, packed into chunks."""
    places = sorted(range(len(shown)), key=lambda i: text.rank("order", *seeds, i, shown[i][:200]))
    items = [_number(number, shown[place]) for number, place in enumerate(places, start=1)]
    packed = text.pack(items, frame, len(items), chunk_tokens, count_tokens)
    return tuple(chunk for chunk, _ in packed)
