"""The types of an episode: environment, turn, response, step, and the episode itself.

An episode is one pass of a writer over an instance, with one step per chunk. The loop over chunks
is in `rollout`, questions and scores are in `reading`.
"""

import dataclasses
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memalpha import scoring
from memalpha.data.instance import Instance
from memalpha.judge import ContentJudge
from memalpha.judge_rules import judge_contents
from memalpha.memory import MemoryView, Outcome
from memalpha.prompts import PromptSpec, escape, template_fragments
from memalpha.reader import Answer, Answerer, Request
from memalpha.reader_rules import extractive_answers
from memalpha.tokenizer import cached_encoder, decode
from memalpha.tools import Call

TEXT_SHARE = 0.5  # of a writer's prompt; longer texts are shown to it in parts
MESSAGES = 8  # an environment keeps this many of the last error messages


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

    retriever: "bm25" or "scann". dimensions: length of ScaNN's vectors. top_k: how many entries of
    each list the reader gets for a question. content_judge: decides r4; None: calls are not judged
    (`rollout.judge_steps` does that later). answer_judge: scores the sources whose metric is a
    judge. failures: the last error messages of reader, judges and writer.
    """

    retriever: str = "bm25"
    dimensions: int = 512
    top_k: int = 20
    answerer: Answerer = extractive_answers
    content_judge: ContentJudge | None = judge_contents
    answer_judge: scoring.Judge | None = None
    failures: deque[str] = field(default_factory=lambda: deque(maxlen=MESSAGES), compare=False)


@dataclass(frozen=True)
class Environment:
    """What the writer is shown, what its memory can hold, and how the memory is read and judged."""

    prompt: PromptSpec
    memory: MemorySpec = MemorySpec()
    reading: ReadingSpec = field(default_factory=ReadingSpec)

    def replace(self, **changes: Any) -> "Environment":
        """A copy with other values for fields of its parts; field names are unique across parts.

        Raises TypeError for a name that no part has.
        """
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
    """What the writer of one episode sees at one chunk.

    `text` is the chunk, `view` the part of the memory that a prompt may show, `row` the row of the
    memory in the batch. A writer that reads token ids renders its prompt from these with
    `prompts.fit_prompt`.
    """

    episode: int
    chunk: int
    text: str
    instance: Instance
    view: MemoryView
    row: int = 0


@dataclass(frozen=True, eq=False)
class Response:
    """What a writer generates for one turn.

    tokens: [n] int32, the end-of-sequence token included. logps: [n] float32, the sampler's
    log-probs. prompt: [p] int32, the ids that the writer read; empty for a writer that reads text.
    prompt_tokens: how many its model read then.
    finished: False where the token limit cut the response off. error: error message of a writer
    that failed; its episode is not scored. passes: of the model that gave the tokens, fewer than
    these with drafts; 0: unknown.
    """

    tokens: np.ndarray
    logps: np.ndarray | None = None
    finished: bool = True
    error: str = ""
    prompt: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    passes: int = 0
    prompt_tokens: int = 0


Writer = Callable[[Sequence[Turn]], list[Response]]


@dataclass(frozen=True, eq=False)
class Step:
    """One chunk of an episode and the outcomes of its calls: one row of a training batch.

    fit: the content judge's verdict on each call; empty where it was not asked. r4 is NaN there and
    where the judge failed. shown: the part of the memory that the writer could be shown. view: the
    whole memory after the step; None unless the rollout was run with `keep_views`.
    """

    chunk: int
    response: Response
    text: str
    calls: list[Call]
    outcomes: list[Outcome]
    fit: list[bool]
    r2: float
    r4: float
    shown: MemoryView | None = None
    view: MemoryView | None = None


@dataclass(frozen=True)
class Recall:
    """The final memory of a system on one instance as requests to the reader, and its cost.

    Sizes are in tokens: the memory is counted by the environment's tokenizer, prompts and
    completions by that of the language model that wrote. `failure` is the error message of a model
    that failed; then there is no memory and nothing is scored. Empty: no failure.
    """

    requests: list[Request]  # one per question
    memory_tokens: int
    view: MemoryView | None = None  # None for a system without a written memory
    failure: str = ""
    # Parts of replies that could not be used, which are no-ops: reason -> how many.
    rejected: Mapping[str, int] = field(default_factory=dict)
    generations: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


Recaller = Callable[[Environment, Sequence[Instance]], list[Recall]]  # one per instance


@dataclass(frozen=True, eq=False)
class Episode:
    """One complete pass over an instance, scored.

    Baselines have no steps. `scores` are NaN where reader, answer judge or writer failed;
    `verdicts` are the replies of the answer judge, "" where it was not asked. r1 is NaN where no
    question could be judged; r1 and r3 are NaN where the questions were skipped. `failure` is the
    error message that explains a missing score or verdict.
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
        """The final memory; None for a system without a written memory."""
        return self.recall.view

    @property
    def memory_tokens(self) -> int:
        return self.recall.memory_tokens

    @property
    def has_memory(self) -> bool:
        """False where the model of a baseline failed, so that there is no final memory."""
        return not self.recall.failure

    @property
    def valid(self) -> bool:
        """Whether any question was judged; rows of other episodes are masked in training."""
        return not np.isnan(self.r1)


class Clock(defaultdict):
    """Seconds spent in each stage; the time of a nested stage is not counted in the outer one."""

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
    """The text of a response, without the special tokens of the chat."""
    return decode(env.prompt.tokenizer, response.tokens)


def encode_text(env: Environment, text: str) -> list[int]:
    """Token ids of a text by the environment's tokenizer; cached."""
    return cached_encoder(env.prompt.tokenizer)(text)


def count_tokens(env: Environment, text: str) -> int:
    """The number of tokens of a text, as r3 and the tables count them."""
    return len(encode_text(env, text))


def text_room(env: Environment) -> int:
    """Tokens of a writer's prompt that a text may take; the rest is for instructions and memory."""
    return int(TEXT_SHARE * env.prompt.prompt_tokens)


def count_escaped(env: Environment, text: str) -> int:
    """The number of tokens of a text once it is escaped for the prompt."""
    also = [*template_fragments(env.prompt.template), *env.prompt.tokenizer.all_special_tokens]
    return count_tokens(env, escape(text, also))
