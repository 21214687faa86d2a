"""LongMemEval: dialogue sessions by date, questions about what was said in some of them.

lme_train asks about 4 questions over the sessions that answer them (from the oracle file);
longmemeval_s many questions over their whole histories (from the `_s` file). The answers are graded
by a judge; a question whose id ends in `_abs` has no answer there, and its gold answer says so.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memalpha.data import cut, files, text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

FILES = {"lme_train": ["longmemeval_oracle*.json"], "longmemeval_s": ["longmemeval_s*.json"]}
TEST_SHARE = 0.6  # of the 500 questions: the paper trains on about 200 and tests on 300
# Questions made from the same evidence belong to one split. The ids of sessions that were written
# for one question end in a number of one or two digits (answer_4ffa04a2_1), behind `_abs` if the
# question has no answer; what stands before is a name (answer_280352e9, answer_ultrachat_459954).
_SERIAL = re.compile(r"(_abs)?(_\d{1,2})?$")
ROLES = {"user": "<User>", "assistant": "<Assistant>"}


@dataclass(frozen=True)
class Session:
    """A dialogue: (role, text) turns, its date as published, e.g. "2023/05/20 (Sat) 02:21"."""

    session_id: str
    date: str
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Item:
    """A question, when it is asked, and its sessions; `evidence` are the ids of those needed."""

    record_id: str
    kind: str
    question: str
    date: str
    answer: str
    evidence: frozenset[str]
    sessions: tuple[Session, ...]
    split: str


@dataclass(frozen=True)
class Histories:
    """What `load` returns."""

    source: str
    items: tuple[Item, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load_folder(data_dir: str | Path, source: str = "lme_train") -> Histories:
    """Read longmemeval/longmemeval_oracle*.json (lme_train) or longmemeval_s*.json below data_dir.

    Errors: ValueError naming file, record and field, also for an id that stands twice.
    """
    folder = user_path(data_dir) / "longmemeval"
    paths = files.find(folder, FILES[source], f"put the published {FILES[source][0]} there")
    items, places = [], {}
    digests = {path.name: files.digest(path) for path in paths}
    turns: dict[tuple, tuple] = {}  # histories share most of their sessions: kept once
    for path in paths:
        for where, record in files.json_records(path):
            item = _read(record, where, turns)
            text.claim(places, item.record_id, where, "question_id")
            items.append(item)
    return Histories(source, tuple(items), digests)


def _read(record: Any, where: str, turns: dict) -> Item:
    record_id = text.require(record, "question_id", str, where)
    answer = text.require(record, "answer", str | int | float, where)
    names = ("haystack_session_ids", "haystack_dates", "haystack_sessions")
    columns = [text.require(record, name, list, where) for name in names]
    if len(set(map(len, columns))) != 1 or not columns[0]:
        raise ValueError(f"{where}: {', '.join(names)} must be as long as each other, not empty")
    sessions = []
    for number, (name, date, messages) in enumerate(zip(*columns, strict=True)):
        place = f"{where}: haystack_sessions[{number}]"
        read = tuple(_turn(message, place) for message in messages)
        sessions.append(Session(str(name), str(date), turns.setdefault((name, read), read)))
    evidence = frozenset(map(str, text.require(record, "answer_session_ids", list, where)))
    stem = min(_SERIAL.sub("", name) for name in evidence) if evidence else record_id
    return Item(
        record_id,
        text.require(record, "question_type", str, where),
        text.require(record, "question", str, where).strip(),
        text.require(record, "question_date", str, where),
        str(answer).strip(),
        evidence,
        tuple(session for session in sessions if session.turns),
        "test" if text.share("longmemeval question", stem) < TEST_SHARE else "train",
    )


def _turn(message: Any, where: str) -> tuple[str, str]:
    role = text.require(message, "role", str, where)
    if role not in ROLES:
        raise ValueError(f"{where}: the role is {role!r}, not one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str):  # a turn may be empty
        text.require(message, "content", str, where)
    return role, message["content"].strip()


def build(
    records: Histories,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    target_tokens: int = 0,
) -> Iterator[Draft]:
    """Yield at most `sizes.count` instances of `sizes.questions` questions, none asked twice.

    The sessions that answer them are all there; other sessions of their histories join until the
    text has `target_tokens` tokens, or would fill `sizes.chunks` chunks. A session that two
    histories date apart is there under both dates. Sessions stand by date, are cut between turns
    (never after a turn of the user where that can be avoided) and share a chunk where they are
    short.
    Fewer instances come if the questions run out; the last may have fewer questions.
    """
    pool = text.select_split(records.items, split, records.source, "question", records.files)
    order = text.shuffled(pool, lambda item: item.record_id, "draw", seed)
    most = sizes.questions
    for index in range(min(sizes.count, -(-len(order) // most))):
        asked = order[index * most : (index + 1) * most]
        tokens = target_tokens or sizes.chunks * sizes.chunk_tokens
        sessions = _choose(asked, tokens, count_tokens, (seed, index))
        parts = [part for s in sessions for part in _parts(s, sizes.chunk_tokens, count_tokens)]
        groups = cut.fill(parts, sizes.chunk_tokens, count_tokens, text.SEPARATOR)
        facts = {
            "question_ids": [item.record_id for item in asked],
            "question_types": [item.kind for item in asked],
            "session_ids": [session.session_id for session in sessions],
            "evidence": [sorted(item.evidence) for item in asked],
        }
        questions = (Question(item.question, (item.answer,), item.date) for item in asked)
        yield Draft(tuple(map(text.SEPARATOR.join, groups)), tuple(questions), facts)


def _choose(
    asked: list[Item], tokens: int, count_tokens: Callable[[str], int], seeds: tuple[int, int]
) -> list[Session]:
    """The sessions that are needed, and others while they fit, by date."""
    needed: dict[tuple[str, str], Session] = {}  # by id and date: two histories may date it apart
    others: dict[str, Session] = {}
    for item in asked:
        for session in item.sessions:
            if session.session_id in item.evidence:
                needed.setdefault((session.session_id, session.date), session)
            else:
                others.setdefault(session.session_id, session)
    chosen = list(needed.values())
    used = sum(_size(session, count_tokens) for session in chosen)
    for name in {session.session_id for session in chosen} & others.keys():
        del others[name]
    for name in sorted(others, key=lambda name: text.rank("fill", *seeds, name)):
        if used >= tokens:
            break
        size = _size(others[name], count_tokens)
        if used + size <= tokens:
            chosen.append(others[name])
            used += size
    return sorted(chosen, key=lambda session: (session.date, session.session_id))


def _size(session: Session, count_tokens: Callable[[str], int]) -> int:
    return sum(count_tokens(f"{ROLES[role]}{content}") for role, content in session.turns)


def _header(session: Session) -> str:
    return f"[Dialogue at timestamp {session.date}]\n"


def _parts(
    session: Session, chunk_tokens: int, count_tokens: Callable[[str], int]
) -> Iterator[str]:
    """The session as texts of at most chunk_tokens tokens, each with the date line."""
    header = _header(session)
    room = chunk_tokens - count_tokens(header)
    if room < 1:
        raise ValueError(f"longmemeval: chunks of {chunk_tokens} tokens have no room for a date")
    units: list[str] = []  # a turn of the user with the reply to it, cut only if it must be
    waiting = ""
    for role, content in session.turns:
        line = f"{ROLES[role]}{content}"
        waiting = f"{waiting}\n{line}" if waiting else line
        if role == "assistant":
            units += cut.pieces(waiting, room, count_tokens)
            waiting = ""
    units += cut.pieces(waiting, room, count_tokens)
    for group in cut.fill(units, room, count_tokens, "\n"):
        yield header + "\n".join(group)
