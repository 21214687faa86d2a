"""LoCoMo: ten long conversations of two people, with questions of five categories.

Published for measuring (CC BY-NC 4.0): there is only a test split. One conversation is an instance,
its sessions are the chunks. A public audit of the answers, where it lies beside the conversations,
gives the corrected key.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memalpha.data import cut, files, text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

SOURCE = "locomo"
FILES, AUDITS = ["locomo*.json"], ["errors*.json"]
# The numbers of the file, as its evaluation code explains them.
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
NOT_MENTIONED = "Not mentioned in the conversation"  # the answer to an adversarial question
_SESSION = re.compile(r"session_(\d+)")
_REMARK = re.compile(r"\s*\([^()]*\)")
_UPHELD = re.compile(r"\bcorrect\b")  # "answer is correct, citation is wrong"
# What an audit says in place of an answer, where the question has none: it is about somebody else,
# or about another day.
_OBJECTION = re.compile(
    r"\b(?:not|never|cannot|either|uncertain|unclear|unknown|unspecified|unresolvable"
    r"|contradictory|question)\b|n't\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Asked:
    """A question. `corrected`: the answer by the audit, None where it leaves none."""

    record_id: str
    kind: str
    question: str
    answer: str
    corrected: str | None


@dataclass(frozen=True)
class Conversation:
    """Sessions in reading order, each a date as published and turns as (speaker, text)."""

    name: str
    sessions: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    questions: tuple[Asked, ...]


@dataclass(frozen=True)
class Conversations:
    """What `load_folder` returns. `audited`: whether there was an audit."""

    conversations: tuple[Conversation, ...]
    audited: bool
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


Key = dict[tuple[str, str], str | None]  # (question, published answer) -> corrected answer


def load_folder(data_dir: str | Path) -> Conversations:
    """Read locomo/locomo*.json, and the audit locomo/errors*.json if it is there.

    Left out and counted: conversations in which nobody says a word, with their questions; pictures
    without a caption; questions without an answer; entries of the audit about no question here.

    Errors: ValueError naming file, record and field.
    """
    folder = user_path(data_dir) / SOURCE
    paths = files.find(folder, FILES, "put the published locomo10.json there")
    audits = sorted(path for pattern in AUDITS for path in folder.glob(pattern))
    key = _read_audits(audits)
    left_out: Counter[str] = Counter()
    conversations, places, met = [], {}, set()
    for path in paths:
        for where, record in files.json_records(path):
            conversation = _read(record, where, key, left_out)
            text.claim(places, conversation.name, where, "sample_id")
            met |= {(q.question, q.answer) for q in conversation.questions}
            if conversation.sessions:
                conversations.append(conversation)
            else:
                left_out["conversations without a word"] += 1
                left_out["questions about them"] += len(conversation.questions)
    left_out["entries of the audit about no question here"] += len(key.keys() - met)
    digests = {path.name: files.digest(path) for path in (*paths, *audits)}
    counts = {reason: count for reason, count in left_out.items() if count}
    return Conversations(tuple(conversations), bool(audits), digests, counts)


def _read_audits(paths: list[Path]) -> Key:
    key: Key = {}
    for path in paths:
        for where, entry in files.json_records(path):
            question = text.require(entry, "question", str, where).strip()
            published, corrected = (
                str(text.require(entry, name, str | int | float, where)).strip()
                for name in ("golden_answer", "correct_answer")
            )
            key[question, published] = corrected_answer(published, corrected)
    return key


def corrected_answer(published: str, corrected: str) -> str | None:
    """The answer that an entry of the audit leaves; None where it leaves the question without one.

    Remarks in brackets go; where the entry calls the published answer correct (and objects to what
    it cites), that answer stays. An entry that objects to the question, or says that the text does
    not tell, has no answer that a reply could be compared with.
    """
    if _UPHELD.search(corrected):
        return published
    if _OBJECTION.search(corrected):
        return None
    return _REMARK.sub("", corrected).strip() or None


def _read(record: Any, where: str, key: Key, left_out: Counter) -> Conversation:
    name = text.require(record, "sample_id", str, where)
    talk = text.require(record, "conversation", dict, where)
    numbers = sorted(int(match[1]) for match in map(_SESSION.fullmatch, talk) if match)
    sessions = []
    for number in numbers:
        place = f"{where}: session_{number}"
        turns = _read_turns(text.require(talk, f"session_{number}", list, where), place, left_out)
        if turns:
            date = text.require(talk, f"session_{number}_date_time", str, where)
            sessions.append((date.strip(), turns))
    questions = []
    for number, asked in enumerate(text.require(record, "qa", list, where)):
        question = _read_question(asked, f"{name}:{number}", f"{where}: qa[{number}]", key)
        if question is None:
            left_out["questions without an answer"] += 1
        else:
            questions.append(question)
    return Conversation(name, tuple(sessions), tuple(questions))


def _read_turns(turns: list[Any], where: str, left_out: Counter) -> tuple[tuple[str, str], ...]:
    read = []
    for number, turn in enumerate(turns):
        place = f"{where}[{number}]"
        speaker = text.require(turn, "speaker", str, place).strip()
        says = turn.get("text") or ""
        caption = turn.get("blip_caption") or ""
        if not isinstance(says, str) or not isinstance(caption, str):
            raise ValueError(f"{place}: fields 'text' and 'blip_caption' must be strings")
        shown = f"(shares a picture: {caption.strip()})" if caption.strip() else ""
        line = " ".join(filter(None, (says.strip(), shown)))
        if line:
            read.append((speaker, line))
        else:
            left_out["pictures without a caption"] += 1
    return tuple(read)


def _read_question(asked: Any, record_id: str, where: str, key: Key) -> Asked | None:
    """The question, or None where it has no answer."""
    question = text.require(asked, "question", str, where).strip()
    category = text.require(asked, "category", int, where)
    if category not in CATEGORIES:
        raise ValueError(f"{where}: category is {category}, not one of {sorted(CATEGORIES)}")
    kind = CATEGORIES[category]
    answer = NOT_MENTIONED if kind == "adversarial" else str(asked.get("answer", "")).strip()
    if not answer:
        return None
    return Asked(record_id, kind, question, answer, key.get((question, answer), answer))


def build(
    records: Conversations, split: str, sizes: Sizes, seed: int, count_tokens: Callable[[str], int]
) -> Iterator[Draft]:
    """Yield instances, one a conversation, in the order of the file.

    Sessions share a chunk where they are short and go on in the next where they are long. Of more
    than `sizes.questions` questions some are drawn by `seed` and the others counted in
    metadata["dropped_questions"].

    Raises ValueError for another split than test, or a conversation of more than `sizes.chunks`
    chunks.
    """
    if split != "test":
        raise ValueError(f"{SOURCE}: there is no {split} split; it is published for measuring")
    if not records.conversations:
        raise ValueError(f"{SOURCE}: no conversation with words in {', '.join(records.files)}")
    for conversation in records.conversations:
        parts = [
            part
            for session in conversation.sessions
            for part in _parts(*session, sizes.chunk_tokens, count_tokens)
        ]
        groups = list(cut.fill(parts, sizes.chunk_tokens, count_tokens, text.SEPARATOR))
        if len(groups) > sizes.chunks:
            raise ValueError(
                f"{SOURCE}: {conversation.name} has {len(groups)} chunks of {sizes.chunk_tokens}"
                f" tokens, not at most {sizes.chunks}"
            )
        drawn = text.shuffled(conversation.questions, lambda q: q.record_id, "ask", seed)
        drawn = {question.record_id for question in drawn[: sizes.questions]}
        asked = [q for q in conversation.questions if q.record_id in drawn]
        yield Draft(
            tuple(map(text.SEPARATOR.join, groups)),
            tuple(Question(q.question, (q.answer,)) for q in asked),
            _facts(conversation, asked, records.audited),
        )


def _facts(conversation: Conversation, asked: list[Asked], audited: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "conversation": conversation.name,
        "question_ids": [q.record_id for q in asked],
        "question_types": [q.kind for q in asked],
        "dropped_questions": len(conversation.questions) - len(asked),
    }
    if audited:
        facts["corrected_answers"] = [[q.corrected] if q.corrected else [] for q in asked]
    return facts


def _parts(
    date: str,
    turns: tuple[tuple[str, str], ...],
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
) -> Iterator[str]:
    """The session as texts of at most chunk_tokens tokens, each with the date line."""
    header = f"[Dialogue at timestamp {date}]\n"
    room = chunk_tokens - count_tokens(header)
    if room < 1:
        raise ValueError(f"{SOURCE}: chunks of {chunk_tokens} tokens have no room for a date")
    lines = (f"<{speaker}> {says}" for speaker, says in turns)
    pieces = (piece for line in lines for piece in cut.pieces(line, room, count_tokens))
    for group in cut.fill(pieces, room, count_tokens, "\n"):
        yield header + "\n".join(group)
