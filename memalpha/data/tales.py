"""What happens in synthetic instances: six families of tales, each from a random generator.

A tale is a list of *beats*: statements worth remembering, with the question each one answers, in
reading order. `synthetic` writes tales down as the chunks of an instance.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memalpha.data import lexicon
from memalpha.data.instance import Question

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
    """Beats in reading order, the chunk of each beat, filler sentences and fixed questions, of
    which `kinds` says what each is about; empty: not told."""

    beats: list[Beat]
    chunk_of: list[int]
    filler: Sequence[str]
    questions: tuple[Question, ...] = ()
    label_names: dict | None = None
    kinds: tuple[str, ...] = ()


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


def pick(rng: np.random.Generator, options: Sequence, avoid: Sequence = ()) -> str:
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
            person, town = next(employees), pick(rng, lexicon.TOWNS)
            ask = f"In which town is the head office of {firm}?"
            text = f"The head office of {firm} is in {town}."
            beats.append(Beat(text, text, "semantic", ((ask, town),)))
            ask = f"In which town is the head office of the employer of {person}?"
            text = f"The employer of {person} is {firm}."
            beats.append(Beat(text, text, "semantic", ((ask, town),)))
        else:
            person, relation = _draw(cells, split)
            value = pick(rng, lexicon.RELATIONS[relation])
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
        old = pick(rng, lexicon.RELATIONS[relation])
        new = pick(rng, lexicon.RELATIONS[relation], avoid=(old,))
        text = _fact(person, relation, old)
        slots[first] = Beat(text, text, "semantic")
        text = _fact(person, relation, new, prefix="By now the")
        ask = (f"What is the {relation} of {person} now?", new)
        slots[second] = Beat(text, text, "semantic", (ask,), replaces=first)
    for i, slot in enumerate(slots):
        if slot is None:
            person, relation = _draw(cells, split)
            value = pick(rng, lexicon.RELATIONS[relation])
            ask = (f"What is the {relation} of {person} now?", value)
            text = _fact(person, relation, value)
            slots[i] = Beat(text, text, "semantic", (ask,))
    return Tale(slots, _spread(sizes), lexicon.FILLER)


def conflicts(rng: np.random.Generator, split: str, sizes: Sequence[int]) -> Tale:
    """Numbered facts that contradict earlier ones, where the larger number holds; asked over one
    hop and over two, of which either may have changed (FactConsolidation of MemoryAgentBench)."""
    cells, employees = _person_relations(rng, split), _people(rng, split)
    firms = iter(rng.permutation(_owned("firms", split)))
    total = sum(sizes)
    chains: list[list[str]] = []  # statements of which each supersedes the one before
    questions: list[tuple[str, str, str]] = []  # question, answer, kind
    while (left := total - sum(map(len, chains))) > 0:
        pair = [next(firms, None), next(firms, None)] if left >= 5 and rng.random() < 0.4 else []
        if all(pair) and pair:
            made, asked = _two_hops(rng, next(employees), pair)
        else:
            made, asked = _one_hop(rng, *_draw(cells, split), count=min(left, 2))
        chains += made
        questions.append(asked)
    return Tale(
        _numbered(rng, chains, total),
        _spread(sizes),
        lexicon.FILLER,
        tuple(Question(question, (answer,)) for question, answer, _ in questions),
        kinds=tuple(kind for _, _, kind in questions),
    )


def _one_hop(rng: np.random.Generator, person: str, relation: str, count: int) -> tuple:
    values = [str(v) for v in rng.choice(lexicon.RELATIONS[relation], size=count, replace=False)]
    chain = [_fact(person, relation, value) for value in values]
    return [chain], (f"What is the {relation} of {person}?", values[-1], "one hop")


def _two_hops(rng: np.random.Generator, person: str, firms: Sequence[str]) -> tuple:
    """The employer changes from one firm to the other, whose head office moves."""
    towns = [str(town) for town in rng.choice(lexicon.TOWNS, size=3, replace=False)]
    first, second = firms
    made = [
        [f"The employer of {person} is {firm}." for firm in firms],
        [f"The head office of {first} is in {towns[0]}."],
        [f"The head office of {second} is in {town}." for town in towns[1:]],
    ]
    ask = f"In which town is the head office of the employer of {person}?"
    return made, (ask, towns[-1], "two hops")


def _numbered(rng: np.random.Generator, chains: Sequence[list[str]], total: int) -> list[Beat]:
    """The statements of all chains in a random order that keeps each chain's own."""
    order = iter(rng.permutation(total))
    slots: dict[int, Beat] = {}
    for chain in chains:
        before = None
        for place, said in zip(sorted(int(next(order)) for _ in chain), chain, strict=True):
            text = f"{place}. {said}"
            slots[place] = Beat(text, text, "semantic", replaces=before)
            before = place
    return [slots[place] for place in range(total)]


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
    "conflicts": conflicts,
}


def _spread(sizes: Sequence[int]) -> list[int]:
    return [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
