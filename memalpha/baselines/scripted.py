"""Scripted writers for instances whose metadata list notes: what their chunks hold.

`perfect` stores every note and updates the entry that a note supersedes if that entry is shown: on
synthetic data the upper bound in the tables. `careful` stores those that somebody may ask about; it
teaches pretrained models. `poor_response` teaches models from scratch: it skips about half of the
notes, puts a third of the rest into the wrong memory, and breaks some calls. Whatever the trained
writer does better, it has learned from the reward.
"""

import json
import re
from dataclasses import dataclass, replace

import numpy as np

from memalpha import tools
from memalpha.data.instance import Instance
from memalpha.memory import MemoryView

_INNER_WORD = re.compile(r"[^.!?\"\s]\s+([^\W\d_]\S*)")  # one that begins no sentence


@dataclass(frozen=True)
class Flaws:
    """Probabilities that the poor writer skips a note, puts it into the wrong memory, breaks a
    call, and (once per chunk) stores a useless line.

    `skip` is the mean over chunks: some chunks are skipped almost entirely, others not at all. If
    notes were skipped independently, responses with several calls would be rare.
    """

    skip: float = 0.5
    misfile: float = 1 / 3
    break_call: float = 0.1
    keep_filler: float = 0.1


def _notes(instance: Instance, chunk: int) -> list[dict]:
    if "notes" not in instance.metadata:
        raise ValueError(
            f"{instance.source}/{instance.instance_id} has no metadata['notes']: scripted writers"
            " work on synthetic sources, and on real ones after `notes.add_notes`"
        )
    return instance.metadata["notes"][chunk]


def perfect(
    instance: Instance, chunk: int, view: MemoryView, flat: bool = False
) -> list[tools.Call]:
    """Calls that store every note of a chunk in the right memory; superseded entries that are shown
    are updated. With `flat`, everything goes to the core."""
    calls, core = [], view.core
    in_sight = {
        e.text: (name, e.id) for name in ("semantic", "episodic") for e in getattr(view, name)
    }
    for note in _notes(instance, chunk):
        if flat or note["memory"] == "core":
            remaining = core.replace(note["replaces"], "") if note["replaces"] else core
            core = " ".join((remaining + " " + note["content"]).split())
        elif note["replaces"] in in_sight:
            memory, entry_id = in_sight[note["replaces"]]
            calls.append(_update(memory, note["content"], entry_id))
        else:
            calls.append(_insert(note["memory"], note["content"]))
    if core != view.core:
        calls.append(_update("core", core))
    return calls


def careful(
    instance: Instance, chunk: int, view: MemoryView, flat: bool = False
) -> list[tools.Call]:
    """`perfect` without the notes that name nothing: no number, and no name after the first word.

    Such are some sentences of passages. The notes of synthetic data all say something and are kept,
    and those of dialogues and labelled examples have their date or label. What somebody said is
    quoted, where the notes have a quote: a small model that rewords makes things up. Such notes are
    kept too, since they were chosen."""
    is_synthetic = instance.source.startswith("synthetic_")
    kept = [
        _as_quoted(note)
        for note in _notes(instance, chunk)
        if is_synthetic or "quote" in note or _is_specific(note["content"])
    ]
    ours = {**instance.metadata, "notes": {chunk: kept}}
    return perfect(replace(instance, metadata=ours), chunk, view, flat)


def _as_quoted(note: dict) -> dict:
    if "quote" not in note:
        return note
    return {**note, "content": note["quote"], "replaces": note.get("replaces_quote")}


def _is_specific(content: str) -> bool:
    """Whether a text has a digit, or inside a sentence a capitalised word other than "I"."""
    inner = _INNER_WORD.findall(content)
    return any(map(str.isdecimal, content)) or any(
        word[0].isupper() and not re.match(r"I\b", word) for word in inner
    )


def poor_response(
    instance: Instance,
    chunk: int,
    view: MemoryView,
    dialect: str,
    rng: np.random.Generator,
    flaws: Flaws,
    flat: bool = False,
) -> str:
    """The text of a response of the poor writer."""
    calls, core = [], view.core
    in_sight = {
        e.text: (name, e.id) for name in ("semantic", "episodic") for e in getattr(view, name)
    }
    attention = _attention(flaws.skip, rng)
    for note in _notes(instance, chunk):
        if rng.random() >= attention:
            continue
        memory = note["memory"]
        if not flat and rng.random() < flaws.misfile:
            memory = str(rng.choice([m for m in ("semantic", "episodic") if m != memory]))
        if flat or memory == "core":
            core = " ".join((core + " " + note["content"]).split())
        elif note["replaces"] in in_sight:
            stored_in, entry_id = in_sight[note["replaces"]]
            calls.append(_update(stored_in, note["content"], entry_id))
        else:
            calls.append(_insert(memory, note["content"]))
    if not flat and rng.random() < flaws.keep_filler:
        calls.append(_insert("semantic", _some_line(instance.chunks[chunk], rng)))
    if core != view.core:
        calls.append(_update("core", core))
    broken = (_break(c, dialect, rng) if rng.random() < flaws.break_call else c for c in calls)
    return "\n".join(
        c if isinstance(c, str) else tools.format_call(c.name, c.arguments, dialect) for c in broken
    )


def _attention(skip: float, rng: np.random.Generator) -> float:
    """The share of the notes of a chunk to write: `1 - skip` on average, mostly close to 0 or 1.

    Drawn from a beta distribution whose two parameters sum to 0.5.
    """
    return float(rng.beta((1 - skip) / 2, skip / 2)) if 0 < skip < 1 else 1.0 - skip


def _insert(memory: str, content: str) -> tools.Call:
    return tools.Call(tools.INSERT, {"memory_type": memory, "content": content})


def _update(memory: str, content: str, entry_id: int | None = None) -> tools.Call:
    arguments = {"memory_type": memory, "new_content": content}
    if entry_id is not None:
        arguments["memory_id"] = str(entry_id)
    return tools.Call(tools.UPDATE, arguments)


def _some_line(text: str, rng: np.random.Generator) -> str:
    lines = [line for line in text.split("\n") if line.endswith(".") and line[0] not in "[<"]
    return str(rng.choice(lines)) if lines else "Nothing."


def _break(call: tools.Call, dialect: str, rng: np.random.Generator) -> tools.Call | str:
    """A call that fails: cut off, an insert into the core, or an update of a missing entry."""
    content = call.arguments.get("content") or call.arguments["new_content"]
    kind = rng.integers(3)
    if kind == 0:
        text = tools.format_call(call.name, call.arguments, dialect)
        inside = json.dumps(content, ensure_ascii=False)[1:-1]  # as written in the call
        return text[: text.index(inside) + len(inside)]
    return _insert("core", content) if kind == 1 else _update("semantic", content, 0)
