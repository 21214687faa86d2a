"""InfiniteBench: whole books, with one summary (longbook_sum_eng) or questions (longbook_qa_eng).

JSON lines of {id, context, input, answer, options}; rows about the same book share their context.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from memalpha.data import booksum, files, text
from memalpha.data.booksum import Book, Books
from memalpha.data.instance import Instance, Question

FILES = {"infbench_sum": "longbook_sum_eng*.jsonl", "infbench_qa": "longbook_qa_eng*.jsonl"}


def load_folder(data_dir: str | Path, source: str = "infbench_sum") -> Books:
    """Read infinitebench/longbook_sum_eng*.jsonl (or longbook_qa_eng*.jsonl) below `data_dir`.

    Every row is test data. Errors: ValueError naming file, line and field.
    """
    folder = Path(data_dir) / "infinitebench"
    paths = files.find(folder, [FILES[source]], f"put the published {FILES[source]} there")
    digests = {path.name: files.digest(path) for path in paths}
    books: list[Book] = []
    places: dict[str, str] = {}
    shared: dict[str, str] = {}  # rows about a book hold equal texts: kept once
    for path in paths:
        for where, record in files.jsonl_records(path):
            name = f"{path.name}:{text.require(record, 'id', int | str, where)}"
            text.claim(places, name, where)
            context = text.require(record, "context", str, where)
            asked = record.get("input", "")
            answers = text.require(record, "answer", list, where)
            if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
                raise ValueError(f"{where}: field 'answer' must be texts that are not blank")
            if source == "infbench_qa" and not (isinstance(asked, str) and asked.strip()):
                raise ValueError(f"{where}: field 'input' must be a question")
            title = asked.strip() if source == "infbench_qa" else ""
            context = shared.setdefault(context, context)
            books.append(Book(name, title, context, tuple(answers), "test"))
    return Books(source, tuple(books), digests)


def build(
    records: Books,
    count: int,
    seed: int,
    chunks: int,
    chunk_tokens: int,
    questions: int,
    count_tokens: Callable[[str], int],
    split: str = "test",
    keywords: Callable[[Sequence[str]], list[list[str]]] | None = None,
) -> Iterator[Instance]:
    """Yield at most `count` instances of books of at most `chunks` chunks.

    infbench_sum: one summary a row, as `booksum.build`. infbench_qa: one book with at most
    `questions` of its questions; any of the published answers is right.
    """
    if records.source == "infbench_sum":
        yield from booksum.build(
            records, count, seed, chunks, chunk_tokens, questions, count_tokens, split, keywords, 1
        )
        return
    text.check_request(split, count, chunks, chunk_tokens, questions)
    if split != "test":
        raise ValueError(f"infbench_qa: no {split!r} split; all of it is test data")
    count_cached = lru_cache(maxsize=2**16)(count_tokens)
    rows: dict[str, list[Book]] = {}
    for row in records.books:
        rows.setdefault(row.content, []).append(row)
    made = 0
    for content in text.shuffled(rows, lambda c: rows[c][0].record_id, "draw", seed):
        if made == count:
            return
        texts = booksum.passages(content, chunk_tokens, count_cached)
        if len(texts) > chunks:
            continue
        asked = text.shuffled(rows[content], lambda row: row.record_id, "ask", seed)[:questions]
        asked_now = tuple(Question(row.title, row.summaries) for row in asked)
        yield text.make_instance(
            records.source,
            split,
            seed,
            made,
            texts,
            asked_now,
            records.files,
            question_ids=[row.record_id for row in asked],
        )
        made += 1
