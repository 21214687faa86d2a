"""Cutting long texts: at lines or paragraphs, else at sentences, else between words, else anywhere.

`pieces` and `fill` cut a text that is read in chunks, where white space at a cut does not matter;
`split_text` keeps every character.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from memalpha.data.text import sentence_ends


def pieces(passage: str, limit: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    """The passage whole if it has at most `limit` tokens, else cut; never an empty piece.

    It is cut after its sentences; a sentence that is still too long between words; a word that is
    still too long (a 100,000-letter line without spaces) in halves.
    """
    passage = passage.strip()
    if not passage:
        return
    if count_tokens(passage) <= limit:
        yield passage
        return
    parts = [part for sentence in _sentences(passage) if (part := sentence.strip())]
    if len(parts) == 1:
        parts = passage.split()
    if len(parts) == 1:
        if len(passage) == 1:
            raise ValueError(f"{passage!r} alone has more than {limit} tokens")
        for half in _halves(passage):
            yield from pieces(half, limit, count_tokens)
        return
    for group in fill(parts, limit, count_tokens, " "):
        if len(group) == 1:
            yield from pieces(group[0], limit, count_tokens)
        else:
            yield " ".join(group)


def fill(
    parts: Iterable[str], limit: int, count_tokens: Callable[[str], int], joiner: str
) -> Iterator[list[str]]:
    """Groups of consecutive parts that hold at most `limit` tokens when joined.

    A part that is longer alone makes a group of its own. Sizes are summed, the joined text is
    counted once a group; what it leaves no room for moves into the next.
    """
    group: list[str] = []
    used = 0
    for part in parts:
        if not part:
            continue
        size = count_tokens(joiner + part)
        while group and used + size > limit:
            rest: list[str] = []
            while len(group) > 1 and count_tokens(joiner.join(group)) > limit:
                rest.insert(0, group.pop())
            yield group
            group, used = rest, sum(count_tokens(joiner + item) for item in rest)
        group.append(part)
        used += size
    while group:
        rest = []
        while len(group) > 1 and count_tokens(joiner.join(group)) > limit:
            rest.insert(0, group.pop())
        yield group
        group = rest


def split_text(text: str, limit: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The text in parts of at most `limit` tokens, joined again the same text.

    Cut between lines where that does, else between sentences, words, characters. The tokens of a
    part are counted piece by piece, which is never less than a tokenizer gives for the whole.
    """
    parts, used = [""], 0
    for piece in _cut_small(text, limit, count_tokens):
        size = count_tokens(piece)
        if parts[-1] and used + size > limit:
            parts.append("")
            used = 0
        parts[-1] += piece
        used += size
    return [part for part in parts if part.strip()] if text.strip() else []


def _cut_small(
    text: str, limit: int, count_tokens: Callable[[str], int], depth: int = 0
) -> list[str]:
    """Pieces of at most `limit` tokens, or of one character; together the same text."""
    if count_tokens(text) <= limit or len(text) < 2:
        return [text]
    cuts = (_lines, _sentences, _words, _halves)
    deeper = min(depth + 1, len(cuts) - 1)
    return [
        part
        for piece in cuts[depth](text)
        for part in _cut_small(piece, limit, count_tokens, deeper)
    ]


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _sentences(text: str) -> list[str]:
    ends = sorted({0, len(text), *sentence_ends(text)})
    return [text[start:end] for start, end in pairwise(ends)]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\S*\s*", text) if word]


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [text[:middle], text[middle:]]
