"""Notes for instances of real text: all that their chunks hold, sentence by sentence.

The notes of synthetic data say what is worth remembering; of real text nobody can say that before
the questions are asked. Here they say what *could* be stored, which is what the scripted writers
need to show the tool language.
"""

import re
from dataclasses import replace
from itertools import pairwise

from memalpha.data import text
from memalpha.data.instance import Instance

_EXAMPLE = re.compile(r"(?:Sentence|Sample): (?P<sentence>.+)\nLabels?: (?P<label>\d+)", re.DOTALL)


def add_notes(instance: Instance) -> Instance:
    """The instance with metadata["notes"]: for each chunk a list of {memory, content, replaces}.

    A labelled example gives "sentence -> label", a passage gives each of its sentences; all of it
    is knowledge, so all goes to the semantic memory. What frames the content of a chunk (date,
    lead-in, acknowledgement) gives no note.

    Raises:
        ValueError: a chunk in another form than `text.dialogue_chunk` gives, or an example of a
            labelled source without sentence or label; names the instance.
    """
    split = _examples if "label_names" in instance.metadata else _sentences
    try:
        contents = [split(text.dialogue_content(chunk)) for chunk in instance.chunks]
    except ValueError as error:
        raise ValueError(f"{instance.source}/{instance.instance_id}: {error}") from error
    notes = [[_note(content) for content in chunk] for chunk in contents]
    return replace(instance, metadata=instance.metadata | {"notes": notes})


def _note(content: str) -> dict:
    return {"memory": "semantic", "content": content, "replaces": None}


def _examples(content: str) -> list[str]:
    notes = []
    for example in content.split(text.SEPARATOR):
        match = _EXAMPLE.fullmatch(example)
        if match is None:
            raise ValueError(f"{example[:60]!r} is no labelled example (Sentence: ... Label: 3)")
        notes.append(f"{match['sentence']} Label: {match['label']}")
    return notes


def _sentences(content: str) -> list[str]:
    sentences = []
    for passage in content.split(text.SEPARATOR):
        ends = [0, *text.sentence_ends(passage)]
        sentences += [passage[start:end].strip() for start, end in pairwise(ends)]
    return [sentence for sentence in sentences if sentence]
