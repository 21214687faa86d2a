"""The NLU evaluation data (home assistant requests): scenario_intent classes."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from memalpha.data import text
from memalpha.data.labelled import Labelled, Sentence, build, collect
from memalpha.paths import user_path

__all__ = ["build", "load", "load_folder"]

SOURCE = "nlu"
# Layouts, the most complete first: (name, delimiter, text column, columns that tell it).
LAYOUTS = (
    ("full", ";", "answer", ("scenario", "intent", "status", "answer")),
    ("text", ",", "text", ("text", "label")),
    ("fold", ";", "answer_from_anno", ("scenario", "intent", "answer_from_anno")),
)
# No published split covers all files: shares of the sentences, by hash.
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.1


def load(paths: Sequence[str | Path]) -> Labelled:
    """Read CSV files of one of the published headers (full, fold) or with text and label columns.

    Rows of the full file whose status starts with IRR_ or whose answer is null are ignored, as its
    publisher says. The split of a sentence is fixed by a hash of its words. Errors: ValueError
    naming file, record and column.
    """
    files: dict[str, str] = {}
    sentences: list[Sentence] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        content, files[Path(path).name] = text.read_text(path)
        sentences += _read_rows(content, str(path), left_out)
    return collect(SOURCE, sentences, files, _split_of, classes=68, left_out=left_out)


def load_folder(data_dir: str | Path) -> Labelled:
    """Read nlu/*.csv below `data_dir`: if layouts are mixed, only files of the most complete one.

    The layouts hold the same requests spelled differently ("5 am", "five am"), so that mixing them
    would put near copies on both sides of a split.
    """
    folder = user_path(data_dir) / "nlu"
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise ValueError(
            f"{folder}: no *.csv; put NLU-Data-Home-Domain-Annotated-All.csv or the files of the "
            "cross-validation folds of the NLU evaluation data there"
        )
    layouts = {p: LAYOUTS.index(_layout(text.read_text(p)[0], str(p))) for p in paths}
    return load([path for path in paths if layouts[path] == min(layouts.values())])


def _split_of(key: str) -> str:
    position = text.share("nlu sentence", key)
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def _header(content: str, delimiter: str) -> list[str]:
    return next(csv.reader([content.lstrip("\r\n").split("\n", 1)[0].strip()], delimiter=delimiter))


def _layout(content: str, path: str) -> tuple[str, str, str, tuple[str, ...]]:
    try:
        for layout in LAYOUTS:
            if set(layout[3]) <= set(_header(content, layout[1])):
                return layout
    except csv.Error as error:
        raise ValueError(f"{path}: line 1: {error}; are its line ends lost?") from error
    expected = " or ".join(layout[1].join(layout[3]) for layout in LAYOUTS)
    header = content.lstrip("\r\n").split("\n", 1)[0].strip()[:200]
    raise ValueError(f"{path}: the header must hold the columns {expected}, but is {header!r}")


def _read_rows(content: str, path: str, left_out: Counter[str]) -> Iterator[Sentence]:
    """The sentences of a file; those that its publisher marks are counted in `left_out`."""
    name, delimiter, text_column, columns = _layout(content, path)
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    header: list[str] = []
    try:
        for row in rows:
            where = f"{path}: record that ends in line {rows.line_num}"
            if not row:
                continue
            if not header:
                header = row
                continue
            if len(row) != len(header):
                raise ValueError(f"{where}: {len(row)} fields where the header has {len(header)}")
            record = dict(zip(header, row, strict=True))
            if any("\n" in record[column] for column in columns):
                raise ValueError(f"{where}: a field goes over lines; is a quote left open?")
            answer = record[text_column].strip()
            if name == "full" and (record["status"].startswith("IRR_") or answer in ("", "null")):
                left_out["rows marked irrelevant, or empty"] += 1
                continue
            parts = ("label",) if name == "text" else ("scenario", "intent")
            for column in (text_column, *parts):
                if not record[column].strip():
                    raise ValueError(f"{where}: column {column!r} is empty")
            label = "_".join(record[part].strip() for part in parts)
            yield Sentence(f"{Path(path).name}:{rows.line_num}", answer, label)
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}") from error
