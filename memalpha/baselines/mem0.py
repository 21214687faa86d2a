"""Mem0 (arXiv:2504.19413): facts are extracted from each chunk; for each of them the model sees the
most similar stored facts and adds it, updates or deletes one of them, or does nothing.

Extraction sees, as in the paper, a summary of the stream and the end of the chunk before. The
summary serves extraction alone; the memory is the list of facts. Similar facts are found by the
environment's retriever, where the paper has text embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memalpha.baselines.chats import (
    FORMS,
    Script,
    Written,
    check_room,
    cut,
    feed,
    fitting,
    listed,
    load_form,
    load_task,
    make_view,
    promised,
    run_scripts,
    safe,
    user,
)
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall
from memalpha.lm.interface import Chat, LanguageModel
from memalpha.memory import Entry
from memalpha.retrieval import make_index
from memalpha.scoring import visible
from memalpha.tools import MAX_REPAIR, clean, read_object

SIMILAR = 10  # stored facts that a new one is compared with (the paper)
SUMMARY = 256  # tokens
RECENT = 256  # tokens of the chunk before; the paper shows ten messages


@dataclass
class _Store:
    """The facts in the order in which they were added. Ids only grow."""

    facts: dict[int, Entry] = field(default_factory=dict)
    next_id: int = 1
    rejected: int = 0

    def carry_out(
        self, env: Environment, decision: dict, fact: str, shown: Sequence[Entry], chunk: int
    ) -> bool:
        """Does what was decided about a fact; False, and nothing done, where it makes no sense."""
        operation, text = str(decision.get("operation")).strip().upper(), decision.get("text")
        number = str(decision.get("id")).strip(" []")
        known = number.isdecimal() and int(number) in {entry.id for entry in shown}
        if operation == "ADD":
            self.facts[self.next_id] = Entry(self.next_id, fact, chunk)
            self.next_id += 1
        elif operation == "UPDATE" and known and isinstance(text, str) and text.strip():
            text = cut(env, clean(text).strip(), env.memory.entry_tokens)
            self.facts[int(number)] = Entry(int(number), text, chunk)
        elif operation == "DELETE" and known:
            del self.facts[int(number)]
        else:
            return operation == "NOOP"
        return True


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
    """One request a question, with the facts found for it; the core is empty.

    `summary_tokens` 0 takes the summary, and its call a chunk, away. Replies without usable JSON,
    facts that are no texts and ids that were not shown change nothing and count as rejected.
    """
    least = {"similar": 1, "summary_tokens": 0, "recent_tokens": 0}
    given = {"similar": similar, "summary_tokens": summary_tokens, "recent_tokens": recent_tokens}
    for name, value in given.items():
        if value < least[name]:
            raise ValueError(f"mem0: {name} = {value}; give at least {least[name]}")
    extract = load_form("mem0_extract", ("chunk",), ("task", "summary", "recent", "budget"), folder)
    decide = load_form("mem0_decide", ("fact", "similar"), (), folder)
    summarise = load_form("mem0_summary", ("summary", "chunk"), ("budget",), folder)

    def script(instance: Instance) -> Script:
        store, summary, recent, task = _Store(), "", "", load_task(instance, folder)

        def ask_facts(part: str) -> Chat:
            old, new, before = safe(env, summary), safe(env, part), safe(env, recent)
            budget = promised(env, env.prompt.response_tokens)
            return user(extract, task=task, summary=old, recent=before, chunk=new, budget=budget)

        def ask_summary(part: str) -> Chat:
            budget = promised(env, summary_tokens)
            old, new = safe(env, summary), safe(env, part)
            return user(summarise, summary=old, chunk=new, budget=budget)

        def ask_decision(fact: str, near: Sequence[Entry]) -> Chat:
            lines = listed(env, [(entry.id, entry.text) for entry in near])
            return user(decide, fact=safe(env, fact), similar=lines)

        check_room(env, ask_facts(""), summary_tokens + recent_tokens)
        check_room(env, ask_summary(""), summary_tokens)
        check_room(env, ask_decision("", ()), env.memory.entry_tokens)
        for number, chunk in enumerate(instance.chunks):
            for chat in feed(env, chunk, ask_facts):
                facts, broken = read_facts((yield chat))
                store.rejected += broken
                for fact in facts:
                    fact = cut(env, fact, env.memory.entry_tokens)
                    near = nearest(env, list(store.facts.values()), fact, similar)
                    shown = fitting(env, near, lambda some, fact=fact: ask_decision(fact, some))
                    decision = read_object(visible((yield ask_decision(fact, shown)))) or {}
                    store.rejected += not store.carry_out(env, decision, fact, shown, number)
            if summary_tokens:
                for chat in feed(env, chunk, ask_summary):
                    written = cut(env, visible((yield chat)), summary_tokens)
                    store.rejected += not written
                    summary = written or summary
            recent = cut(env, chunk, recent_tokens, end=True)
        return Written(make_view(env, "", list(store.facts.values())), store.rejected)

    return run_scripts(env, instances, script, model, temperature, seed)


def nearest(env: Environment, facts: Sequence[Entry], fact: str, k: int) -> list[Entry]:
    """The k stored facts most similar to a new one, best first."""
    index = make_index(
        [entry.text for entry in facts], env.reading.retriever, env.reading.dimensions
    )
    ids, _ = index.search([fact], k)
    return [facts[i] for i in ids[0].tolist() if i >= 0]


def read_facts(text: str) -> tuple[list[str], int]:
    """The facts of a reply, and how much of it could not be used.

    Of a long reply that is broken or cut off, what can be repaired at its beginning is used.
    """
    body = visible(text)
    body = body[max(0, body.find("{")) :]
    found, rejected = read_object(body), 0
    if found is None:
        found, rejected = read_object(body[:MAX_REPAIR]), 1
    items = (found or {}).get("facts")
    if not isinstance(items, list):
        return [], 1
    facts = [" ".join(clean(fact).split()) for fact in items if isinstance(fact, str)]
    facts = [fact for fact in facts if fact]
    return facts, rejected + len(items) - len(facts)
