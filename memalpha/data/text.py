"""Shared by the text sources: reading files, hashing, cutting at sentences, packing into chunks."""

import datetime
import hashlib
import heapq
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from memalpha.data.sizes import Sizes
from memalpha.data.surrogates import clean_surrogates
from memalpha.paths import user_path

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
LFS_PREFIX = b"version https://git-lfs"
FIRST_DAY = datetime.date(2024, 1, 1)
SEPARATOR = "\n\n"  # between the paragraphs or the examples of a chunk

# A sentence ends at . ! ? (with closing quotes or brackets) before a space and a character that is
# no small Latin letter, or at a full stop of the scripts that put no space behind it.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+[^\sa-z])|[。！？।]+")
_ABBREVIATIONS = frozenset(
    "dr mr mrs ms st vs no jr sr gen col sgt rev prof e.g i.e fig vol".split()
)
_LONGEST = 40  # letters before a full stop that are looked at: an abbreviation is shorter


def read_bytes(path: str | Path) -> tuple[bytes, str]:
    """Content and SHA-256 (hex) of a file; ValueError if it is absent, empty or an LFS pointer."""
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    data = path.read_bytes()
    refuse_pointer(path, data)
    if not data.strip():
        raise ValueError(f"{path}: the file is empty")
    return data, hashlib.sha256(data).hexdigest()


def refuse_pointer(path: Path, head: bytes) -> None:
    """ValueError if a file that begins with `head` is a Git-LFS pointer."""
    if head.startswith(LFS_PREFIX):
        raise ValueError(
            f"{path}: this is a Git-LFS pointer, not the data; fetch the file with `git lfs pull`"
        )


def read_text(path: str | Path, fallback: str | None = None) -> tuple[str, str]:
    """Text and SHA-256 of a UTF-8 file; one that is no UTF-8 is decoded as `fallback`, if given."""
    data, digest = read_bytes(path)
    try:
        return data.decode("utf-8-sig"), digest
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback), digest
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_json(path: str | Path) -> tuple[Any, str]:
    """Parsed content and SHA-256 of a JSON file."""
    text, digest = read_text(path)
    try:
        return clean_surrogates(json.loads(text), str(path)), digest
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path}: not valid JSON ({problem}); is the file truncated?") from error


_KINDS = {str | int | float: "a text or a number"}  # how an error calls a kind


def require(record: Any, field: str, kind: type | UnionType, where: str) -> Any:
    """record[field], which must be there, of this type and, if a string, not blank."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be an object, not {type(record).__name__}")
    if field not in record:
        raise ValueError(f"{where}: field {field!r} is missing (found {sorted(record)})")
    value = record[field]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        actual = type(value).__name__
        wanted = getattr(kind, "__name__", _KINDS.get(kind, str(kind)))
        raise ValueError(f"{where}: field {field!r} must be {wanted}, not {actual}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{where}: field {field!r} is empty")
    return value


def claim(places: dict[str, str], name: str, where: str, what: str = "id") -> None:
    """Note that `name` stands at `where`; ValueError if it stands somewhere else already."""
    first = places.setdefault(name, where)
    if first != where:
        raise ValueError(f"{where}: {what} {name!r} stands already at {first}")


# Scripts without spaces: a token a character. Others: a token a word, digit, mark and line end.
_TOKEN = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W\d_\u2e80-\u9fff\uac00-\ud7af]+|\d|[^\w\s]|_|\n"
)


def approximate_tokens(text: str) -> int:
    """About how many tokens a text has, where there is no tokenizer to ask.

    Words, digits, marks and line ends. For the English of the sources here within 10 % of what the
    vocabulary of Qwen gives, mostly below it (docs/data.md).
    """
    return sum(1 for _ in _TOKEN.finditer(text))


def check_request(split: str, sizes: Sizes) -> None:
    """ValueError unless the split is known and all sizes asked for are positive."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    for name in ("chunks", "chunk_tokens", "questions"):
        value = getattr(sizes, name)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if sizes.count < 0:
        raise ValueError(f"count must not be negative, not {sizes.count}")


def select_split(
    items: Iterable[T], split: str, source: str, kind: str, files: Iterable[str], advice: str = ""
) -> list[T]:
    """The items whose `split` is this one; ValueError if there are none.

    The error names the source, what an item is (`kind`, e.g. "article"), the file names and the
    advice.
    """
    selected = [item for item in items if item.split == split]
    if not selected:
        advice = advice and f"; {advice}"
        raise ValueError(f"{source}: no {kind} of the {split!r} split in {sorted(files)}{advice}")
    return selected


def rank(*parts: object) -> bytes:
    """A sort key that is random but fixed by the parts: no generator state, no file order."""
    data = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


def shuffled(items: Iterable[T], key: Callable[[T], str], *parts: object) -> list[T]:
    """The items in a random order fixed by their keys and the parts, not by their order."""
    return sorted(items, key=lambda item: rank(*parts, key(item)))


def lowest(items: Iterable[T], limit: int, key: Callable[[T], bytes]) -> tuple[list[T], int]:
    """At most `limit` items, those of the lowest keys, in their order; and the number of all.

    No more than `limit` are in memory, and the choice does not depend on the order of the items.
    """
    counter = itertools.count()
    counted = (item for item, _ in zip(items, counter, strict=False))
    return heapq.nsmallest(limit, counted, key=key), next(counter)


def go_on(
    unread: Sequence[T], items: Iterable[T], key: Callable[[T], str], *parts: object
) -> list[T]:
    """`unread`, then the other items in a random order fixed by their keys and the parts.

    For instances that are built one after the other: each reads the beginning of such an order
    (`left`), so that every item is read once before one is read again.
    """
    waiting = set(map(key, unread))
    return [*unread, *shuffled((i for i in items if key(i) not in waiting), key, *parts)]


def left(order: list[T], unread: Sequence[T], read: int) -> list[T]:
    """What is unread after the first `read` items of `order = go_on(unread, ...)`.

    If that is nothing, a new round begins, in which what ended the old one comes last.
    """
    return order[read : len(unread)] or [*order[read:], *unread]


def share(*parts: object) -> float:
    """A number in [0, 1) fixed by the parts."""
    return int.from_bytes(rank(*parts)[:6]) / 2**48


def in_turn(queues: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of every queue, then the second of every queue, and so on until all are empty."""
    for depth in range(max(map(len, queues), default=0)):
        yield from (queue[depth] for queue in queues if depth < len(queue))


def plain_key(text: str) -> str:
    """The text without case, white space and punctuation: equal for sentences that read alike."""
    letters = [c for c in text.casefold() if not (c.isspace() or unicodedata.category(c)[0] == "P")]
    return "".join(letters) or text


def sentence_ends(text: str) -> list[int]:
    """Positions at which a sentence is complete; the last is the end of the text."""
    ends = []
    for match in _SENTENCE_END.finditer(text):
        # Not the whole beginning of the text, whose copies would be quadratic in a long line.
        words = text[max(match.start() - _LONGEST, 0) : match.start()].rsplit(None, 1)
        word = words[-1].lstrip("(\"'“‘[") if words else ""
        if match[0] == "." and (word.lower() in _ABBREVIATIONS or re.fullmatch(r"(\w\.)*\w", word)):
            if not word.isdigit():  # "Dr. Who", "J. Smith", "U.S. Navy"; but "in round 3. Then"
                continue
        ends.append(match.end())
    if not ends or text[ends[-1] :].strip():
        ends.append(len(text))
    return ends


def leading_sentences(text: str, fits: Callable[[str], bool]) -> str:
    """The longest run of whole sentences from the start of the text that fits; "" if none does."""
    if fits(text):
        return text
    leading = ""
    for end in sentence_ends(text):
        if not fits(text[:end]):
            break
        leading = text[:end]
    return leading


def dialogue_chunk(lead_in: str, acknowledgement: str, index: int, content: str) -> str:
    """The chunk text of documents and of labelled examples: one dialogue turn, one day a chunk."""
    day = FIRST_DAY + datetime.timedelta(days=index)
    return (
        f"[Dialogue between User and Assistant on {day} 00:00]\n"
        f"<User>{lead_in}{SEPARATOR}{content}\n<Assistant>{acknowledgement}"
    )


def dialogue_phrases(lead_in: str, acknowledgement: str) -> tuple[str, ...]:
    """The fixed strings of every `dialogue_chunk`, for a tokenizer to hold as single tokens."""
    hole = "\ue000"  # private use: in none of the strings
    frame = dialogue_chunk(lead_in, acknowledgement, 0, hole)
    return tuple(frame.replace(str(FIRST_DAY), hole).split(hole))


def dialogue_content(chunk: str) -> str:
    """The content of a `dialogue_chunk`: its inverse. ValueError if the chunk has another form."""
    head, opened, rest = chunk.partition(SEPARATOR)
    content, closed, _ = rest.rpartition("\n<Assistant>")
    if not opened or not closed or "\n<User>" not in head:
        raise ValueError(
            f"a chunk that begins with {chunk[:60]!r} is no dialogue turn of `dialogue_chunk`:"
            " date line, <User> with a lead-in, blank line, content, <Assistant>"
        )
    return content


def pack(
    items: Iterable[str],
    frame: Callable[[int, str], str],
    chunks: int,
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
) -> list[tuple[str, list[int]]]:
    """Fill at most `chunks` chunks, in order, with whole items: [(chunk text, item indices)].

    `frame(chunk index, content)` is the text of a chunk; none is over `chunk_tokens` tokens. Empty
    items and those that do not fit a chunk alone are left out. `items` is read no further than
    needed.
    """
    packed: list[tuple[str, list[int]]] = []
    waiting: list[tuple[int, str]] = []  # the chunk being filled
    used = frame_tokens = count_tokens(frame(0, ""))

    def render(entries: list[tuple[int, str]]) -> str:
        return frame(len(packed), SEPARATOR.join(text for _, text in entries))

    def close(entries: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Write the chunk; what the exact count of the joined text leaves no room for, returns."""
        rest: list[tuple[int, str]] = []
        while entries and count_tokens(render(entries)) > chunk_tokens:
            rest.insert(0, entries.pop())
        if entries:
            packed.append((render(entries), [index for index, _ in entries]))
            return rest
        return rest[1:]  # the first item alone is too long

    # Items are counted one by one (a chunk is counted whole only when it is closed), so that the
    # cost is linear in the text; tokens that merge across the separator make the sum inexact.
    for index, text in enumerate(items):
        if not text:
            continue
        size = count_tokens(SEPARATOR + text)
        if frame_tokens + size > chunk_tokens:
            continue
        if waiting and used + size > chunk_tokens:
            waiting = close(waiting)
            used = frame_tokens + sum(count_tokens(SEPARATOR + text) for _, text in waiting)
            if len(packed) == chunks:
                return packed
        waiting.append((index, text))
        used += size
    while waiting and len(packed) < chunks:
        waiting = close(waiting)
    return packed
