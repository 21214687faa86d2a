"""The values of the slots that stand in lists: names.toml and words.toml, divided among splits."""

import tomllib
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from pathlib import Path

from memalpha.data.text import share

FOLDER = Path(__file__).parent
# The split of a value hangs on a hash of it, so that a word is of one split in whatever list.
SHARES = {"train": (0.0, 0.7), "validation": (0.7, 0.82), "test": (0.82, 1.0)}
# Relations and parts of names, in all splits.
SHARED = ("kin_f", "kin_m", "branch", "road", "box", "room")
_PLURALS = ("drums", "pipes")
_LIKE_CONSONANTS = ("uk", "uni", "uro", "eu")  # a ukulele, a urologist
_LETTERS = ("MRI", "X-ray")  # read as letters: an MRI


@lru_cache
def read_toml(name: str) -> dict:
    """A data file of this package."""
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


@lru_cache
def _lists() -> dict[str, tuple[str, ...]]:
    return {
        slot: tuple(value.strip() for value in text.replace("\n", " ").split(",") if value.strip())
        for group in (read_toml("names.toml") | read_toml("words.toml")).values()
        for slot, text in group.items()
    }


@lru_cache
def pool(slot: str, split: str) -> tuple[str, ...]:
    """The values of a slot that belong to a split; no value belongs to two."""
    if slot == "firm":
        return tuple(
            f"{name} {branch}" for name, branch in product(_own(slot, split), _own("branch", split))
        )
    if slot == "book":
        pairs = product(_lists()["sight"], _lists()["title"])
        return _part([f"The {a.title()} {b.title()}" for a, b in pairs], split)
    if slot == "spot":
        pairs = product(_lists()["box"], _lists()["room"])
        return _part([f"{box} in {room}" for box, room in pairs], split)
    if slot == "hotel":
        return tuple(f"Hotel {name}" for name in _own(slot, split))
    return _own(slot, split)


def _own(slot: str, split: str) -> tuple[str, ...]:
    values = _lists()[slot]
    return values if slot in SHARED else _part(values, split)


def _part(values: Iterable[str], split: str) -> tuple[str, ...]:
    low, high = SHARES[split]
    return tuple(value for value in values if low <= share("chats", value) < high)


def with_article(value: str) -> str:
    """The value behind "a" or "an"; plurals stay bare."""
    if value.endswith(_PLURALS):
        return value
    vowel = value[0].lower() in "aeiou" and not value.lower().startswith(_LIKE_CONSONANTS)
    return f"{'an' if vowel or value.startswith(_LETTERS) else 'a'} {value}"


def third_person(verb: str) -> str:
    """The verb as it stands after "she"."""
    if verb == "have":
        return "has"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}{'es' if verb.endswith(('s', 'sh', 'ch', 'x', 'o')) else 's'}"
