"""Kinds of facts that people tell an assistant or each other (people.toml, plans.toml).

Fields of a kind: `said`, phrasings in the first person; `note`, the statement to store; `ask`,
questions with their answers; `ask_today`, questions that the date of the chunk answers, asked where
the fact is of today; `memory`; `change`, the slot that a correction gives a new value; `fix`,
phrasings of the correction, in which {old} is the former value; `only = "user"`: never said by a
person with a name. Every phrasing holds all slots of the note but {when}.
"""

from dataclasses import dataclass
from functools import lru_cache

from memalpha.data.chats.dates import Day
from memalpha.data.chats.slots import TODAY, Draws, Subject, Values
from memalpha.data.chats.words import read_toml
from memalpha.data.instance import Question


@dataclass(frozen=True)
class Kind:
    """A kind of fact; see the top of this file.

    memory: "fact" goes to the semantic memory; "dated" to the episodic one where a date is known,
    else to the semantic one; "core" to the core memory where it is about the user.
    """

    name: str
    said: list[str]
    note: str
    ask: list[list[str]]
    ask_today: tuple[str, ...] = ()
    memory: str = "fact"
    change: str = ""
    fix: tuple[str, ...] = ()
    only: str = ""


@dataclass(frozen=True)
class Fact:
    """A fact as it was told in one chunk, and what should be stored of it."""

    kind: Kind
    subject: Subject
    values: Values
    text: str  # as it is said
    note: str
    memory: str  # core | semantic | episodic
    day: Day

    def questions(self) -> list[Question]:
        asked = [(q, a.format_map(self.values)) for q, a in self.kind.ask]
        if self.day.stated and self.values.get("when") in TODAY:
            asked += [(question, self.day.stated) for question in self.kind.ask_today]
        return [Question(q.format_map(self.values), (answer,)) for q, answer in asked]

    def quoted(self, said: str) -> str:
        """The note in the words of the chunk, with speaker and date, as notes of real dialogues."""
        speaker = "User" if self.subject.is_user else self.subject.name
        return _dated(self.kind, self.day, f"{speaker} said: {said}")


@lru_cache
def kinds() -> tuple[Kind, ...]:
    tables = read_toml("people.toml") | read_toml("plans.toml")
    return tuple(Kind(name, **fields) for name, fields in tables.items())


def tell(kind: Kind, subject: Subject, draws: Draws, day: Day) -> Fact:
    """A new fact."""
    return _say(kind, subject, Values(draws, subject, day), draws.pick(kind.said), day)


def correct(fact: Fact, draws: Draws, day: Day) -> Fact:
    """The fact with another value, as somebody corrects it on a later day."""
    values = fact.values.corrected(fact.kind.change, day)
    return _say(fact.kind, fact.subject, values, draws.pick(fact.kind.fix), day)


def _say(kind: Kind, subject: Subject, values: Values, phrasing: str, day: Day) -> Fact:
    text = phrasing.format_map(values)
    when = values.get("when", "") if day.stated else ""
    note = _dated(kind, day, kind.note.replace("{when}", when).format_map(values))
    return Fact(kind, subject, values, text, note, _memory(kind, subject, day), day)


def _dated(kind: Kind, day: Day, note: str) -> str:
    if kind.memory != "dated" or not day.stated:
        return note
    return f"{day.stated[0].upper()}{day.stated[1:]}: {note}"


def _memory(kind: Kind, subject: Subject, day: Day) -> str:
    if kind.memory == "core" and subject.is_user:
        return "core"
    dated = kind.memory == "dated" and (day.stated or "{date}" in kind.note)
    return "episodic" if dated else "semantic"
