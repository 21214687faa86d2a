"""The one form every data source is brought into: chunks to read, then questions to answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

# Carried by every instance of a built source; raised whenever the same files and arguments give
# other instances than before.
BUILDER = "memalpha-data-3"


@dataclass(frozen=True)
class Question:
    """A question asked after the last chunk; any of `answers` is a right answer.

    `asked_at` is the date it is asked on, as published, or empty. It is for who answers ("how long
    ago?") and not part of what is searched for: there it would find date lines.
    """

    question: str
    answers: tuple[str, ...]
    asked_at: str = ""


@dataclass(frozen=True)
class Instance:
    """Chunks c1..cn in reading order and the questions about them (Mem-alpha, section 3.1).

    `source` is the data source's name; it decides the metric. `metadata` may hold "label_names"
    ({integer label as str: class name}), "notes" (for each chunk a list of what could be stored, as
    objects with `memory`, `content` and `replaces`) and facts about where the instance comes from.
    """

    source: str
    instance_id: str
    chunks: tuple[str, ...]
    questions: tuple[Question, ...]
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """What a source's `build` makes: an instance but for its name and origin.

    `facts` go to the metadata of the instance.
    """

    chunks: tuple[str, ...]
    questions: tuple[Question, ...]
    facts: dict = field(default_factory=dict)


def validate(instance: Instance) -> Instance:
    """Return the instance unchanged, or raise ValueError naming the instance and the field."""
    for name in ("source", "instance_id"):
        value = getattr(instance, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"instance {_label(instance)}: {name} must be a non-empty string")
    for name in ("chunks", "questions"):
        value = getattr(instance, name)
        if not isinstance(value, tuple):
            raise _error(instance, name, f"must be a tuple, not {type(value).__name__}")
        if not value:
            raise _error(instance, name, "must hold at least one item")
    for index, chunk in enumerate(instance.chunks):
        _check_text(instance, f"chunks[{index}]", chunk)
    for index, question in enumerate(instance.questions):
        where = f"questions[{index}]"
        if not isinstance(question, Question):
            raise _error(instance, where, f"must be a Question, not {type(question).__name__}")
        _check_text(instance, f"{where}.question", question.question)
        if not isinstance(question.answers, tuple) or not question.answers:
            raise _error(instance, f"{where}.answers", "must be a tuple with at least one answer")
        for number, answer in enumerate(question.answers):
            _check_text(instance, f"{where}.answers[{number}]", answer)
        if not isinstance(question.asked_at, str):
            raise _error(instance, f"{where}.asked_at", "must be a string, empty if not known")
    if not isinstance(instance.metadata, dict):
        raise _error(instance, "metadata", "must be a dict")
    return instance


def stamp(instance: Instance) -> Instance:
    """The instance with the version of the builder in metadata["builder"]."""
    return replace(instance, metadata=instance.metadata | {"builder": BUILDER})


def statistics(
    instances: Iterable[Instance], count_tokens: Callable[[str], int]
) -> dict[str, dict[str, float]]:
    """Sizes by source: instances, and the means of the columns of the paper's table 7.

    `tokens_per_chunk` is a mean over all chunks of the source, `max_chunk_tokens` the longest.
    """
    totals: dict[str, Totals] = {}
    for instance in instances:
        totals.setdefault(instance.source, Totals(count_tokens)).add(instance)
    return {source: of_source.result() for source, of_source in totals.items()}


class Totals:
    """Sizes of instances that pass by one at a time."""

    def __init__(self, count_tokens: Callable[[str], int]):
        self.count_tokens = count_tokens
        self.instances = self.chunks = self.questions = self.tokens = self.longest = 0

    def add(self, instance: Instance) -> None:
        sizes = [self.count_tokens(chunk) for chunk in instance.chunks]
        self.instances += 1
        self.chunks += len(sizes)
        self.tokens += sum(sizes)
        self.longest = max(self.longest, *sizes)
        self.questions += len(instance.questions)

    def result(self) -> dict[str, float]:
        return {
            "instances": self.instances,
            "chunks_per_instance": self.chunks / self.instances,
            "tokens_per_chunk": self.tokens / self.chunks,
            "max_chunk_tokens": self.longest,
            "questions_per_instance": self.questions / self.instances,
        }


def _check_text(instance: Instance, where: str, text: object) -> None:
    if not isinstance(text, str):
        raise _error(instance, where, f"must be a string, not {type(text).__name__}")
    if not text.strip():
        raise _error(instance, where, "is empty or only white space")


def _label(instance: Instance) -> str:
    return f"{instance.source!r}/{instance.instance_id!r}"


def _error(instance: Instance, where: str, problem: str) -> ValueError:
    return ValueError(f"instance {_label(instance)}: {where} {problem}")
