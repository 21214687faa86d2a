"""Cutting long texts into chunks: at paragraphs, else at sentences, else between words."""

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
    ends = [0, *sentence_ends(passage)]
    parts = [passage[start:end].strip() for start, end in pairwise(ends)]
    if len([part for part in parts if part]) == 1:
        parts = passage.split()
        if len(parts) == 1:
            middle = len(passage) // 2
            if not middle:
                raise ValueError(f"{passage!r} alone has more than {limit} tokens")
            parts = [passage[:middle], passage[middle:]]
            yield from (piece for part in parts for piece in pieces(part, limit, count_tokens))
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
