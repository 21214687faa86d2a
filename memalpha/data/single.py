"""Statements of any source as single messages, as a person types them to an assistant.

Chats of ours hold some eighty kinds of facts. A writer that shall be silent at small talk has to
meet far more kinds of statements that are worth keeping, or it takes what it does not know for
small talk.
"""

import datetime
import re
from dataclasses import replace

import numpy as np

from memalpha.data.chats import forms
from memalpha.data.chats.forms import Line
from memalpha.data.chats.slots import Draws
from memalpha.data.instance import Instance, Question, validate

_FRAME = re.compile(r"^\d{4}/\d\d/\d\d: (?:User said: )?")  # date and speaker of a note
_WORD = re.compile(r"\w+")


def single_messages(instance: Instance, seed: int, split: str = "train") -> Instance | None:
    """A stream of at most as many messages as the instance has chunks, each a statement that
    answers one of its questions, in the form in which `MemoryAgent` shows what it is told. The note
    of a message quotes it, with its day in front where the statement was an event.

    Metadata: `notes` alone. Questions that no statement answers word for word are left out; None
    where no question is left.

    Raises:
        ValueError: the instance has no notes (`notes.add_notes`).
    """
    if "notes" not in instance.metadata:
        raise ValueError(f"{instance.source}/{instance.instance_id} has no metadata['notes']")
    answered: dict[str, list[Question]] = {}
    told = [note for notes in instance.metadata["notes"] for note in notes]
    texts = {_FRAME.sub("", note["content"]).strip(): note["memory"] for note in told}
    for question in instance.questions:
        answer = question.answers[0].casefold()
        found = [text for text in texts if answer in text.casefold()]
        if found:  # the one that shares most words with the question, or the first of these
            shared = [len(_words(question.question) & _words(text)) for text in found]
            text = found[shared.index(max(shared))]
            answered.setdefault(text, []).append(question)
    if not answered:
        return None
    key = [ord(letter) for letter in instance.instance_id]
    rng = np.random.default_rng([seed, *key])
    draws, order = Draws(rng, split), [text for text in texts if text in answered]
    count = min(len(instance.chunks), len(order))
    chosen = [order[i] for i in sorted(rng.choice(len(order), size=count, replace=False))]
    date = datetime.date(2022, 1, 1) + datetime.timedelta(days=int(rng.integers(2000)))
    chunks, notes = [], []
    for text in chosen:
        date += datetime.timedelta(days=int(rng.integers(1, 5)))
        said = forms.styled(draws, text.rstrip(".") or text)
        lines = [Line("User", said), Line("Assistant", forms.NOTED)]
        chunks.append(forms.logged(forms.logged_day(rng, date), lines))
        is_event, content = texts[text] == "episodic", f"User said: {said}"
        content = f"{date}: {content}" if is_event else content
        note = {"memory": "episodic" if is_event else "semantic", "content": content}
        notes.append([note | {"quote": content, "replaces": None}])
    return validate(
        replace(
            instance,
            instance_id=f"single-{instance.instance_id}",
            chunks=tuple(chunks),
            questions=tuple(q for text in chosen for q in answered[text]),
            metadata={"notes": notes},
        )
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
