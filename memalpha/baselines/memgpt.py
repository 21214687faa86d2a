"""MemGPT (arXiv:2310.08560): the context window is managed like the memory of a computer.

The main context has a working context, a first-in-first-out queue of messages, and a recursive
summary of the messages that were evicted from the queue. External storage is an archive and the
recall storage, which holds the evicted messages. The model edits and searches by function calls; a
"heartbeat" in a call gives it another turn, so that calls can be chained. A chunk is one message,
or several if it is long. At about 70 % of the window the model is warned; when the window is full,
messages are evicted until the queue fills half of its room, and one call rewrites the summary (the
paper, section 2).

The reader gets the main context and, for each question, one page of search results from archive and
recall storage.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from memalpha import calls, tools
from memalpha.baselines.chats import (
    FORMS,
    MIN_PIECE,
    Example,
    Script,
    Written,
    chat_tokens,
    cut,
    fill_form,
    fitting,
    listed,
    load_examples,
    load_form,
    load_task,
    make_view,
    no_room,
    promised,
    run_scripts,
    safe,
    user,
    with_room,
)
from memalpha.data.cut import pieces
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.lm.interface import Chat, LanguageModel
from memalpha.memory import Entry
from memalpha.paths import user_path
from memalpha.replies import clean, visible
from memalpha.retrieval import make_index

SUMMARY = 512  # tokens of the recursive summary
PAGE = 5  # results of a search
ROUNDS = 4  # turns per message; bounds chained calls
PRESSURE = 0.7  # of the window: the model is warned from here on
NUMBER = 10**6  # message number that sizes are computed with: as long as any real one

SEARCHES = ("archive_search", "recall_search")
FUNCTIONS = {  # name: what it does, and its arguments
    "core_append": ("Add a line to the working context.", {"content": "The line."}),
    "core_replace": (
        "Change the working context.",
        {"old": "A passage, word for word.", "new": "What takes its place; may be empty."},
    ),
    "archive_insert": ("Put a text into the archive.", {"content": "Clear without any other."}),
    "archive_search": ("Find texts in the archive.", {"query": "Words to look for."}),
    "recall_search": ("Find messages that left the queue.", {"query": "Words to look for."}),
}

_KNOWN = {name: (*arguments, "page", "heartbeat") for name, (_, arguments) in FUNCTIONS.items()}
_ARGUMENTS = set().union(*_KNOWN.values())
_SILENT = re.compile(r"done\W*", re.IGNORECASE)  # what a reply without calls should be
_MAIN = ("working", "summary", "queue")  # placeholders of the main form
_COUNTS = ("used", "limit", "evicted", "archived", "notice", "budget")


def recall(
    env: Environment,
    instances: Sequence[Instance],
    *,
    model: LanguageModel,
    summary_tokens: int = SUMMARY,
    page: int = PAGE,
    rounds: int = ROUNDS,
    temperature: float = 0.0,
    seed: int = 0,
    folder: str | Path = FORMS,
) -> list[Recall]:
    """One request per question. The window has `env.prompt.prompt_tokens`, the working context at
    most `env.memory.core_tokens` and a text of the archive at most `env.memory.entry_tokens`.

    Failed calls and empty summaries are no-ops and count as rejected.
    """
    sizes = {"summary_tokens": summary_tokens, "page": page, "rounds": rounds}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"memgpt: {name} = {value}; give at least 1")
    forms = {
        "system": load_form("memgpt_system", ("tools", "example"), ("task",), folder),
        "main": load_form("memgpt", _MAIN, _COUNTS, folder),
        "pressure": load_form("memgpt_pressure", (), (), folder),
        "summary": load_form("memgpt_summary", ("summary", "messages"), ("task", "budget"), folder),
    }

    def script(instance: Instance) -> Script:
        main = _Main(env, forms, load_task(instance, folder), summary_tokens, page)
        examples = load_examples("memgpt", instance, ("working", "queue"), folder)
        examples = [_as_shown(env, example, folder) for example in examples]
        examples = with_room(env, forms["main"], examples, main.room)
        main = replace(main, examples=examples)
        return _write(main, instance, rounds)

    return run_scripts(env, instances, script, model, temperature, seed)


def _write(main: "_Main", instance: Instance, rounds: int) -> Script:
    for number, chunk in enumerate(instance.chunks):
        for part in main.messages(chunk):
            main.receive(part, number)
            for _ in range(rounds):
                while main.is_full():
                    leaving = main.leaving()
                    main.evict(leaving, visible((yield main.ask_summary(leaving))))
                if not main.act(visible((yield main.ask())), number):
                    break
    view = make_view(main.env, main.in_sight(), main.archive, main.evicted)
    return Written(view, main.rejected, main.page)


@dataclass(frozen=True)
class _Message:
    """A message of the queue: a piece of a chunk, or (`is_call`) a call with its result."""

    number: int
    text: str
    chunk: int
    is_call: bool = False


@dataclass
class _Main:
    """Main context and storages of an instance; messages and texts share one counter for ids."""

    env: Environment
    forms: dict[str, str]
    task: str
    summary_tokens: int
    page: int
    examples: Sequence[Example] = ()
    working: str = ""
    summary: str = ""
    queue: list[_Message] = field(default_factory=list)
    evicted: list[Entry] = field(default_factory=list)  # the recall storage
    archive: list[Entry] = field(default_factory=list)
    next_id: int = 1
    rejected: Counter[str] = field(default_factory=Counter)
    room: int = 0  # tokens for the queue when working context and summary are full

    def __post_init__(self):
        numbers = 16  # tokens: the counts in the prompt grow by a few digits
        taken = chat_tokens(self.env, self._chat(self.forms["pressure"])) + numbers
        self.room = (
            self.env.prompt.prompt_tokens
            - taken
            - self.env.memory.core_tokens
            - self.summary_tokens
        )
        if self.room < 2 * MIN_PIECE:
            raise no_room(self.env, self.room // 2)

    def messages(self, chunk: str) -> list[str]:
        """The chunk as messages that each fill at most half of the queue."""
        return list(pieces(chunk, self.room // 2, self._size))

    def receive(self, text: str, chunk: int, is_call: bool = False) -> None:
        self.queue.append(_Message(self._new_id(), text, chunk, is_call))

    def in_sight(self) -> str:
        """The part of the main context that the reader sees: everything except calls."""
        messages = [message.text for message in self.queue if not message.is_call]
        return "\n\n".join(text for text in (self.working, self.summary, *messages) if text)

    # ------------------------------------------------------------------------------- the window

    def ask(self) -> Chat:
        """The chat of one turn, with a warning if the window is nearly full."""
        chat = self._chat("")
        near = chat_tokens(self.env, chat) > PRESSURE * self.env.prompt.prompt_tokens
        return self._chat(self.forms["pressure"]) if near else chat

    def is_full(self) -> bool:
        return chat_tokens(self.env, self.ask()) > self.env.prompt.prompt_tokens

    def leaving(self) -> Sequence[_Message]:
        """The oldest messages, chosen so that the rest fill at most half of the queue."""
        stay, used = len(self.queue) - 1, self._size(self.queue[-1].text)
        while stay and (used := used + self._size(self.queue[stay - 1].text)) <= self.room // 2:
            stay -= 1
        return fitting(self.env, self.queue[: max(stay, 1)], self.ask_summary)

    def ask_summary(self, leaving: Sequence[_Message]) -> Chat:
        budget = promised(self.env, self.summary_tokens)
        messages, summary = self._lines(leaving), safe(self.env, self.summary)
        form = self.forms["summary"]
        return user(form, task=self.task, summary=summary, messages=messages, budget=budget)

    def evict(self, leaving: Sequence[_Message], summary: str) -> None:
        """Moves messages to the recall storage; an empty summary keeps the old one."""
        if not leaving:
            raise no_room(self.env, 0)
        self.queue = self.queue[len(leaving) :]
        self.evicted += [Entry(m.number, m.text, m.chunk) for m in leaving if not m.is_call]
        summary = cut(self.env, summary, self.summary_tokens)
        self.rejected["empty summary"] += not summary
        self.summary = summary or self.summary

    def _chat(self, notice: str) -> Chat:
        env = self.env
        schemas = "\n".join(json.dumps(schema) for schema in function_schemas())
        example = tools.format_call("archive_insert", {"content": "..."}, env.prompt.dialect)
        system = fill_form(self.forms["system"], task=self.task, tools=schemas, example=example)
        chat = user(
            self.forms["main"],
            self.examples,
            working=safe(env, self.working),
            used=count_tokens(env, self.working),
            limit=env.memory.core_tokens,
            summary=safe(env, self.summary),
            evicted=len(self.evicted),
            archived=len(self.archive),
            queue=self._lines(self.queue),
            notice=notice,
            budget=promised(env, env.prompt.response_tokens),
        )
        return [{"role": "system", "content": system}, *chat]

    def _lines(self, messages: Sequence[_Message]) -> str:
        return listed(self.env, [(m.number, m.text) for m in messages])

    def _size(self, text: str) -> int:
        return count_tokens(self.env, listed(self.env, [(NUMBER, text)]))

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    # -------------------------------------------------------------------------------- the calls

    def act(self, reply: str, chunk: int) -> bool:
        """Runs the calls of a reply. True if the model gets another turn at this message."""
        again, found = False, read_calls(reply, self.env.prompt.dialect)
        self.rejected["reply without a call"] += not (found or _SILENT.fullmatch(reply.strip()))
        for done, raw in enumerate(found):
            if done >= self.env.memory.max_calls:
                self.rejected["call beyond the limit"] += 1
                continue
            name, arguments = str(clean(raw.name)), _known(raw.arguments)
            reason, detail = self._failure(name, arguments, raw.error)
            failed = bool(reason)
            if failed:
                self.rejected[reason] += 1
            heading = f"You called {name} {json.dumps(arguments, ensure_ascii=False)}"
            heading = self._short(heading, self.room // 4)
            left = self.room // 2 - self._size(heading)
            result = f"failed: {detail}" if failed else self._run(name, arguments, chunk, left)
            again |= failed or name in SEARCHES or arguments.get("heartbeat") is True
            text = self._short(f"{heading}\n{result}", self.room // 2)
            self.receive(text, chunk, is_call=True)
        return again

    def _failure(self, name: str, arguments: dict, error: str) -> tuple[str, str]:
        """Why a call cannot be executed, in general and in detail; empty: it can."""
        if error:
            return "call that cannot be read", error
        if name not in FUNCTIONS:
            return "unknown function", f"the functions are {', '.join(FUNCTIONS)}"
        for key in FUNCTIONS[name][1]:
            value = arguments.get(key)
            if not isinstance(value, str) or not (value.strip() or key == "new"):
                return "argument missing", f"{key} is missing, empty or not a string"
        if name == "core_replace" and arguments["old"] not in self.working:
            return "passage not found", "the working context does not hold that passage"
        if name == "archive_insert":
            size, limit = count_tokens(self.env, arguments["content"]), self.env.memory.entry_tokens
            if size > limit:
                return "text too long", f"{size} tokens, {limit} are allowed"
        if name.startswith("core_") and self._edited(name, arguments) is None:
            return "no room", "the working context has no room for it: replace something first"
        return "", ""

    def _edited(self, name: str, arguments: dict) -> str | None:
        """The working context after an edit; None if it would be too long."""
        if name == "core_append":
            text = f"{self.working}\n{arguments['content'].strip()}".strip()
        else:
            text = self.working.replace(arguments["old"], arguments["new"], 1).strip()
        return (
            text
            if count_tokens(self.env, safe(self.env, text)) <= self.env.memory.core_tokens
            else None
        )

    def _run(self, name: str, arguments: dict, chunk: int, limit: int) -> str:
        """Executes a call and returns its result, of about `limit` tokens at most."""
        if name == "archive_insert":
            self.archive.append(Entry(self._new_id(), arguments["content"].strip(), chunk))
            return "done"
        if name in SEARCHES:
            stored = self.archive if name == "archive_search" else self.evicted
            return self._search(stored, arguments, limit)
        self.working = self._edited(name, arguments)
        return "done"

    def _search(self, stored: Sequence[Entry], arguments: dict, limit: int) -> str:
        number = arguments.get("page", 0)
        number = number if type(number) is int and 0 <= number < len(stored) else 0
        first, last = number * self.page, (number + 1) * self.page
        index = make_index(
            [e.text for e in stored], self.env.reading.retriever, self.env.reading.dimensions
        )
        ids = index.search([arguments["query"]], last)[0][0, first:].tolist()
        each = max(1, limit // (self.page + 1) - 8)  # tokens of a result, without its number
        results = [f"[{stored[i].id}] {cut(self.env, stored[i].text, each)}" for i in ids if i >= 0]
        return "\n".join([f"{len(stored)} stored, page {number}:", *results])

    def _short(self, text: str, limit: int) -> str:
        """The beginning of a text that has at most `limit` tokens as a message."""
        budget = limit
        while budget > 1 and (over := self._size(text) - limit) > 0:
            budget = max(1, budget - over)
            text = cut(self.env, text, budget)
        return text


def _as_shown(env: Environment, example: Example, folder: str | Path) -> Example:
    """The example with the rest of a chat whose storages are empty, and the calls of its reply as
    the dialect writes them; ValueError for a call that cannot be read."""
    reply, dialect = example["reply"], env.prompt.dialect
    found = read_calls(reply, dialect)
    if broken := [call.error for call in found if call.error]:
        path = user_path(folder) / "memgpt.toml"
        raise ValueError(f"template file {path}: the call in {reply!r}: {broken[0]}")
    texts = [tools.format_call(call.name, call.arguments, dialect) for call in found]
    used = count_tokens(env, example["working"])
    nothing = {"summary": "", "evicted": "0", "archived": "0", "notice": "", "used": str(used)}
    return nothing | example | {"reply": "\n".join(texts) or reply}


def read_calls(reply: str, dialect: str) -> list[calls.RawCall]:
    """The calls of a reply; bare JSON is accepted, since the model is not trained for calls."""
    return calls.scan_calls(reply, dialect, _KNOWN, bare=True)


def _known(arguments: object) -> dict:
    """The arguments of a call that any of the functions takes; others are dropped."""
    items = arguments.items() if isinstance(arguments, dict) else ()
    return {k: clean(v) for k, v in items if k in _ARGUMENTS and isinstance(v, str | int)}


def function_schemas() -> list[dict]:
    """The functions in the OpenAI format."""
    schemas = []
    for name, (about, arguments) in FUNCTIONS.items():
        properties = {k: {"type": "string", "description": v} for k, v in arguments.items()}
        if name in SEARCHES:
            properties["page"] = {"type": "integer", "description": "From 0, the best results."}
        properties["heartbeat"] = {"type": "boolean"}
        parameters = {"type": "object", "properties": properties, "required": [*arguments]}
        function = {"name": name, "description": about, "parameters": parameters}
        schemas.append({"type": "function", "function": function})
    return schemas
