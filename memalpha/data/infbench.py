"""InfiniteBench: whole books, with one summary (longbook_sum_eng) or questions (longbook_qa_eng).

JSON lines of {id, context, input, answer, options}; rows about the same book share their context.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from memalpha.data import booksum, files, text
from memalpha.data.booksum import Book, Books
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

FILES = {"infbench_sum": "longbook_sum_eng*.jsonl", "infbench_qa": "longbook_qa_eng*.jsonl"}


def load_folder(data_dir: str | Path, source: str = "infbench_sum") -> Books:
    """Read infinitebench/longbook_sum_eng*.jsonl (or longbook_qa_eng*.jsonl) below `data_dir`.

    Every row is test data. Errors: ValueError naming file, line and field.
    """
    folder = user_path(data_dir) / "infinitebench"
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
            title = ""
            if source == "infbench_qa":
                title = text.require(record, "input", str, where).strip()
            answers = text.require(record, "answer", list, where)
            if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
                raise ValueError(f"{where}: field 'answer' must be texts that are not blank")
            context = shared.setdefault(context, context)
            books.append(Book(name, title, context, tuple(answers), "test"))
    return Books(source, tuple(books), digests)


def build(
    records: Books,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    keywords: Callable[[Sequence[str]], list[list[str]]] | None = None,
) -> Iterator[Draft]:
    """Yield instances of books of at most `sizes.chunks` chunks.

    infbench_sum: one summary a row, as `booksum.build`. infbench_qa: one book with at most
    `sizes.questions` of its questions; any of the published answers is right.
    """
    if records.source == "infbench_sum":
        yield from booksum.build(records, split, sizes, seed, count_tokens, keywords, min_chunks=1)
        return
    books: dict[str, list[Book]] = {}
    advice = "all of it is test data"
    for row in text.select_split(
        records.books, split, records.source, "book", records.files, advice
    ):
        books.setdefault(row.content, []).append(row)
    for content in text.shuffled(books, lambda c: books[c][0].record_id, "draw", seed):
        chunks = booksum.passages(content, sizes.chunk_tokens, count_tokens)
        if len(chunks) > sizes.chunks:
            continue
        asked = text.shuffled(books[content], lambda row: row.record_id, "ask", seed)
        asked = asked[: sizes.questions]
        questions = tuple(Question(row.title, row.summaries) for row in asked)
        yield Draft(chunks, questions, {"question_ids": [row.record_id for row in asked]})
