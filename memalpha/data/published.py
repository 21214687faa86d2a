"""Instances from published parquet files: those of Mem-alpha and those of MemoryAgentBench.

Mem-alpha's hold chunks and questions_and_answers, ready to use. MemoryAgentBench's own hold a whole
context, which is cut here, beside questions, answers and metadata.source.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha.data import cut, files, text
from memalpha.data.instance import Instance, Question, validate
from memalpha.data.names import LABELLED, family
from memalpha.data.surrogates import clean_surrogates
from memalpha.paths import user_path

BATCH = 8  # rows read at once: an instance of the benchmark has up to 3 MB
LEAD_IN = "Please remember this text:"
ACKNOWLEDGEMENT = "I will remember it."
REQUIRED = {
    "memalpha": ("chunks", "questions_and_answers", "data_source"),
    "memoryagentbench": ("context", "questions", "answers", "metadata"),
}


@dataclass(frozen=True)
class Contexts:
    """How whole contexts become instances.

    chunk_tokens: the most tokens of a chunk. names: id -> title, for the recommendation sets, whose
    answers are ids (`read_entity_names`).
    """

    chunk_tokens: int = 2048
    names: dict[str, str] | None = None


def read(
    path: str | Path,
    split: str,
    sources: Callable[[str], bool] = lambda name: True,
    chunk_tokens: int = 2048,
    count_tokens: Callable[[str], int] | None = None,
    names: dict[str, str] | None = None,
) -> Iterator[Instance]:
    """The instances of a parquet file in its order, a few rows in memory at a time.

    Args:
        path: a file of either layout; lists may be lists or the same as JSON text.
        split: what the file is, for the metadata ("train.parquet" of Mem-alpha holds the validation
            instances of nothing else).
        sources: which `data_source` (or metadata.source) names to keep.
        chunk_tokens, count_tokens: for MemoryAgentBench's own layout only, whose contexts are cut.
        names: id -> title, for the recommendation sets, whose answers are ids
            (`read_entity_names`).

    Raises:
        ValueError: naming file, record and field: no parquet, cut off, an LFS pointer, a column
            that is missing, an empty chunk list, an answer that is none, a label that is no
            integer, an id that stands twice.
    """
    path = user_path(path)
    digest = files.digest(path)
    with _open(path) as file:
        layout = _layout(file.schema_arrow.names, path)
        make = _from_rows if layout == "memalpha" else partial(
            _from_context, chunk_tokens=chunk_tokens, count_tokens=count_tokens, names=names or {}
        )  # fmt: skip
        optional = {"instance_id", "metadata"} & set(file.schema_arrow.names)
        wanted = list(dict.fromkeys([*REQUIRED[layout], *sorted(optional)]))
        seen: dict[str, int] = {}
        for number, record in _records(file, wanted, path):
            where = f"{path}: record {number}"
            source = _source(record, layout, where)
            if not sources(source):
                continue
            name, chunks, questions = make(record, source, where)
            questions, metadata = _add_details(record, questions, where)
            if family(source) in LABELLED:
                _check_labels(questions, where)
            name = name or f"{source}-{split}-{text.rank(*chunks).hex()[:8]}"
            if name in seen:
                raise ValueError(f"{where}: instance_id {name!r} stands already at {seen[name]}")
            seen[name] = number
            row = f"{path.name}:{number}"
            ids = [f"{row}:{i}" for i in range(len(questions))]
            origin = {"split": split, "files": {path.name: digest}, "record": row}
            metadata = {"question_ids": ids} | metadata | origin
            try:
                yield validate(Instance(source, name, chunks, questions, metadata))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        problem = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: no readable parquet ({problem}); is it cut off?") from error


def _check_labels(questions: tuple[Question, ...], where: str) -> None:
    for number, question in enumerate(questions):
        for answer in question.answers:
            if not (answer.isascii() and answer.strip().isdigit()):
                raise ValueError(
                    f"{where}: questions[{number}]: the label {answer!r} is no integer, as all"
                    " labels of this source are"
                )


def _layout(columns: list[str], path: Path) -> str:
    for layout, required in REQUIRED.items():
        if set(required) <= set(columns):
            return layout
    near = "memoryagentbench" if "context" in columns else "memalpha"
    missing = [name for name in REQUIRED[near] if name not in columns]
    raise ValueError(f"{path}: column {missing[0]!r} is missing (found {', '.join(columns)})")


def _records(file: pq.ParquetFile, columns: list[str], path: Path) -> Iterator[tuple[int, dict]]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            for row in range(batch.num_rows):
                try:
                    (record,) = batch.slice(row, 1).to_pylist()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}: record {number}: not UTF-8 ({error.reason})"
                    ) from error
                yield number, clean_surrogates(record, f"{path}: record {number}: ")
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: damaged after record {number - 1} ({error})") from error


def _source(record: dict, layout: str, where: str) -> str:
    if layout == "memalpha":
        return text.require(record, "data_source", str, where)
    metadata = _decode(record["metadata"], dict, f"{where}: metadata")
    return text.require(metadata, "source", str, f"{where}: metadata")


def _decode(value: Any, kind: type, where: str) -> Any:
    """A list or object, or the JSON text of one."""
    if isinstance(value, str):
        try:
            value = clean_surrogates(json.loads(value), where)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: no {kind.__name__} and no JSON of one ({error})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{where}: must be a {kind.__name__}, not {type(value).__name__}")
    return value


def _from_rows(record: dict, source: str, where: str) -> tuple:
    chunks = _decode(record["chunks"], list, f"{where}: chunks")
    pairs = _decode(record["questions_and_answers"], list, f"{where}: questions_and_answers")
    questions = []
    for number, pair in enumerate(pairs):
        place = f"{where}: questions_and_answers[{number}]"
        pair = _decode(pair, dict, place)
        asked = text.require(pair, "question", str, place)
        if "answer" not in pair:
            raise ValueError(f"{place}: field 'answer' is missing (found {sorted(pair)})")
        questions.append(Question(asked, _answers(pair["answer"], f"{place}.answer")))
    named = record.get("instance_id")
    return "" if named is None else str(named), tuple(chunks), tuple(questions)


# What metadata says of each question (MemoryAgentBench), and under which name it is carried.
_DETAILS = ("question_ids", "question_types", "question_dates")


def _add_details(
    record: dict, questions: tuple[Question, ...], where: str
) -> tuple[tuple[Question, ...], dict[str, Any]]:
    """The questions with their dates, and ids and types for the metadata, where there are any.

    An id that ends in `_abs` marks a question without an answer, and by the type a judge chooses
    its rule, so that a list of another length than the questions is an error.
    """
    value = record.get("metadata")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return questions, {}  # a text of another kind; Mem-alpha's column is free
    if not isinstance(value, dict):
        return questions, {}
    value = clean_surrogates(value, f"{where}: metadata")
    details: dict[str, list[str]] = {}
    for name in _DETAILS:
        if not (items := value.get(name)):
            continue  # other sources leave the lists empty
        if not isinstance(items, list) or len(items) != len(questions):
            raise ValueError(
                f"{where}: metadata: {name} must be a list of {len(questions)}, one a question"
            )
        details[name] = ["" if item is None else str(item) for item in items]
    dates = details.pop("question_dates", [""] * len(questions))
    dated = tuple(replace(q, asked_at=date) for q, date in zip(questions, dates, strict=True))
    return dated, details


def _answers(value: Any, where: str) -> tuple[str, ...]:
    """A text or number, or a list of them."""
    answers = value if isinstance(value, list) else [value]
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"{where}: must be a text or a list of texts, not {answer!r}")
    return tuple(dict.fromkeys(str(answer) for answer in answers))


def _from_context(
    record: dict,
    source: str,
    where: str,
    chunk_tokens: int,
    count_tokens: Callable[[str], int] | None,
    names: dict[str, str],
) -> tuple:
    if count_tokens is None:
        raise ValueError(f"{where}: give count_tokens; this layout holds a context to be cut")
    asked = _decode(record["questions"], list, f"{where}: questions")
    golds = _decode(record["answers"], list, f"{where}: answers")
    if len(asked) != len(golds):
        raise ValueError(f"{where}: {len(asked)} questions but {len(golds)} answers")
    questions = []
    for number, (question, gold) in enumerate(zip(asked, golds, strict=True)):
        answers = _answers(gold, f"{where}: answers[{number}]")
        if source.startswith("recsys"):
            answers = _titles(answers, names, f"{where}: answers[{number}]")
        questions.append(Question(question, answers))
    context = text.require(record, "context", str, where)
    chunks = _cut_context(context, chunk_tokens, lru_cache(maxsize=2**14)(count_tokens))
    return "", chunks, tuple(questions)


def _cut_context(
    context: str, chunk_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[str, ...]:
    frame = partial(text.dialogue_chunk, LEAD_IN, ACKNOWLEDGEMENT)
    room = chunk_tokens - count_tokens(frame(0, ""))
    lines = (p for line in context.split("\n") for p in cut.pieces(line, room, count_tokens))
    groups = cut.fill(lines, room, count_tokens, "\n")
    return tuple(frame(index, "\n".join(group)) for index, group in enumerate(groups))


def _titles(ids: tuple[str, ...], names: dict[str, str], where: str) -> tuple[str, ...]:
    unknown = [name for name in ids if name not in names]
    if unknown:
        raise ValueError(
            f"{where}: {unknown[0]!r} is an id without a title; give the benchmark's"
            " entity2id.json (read_entity_names)"
        )
    return tuple(names[name] for name in ids)


def read_entity_names(path: str | Path) -> dict[str, str]:
    """id -> title from the benchmark's entity2id.json ({title or resource address: id})."""
    data, _ = text.read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must be an object {{title: id}}")
    return {
        str(number): title.strip("<>").rpartition("/")[2].replace("_", " ")
        for title, number in data.items()
    }


def source_names(path: str | Path) -> list[str]:
    """The names of the sources in a parquet file, in the order of their first rows."""
    path = user_path(path)
    files.digest(path)
    with _open(path) as file:
        layout = _layout(file.schema_arrow.names, path)
        column = "data_source" if layout == "memalpha" else "metadata"
        names = (
            _source(record, layout, f"{path}: record {number}")
            for number, record in _records(file, [column], path)
        )
        return list(dict.fromkeys(names))
