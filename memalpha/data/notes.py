"""Notes for instances of real text: what their chunks hold, sentence by sentence.

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

SESSION = "[Dialogue at timestamp "
_SESSION = re.compile(r"\[Dialogue at timestamp (\d{4}/\d\d/\d\d)[^\]]*\]")
_USER_TURN = re.compile(r"<User>(.*?)(?=<User>|<Assistant>|\Z)", re.DOTALL)
_FIRST_PERSON = re.compile(r"\b(?:I|my|me|mine|we|our|us)\b", re.IGNORECASE)
_LEAD_OVER = re.compile(r"^(?:(?:And|But|Also|Oh|Well|So|Actually|By the way|by the way),? )+")
# Wishes, thanks and plans of the moment: nothing that a later reader could ask for.
_PASSING = re.compile(
    r"\b(?:thank|thanks|can you|could you|do you|I'd (?:like|love)|I would (?:like|love)"
    r"|I(?:'m| am| was) (?:looking|trying|hoping|wondering|thinking|curious|open|not sure)"
    r"|I (?:think|hope|guess|want|need|wonder)|I(?:'ll| will)|let me"
    r"|sounds? (?:good|great|like))\b",
    re.IGNORECASE,
)


def add_notes(instance: Instance) -> Instance:
    """The instance with metadata["notes"]: for each chunk a list of {memory, content, replaces}.

    A labelled example gives "sentence -> label", a passage gives each of its sentences; all of it
    is knowledge and goes to the semantic memory. What frames the content of a chunk (date, lead-in,
    acknowledgement) gives no note. A dialogue gives what the user tells about themselves, with the
    date of the session, for the episodic memory.

    Raises:
        ValueError: a chunk in another form, or an example of a labelled source without sentence or
            label; names the instance.
    """
    split = _examples if "label_names" in instance.metadata else _sentences
    notes = []
    try:
        for chunk in instance.chunks:
            if chunk.startswith(SESSION):
                notes.append([_note(said, "episodic") for said in _statements(chunk)])
            else:
                notes.append([_note(part) for part in split(text.dialogue_content(chunk))])
    except ValueError as error:
        raise ValueError(f"{instance.source}/{instance.instance_id}: {error}") from error
    return replace(instance, metadata=instance.metadata | {"notes": notes})


def _note(content: str, memory: str = "semantic") -> dict:
    return {"memory": memory, "content": content, "replaces": None}


def _statements(chunk: str) -> list[str]:
    """What the user says of themselves in the sessions of a chunk: "2023/05/20: User said: ..."."""
    told = []
    for date, session in zip(*[iter(_SESSION.split(chunk)[1:])] * 2, strict=True):
        for turn in _USER_TURN.findall(session):
            ends = [0, *text.sentence_ends(turn)]
            sentences = [turn[start:end].strip() for start, end in pairwise(ends)]
            told += [f"{date}: User said: {_bare(s)}" for s in sentences if _tells(s)]
    return told


def _bare(sentence: str) -> str:
    """The sentence without a word or two that lead over to it."""
    bare = _LEAD_OVER.sub("", sentence)
    return bare[:1].upper() + bare[1:]


def _tells(sentence: str) -> bool:
    """Whether a sentence tells something lasting about who says it, by its words."""
    if not 6 <= len(sentence.split()) <= 45 or sentence.endswith("?"):
        return False
    own = _FIRST_PERSON.search(sentence) or _LEAD_OVER.match(sentence)
    lasting = not _PASSING.search(sentence) or re.search(r"\d|[Bb]y the way", sentence)
    return bool(own and lasting)


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
