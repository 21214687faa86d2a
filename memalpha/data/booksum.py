"""BookSum chapters: passages to read in order, then a summary, scored by keywords of a reference.

The layout is that of the cleaned hub version: {train,val,test}.jsonl of {bid, book_title,
chapter_id, text, summary: [{source, text, analysis}], is_aggregate}.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memalpha.data import cut, files, text
from memalpha.data.instance import Draft, Question
from memalpha.data.keywords import offline_keywords
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

SOURCE = "booksum"
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # by the beginning of the name
QUESTION = "Summarise what was read: who takes part, where and when, what happens, and why."
REPLY = "Please remember this passage: keep its details, and a summary of the book so far."


@dataclass(frozen=True)
class Book:
    """A text with its reference summaries."""

    record_id: str
    title: str
    content: str
    summaries: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Books:
    """What `load_folder` returns."""

    source: str
    books: tuple[Book, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load_folder(data_dir: str | Path) -> Books:
    """Read booksum/{train,val,test}*.jsonl below `data_dir`, chapters as published.

    Chapters without any summary are left out (178 of the published training chapters have none),
    and those that stand twice. Errors: ValueError naming file, line and field, also for two texts
    of one chapter.
    """
    folder = user_path(data_dir) / SOURCE
    advice = "put chapters/train.jsonl, val.jsonl and test.jsonl of the cleaned hub version there"
    files.find(folder, [f"{name}*.jsonl" for name in SPLITS], advice)
    books: list[Book] = []
    digests: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}  # of every chapter: its place and the hash of its text
    for name, split in SPLITS.items():
        for path in sorted(folder.glob(f"{name}*.jsonl")):
            digests[path.name] = files.digest(path)
            for where, record in files.jsonl_records(path):
                book = _read(record, where, split)
                key = text.rank(book.content).hex()
                if book.record_id in first:
                    place, known = first[book.record_id]
                    if known != key:
                        raise ValueError(
                            f"{where}: {book.record_id} stands already at {place}, with another"
                            " text"
                        )
                    left_out["chapters that stand twice"] += 1
                    continue
                first[book.record_id] = where, key
                if book.summaries:
                    books.append(book)
                else:
                    left_out["chapters without a summary"] += 1
    return Books(SOURCE, tuple(books), digests, dict(left_out))


def _read(record: Any, where: str, split: str) -> Book:
    content = text.require(record, "text", str, where)
    summaries = []
    for number, summary in enumerate(text.require(record, "summary", list, where)):
        place = f"{where}: summary[{number}]"
        if not isinstance(summary, dict):
            raise ValueError(f"{place}: must be an object, not {type(summary).__name__}")
        if summary.get("text") is not None:
            summaries.append(text.require(summary, "text", str, place).strip())
    book_id = text.require(record, "bid", str | int | float, where)
    chapter_id = text.require(record, "chapter_id", str | int | float, where)
    title = str(record.get("book_title", ""))
    name = f"{book_id}:{chapter_id}" + (":aggregate" if record.get("is_aggregate") else "")
    return Book(name, title, content, tuple(summaries), split)


def build(
    records: Books,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    keywords: Callable[[Sequence[str]], list[list[str]]] | None = None,
    min_chunks: int = 5,
) -> Iterator[Draft]:
    """Yield instances, one a text of `min_chunks` to `sizes.chunks` chunks.

    The answers are the keywords of the first reference summary that has any: by `keywords`, a
    function from summaries to a list of keywords each, or else by the offline extractor.
    `min_chunks` is ours: the paper's chapters are longer than most, 7.8 chunks on average.
    """
    pool = text.select_split(records.books, split, records.source, "text", records.files)
    extract = keywords or offline_keywords
    name = "offline" if keywords is None else getattr(keywords, "name", "given")
    for book in text.shuffled(pool, lambda b: b.record_id, "draw", seed):
        chunks = passages(book.content, sizes.chunk_tokens, count_tokens)
        if not min_chunks <= len(chunks) <= sizes.chunks:
            continue
        answers = next((tuple(words) for words in extract(book.summaries) if words), ())
        if answers:
            facts = {"title": book.title, "question_ids": [book.record_id], "keywords": name}
            yield Draft(chunks, (Question(QUESTION, answers),), facts)


def frame(index: int, passage: str) -> str:
    """The text of a chunk: one event a day, in which a passage is read."""
    day = text.FIRST_DAY + datetime.timedelta(days=index)
    return f"Event happened on {day} The user is reading a book\n<User>{passage}\n<System>{REPLY}"


def passages(
    content: str, chunk_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[str, ...]:
    """A book as chunks of at most chunk_tokens tokens, cut between its paragraphs or sentences."""
    room = chunk_tokens - count_tokens(frame(0, ""))
    if room < 1:
        raise ValueError(f"chunks of {chunk_tokens} tokens have no room beside {frame(0, '')!r}")
    # A paragraph is cut after a sentence even where it would fit the next chunk whole: chunks of
    # books are full (1,910 of 2,048 tokens in the paper).
    parts = (
        piece
        for paragraph in content.splitlines()
        for piece in cut.pieces(paragraph, max(room // 4, 1), count_tokens)
    )
    groups = cut.fill(parts, room, count_tokens, "\n")
    return tuple(frame(index, "\n".join(group)) for index, group in enumerate(groups))
