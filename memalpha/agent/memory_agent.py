"""The trained writer outside training: it reads what you tell it, and answers from its memory.

    agent = MemoryAgent.from_checkpoint("runs/tiny", store="memory.db")
    agent.observe("The head office of Alpina Press is in Basel.")
    agent.ask("In which town is the head office of Alpina Press?").text

One observed chunk is one step of an episode (`rollout.memorise`): the writer sees the prompt it was
trained on, and its calls go through the same parser and the same memory operations. The memory
lives in a `Store`; each step reads it, changes it and commits the difference.

On the command line: `python -m memalpha.agent --help`.
"""

import copy
import dataclasses
import re
import threading
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jax

from memalpha import reader
from memalpha.agent.contents import Contents, difference, state_of, view_of
from memalpha.agent.events import ConflictError, Event, Snapshot, UnknownNamespaceError
from memalpha.agent.store import Store
from memalpha.data.instance import Instance, Question
from memalpha.data.text import sentence_ends
from memalpha.episode import Environment, Step, Writer, count_tokens
from memalpha.policy import load_policy
from memalpha.prompts import escape, template_fragments
from memalpha.reader import Answerer, Evidence, extractive_answers
from memalpha.reading import find_evidence
from memalpha.rollout import first_state, make_turn, memorise, whole_view
from memalpha.tools import clean

ATTEMPTS = 5  # at a step whose memory somebody else changed meanwhile
SOURCE = "squad"  # questions are asked as those of this source: a short answer from the memory
NOTED, UNKNOWN = "Noted.", "I have nothing about that in memory."
_SPEAKER = re.compile(r"<(?=\s*/?\s*(?:User|Assistant)\b)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer, and what of the memory it was based on. An entry's `written_at` is the number of
    the event, in `MemoryAgent.memory.events()`, that holds the chunk it came from."""

    text: str
    evidence: Evidence


class MemoryAgent:
    """A writer, a reader and the memory of one namespace between them. Safe to use from threads."""

    def __init__(
        self,
        env: Environment,
        writer: Writer,
        store: Store | None = None,
        namespace: str = "default",
        author: str = "writer",
    ):
        """`writer`: any writer of `rollout`, such as `Policy.writer()`; `env.reading.answerer` reads."""
        self.env, self.writer, self.author = env, writer, author
        self.store = Store() if store is None else store
        self.namespace = namespace
        self._writing = threading.Lock()  # the device does one thing at a time

    @classmethod
    def from_checkpoint(
        cls,
        path_or_hub_id: str | Path,
        reader: Answerer = extractive_answers,
        store: str | Path = ":memory:",
        namespace: str = "default",
    ) -> "MemoryAgent":
        """The writer of a run of `run_experiment.py`, greedy; the offline reader by default.

        `store`: a file that every change is committed to at once; ":memory:" keeps it here alone.
        Raises ValueError for a missing checkpoint or an unusable store, with what to do.
        """
        policy = load_policy(path_or_hub_id)
        env = policy.env.replace(answerer=reader)
        return cls(env, policy.writer(), Store(store), namespace, policy.name)

    def of(self, namespace: str) -> "MemoryAgent":
        """The same agent with the memory of another user."""
        other = copy.copy(self)  # shares store, writer and lock
        other.namespace = namespace
        return other

    def observe(
        self, text: str, timestamp: str | datetime | None = None, as_is: bool = False
    ) -> list[Event]:
        """Lets the writer read a text; returns one event for each chunk of it.

        The text becomes turns of a dialogue at `timestamp` (default: now, UTC), the form of the
        training data; a long one is cut into several. `as_is`: it has its form already.

        Raises ValueError for a text without content, PromptTooLong for one `as_is` that is too
        long, ConflictError where somebody else keeps changing the memory.
        """
        text = clean(text)
        if not text.strip():
            raise ValueError("observe: the text is empty")
        if as_is:
            return [self._read_chunk(text)]
        room = self.env.prompt.prompt_tokens // 2 - self._shown_tokens(dialogue("", timestamp))
        parts = split_text(text, max(room, 16), self._shown_tokens)
        return [self._read_chunk(dialogue(part.strip(), timestamp)) for part in parts]

    def _shown_tokens(self, text: str) -> int:
        """Tokens of a text as the prompt shows it."""
        env = self.env
        also = [*template_fragments(env.prompt.template), *env.prompt.tokenizer.all_special_tokens]
        return count_tokens(env, escape(text, also))

    def _read_chunk(self, chunk: str) -> Event:
        with self._writing:
            for attempt in range(ATTEMPTS):
                before = self._before()
                event, after, next_id = self._step(before, chunk)
                self.store.create(self.namespace, before.next_id)  # if it is not there
                try:
                    return self.store.commit(self.namespace, event, after, before, next_id)
                except ConflictError:
                    if attempt == ATTEMPTS - 1:
                        raise

    def _before(self) -> Snapshot:
        """The memory; an empty one where nothing was ever stored."""
        try:
            return self.store.read(self.namespace)
        except UnknownNamespaceError:
            first = first_state(self.env, 1, zlib.crc32(self.namespace.encode())).next_id
            return Snapshot("", -1, (), (), int(first[0]), 0)

    def _step(self, before: Snapshot, chunk: str) -> tuple[Event, dict, int]:
        """One step of an episode on the memory `before`; nothing is stored yet."""
        shown = view_of(before, self.env)
        state = state_of(shown, self.env, before.next_id)
        instance = Instance("agent", self.namespace, (chunk,), ())
        turn = make_turn(self.env, state, 0, before.events, instance, text=chunk)
        state, (step,) = memorise(self.env, state, [turn], self.writer)
        if step.response.error:
            raise RuntimeError(f"the writer failed, nothing was stored: {step.response.error}")
        host = jax.device_get(state)
        after = difference(shown, whole_view(self.env, host, 0))
        event = Event("observe", self.author, chunk, step.text, calls_made(step))
        return event, after, int(host.next_id[0])

    def ask(self, question: str) -> Reply:
        """Answers from the memory alone; an empty text where it says nothing.

        Raises ValueError for an empty question, UnknownNamespaceError, RuntimeError where the
        reader failed.
        """
        question = clean(question)
        if not question.strip():
            raise ValueError("ask: the question is empty")
        shown = view_of(self.store.read(self.namespace), self.env)
        asked = Instance(SOURCE, self.namespace, (), (Question(question, ()),))
        (request,) = find_evidence(self.env, asked, shown)
        (answer,) = reader.read([request], self.env.reading.answerer)
        if answer.text is None:
            why = (
                self.env.reading.failures[-1]
                if self.env.reading.failures
                else "its own log says why"
            )
            raise RuntimeError(f"the reader gave no answer: {why}")
        return Reply(answer.text, request.evidence)

    def chat(self, message: str, timestamp: str | datetime | None = None) -> Reply:
        """One turn of a conversation: replies from the memory, then remembers the turn.

        The offline reader can only quote, so it is asked only what has a question mark.
        """
        message = clean(message)
        if not message.strip():
            raise ValueError("chat: the message is empty")
        reply = Reply("", Evidence())
        if self.env.reading.answerer is not extractive_answers or "?" in message:
            try:
                reply = self.ask(message)
            except UnknownNamespaceError:
                pass  # the first words of a new user
        said = reply.text or (UNKNOWN if "?" in message else NOTED)
        turn = dialogue(message.strip(), timestamp, said)
        if self._shown_tokens(turn) > self.env.prompt.prompt_tokens // 2:
            self.observe(message, timestamp)
        else:
            self._read_chunk(turn)
        return Reply(said, reply.evidence)

    @property
    def memory(self) -> Contents:
        """What stands in the memory: to read, edit, export, undo and trace back."""
        return Contents(self.env, self.store, self.namespace)

    def save(self, path: str | Path) -> None:
        """Writes a copy of the store, all namespaces and their history; whole or not at all."""
        self.store.copy_to(path)

    def load(self, path: str | Path) -> None:
        """Takes over what `save` wrote to `path`: all namespaces and their history in place of
        those of this agent's store, in one step. `store=` of `from_checkpoint` opens a file and
        keeps working on it; this copies.

        Raises StoreError for a file that is missing, no store, or of a newer version.
        """
        self.store.copy_from(path)


def dialogue(text: str, timestamp: str | datetime | None = None, reply: str = NOTED) -> str:
    """A chunk in the form of the training data: one turn of a dialogue, with its time.

    None of the three can pass for the words of another speaker.
    """
    when = datetime.now(UTC) if timestamp is None else timestamp
    when = when.strftime("%Y-%m-%d %H:%M") if isinstance(when, datetime) else " ".join(when.split())
    when, text, reply = (_SPEAKER.sub("‹", part) for part in (when, text, reply))
    return f"[Dialogue between User and Assistant on {when}]\n<User> {text}\n<Assistant> {reply}"


def calls_made(step: Step) -> tuple[dict, ...]:
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


def split_text(text: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """The text in parts of at most `limit` tokens, joined again the same text.

    Cut between lines where that does, else between sentences, words, characters. The tokens of a
    part are counted piece by piece, which is never less than a tokenizer gives for the whole.
    """
    parts, used = [""], 0
    for piece in _pieces(text, limit, count):
        size = count(piece)
        if parts[-1] and used + size > limit:
            parts.append("")
            used = 0
        parts[-1] += piece
        used += size
    return [part for part in parts if part.strip()] if text.strip() else []


def _pieces(text: str, limit: int, count: Callable[[str], int], depth: int = 0) -> list[str]:
    if count(text) <= limit or len(text) < 2:
        return [text]
    pieces = (_lines, _sentences, _words, _halves)[depth](text)
    deeper = min(depth + 1, 3)
    return [part for piece in pieces for part in _pieces(piece, limit, count, deeper)]


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _sentences(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\S*\s*", text) if word]


def _halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]
