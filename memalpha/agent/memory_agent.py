"""The trained writer outside training: it reads what you tell it and answers from its memory.

    agent = MemoryAgent.from_checkpoint("runs/tiny", store="memory.db")
    agent.observe("The head office of Alpina Press is in Basel.")
    agent.ask("In which town is the head office of Alpina Press?").text

One observed chunk is one step of an episode (`rollout.memorise`): the writer gets a prompt of the
form it was trained on, and its calls go through the same parser and the same memory operations. The
memory is in a `Store`; each step reads it, changes it and commits the difference.

On the command line: `python -m memalpha.agent --help`.
"""

import copy
import dataclasses
import re
import threading
import zlib
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from memalpha import reader
from memalpha.agent.contents import Contents, change_memory, view_of
from memalpha.agent.events import ConflictError, Event, Snapshot, UnknownNamespaceError
from memalpha.agent.store import Store, check_namespace
from memalpha.agent.writers import open_writer
from memalpha.data.cut import split_text
from memalpha.data.instance import Instance, Question
from memalpha.episode import Environment, Step, Writer, count_escaped, text_room
from memalpha.memory import MemoryState, MemoryView
from memalpha.reader import Answerer, Evidence
from memalpha.reader_rules import extractive_answers, quote
from memalpha.reading import find_evidence
from memalpha.rollout import first_state, make_turn, memorise
from memalpha.tools import clean

ATTEMPTS = 5  # at one step, when others change the memory while the writer works
SOURCE = "squad"  # questions are asked like those of this source, whose answers are short
NOTED, UNKNOWN = "Noted.", "I have nothing about that in memory."
CLOSEST = "The closest I have: "  # before a reply that is not sure
# ASCII, full-width and small form, Arabic, Greek, Armenian, Ethiopic.
QUESTION_MARKS = "?？﹖؟\u037e՞፧"
# The asker in a question: for the offline rules "I" would be a term that entries have to hold, but
# a writer says "the user".
_ASKER = re.compile(r"\b(?:I am|am I|I(?:['’](?:m|ve|d|ll))?)\b", re.IGNORECASE)
_SPEAKER = re.compile(r"<(?=\s*/?\s*(?:User|Assistant)\b)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer and the part of the memory that the reader was given. An entry's `written_at` is
    the number of the event in `MemoryAgent.memory.events()` that wrote it. Where `sure` is False no
    passage holds half of the question's terms, and the text is the one that holds most of them."""

    text: str
    evidence: Evidence
    sure: bool = True


class MemoryAgent:
    """A writer and a reader that share the memory of one namespace. Safe to use from threads."""

    def __init__(
        self,
        env: Environment,
        writer: Writer,
        store: Store | None = None,
        namespace: str = "default",
        author: str = "writer",
    ):
        """`writer`: any writer of `rollout`, such as `Policy.writer()`. `env.reading.answerer`
        answers questions."""
        self.env, self.writer, self.author = env, writer, author
        self.store = Store() if store is None else store
        self.namespace = namespace
        self._writing = threading.Lock()  # the device runs one step at a time

    @classmethod
    def from_checkpoint(
        cls,
        path_or_hub_id: str | Path,
        reader: Answerer = extractive_answers,
        store: str | Path = ":memory:",
        namespace: str = "default",
    ) -> "MemoryAgent":
        """The writer of a run of `run_experiment.py`, or a pretrained chat model that is prompted
        to write; the offline reader by default.

        `store`: the file that every change is committed to at once; ":memory:" writes no file.
        Raises ValueError for a missing checkpoint or an unusable store, with what to do.
        """
        env, write, name = open_writer(str(path_or_hub_id))[:3]
        return cls(env.replace(answerer=reader), write, Store(store), namespace, name)

    def of(self, namespace: str) -> "MemoryAgent":
        """The same agent with the memory of another namespace."""
        other = copy.copy(self)  # shallow: both use one store, writer and lock
        other.namespace = namespace
        return other

    def observe(
        self, text: str, timestamp: str | datetime | None = None, as_is: bool = False
    ) -> list[Event]:
        """Lets the writer read a text; returns one event for each chunk of it.

        The text becomes turns of a dialogue at `timestamp` (default: now, UTC), which is the form
        of the training data; a long text is cut into several chunks. With `as_is` it is one chunk,
        read unchanged.

        Raises ValueError for an empty text, PromptTooLong for an `as_is` text that is too long,
        ConflictError where others change the memory at every attempt.
        """
        text = clean(text)
        if not text.strip():
            raise ValueError("observe: the text is empty")
        if as_is:
            return [self._read_chunk(text)]
        count = partial(count_escaped, self.env)
        room = text_room(self.env) - count(dialogue("", timestamp))
        parts = split_text(text, max(room, 16), count)
        return [self._read_chunk(dialogue(part.strip(), timestamp)) for part in parts]

    def _read_chunk(self, chunk: str) -> Event:
        with self._writing:
            for attempt in range(ATTEMPTS):
                before = self._read_or_start()
                step = partial(self._step, before, chunk)
                try:
                    return change_memory(self.env, self.store, self.namespace, before, step)
                except ConflictError:
                    if attempt == ATTEMPTS - 1:
                        raise

    def _read_or_start(self) -> Snapshot:
        """The memory; an empty one where the namespace does not exist yet."""
        try:
            return self.store.read(self.namespace)
        except UnknownNamespaceError:
            check_namespace(self.namespace)  # before the writer runs
            first = first_state(self.env, 1, zlib.crc32(self.namespace.encode())).next_id
            return Snapshot("", -1, (), (), int(first[0]), 0)

    def _step(
        self, before: Snapshot, chunk: str, view: MemoryView, state: MemoryState
    ) -> tuple[MemoryState, Event]:
        """One step of an episode: the memory after it, and its event."""
        instance = Instance("agent", self.namespace, (chunk,), ())
        turn = make_turn(self.env, state, 0, before.events, instance, text=chunk)
        state, (step,) = memorise(self.env, state, [turn], self.writer)
        if step.response.error:
            raise RuntimeError(f"the writer failed, nothing was stored: {step.response.error}")
        self.store.create(self.namespace, before.next_id)  # not before the writer has answered
        return state, Event("observe", self.author, chunk, step.text, call_records(step))

    def ask(self, question: str) -> Reply:
        """Answers from the memory alone; the text is empty where the memory has no answer.

        People ask in other words than they told: where the offline rules find no passage that holds
        half of the question's terms, the reply is the closest one and not `sure`.

        Raises ValueError for an empty question, UnknownNamespaceError, RuntimeError where the
        reader failed.
        """
        question = clean(question)
        if not question.strip():
            raise ValueError("ask: the question is empty")
        view = view_of(self.store.read(self.namespace), self.env)
        instance = Instance(SOURCE, self.namespace, (), (Question(question, ()),))
        (request,) = find_evidence(self.env, instance, view)
        offline = self.env.reading.answerer is extractive_answers
        if offline:
            request = dataclasses.replace(request, question=_ASKER.sub("", question))
        (answer,) = reader.read([request], self.env.reading.answerer)
        if answer.text is None:
            failures = self.env.reading.failures
            reason = failures[-1] if failures else "its own log has the reason"
            raise RuntimeError(f"the reader gave no answer: {reason}")
        if offline and not answer.text:
            closest = quote(request.question, request.evidence, min_covered=0.0)
            return Reply(closest, request.evidence, sure=not closest)
        return Reply(answer.text, request.evidence)

    def chat(self, message: str, timestamp: str | datetime | None = None) -> Reply:
        """One turn of a conversation: replies from the memory, then lets the writer read the turn.

        The offline reader can only quote, so it is asked only messages with a question mark.
        """
        message = clean(message)
        if not message.strip():
            raise ValueError("chat: the message is empty")
        reply = Reply("", Evidence())
        question = is_question(message)
        if self.env.reading.answerer is not extractive_answers or question:
            try:
                reply = self.ask(message)
            except UnknownNamespaceError:
                pass  # the first message of a new user
        text = reply.text or (UNKNOWN if question else NOTED)
        # A guess is for the person; the writer would take it for a fact.
        turn = dialogue(message.strip(), timestamp, text if reply.sure else UNKNOWN)
        if count_escaped(self.env, turn) > text_room(self.env):
            self.observe(message, timestamp)
        else:
            self._read_chunk(turn)
        return Reply(text if reply.sure else CLOSEST + text, reply.evidence, reply.sure)

    @property
    def memory(self) -> Contents:
        """The memory: to read, edit, export, undo and trace back."""
        return Contents(self.env, self.store, self.namespace)

    def save(self, path: str | Path) -> None:
        """Writes a copy of the store with all namespaces and their history, whole or not at all."""
        self.store.copy_to(path)

    def load(self, path: str | Path) -> None:
        """Replaces all namespaces and histories of this agent's store by those of the file that
        `save` wrote, in one transaction. The file itself is not written to; to go on working in
        a file, open it with `store=` of `from_checkpoint`.

        Raises StoreError for a file that is missing, no store, or of a newer version.
        """
        self.store.copy_from(path)


def is_question(text: str) -> bool:
    """Whether a text has the question mark of any script in `QUESTION_MARKS`."""
    return any(mark in text for mark in QUESTION_MARKS)


def dialogue(text: str, timestamp: str | datetime | None = None, reply: str = NOTED) -> str:
    """A chunk in the form of the training data: one turn of a dialogue, with its time.

    Speaker tags inside time, text and reply are broken up: none can pass for another speaker.
    """
    when = datetime.now(UTC) if timestamp is None else timestamp
    when = when.strftime("%Y-%m-%d %H:%M") if isinstance(when, datetime) else " ".join(when.split())
    when, text, reply = (_SPEAKER.sub("‹", clean(part)) for part in (when, text, reply))
    return f"[Dialogue between User and Assistant on {when}]\n<User> {text}\n<Assistant> {reply}"


def call_records(step: Step) -> tuple[dict, ...]:
    """The calls of a step with their outcomes, as plain data."""
    return tuple(
        {
            "name": call.name,
            "arguments": call.arguments,
            "error": call.error,
            "outcome": outcome.name.lower(),
        }
        for call, outcome in zip(step.calls, step.outcomes, strict=True)
    )
