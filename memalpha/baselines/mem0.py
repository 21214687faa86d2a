"""Mem0 (arXiv:2504.19413): the model extracts facts from each chunk; for each fact it sees the most
similar stored facts and adds the new one, updates or deletes a stored one, or does nothing.

As in the paper, the extraction prompt has a summary of the stream and the end of the previous
chunk. The summary is used for extraction only; the memory is the list of facts. Similar facts are
retrieved by the environment's retriever; the paper uses text embeddings.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memalpha.baselines.chats import (
    FORMS,
    Example,
    Script,
    Written,
    check_room,
    cut,
    feed,
    fitting,
    listed,
    load_examples,
    load_form,
    load_task,
    make_view,
    promised,
    room_for_text,
    run_scripts,
    safe,
    user,
    with_room,
)
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall
from memalpha.lm.interface import Chat, LanguageModel
from memalpha.memory import Entry
from memalpha.replies import clean, find_items, find_with, visible
from memalpha.retrieval import make_index
from memalpha.tools import id_number

SIMILAR = 10  # stored facts that a new one is compared with (the paper)
SUMMARY = 256  # tokens
RECENT = 256  # tokens of the previous chunk; the paper shows ten messages
_EXAMPLES = {  # of which call: file, and the fields of an example
    "facts": ("extract", ("summary", "recent", "chunk")),
    "decision": ("decide", ("fact", "similar")),
    "summary": ("summary", ("summary", "chunk")),
}


@dataclass
class _Store:
    """The facts in the order in which they were added. Ids only grow."""

    facts: dict[int, Entry] = field(default_factory=dict)
    next_id: int = 1
    rejected: Counter[str] = field(default_factory=Counter)

    def carry_out(
        self, env: Environment, reply: str, fact: str, candidates: Sequence[Entry], chunk: int
    ) -> None:
        """Applies the decision about a fact; an invalid decision is a no-op and counted."""
        operation, number, text = read_decision(reply)
        known = number in {entry.id for entry in candidates}
        if operation == "ADD":
            self.facts[self.next_id] = Entry(self.next_id, fact, chunk)
            self.next_id += 1
        elif operation == "UPDATE" and known and text:
            text = cut(env, text, env.memory.entry_tokens)
            self.facts[number] = Entry(number, text, chunk)
        elif operation == "DELETE" and known:
            del self.facts[number]
        elif operation != "NOOP":
            self.rejected[_why_invalid(operation, known)] += 1


def recall(
    env: Environment,
    instances: Sequence[Instance],
    *,
    model: LanguageModel,
    similar: int = SIMILAR,
    summary_tokens: int = SUMMARY,
    recent_tokens: int = RECENT,
    temperature: float = 0.0,
    seed: int = 0,
    folder: str | Path = FORMS,
) -> list[Recall]:
    """One request per question, with the facts retrieved for it; the core is empty.

    With `summary_tokens` 0 there is no summary and no call for it. Replies without usable JSON,
    facts that are not strings, and ids that were not shown are no-ops and count as rejected.
    """
    least = {"similar": 1, "summary_tokens": 0, "recent_tokens": 0}
    given = {"similar": similar, "summary_tokens": summary_tokens, "recent_tokens": recent_tokens}
    for name, value in given.items():
        if value < least[name]:
            raise ValueError(f"mem0: {name} = {value}; give at least {least[name]}")
    forms = {
        "facts": load_form(
            "mem0_extract", ("chunk",), ("task", "summary", "recent", "budget"), folder
        ),
        "decision": load_form("mem0_decide", ("fact", "similar"), (), folder),
        "summary": load_form("mem0_summary", ("summary", "chunk"), ("budget",), folder),
    }

    def script(instance: Instance) -> Script:
        stream = _Stream(env, forms, load_task(instance, folder), summary_tokens)
        for name, (file, fields) in _EXAMPLES.items():
            ask, memory = stream.asks(recent_tokens)[name]
            examples = load_examples(f"mem0_{file}", instance, fields, folder)
            left = room_for_text(env, ask(""), memory)
            stream.examples[name] = with_room(env, forms[name], examples, left, task=stream.task)
        return _write(stream, instance, similar, recent_tokens)

    return run_scripts(env, instances, script, model, temperature, seed)


@dataclass
class _Stream:
    """The prompts of one instance, and what they show of the stream read so far."""

    env: Environment
    forms: dict[str, str]
    task: str
    summary_tokens: int
    summary: str = ""
    recent: str = ""  # the end of the previous chunk
    examples: dict[str, Sequence[Example]] = field(default_factory=dict)  # of which form

    def asks(self, recent_tokens: int) -> dict[str, tuple[Callable[[str], Chat], int]]:
        """Name of a form -> what makes its chat, and the tokens of the memory in it when full."""
        return {
            "facts": (self.ask_facts, self.summary_tokens + recent_tokens),
            "summary": (self.ask_summary, self.summary_tokens),
            "decision": (partial(self.ask_decision, near=()), self.env.memory.entry_tokens),
        }

    def ask_facts(self, part: str) -> Chat:
        """The chat that asks for the facts in a piece of a chunk."""
        env = self.env
        old, new, before = safe(env, self.summary), safe(env, part), safe(env, self.recent)
        budget = promised(env, env.prompt.response_tokens)
        form, examples = self.forms["facts"], self.examples.get("facts", ())
        return user(
            form, examples, task=self.task, summary=old, recent=before, chunk=new, budget=budget
        )

    def ask_summary(self, part: str) -> Chat:
        """The chat that asks for the summary, with a piece of a chunk worked in."""
        budget = promised(self.env, self.summary_tokens)
        old, new = safe(self.env, self.summary), safe(self.env, part)
        form, examples = self.forms["summary"], self.examples.get("summary", ())
        return user(form, examples, summary=old, chunk=new, budget=budget)

    def ask_decision(self, fact: str, near: Sequence[Entry]) -> Chat:
        """The chat that asks what to do with a fact, given the stored facts that are similar."""
        lines = listed(self.env, [(entry.id, entry.text) for entry in near])
        form, examples = self.forms["decision"], self.examples.get("decision", ())
        return user(form, examples, fact=safe(self.env, fact), similar=lines)


def _write(stream: _Stream, instance: Instance, similar: int, recent_tokens: int) -> Script:
    env, store, summary_tokens = stream.env, _Store(), stream.summary_tokens
    for ask, memory in stream.asks(recent_tokens).values():
        check_room(env, ask(""), memory)
    for number, chunk in enumerate(instance.chunks):
        for chat in feed(env, chunk, stream.ask_facts):
            facts, broken = read_facts((yield chat))
            store.rejected += broken
            for fact in facts:
                fact = cut(env, fact, env.memory.entry_tokens)
                near = nearest(env, list(store.facts.values()), fact, similar)
                candidates = fitting(env, near, partial(stream.ask_decision, fact))
                reply = yield stream.ask_decision(fact, candidates)
                store.carry_out(env, reply, fact, candidates, number)
        if summary_tokens:
            for chat in feed(env, chunk, stream.ask_summary):
                written = cut(env, visible((yield chat)), summary_tokens)
                store.rejected["empty summary"] += not written
                stream.summary = written or stream.summary
        stream.recent = cut(env, chunk, recent_tokens, end=True)
    return Written(make_view(env, "", list(store.facts.values())), store.rejected)


def _why_invalid(operation: str, known: bool) -> str:
    if operation not in ("UPDATE", "DELETE"):
        return "unknown operation" if operation else "reply without a decision"
    return "update without a text" if known else "id that was not shown"


def nearest(env: Environment, facts: Sequence[Entry], fact: str, k: int) -> list[Entry]:
    """The k stored facts most similar to a new one, best first."""
    index = make_index(
        [entry.text for entry in facts], env.reading.retriever, env.reading.dimensions
    )
    ids, _ = index.search([fact], k)
    return [facts[i] for i in ids[0].tolist() if i >= 0]


def read_decision(reply: str) -> tuple[str, int, str]:
    """Operation, id and new text of the last decision in a reply; "", -1 and "" without one."""
    decisions = find_with(visible(reply), "operation", ("id", "text"))
    decision = decisions[-1] if decisions else {}
    operation, text = str(decision.get("operation", "")).strip().upper(), decision.get("text")
    text = clean(text).strip() if isinstance(text, str) else ""
    return operation, id_number(decision.get("id")), text


def read_facts(text: str) -> tuple[list[str], Counter[str]]:
    """The facts of a reply, and the parts that could not be used by reason.

    The last list counts, because a model may quote the form before it answers. From a list that is
    broken or cut off, the complete facts are used.
    """
    body = visible(text)
    lists = [value["facts"] for value in find_with(body, "facts", ())]
    whole = bool(lists)
    items = lists.pop() if whole else find_items(body, "facts")
    rejected = Counter(
        {"facts in an earlier list": sum(len(a) for a in lists if isinstance(a, list))}
    )
    if not isinstance(items, list):
        return [], rejected + Counter(["reply without facts"])
    rejected["broken list of facts"] = int(not whole)
    facts = [" ".join(clean(fact).split()) for fact in items if isinstance(fact, str)]
    facts = [fact for fact in facts if fact]
    rejected["fact that is no text"] = len(items) - len(facts)
    return facts, rejected
