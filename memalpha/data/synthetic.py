"""Synthetic instances in natural-looking English: seven families, any length, no download.

`tales` makes up what is worth remembering, and what is asked about it; here it is spread over
chunks among filler, in the formats of the published sources. The family `chats` looks like what
people type to an assistant and has a package of its own.

`metadata["notes"]` lists, for each chunk, what a perfect writer would store: objects with `memory`
(core, semantic or episodic), `content` and `replaces` (the content it supersedes, or None).
`metadata["evidence"]` of chats lists, for each question, the contents of the notes that answer it,
`metadata["question_types"]` of conflicts over how many hops each goes.
Entities (people, firms, things, sentences) are disjoint between train, validation and test.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memalpha.data import chats, lexicon
from memalpha.data.instance import Instance, Question, validate
from memalpha.data.tales import GENERATORS, SPLITS, Tale, pick


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
    turns.append(f"<Assistant> {pick(rng, lexicon.REPLIES)}")
    return f"[Dialogue at timestamp {day:%Y/%m/%d (%a)} {clock}]\n" + "\n".join(turns)


def _book(day: datetime.date, lines: list[str]) -> str:
    return (
        f"Event happened on {day.isoformat()} The user is reading a book\n<User>\n"
        + "\n".join(lines)
        + "\n<System> Please remember the passage and keep a summary of the book so far."
    )


# By age: the place of a family is a part of the seed of its streams.
FAMILIES = ("facts", "events", "labels", "story", "updates", "chats", "conflicts")
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
    chunk's sentences that are worth nothing, in [0, 1). empty_share: share of the chunks of chats
    that hold nothing at all, in [0, 1]; one of a stream always holds something. max_questions:
    questions of a long instance are sampled down to this many.
    """

    chunks: int = 2
    facts_per_chunk: int = 3
    filler_share: float = 0.5
    empty_share: float = 0.25
    max_questions: int = 100

    def __post_init__(self):
        counts = (self.chunks, self.facts_per_chunk, self.max_questions)
        shares = (self.filler_share, self.empty_share)
        if min(counts) < 1 or not 0 <= shares[0] < 1 or not 0 <= shares[1] <= 1:
            raise ValueError(
                "synthetic data needs chunks, facts_per_chunk, max_questions >= 1,"
                " 0 <= filler_share < 1 and 0 <= empty_share <= 1, got"
                f" {', '.join(map(str, counts + shares))}"
            )


def generate(family: str, split: str, index: int, seed: int = 0, **sizes: float) -> Instance:
    """One instance; the same arguments always give the same instance.

    Args:
        family: facts | events | labels | story | updates | chats | conflicts.
        split: train | validation | test; entities of different splits never meet.
        index: number of the instance within the split.
        seed: of the data set.
        sizes: fields of `StreamSizes`.

    Raises:
        ValueError: an unknown family or split, sizes out of range, or a stream so long that the
            split runs out of entities.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown synthetic family {family!r}; known: {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    stream = StreamSizes(**sizes)
    rng = np.random.default_rng([seed, index, FAMILIES.index(family), list(SPLITS).index(split)])
    write = _write_chats if family == "chats" else _write_tale
    texts, notes, questions, about = write(family, rng, split, stream)
    if len(questions) > stream.max_questions:
        chosen = sorted(rng.choice(len(questions), size=stream.max_questions, replace=False))
        questions = [questions[i] for i in chosen]
        for name in about.keys() & {"evidence", "question_types"}:
            about[name] = [about[name][i] for i in chosen]
    return validate(
        Instance(
            source=f"synthetic_{family}",
            instance_id=f"{family}-{split}-{seed}-{index}-{stream.chunks}",
            chunks=tuple(texts),
            questions=tuple(questions),
            metadata={"notes": notes, "split": split, "seed": seed} | about,
        )
    )


Written = tuple[list[str], list[list[dict]], list[Question], dict]  # the last: further metadata


def _write_chats(family: str, rng: np.random.Generator, split: str, stream: StreamSizes) -> Written:
    written = chats.write(
        rng,
        split,
        stream.chunks,
        stream.facts_per_chunk,
        stream.filler_share,
        stream.empty_share,
    )
    questions, evidence = written.questions()
    return written.chunks, written.notes, questions, {"evidence": evidence}


def _write_tale(family: str, rng: np.random.Generator, split: str, stream: StreamSizes) -> Written:
    most = stream.facts_per_chunk + (family == "labels")  # a class needs more than one example
    beats = [int(n) for n in rng.integers(max(1, most - 1), most + 1, size=stream.chunks)]
    tale = GENERATORS[family](rng, split, beats)
    about = {"label_names": tale.label_names} if tale.label_names else {}
    about |= {"question_types": list(tale.kinds)} if tale.kinds else {}
    return *_tell(family, rng, tale, stream, most), about


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
