"""What an episode is made of: the environment, a turn, a response, a step, and the whole.

An episode is one reading of an instance by one writer, a step a chunk. These are the types; the
loop over chunks is `rollout`, questions and scores are `reading`.
"""

import dataclasses
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memalpha import scoring
from memalpha.data.instance import Instance
from memalpha.judge import ContentJudge
from memalpha.judge_rules import judge_contents
from memalpha.memory import MemoryView, Outcome
from memalpha.prompts import PromptSpec
from memalpha.reader import Answer, Answerer, Request
from memalpha.reader_rules import extractive_answers
from memalpha.tokenizer import cached_encoder, decode
from memalpha.tools import Call

MESSAGES = 8  # error messages that an environment remembers


@dataclass(frozen=True)
class MemorySpec:
    """What a memory holds. Sizes are in tokens of the tokenizer of `PromptSpec`.

    max_calls: calls of one response that are executed; further ones count as failed.
    first_ids: the ids of an episode's entries start at a number drawn from this range.
    """

    entry_tokens: int = 512
    core_tokens: int = 512
    max_calls: int = 64
    first_ids: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class ReadingSpec:
    """How a memory is read and judged.

    retriever: "bm25" or "scann"; dimensions: of ScaNN's vectors; top_k: entries of each list that
    the reader gets. content_judge: the verdicts of r4. answer_judge: for sources whose metric asks
    a judge. failures: the last error messages of reader, judges and writer.
    """

    retriever: str = "bm25"
    dimensions: int = 512
    top_k: int = 20
    answerer: Answerer = extractive_answers
    content_judge: ContentJudge = judge_contents
    answer_judge: scoring.Judge | None = None
    failures: deque[str] = field(default_factory=lambda: deque(maxlen=MESSAGES), compare=False)


@dataclass(frozen=True)
class Environment:
    """Everything around the writer: what it is shown, what its memory holds, how that is read."""

    prompt: PromptSpec
    memory: MemorySpec = MemorySpec()
    reading: ReadingSpec = field(default_factory=ReadingSpec)

    def replace(self, **changes: Any) -> "Environment":
        """The environment with other values of some fields of its parts; no two parts have a field
        of the same name. Raises TypeError for a name that is no field of any part."""
        parts = {}
        for part in dataclasses.fields(self):
            before = getattr(self, part.name)
            names = changes.keys() & {field.name for field in dataclasses.fields(before)}
            parts[part.name] = dataclasses.replace(before, **{n: changes.pop(n) for n in names})
        if changes:
            raise TypeError(f"Environment has no fields {', '.join(sorted(changes))}")
        return Environment(**parts)


@dataclass(frozen=True)
class Turn:
    """What one episode shows its writer at one chunk.

    `text` is the chunk, `view` the part of the memory that a prompt may show, `row` the row of its
    memory in the batch. A writer that reads token ids makes its prompt from these
    (`prompts.fit_prompt`).
    """

    episode: int
    chunk: int
    text: str
    instance: Instance
    view: MemoryView
    row: int = 0


@dataclass(frozen=True, eq=False)
class Response:
    """What a writer emits for one turn.

    tokens: [n] int32, the end of sequence included. logps: [n] float32 of the sampler. prompt:
    [p] int32, the ids that it read; empty for a writer that is shown no ids. finished: False where
    the token limit cut it. error: why the writer failed; its episode is then not scored.
    """

    tokens: np.ndarray
    logps: np.ndarray | None = None
    finished: bool = True
    error: str = ""
    prompt: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


Writer = Callable[[Sequence[Turn]], list[Response]]


@dataclass(frozen=True, eq=False)
class Step:
    """A chunk of an episode, with what came of its calls: one row of training.

    fit: the content judge's verdict on each call. r4 is NaN where the judge failed. view: the whole
    memory after the step, where it was asked for.
    """

    chunk: int
    response: Response
    text: str
    calls: list[Call]
    outcomes: list[Outcome]
    fit: list[bool]
    r2: float
    r4: float
    view: MemoryView | None = None


@dataclass(frozen=True)
class Recall:
    """What a system holds after the last chunk of an instance, and what it took to get there.

    Sizes are in tokens: of the memory by the environment's tokenizer, of prompts and completions by
    that of the model that wrote. `failure` (empty: none) is the error message of a model that
    failed; then there is no memory, and nothing is scored.
    """

    requests: list[Request]  # one a question
    memory_tokens: int
    view: MemoryView | None = None  # of a system that writes
    failure: str = ""
    rejected: int = 0  # parts of replies that could not be used, and changed nothing
    generations: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


Recaller = Callable[[Environment, Sequence[Instance]], list[Recall]]  # one an instance


@dataclass(frozen=True, eq=False)
class Episode:
    """One reading of an instance, complete.

    A writer leaves steps, a baseline none. `scores` are NaN where reader, answer judge or writer
    failed; `verdicts` are the words of the answer judge, "" where it was not asked. r1 is NaN where
    no question could be judged, and r1 and r3 where the questions were skipped. `failure` is the
    error message behind a missing score or verdict.
    """

    instance: Instance
    recall: Recall
    steps: list[Step] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    r1: float = float("nan")
    r3: float = float("nan")
    chunk_tokens: int = 0
    failure: str = ""

    @property
    def view(self) -> MemoryView | None:
        """The final memory, of a system that writes."""
        return self.recall.view

    @property
    def memory_tokens(self) -> int:
        return self.recall.memory_tokens

    @property
    def has_memory(self) -> bool:
        """False where the model of a baseline failed before its end."""
        return not self.recall.failure

    @property
    def valid(self) -> bool:
        """Whether any question was judged; rows of other episodes are masked in training."""
        return not np.isnan(self.r1)


class Clock(defaultdict):
    """Seconds spent in each stage; a stage inside another one counts for itself alone."""

    def __init__(self):
        super().__init__(float)
        self._inner = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start, outer = time.perf_counter(), self._inner
        self._inner = 0.0
        yield
        seconds = time.perf_counter() - start
        self[stage] += seconds - self._inner
        self._inner = outer + seconds


def response_text(env: Environment, response: Response) -> str:
    """The text of a response: special tokens of the chat are not part of it."""
    return decode(env.prompt.tokenizer, response.tokens)


def encode_text(env: Environment, text: str) -> list[int]:
    """Token ids of a text; cached."""
    return cached_encoder(env.prompt.tokenizer)(text)


def count_tokens(env: Environment, text: str) -> int:
    """Tokens of a text, as r3 and the tables count them."""
    return len(encode_text(env, text))
