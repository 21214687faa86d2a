"""Published files, one record at a time: no reader here holds more than a record in memory.

Every record comes with its place (file and line or record number), which the loaders put into their
messages. What `text.read_bytes` refuses (absent, empty, Git-LFS pointer) is refused here too.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from memalpha.data.surrogates import LOST_HALF, clean_surrogates
from memalpha.data.text import LFS_PREFIX, refuse_pointer
from memalpha.paths import user_path

DOWNLOADS = "downloads.json"  # what `download` keeps beside the files that it fetched
MAX_LINE = 1 << 26  # bytes of a line; the longest book of InfiniteBench has a few million


def digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file; ValueError if it is absent, empty or a Git-LFS pointer."""
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(len(LFS_PREFIX))
    refuse_pointer(path, head)
    if not head:
        raise ValueError(f"{path}: the file is empty")
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of any file that is there."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> Path:
    """Writes aside and renames, so that a reader never sees half a file."""
    aside = path.with_suffix(path.suffix + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
    return path


def find(folder: Path, patterns: Iterable[str], advice: str) -> list[Path]:
    """Files of a folder that match a pattern, sorted; ValueError with the advice if there is none.

    The folder stands for a source below the user's data folder, as in `load_source`.
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise ValueError(f"{folder}: no {' or '.join(patterns)}; {advice}")
    return paths


def lines(path: str | Path, limit: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of a UTF-8 file.

    Raises ValueError for a line of more than `limit` bytes, or one that is no UTF-8.
    """
    with user_path(path).open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise ValueError(
                    f"{path}: line {number} is longer than {limit:,} bytes; are its line ends lost?"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: line {number}: not UTF-8 ({error.reason})") from error
            yield number, text.rstrip("\r\n")


def jsonl_records(path: str | Path, limit: int = MAX_LINE) -> Iterator[tuple[str, Any]]:
    """(place, object) of every line of a JSON Lines file; blank lines are passed over."""
    for number, line in lines(path, limit):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not valid JSON (column {error.colno}: {error.msg}); is the file cut off?"
            ) from error
        yield where, clean_surrogates(record, where)


# An escape of JSON: a whole surrogate pair, half of one, or any other.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_ANY_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_FIRST_HALF = re.compile(rb"\\u[dD][89abAB]..", re.DOTALL)
_PAIR = 12  # bytes of an escaped surrogate pair


class _Escapes:
    """A file of JSON as ijson reads it, with `surrogates.LOST_HALF` for half a surrogate pair.

    ijson puts a question mark for the first half of a pair and stops at the second.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.rest = file, b""

    def read(self, size: int) -> bytes:
        data, self.rest = self.rest, b""
        while block := self.file.read(size):  # once, but where all of a block has to wait
            data += block
            if end := _whole_escapes(data):
                data, self.rest = data[:end], data[end:]
                break
        if _ANY_HALF.search(data) is None:
            return data
        lost = json.dumps(LOST_HALF).encode()[1:-1]
        return _ESCAPE.sub(lambda match: lost if match["half"] else match[0], data)


def _whole_escapes(data: bytes) -> int:
    """The length of a beginning of the data that does not end inside an escape, or between the
    halves of a surrogate pair."""
    end = data.find(b"\\", max(len(data) - _PAIR + 1, 0))
    if end < 0:
        return len(data)
    end = len(data[:end].rstrip(b"\\"))
    if _FIRST_HALF.fullmatch(data, max(end - 6, 0), end):
        end = len(data[: end - 6].rstrip(b"\\"))
    return end


def json_records(path: str | Path, prefix: str = "item") -> Iterator[tuple[str, Any]]:
    """(place, record) of the array at `prefix` of a JSON file, which is never read as a whole.

    The default prefix is a top-level array; "data.item" is the array in the field `data`.
    """
    number = 0
    with user_path(path).open("rb") as file:
        try:
            for record in ijson.items(_Escapes(file), prefix, use_float=True):
                where = f"{path}: record {number}"
                yield where, clean_surrogates(record, where)
                number += 1
        except (ijson.JSONError, UnicodeDecodeError) as error:
            detail = error.args[0] if error.args else ""  # bytes, where the file is no UTF-8
            detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(error)
            problem = " ".join(detail.split())[:120]
            raise ValueError(
                f"{path}: record {number}: not valid JSON ({problem}); is the file cut off, or no"
                " UTF-8?"
            ) from error
    if not number:
        wanted = "a list" if prefix == "item" else f"a list at {prefix.removesuffix('.item')!r}"
        raise ValueError(f"{path}: no records; {wanted} is expected")


def csv_records(path: str | Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a CSV file whose header holds the columns; a quoted field may hold newlines.

    Raises ValueError for a missing column, a row of another width, an empty cell of the columns, a
    field over the limit of `csv`, or text that is no UTF-8.
    """
    number = 0
    with user_path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            missing = set(columns) - set(rows.fieldnames or ())
            if missing:
                raise ValueError(
                    f"{path}: column {sorted(missing)[0]!r} is missing (found {rows.fieldnames})"
                )
            for number, row in enumerate(rows, start=1):
                where = f"{path}: record {number} (ends in line {rows.line_num})"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: {len(rows.fieldnames)} fields are expected")
                for column in columns:
                    if not row[column].strip():
                        raise ValueError(f"{where}: column {column!r} is empty")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}: after record {number}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: after record {number}: not UTF-8") from error
