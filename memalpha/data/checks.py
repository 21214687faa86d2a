"""What a data set must stand up to: answers that are in the text, and no test text in training."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from memalpha.data import text
from memalpha.data.instance import Instance
from memalpha.data.names import JUDGED, OVERLAP, SUMMARIES, family

_SPACE = re.compile(r"\s+")
_LABEL = re.compile(r"\nLabels?: ?(\d+)\b")
_TAG = re.compile(r"^(?:Sentence|Sample): ")  # before a labelled example
# Lines that frame a chunk and recur in every instance.
_FRAME = ("[Dialogue", "Event happened on", "An event about", "<System>")
PER_QUESTION = ("question_ids", "question_types", "corrected_answers", "supporting", "evidence")
MIN_LETTERS = 40  # of a paragraph, to be compared: shorter lines recur by chance


def answerable(instance: Instance) -> list[bool | None]:
    """For each question, whether an answer stands in the chunks; None where that says nothing.

    Compared without case and with single spaces. Labelled sources: some example has the label. Of
    several answers, keywords, or parts between `;`, one is enough. None: yes or no, answers graded
    by a judge (LongMemEval), and those scored by the words in common (LoCoMo).
    """
    read = _plain("\n".join(instance.chunks))
    labels = set(_LABEL.findall("\n".join(instance.chunks)))
    verdicts: list[bool | None] = []
    for question in instance.questions:
        answers = [part for a in question.answers for part in a.split(";") if part.strip()]
        if family(instance.source) in JUDGED | OVERLAP:
            verdicts.append(None)
        elif all(answer.strip().lower() in ("yes", "no") for answer in answers):
            verdicts.append(None)
        elif labels and all(answer.strip().isdigit() for answer in answers):
            verdicts.append(any(answer.strip() in labels for answer in answers))
        else:
            verdicts.append(any(_plain(answer) in read for answer in answers))
    return verdicts


def drop_unanswerable(instance: Instance) -> Instance | None:
    """The instance without questions whose answer is nowhere in it; None if none is left.

    metadata["question_ids"] follows; metadata["dropped_questions"] counts them.
    """
    asked = [i for i, verdict in enumerate(answerable(instance)) if verdict is not False]
    if not asked:
        return None
    if len(asked) == len(instance.questions):
        return instance
    metadata = dict(instance.metadata)
    for name in PER_QUESTION:
        if len(metadata.get(name, ())) == len(instance.questions):
            metadata[name] = [metadata[name][i] for i in asked]
    dropped = len(instance.questions) - len(asked)
    metadata["dropped_questions"] = metadata.get("dropped_questions", 0) + dropped
    questions = tuple(instance.questions[i] for i in asked)
    return replace(instance, questions=questions, metadata=metadata)


@dataclass(frozen=True)
class Leakage:
    """Questions and paragraphs of the evaluated instances that the training instances hold too."""

    questions: int
    shared_questions: tuple[str, ...]
    paragraphs: int
    shared_paragraphs: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.shared_questions)} of {self.questions} questions and"
            f" {len(self.shared_paragraphs)} of {self.paragraphs} paragraphs are in training too"
        )


def leakage(training: Iterable[Instance], evaluated: Iterable[Instance]) -> Leakage:
    """Compare by words (case, spaces and punctuation aside); each text counts once.

    Paragraphs are the lines of the chunks with at least MIN_LETTERS letters and digits, without
    those that frame a chunk. A labelled sentence that training shows and the evaluation asks counts
    as a shared question. The summary question, the same of every book, is not compared.
    """
    seen_questions: set[bytes] = set()
    seen_paragraphs: set[bytes] = set()
    for instance in training:
        seen_questions |= _questions(instance).keys()
        seen_paragraphs |= _paragraphs(instance.chunks).keys()
    asked: dict[bytes, str] = {}
    read: dict[bytes, str] = {}
    for instance in evaluated:
        asked |= _questions(instance)
        read |= _paragraphs(instance.chunks)
    known = seen_questions | seen_paragraphs
    return Leakage(
        len(asked),
        tuple(sorted(asked[key] for key in asked.keys() & known)),
        len(read),
        tuple(sorted(read[key] for key in read.keys() & seen_paragraphs)),
    )


def _questions(instance: Instance) -> dict[bytes, str]:
    if family(instance.source) in SUMMARIES:
        return {}
    asked = [question.question.partition("\n")[0] for question in instance.questions]
    return {text.rank(text.plain_key(_TAG.sub("", question))): question for question in asked}


def _paragraphs(chunks: Sequence[str]) -> dict[bytes, str]:
    lines = {}
    for chunk in chunks:
        for line in chunk.split("\n"):
            if line.startswith(_FRAME):
                continue
            bare, tagged = _TAG.subn("", line)
            key = text.plain_key(bare)
            if tagged or len(key) >= MIN_LETTERS:
                lines[text.rank(key)] = line
    return lines


def _plain(words: str) -> str:
    return _SPACE.sub(" ", words.lower()).strip()
