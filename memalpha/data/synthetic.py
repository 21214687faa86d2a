"""Synthetic instances in natural-looking English: five families, any length, no download.

Each family is a function that turns a random generator into *beats* (statements worth remembering,
with the question each one answers) in reading order; the shared part below spreads them over chunks
among filler and writes the chunks in the formats of the published sources.

`metadata["notes"]` lists, for each chunk, what a perfect writer would store: objects with `memory`
(core, semantic or episodic), `content` and `replaces` (the content it supersedes, or None).
Entities (people, firms, things, sentences) are disjoint between train, validation and test.
"""

import datetime
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memalpha.data import lexicon
from memalpha.data.instance import Instance, Question, validate

# Shares of all entities, in tenths. Test has most: the longest test streams need the most names.
SPLITS = {"train": range(0, 4), "validation": range(4, 5), "test": range(5, 10)}
STORY_QUESTION = "Write a summary of the story: the people, the places and the things that matter."
LABEL_TAIL = "\nWhat are the labels for the above sentence?"


@dataclass(frozen=True)
class Beat:
    """A statement worth remembering, and what is asked about it."""

    text: str  # as it stands in the chunk
    note: str  # what a good memory entry says; "{date}" becomes the date of the chunk
    memory: str  # core | semantic | episodic
    questions: tuple[tuple[str, str], ...] = ()  # (question, answer), "{date}" as above
    replaces: int | None = None  # index of the earlier beat that this one supersedes


@dataclass(frozen=True)
class Tale:
    """Beats in reading order, the chunk of each beat, filler sentences and fixed questions."""

    beats: list[Beat]
    chunk_of: list[int]
    filler: Sequence[str]
    questions: tuple[Question, ...] = ()
    label_names: dict | None = None


def split_of(entity: str) -> str:
    """The split that owns an entity: by its hash, so the same in every process and at any size."""
    tenth = hashlib.blake2b(entity.encode(), digest_size=8).digest()[0] * 10 // 256
    return next(split for split, tenths in SPLITS.items() if tenth in tenths)


@lru_cache
def _owned(kind: str, split: str) -> tuple:
    """All entities of a kind that belong to a split."""
    pools = {
        "people": lambda: itertools.product(lexicon.FIRST_NAMES, lexicon.LAST_NAMES),
        "firms": lambda: itertools.product(lexicon.FIRM_NAMES, lexicon.FIRM_KINDS),
        "things": lambda: itertools.product(lexicon.COLOURS, lexicon.ITEMS),
        "places": lambda: itertools.product(lexicon.PLACE_ADJECTIVES, lexicon.PLACES),
    }
    return tuple(name for name in map(" ".join, pools[kind]()) if split_of(name) == split)


@lru_cache
def _requests(intent: str, split: str) -> tuple[str, ...]:
    verbs, nouns = lexicon.INTENTS[intent]
    parts = itertools.product(lexicon.REQUEST_LEADS, verbs, nouns, lexicon.REQUEST_TAILS)
    sentences = (f"{lead} {verb} the {noun} {tail}" for lead, verb, noun, tail in parts)
    return tuple(s for s in sentences if split_of(s) == split)


def _pick(rng: np.random.Generator, options: Sequence, avoid: Sequence = ()) -> str:
    options = [o for o in options if o not in avoid]
    return options[rng.integers(len(options))]


def _people(rng: np.random.Generator, split: str) -> Iterator[str]:
    """People of a split without repetition, about half sharing a name with the one before."""
    unused = [str(person) for person in rng.permutation(_owned("people", split))]
    last = unused[-1]
    while unused:
        near = unused[-40:]
        shared = [i for i, p in enumerate(near) if set(p.split()) & set(last.split())]
        back = len(near) - shared[0] if shared and rng.random() < 0.5 else 1
        last = unused.pop(len(unused) - back)
        yield last


def _person_relations(rng: np.random.Generator, split: str) -> Iterator[tuple[str, str]]:
    """(person, relation) pairs without repetition: all of two people, then of the next two."""
    people = _people(rng, split)
    for pair in zip(people, people, strict=False):
        cells = list(itertools.product(pair, lexicon.RELATIONS))
        yield from (cells[i] for i in rng.permutation(len(cells)))


def _fact(person: str, relation: str, value: str, prefix: str = "The") -> str:
    article = "a " if relation in lexicon.COUNTABLE else ""
    return f"{prefix} {relation} of {person} is {article}{value}."


def facts(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """Documents of facts about people; one-hop questions, and two-hop ones through an employer."""
    cells, employees = _person_relations(rng, split), _people(rng, split)
    firms = iter(rng.permutation(_owned("firms", split)))
    beats: list[Beat] = []
    while len(beats) < sum(sizes):
        two_hops = rng.random() < 0.25 and sum(sizes) - len(beats) >= 2
        firm = next(firms, None) if two_hops else None
        if firm is not None:  # a long stream runs out of firms, and goes on with plain facts
            person, town = next(employees), _pick(rng, lexicon.TOWNS)
            ask = f"In which town is the head office of {firm}?"
            text = f"The head office of {firm} is in {town}."
            beats.append(Beat(text, text, "semantic", ((ask, town),)))
            ask = f"In which town is the head office of the employer of {person}?"
            text = f"The employer of {person} is {firm}."
            beats.append(Beat(text, text, "semantic", ((ask, town),)))
        else:
            person, relation = _draw(cells, split)
            value = _pick(rng, lexicon.RELATIONS[relation])
            ask = f"What is the {relation} of {person}?"
            text = _fact(person, relation, value)
            beats.append(Beat(text, text, "semantic", ((ask, value),)))
    beats = [beats[i] for i in rng.permutation(len(beats))]
    return Tale(beats, _spread(sizes), lexicon.FILLER)


def _draw(cells: Iterator[tuple[str, str]], split: str) -> tuple[str, str]:
    try:
        return next(cells)
    except StopIteration:
        raise ValueError(
            f"synthetic data: the {split} split has no more facts; shorten it"
        ) from None


def updates(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """Facts of which half change later in the stream; the latest value is asked."""
    cells = _person_relations(rng, split)
    total = sum(sizes)
    order = rng.permutation(total)
    slots: list[Beat | None] = [None] * total
    for first, second in zip(order[0 : total // 2 : 2], order[1 : total // 2 : 2], strict=False):
        first, second = sorted((int(first), int(second)))
        person, relation = _draw(cells, split)
        old = _pick(rng, lexicon.RELATIONS[relation])
        new = _pick(rng, lexicon.RELATIONS[relation], avoid=(old,))
        text = _fact(person, relation, old)
        slots[first] = Beat(text, text, "semantic")
        text = _fact(person, relation, new, prefix="By now the")
        ask = (f"What is the {relation} of {person} now?", new)
        slots[second] = Beat(text, text, "semantic", (ask,), replaces=first)
    for i, slot in enumerate(slots):
        if slot is None:
            person, relation = _draw(cells, split)
            value = _pick(rng, lexicon.RELATIONS[relation])
            ask = (f"What is the {relation} of {person} now?", value)
            text = _fact(person, relation, value)
            slots[i] = Beat(text, text, "semantic", (ask,))
    return Tale(slots, _spread(sizes), lexicon.FILLER)


def events(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """Dated dialogue turns; asked is when something happened."""
    things = itertools.product(lexicon.ACTORS, lexicon.EVENT_VERBS, _owned("things", split))
    things = list(things)
    if sum(sizes) > len(things):
        raise ValueError(f"synthetic events: the {split} split has {len(things)} events only")
    chosen = rng.choice(len(things), size=sum(sizes), replace=False)
    beats = []
    for actor, verb, thing in (things[i] for i in chosen):
        text = f"{actor} {lexicon.EVENT_VERBS[verb]} the {thing}."
        who = "I" if actor == "I" else actor.lower()
        ask = (f"On which date did {who} {verb} the {thing}?", "{date}")
        beats.append(Beat(text, "{date}: " + text, "episodic", (ask,)))
    return Tale(beats, _spread(sizes), lexicon.CHATTER)


def labels(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """Requests with a number each; what a number means has to be learned from the examples."""
    intents = [str(i) for i in rng.permutation(list(lexicon.INTENTS))[:3]]
    numbers = [int(n) for n in rng.choice(30, size=3, replace=False)]
    pools = [list(rng.permutation(_requests(i, split))) for i in intents]
    asked = min(sum(sizes), 30)
    if min(map(len, pools)) < sum(sizes) // 3 + asked:
        raise ValueError(f"synthetic labels: the {split} split has too few sentences; shorten it")
    beats = []
    for i in range(sum(sizes)):
        which = i % 3
        sentence = str(pools[which].pop())
        text = f"Sentence: {sentence}\nLabel: {numbers[which]}"
        beats.append(Beat(text, f"{sentence} Label: {numbers[which]}", "semantic"))
    beats = [beats[i] for i in rng.permutation(len(beats))]
    questions = tuple(
        Question(str(pools[i % 3].pop()) + LABEL_TAIL, (str(numbers[i % 3]),)) for i in range(asked)
    )
    names = {str(n): name for n, name in zip(numbers, intents, strict=True)}
    return Tale(beats, _spread(sizes), lexicon.FILLER, questions, names)


def story(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """A running tale with a small cast, however long; its keywords belong in a summary."""
    hero, friend = rng.choice(_owned("people", split), size=2, replace=False)
    place, other = rng.choice(_owned("places", split), size=2, replace=False)
    thing = str(rng.choice(_owned("things", split)))
    # None of these begins with a name, which at the start of a line is another token than behind a
    # space: that the two belong together would have to be learned name by name.
    texts = [
        f"One day {hero} set out from the {place}.",
        f"Then {friend} came along to the {other}.",
        f"The two of them found the {thing}.",
    ]
    keywords = tuple(str(k) for k in (hero, place, friend, other, thing))
    chunk_of = sorted([0, *(int(c) for c in rng.integers(len(sizes), size=len(texts) - 1))])
    beats = [Beat(text, text, "core") for text in texts]
    hero, friend = hero.split()[0], friend.split()[0]
    recaps = (f"{hero} slept badly and rose early.", f"{friend} sang to pass the time.")
    return Tale(beats, chunk_of, lexicon.FILLER[:6] + recaps, (Question(STORY_QUESTION, keywords),))


GENERATORS = {
    "facts": facts,
    "events": events,
    "labels": labels,
    "story": story,
    "updates": updates,
}


def _spread(sizes: Sequence[int]) -> list[int]:
    return [chunk for chunk, size in enumerate(sizes) for _ in range(size)]


def _document(day: datetime.date, lines: list[str]) -> str:
    body = "\n".join(lines)
    date = day.isoformat()
    return (
        f"[Dialogue between User and Assistant on {date} 00:00]\n<User> Some notes to keep:\n"
        f"{body}\n<Assistant> Noted."
    )


def _dialogue(day: datetime.date, lines: list[str], rng: np.random.Generator) -> str:
    clock = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    turns = []
    for line in lines:
        turns.append(f"<User>\n{line}")
    turns.append(f"<Assistant> {_pick(rng, lexicon.REPLIES)}")
    return f"[Dialogue at timestamp {day:%Y/%m/%d (%a)} {clock}]\n" + "\n".join(turns)


def _book(day: datetime.date, lines: list[str]) -> str:
    return (
        f"Event happened on {day.isoformat()} The user is reading a book\n<User>\n"
        + "\n".join(lines)
        + "\n<System> Please remember the passage and keep a summary of the book so far."
    )


# What every chunk repeats: a small tokenizer may hold each as one token.
PHRASES = (
    "[Dialogue between User and Assistant on ", " 00:00]\n<User> Some notes to keep:\n",
    "\n<Assistant> Noted.", "[Dialogue at timestamp ", "]\n<User>\n", "\n<User>\n",
    "\n<Assistant> ", "Event happened on ", " The user is reading a book\n<User>\n",
    "\n<System> Please remember the passage and keep a summary of the book so far.",
)  # fmt: skip


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a synthetic instance.

    chunks: length of the stream (about 75 tokens a chunk at the default sizes). facts_per_chunk:
    the most statements worth remembering in a chunk (at least one less). filler_share: share of a
    chunk's sentences that are worth nothing, in [0, 1). max_questions: questions of a long instance
    are sampled down to this many.
    """

    chunks: int = 2
    facts_per_chunk: int = 3
    filler_share: float = 0.5
    max_questions: int = 100

    def __post_init__(self):
        counts = (self.chunks, self.facts_per_chunk, self.max_questions)
        if min(counts) < 1 or not 0 <= self.filler_share < 1:
            raise ValueError(
                "synthetic data needs chunks, facts_per_chunk, max_questions >= 1 and"
                f" 0 <= filler_share < 1, got {', '.join(map(str, counts))}, {self.filler_share}"
            )


def generate(family: str, split: str, index: int, seed: int = 0, **sizes: float) -> Instance:
    """One instance; the same arguments always give the same instance.

    Args:
        family: facts | events | labels | story | updates.
        split: train | validation | test; entities of different splits never meet.
        index: number of the instance within the split.
        seed: of the data set.
        sizes: fields of `StreamSizes`.

    Raises:
        ValueError: an unknown family or split, sizes out of range, or a stream so long that the
            split runs out of entities.
    """
    if family not in GENERATORS:
        raise ValueError(f"unknown synthetic family {family!r}; known: {', '.join(GENERATORS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    stream = StreamSizes(**sizes)
    rng = np.random.default_rng(
        [seed, index, list(GENERATORS).index(family), list(SPLITS).index(split)]
    )
    most = stream.facts_per_chunk + (family == "labels")  # a class needs more than one example
    beats = [int(n) for n in rng.integers(max(1, most - 1), most + 1, size=stream.chunks)]
    tale = GENERATORS[family](rng, split, beats)
    texts, notes, questions = _tell(family, rng, tale, stream, most)
    if len(questions) > stream.max_questions:
        chosen = sorted(rng.choice(len(questions), size=stream.max_questions, replace=False))
        questions = [questions[i] for i in chosen]
    metadata = {"notes": notes, "split": split, "seed": seed}
    if tale.label_names:
        metadata["label_names"] = tale.label_names
    return validate(
        Instance(
            source=f"synthetic_{family}",
            instance_id=f"{family}-{split}-{seed}-{index}-{stream.chunks}",
            chunks=tuple(texts),
            questions=tuple(questions),
            metadata=metadata,
        )
    )


def _tell(
    family: str, rng: np.random.Generator, tale: Tale, stream: StreamSizes, most: int
) -> tuple[list[str], list[list[dict]], list[Question]]:
    """The chunks of a tale, what each is worth noting, and all questions.

    most: the most beats of a chunk, by which the number of filler sentences goes.
    """
    first_day = datetime.date(2015, 1, 1) + datetime.timedelta(days=int(rng.integers(5000)))
    texts, notes, questions = [], [], list(tale.questions)
    for chunk in range(stream.chunks):
        day = first_day + datetime.timedelta(days=chunk)
        date = f"{day:%Y/%m/%d}"
        here = [beat for beat, c in zip(tale.beats, tale.chunk_of, strict=True) if c == chunk]
        share = stream.filler_share
        filler = round(max(len(here), most - 1) * share / (1 - share))
        again = filler > len(tale.filler)
        extra = [tale.filler[i] for i in rng.choice(len(tale.filler), filler, replace=again)]
        lines = _interleave(rng, [beat.text for beat in here], extra)
        texts.append(_write_chunk(family, rng, day, lines))
        notes.append([])
        for beat in here:
            old = None if beat.replaces is None else tale.beats[beat.replaces].note
            content = beat.note.replace("{date}", date)
            notes[-1].append({"memory": beat.memory, "content": content, "replaces": old})
            questions += [
                Question(q.replace("{date}", date), (a.replace("{date}", date),))
                for q, a in beat.questions
            ]
    return texts, notes, questions


def _interleave(rng: np.random.Generator, beats: list[str], filler: list[str]) -> list[str]:
    """Beats in their order, filler anywhere between."""
    places = np.zeros(len(beats) + len(filler), bool)
    places[rng.choice(len(places), size=len(beats), replace=False)] = True
    beats, filler = iter(beats), iter(filler)
    return [next(beats) if is_beat else next(filler) for is_beat in places]


def _write_chunk(
    family: str, rng: np.random.Generator, day: datetime.date, lines: list[str]
) -> str:
    if family == "events":
        return _dialogue(day, lines, rng)
    if family == "story":
        return _book(day, lines)
    return _document(day, lines)


def generate_many(
    families: Sequence[str], split: str, per_family: int, first_index: int = 0, **sizes: float
) -> list[Instance]:
    """`per_family` instances of each family, families alternating (see `generate`)."""
    return [
        generate(family, split, first_index + index, **sizes)
        for index in range(per_family)
        for family in families
    ]
