"""PerLTQA (English): the events of a character and the dialogues about them, one chunk an event."""

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha.data import cut, files, text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

SOURCE = "perltqa"
SECTIONS = ("social_relationship", "events", "dialogues")  # of the questions; not the profile
VALIDATION_SHARE = 0.13  # of the characters: 4 of 31 in the paper
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()


@dataclass(frozen=True)
class Event:
    """An event with its dialogues: (timestamp, [(speaker, text)])."""

    event_id: str
    date: str
    summary: str
    content: str
    dialogues: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Character:
    """A character, its events in the order of their dates, and (id, question, answer)."""

    name: str
    events: tuple[Event, ...]
    questions: tuple[tuple[str, str, str], ...]
    split: str


@dataclass(frozen=True)
class Characters:
    """What `load_folder` returns."""

    characters: tuple[Character, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load_folder(data_dir: str | Path) -> Characters:
    """Read perltqa/perltmem_en*.json (memories) and perltqa/perltqa_en*.json (questions).

    The first edition or the second (`_v2`), whose memories are an object by name. Characters
    without questions or without events are left out. Errors: ValueError naming file, record and
    field, also for two editions at once.
    """
    folder = user_path(data_dir) / SOURCE
    paths = [_find(folder, stem) for stem in ("perltmem_en", "perltqa_en")]
    digests = {path.name: files.digest(path) for path in paths}
    asked: dict[str, tuple] = {}
    for where, record in files.json_records(paths[1]):
        if not isinstance(record, dict):
            raise ValueError(f"{where}: must be an object {{name: questions}}")
        for name, sections in record.items():
            if name in asked:
                raise ValueError(f"{where}: the questions of {name!r} stand twice")
            asked[name] = tuple(_read_questions(sections, f"{where}: {name}"))
    characters: dict[str, Character] = {}
    for where, record in _memories(paths[0]):
        profile = text.require(record, "profile", dict, where)
        name = text.require(profile, "Protagonist", str, f"{where}: profile")
        if name in characters:
            raise ValueError(f"{where}: the character {name!r} stands twice")
        events = tuple(_read_events(record, name, where))
        split = "validation" if text.share("perltqa", name) < VALIDATION_SHARE else "train"
        characters[name] = Character(name, events, asked.get(name, ()), split)
    usable = tuple(c for c in characters.values() if c.questions and c.events)
    if not usable:
        raise ValueError(f"{paths[1]}: no questions about any character of {paths[0].name}")
    left_out = {
        "characters without questions or events": len(characters) - len(usable),
        "characters with questions but no memories": len(asked.keys() - characters.keys()),
    }
    return Characters(usable, digests, {why: count for why, count in left_out.items() if count})


def _find(folder: Path, stem: str) -> Path:
    paths = files.find(folder, [f"{stem}*.json"], f"put the published {stem}.json there")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder}: {names}; keep one edition")
    return paths[0]


def _memories(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, character) of a list of them, or of an object {name: character}."""
    data, _ = text.read_json(path)  # 13 MB in the second edition
    if not isinstance(data, list | dict) or not data:
        raise ValueError(f"{path}: must be a list of characters or an object {{name: character}}")
    named = data.items() if isinstance(data, dict) else enumerate(data)
    return ((f"{path}: record {name}", record) for name, record in named)


def _read_questions(sections: Any, where: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(sections, dict):
        raise ValueError(f"{where}: must be an object with the sections {', '.join(SECTIONS)}")
    for section in SECTIONS:
        records = sections.get(section, [])
        if not isinstance(records, list | dict):
            raise ValueError(f"{where}: {section} must be a list or an object")
        for number, (group, record) in enumerate(_flatten(records)):
            place = f"{where}: {section}[{number}]"
            question = text.require(record, "Question", str, place).strip()
            answer = text.require(record, "Answer", str, place).strip()
            anchors = ";".join(dict.fromkeys(_anchors(record.get("Memory Anchors"), place)))
            yield f"{section}:{group}:{number}", question, anchors or answer


def _flatten(records: Any) -> Iterator[tuple[str, Any]]:
    """(event or dialogue id, question record) of [record, ...], {id: [record, ...]} or a list of
    the latter."""
    for record in [records] if isinstance(records, dict) else records:
        if isinstance(record, dict) and "Question" not in record:
            for name, group in record.items():
                group = group if isinstance(group, list) else [group]
                yield from ((name, item) for item in group)
        else:
            yield "", record


def _anchors(value: Any, where: str) -> Iterator[str]:
    """The answer's key phrases: texts, or objects whose keys are the texts and values places."""
    if value is None:
        return
    if isinstance(value, str):
        value = value.split(";")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"{where}: field 'Memory Anchors' must be a list or a text")
    for anchor in value:
        if not isinstance(anchor, str | dict):
            raise ValueError(f"{where}: Memory Anchors: {anchor!r} is no text and no object")
        for phrase in anchor if isinstance(anchor, dict) else (anchor,):
            if phrase.strip():
                yield html.unescape(phrase).strip()  # some hold &#39;


def _read_events(record: dict, name: str, where: str) -> Iterator[Event]:
    dialogues = record.get("dialogues", {})
    if not isinstance(dialogues, dict):
        raise ValueError(f"{where}: field 'dialogues' must be an object")
    events = text.require(record, "events", dict, where)
    owners = {
        d: max((e for e in events if d.startswith(e)), key=len, default="") for d in dialogues
    }
    read = []
    for event_id, event in events.items():
        place = f"{where}: events[{event_id!r}]"
        turns = [
            talk
            for dialogue_id, owner in owners.items()
            if owner == event_id
            for talk in _read_dialogue(dialogues[dialogue_id], f"{where}: {dialogue_id}")
        ]
        read.append(
            Event(
                event_id,
                text.require(event, "Creation Time", str, place).strip(),
                text.require(event, "summary", str, place).strip(),
                text.require(event, "content", str, place).strip(),
                tuple(turns),
            )
        )
    yield from sorted(read, key=lambda event: (when(event.date), event.event_id))


def when(date: str) -> tuple[int, int, int]:
    """(year, month, day) of "2022-05-12", "May 12, 2022", "October 2021" or "2012".

    0 for a month or a day that is not told; without a year ("during an election") the year is
    9999, so that such events come last.
    """
    numbers = re.search(r"\b(\d{4})[-/.](\d{1,2})(?:[-/.](\d{1,2}))?", date)
    if numbers:
        return int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)
    year = re.search(r"\b\d{4}\b", date)
    if year is None:
        return 9999, 0, 0
    words = re.findall(r"[a-z]+", date.lower())
    month = next((MONTHS.index(w[:3]) + 1 for w in words if w[:3] in MONTHS), 0)
    day = re.search(r"\b(0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?\b", date) if month else None
    return int(year[0]), month, int(day[1]) if day else 0


def _read_dialogue(dialogue: Any, where: str) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    contents = text.require(dialogue, "contents", dict, where)
    for timestamp, messages in contents.items():
        while isinstance(messages, list) and messages and isinstance(messages[0], list):
            messages = [message for inner in messages for message in inner]  # one list deeper
        if not isinstance(messages, list):
            raise ValueError(f"{where}: contents[{timestamp!r}] must be a list of messages")
        turns = []
        for message in messages:
            if not isinstance(message, str):
                raise ValueError(f"{where}: contents[{timestamp!r}]: {message!r} is no text")
            speaker, colon, speech = message.partition(":")
            turns.append((speaker.strip(), speech.strip()) if colon else ("", message.strip()))
        yield timestamp, tuple(turns)


def build(
    records: Characters, split: str, sizes: Sizes, seed: int, count_tokens: Callable[[str], int]
) -> Iterator[Draft]:
    """Yield instances, one a character: its events by date, at most `sizes.chunks` chunks.

    An event that is longer than a chunk goes on in the next. Asked are questions about social
    relations, events and dialogues in turn. Characters with more chunks are left out.
    """
    pool = text.select_split(
        records.characters, split, SOURCE, "character", records.files, "there is no test split"
    )
    for character in text.shuffled(pool, lambda c: c.name, "draw", seed):
        parts = [
            (event, part)
            for event in character.events
            for part in _parts(character, event, sizes.chunk_tokens, count_tokens)
        ]
        if len(parts) > sizes.chunks:
            continue
        queues: dict[str, list] = {section: [] for section in SECTIONS}
        for question in character.questions:
            queues[question[0].split(":")[0]].append(question)
        turns = [text.shuffled(q, lambda x: x[0], "ask", seed) for q in queues.values()]
        asked = list(islice(text.in_turn(turns), sizes.questions))
        facts = {
            "character": character.name,
            "chunk_ids": [event.event_id for event, _ in parts],
            "question_ids": [record_id for record_id, _, _ in asked],
        }
        questions = tuple(Question(question, (answer,)) for _, question, answer in asked)
        yield Draft(tuple(part for _, part in parts), questions, facts)


def _parts(
    character: Character, event: Event, chunk_tokens: int, count_tokens: Callable[[str], int]
) -> list[str]:
    header = f"An event about the user {character.name}, on {event.date}\n"
    lines = [f"Summary: {event.summary}", f"Content: {event.content}"]
    for timestamp, turns in event.dialogues:
        lines.append(f"[Dialogue at timestamp {timestamp}]")
        for speaker, speech in turns:
            known = speaker == character.name
            lines.append(
                f"<{character.name if known else 'Assistant'}>{speech}" if speaker else speech
            )
    room = chunk_tokens - count_tokens(header)
    small = [piece for line in lines for piece in cut.pieces(line, room, count_tokens)]
    return [header + "\n".join(group) for group in cut.fill(small, room, count_tokens, "\n")]
