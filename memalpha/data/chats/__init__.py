"""Synthetic chats: what people type to an assistant, or to each other, and what of it to keep.

A stream mixes single lines ("I'm allergic to walnuts"), dialogues with speakers, corrections of
what was said before, small talk, and long answers that say nothing about anybody. Notes are built
by rule from the words of the chunk. `facts` has the kinds of facts, `words` the values, `forms` the
looks of a chunk.
"""

import datetime
from collections.abc import Sequence

import numpy as np

from memalpha.data.chats import forms
from memalpha.data.chats.dates import WEEKDAYS, Day, clock, head
from memalpha.data.chats.facts import Fact, correct, kinds, tell
from memalpha.data.chats.forms import Line
from memalpha.data.chats.slots import Draws, Subject
from memalpha.data.instance import Question

CAST = 3  # people with names who talk to each other at a time
CORRECTIONS = 0.5  # share of the facts of a chunk that correct an earlier one, where there is one
MOST_CORRECTIONS = 2  # of one fact
OBSERVED = 0.6  # share of single messages that look as `MemoryAgent` shows them to its writer
MOST_WORDS = 90  # of a dialogue, as far as there is filler to leave out
SLIPS = 0.08  # share of the facts that are corrected within the same chunk


class Stream:
    """The chunks of one instance as they grow, with notes and the facts that hold at the end."""

    def __init__(self, rng: np.random.Generator, split: str, facts_per_chunk: int, filler: float):
        self.draws, self._split = Draws(rng, split), split
        self._most, self._filler = facts_per_chunk, filler
        self._user = Subject()
        self._names: set[str] = set()
        self._quotes: dict[str, str] = {}  # note -> the same in the words of the chunk
        self._cast = [self._newcomer() for _ in range(CAST)]
        self.chunks: list[str] = []
        self.notes: list[list[dict]] = []
        self.facts: list[Fact] = []

    def questions(self) -> tuple[list[Question], list[list[str]]]:
        """The questions about what holds at the end, and for each the notes that answer it."""
        asked = [(q, [fact.note]) for fact in self.facts for q in fact.questions()]
        return [question for question, _ in asked], [notes for _, notes in asked]

    def add_chunk(self, date: datetime.date, empty: bool) -> None:
        """Writes the next chunk; `empty`: one that holds nothing worth keeping."""
        self.notes.append([])
        if empty:
            self.chunks.append(self._nothing(date))
            return
        kind = self.draws.rng.random()
        if kind >= 0.8 or len(self._user.told) >= len(kinds()) - self._most:
            self.chunks.append(self._among_friends(date))
        elif kind >= 0.5:
            self.chunks.append(self._with_assistant(date))
        else:
            self.chunks.append(self._typed(date))

    def _newcomer(self) -> Subject:
        """A person whose name is new to the stream."""
        for _ in range(1000):
            if (name := self.draws.person()) not in self._names:
                self._names.add(name)
                return Subject(name)
        raise ValueError(f"synthetic chats: the {self._split} split has no more names; shorten it")

    def _day(self, date: datetime.date, share: float) -> Day:
        """The day of a chunk, with a line for its head in this share of the cases."""
        rng = self.draws.rng
        return head(rng, date) if rng.random() < share else Day(date, clock(rng))

    def _fact_lines(self, subject: Subject, speaker: str, day: Day) -> list[Line]:
        """One fact about a subject, as said by the speaker, with its note."""
        old = self._to_correct(subject, day)
        if old is not None:
            fact = correct(old, self.draws, day)
            self.facts.remove(old)
            return self._keep([fact], speaker, old.note)
        open_kinds = [
            k
            for k in kinds()
            if k.name not in subject.told and (subject.is_user or k.only != "user")
        ]
        fact = tell(self.draws.pick(open_kinds), subject, self.draws, day)
        subject.told.add(fact.kind.name)
        if fact.kind.fix and self.draws.rng.random() < SLIPS:
            return self._keep([fact, correct(fact, self.draws, day)], speaker, None)
        return self._keep([fact], speaker, None)

    def _to_correct(self, subject: Subject, day: Day) -> Fact | None:
        """An earlier fact to correct; its note stays in the memory that it is in."""
        if self.draws.rng.random() >= CORRECTIONS:
            return None
        earlier = [
            fact
            for fact in self.facts
            if fact.subject is subject
            and fact.kind.fix
            and len(fact.values.former) < MOST_CORRECTIONS
            and fact.day.date < day.date
            and (fact.kind.memory != "dated" or bool(fact.day.stated) == bool(day.stated))
            # "on Tuesday" of an earlier day is another day by now
            and (fact.kind.change == "date" or fact.values.get("date") not in WEEKDAYS)
        ]
        return self.draws.pick(earlier) if earlier else None

    def _keep(self, said: list[Fact], speaker: str, replaces: str | None) -> list[Line]:
        """The lines that say these versions of a fact, of which the last one is noted."""
        last = said[-1]
        self.facts.append(last)
        lines = [Line(speaker, forms.styled(self.draws, fact.text), True) for fact in said]
        note = {"memory": last.memory, "content": last.note, "replaces": replaces}
        note |= {"quote": last.quoted(lines[-1].text), "replaces_quote": self._quotes.get(replaces)}
        self._quotes[last.note] = note["quote"]
        self.notes[-1].append(note)
        return lines

    def _typed(self, date: datetime.date) -> str:
        """A message without a speaker: mostly one bare line."""
        rng, is_observed = self.draws.rng, self.draws.rng.random() < OBSERVED
        day = forms.logged_day(rng, date) if is_observed else self._day(date, 0.4)
        count = 1 if rng.random() < 0.7 else int(rng.integers(1, min(self._most, 3) + 1))
        lines = []
        for _ in range(count):
            lines += self._fact_lines(self._user, forms.NOBODY, day)
        if rng.random() < self._filler / 3:
            lines.insert(0, Line(forms.NOBODY, forms.small_talk(self.draws)))
        return self._message(day, lines, is_observed)

    def _message(self, day: Day, lines: list[Line], is_observed: bool) -> str:
        """What one person types: as it is, or as `MemoryAgent` shows it to its writer."""
        if not is_observed:
            return forms.message(self.draws, day, lines)
        text = forms.message(self.draws, day, lines)
        return forms.logged(day, [Line("User", text), Line("Assistant", forms.NOTED)])

    def _with_assistant(self, date: datetime.date) -> str:
        """The user, or a person with a name, talks to an assistant."""
        rng, draws = self.draws.rng, self.draws
        is_logged = rng.random() < 0.3
        day = forms.logged_day(rng, date) if is_logged else self._day(date, 0.6)
        subject = self._user if is_logged or rng.random() < 0.7 else self._speakers(1)[0]
        speaker = "User" if is_logged else draws.pick(forms.USERS)
        speaker = speaker if subject.is_user else subject.name
        said: list[list[Line]] = []
        for _ in range(int(rng.integers(1, self._most + 1))):
            said += [[line] for line in self._fact_lines(subject, speaker, day)]
        said = self._with_filler(said, [speaker])
        assistant = "Assistant" if is_logged else draws.pick(forms.ASSISTANTS)
        lines: list[Line] = []
        for turn in said:
            lines += turn
            if rng.random() < 0.8:
                lines.append(Line(assistant, forms.reply(draws)))
        if rng.random() < self._filler / 3:
            question, answer = forms.question_and_answer(draws)
            lines += [Line(speaker, question), Line(assistant, answer)]
        lines = _shortened(lines)
        return forms.logged(day, lines) if is_logged else forms.dialogue(draws, day, lines)

    def _among_friends(self, date: datetime.date) -> str:
        """People with names talk to each other."""
        rng, day = self.draws.rng, self._day(date, 0.7)
        present = self._speakers(int(rng.integers(2, CAST + 1)))
        said: list[list[Line]] = []
        for _ in range(int(rng.integers(1, self._most + 1))):
            subject = self.draws.pick(present)
            said += [[line] for line in self._fact_lines(subject, subject.name, day)]
        said = self._with_filler(said, [subject.name for subject in present])
        lines: list[Line] = []
        for turn in said:
            lines += turn
            if rng.random() < self._filler:
                others = [s.name for s in present if s.name != turn[-1].speaker]
                lines.append(Line(self.draws.pick(others), forms.reaction(self.draws)))
        return forms.dialogue(self.draws, day, _shortened(lines))

    def _speakers(self, count: int) -> list[Subject]:
        """People of the cast; who has told nearly everything gives way to somebody new."""
        room = len(kinds()) - 2 * self._most - 2
        self._cast = [p if len(p.told) < room else self._newcomer() for p in self._cast]
        return [self._cast[i] for i in self.draws.rng.permutation(CAST)[:count]]

    def _with_filler(self, turns: list[list[Line]], speakers: Sequence[str]) -> list[list[Line]]:
        """The turns in their order, with lines of small talk anywhere between."""
        turns = list(turns)
        extra = round(len(turns) * self._filler / (1 - self._filler) * self.draws.rng.random())
        for _ in range(extra):
            line = Line(self.draws.pick(speakers), forms.small_talk(self.draws))
            turns.insert(int(self.draws.rng.integers(len(turns) + 1)), [line])
        return turns

    def _nothing(self, date: datetime.date) -> str:
        """A chunk that holds nothing worth keeping."""
        rng, draws = self.draws.rng, self.draws
        is_observed, kind = rng.random() < OBSERVED, rng.random()
        if kind < 0.45:
            day = forms.logged_day(rng, date) if is_observed else self._day(date, 0.3)
            return self._message(day, [Line(forms.NOBODY, forms.small_talk(draws))], is_observed)
        day = self._day(date, 0.3)
        if kind < 0.75:
            question, answer = forms.question_and_answer(draws)
            lines = [Line(draws.pick(forms.USERS), question)]
            lines.append(Line(draws.pick(forms.ASSISTANTS), answer))
            return forms.dialogue(draws, day, lines)
        is_group = rng.random() < 0.5
        names = [s.name for s in self._speakers(2)] if is_group else [draws.pick(forms.USERS)]
        names = names if is_group else [*names, draws.pick(forms.ASSISTANTS)]
        says = forms.reaction if is_group else forms.reply
        lines = []
        for _ in range(int(rng.integers(1, 4))):
            lines += [Line(names[0], forms.small_talk(draws)), Line(names[1], says(draws))]
        return forms.dialogue(draws, day, lines)


def write(
    rng: np.random.Generator,
    split: str,
    chunks: int,
    facts_per_chunk: int,
    filler_share: float,
    empty_share: float,
) -> Stream:
    """A stream of chunks, at least one of which holds something worth keeping.

    `empty_share` is the share of the chunks that hold nothing, `filler_share` says how much small
    talk there is within the others. Raises ValueError where a long stream runs out of names.
    """
    stream = Stream(rng, split, facts_per_chunk, filler_share)
    empty = rng.random(chunks) < empty_share
    if empty.all():
        empty[rng.integers(chunks)] = False
    date = datetime.date(2022, 1, 1) + datetime.timedelta(days=int(rng.integers(2000)))
    for is_empty in empty:
        date += datetime.timedelta(days=int(rng.integers(1, 5)))
        stream.add_chunk(date, bool(is_empty))
    return stream


def _shortened(lines: Sequence[Line]) -> list[Line]:
    """The lines of a dialogue without the last ones that say no fact, as far as it is too long."""
    lines = list(lines)
    while sum(len(line.text.split()) + 1 for line in lines) > MOST_WORDS:
        filler = [i for i, line in enumerate(lines) if not line.says_fact]
        if not filler:
            break
        del lines[filler[-1]]
    return lines
