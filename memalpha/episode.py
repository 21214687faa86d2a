"""What an episode is made of: the environment, a turn, a response, a step, the whole."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from memalpha import scoring, tools
from memalpha.data.instance import Instance
from memalpha.judge import ContentJudge
from memalpha.judge_rules import judge_contents
from memalpha.memory import MemoryView, Outcome
from memalpha.prompts import Template
from memalpha.reader import Answer, Answerer, Request
from memalpha.reader_rules import extractive_answers
from memalpha.tokenizer import decode, encode


@dataclass(frozen=True)
class Environment:
    """Everything around the writer: what it is shown, what its calls do, how it is rewarded.

    Sizes are in tokens, except `recent` (entries of each list shown) and `top_k` (entries read).
    `first_ids`: ids of an episode's entries start at a number drawn from this range.
    """

    tokenizer: Any
    template: Template
    dialect: str = "qwen3"
    enabled: tuple[bool, bool, bool] = (True, True, True)  # core, semantic, episodic
    recent: int = 5
    prompt_tokens: int = 6144
    response_tokens: int = 2048
    entry_tokens: int = 512
    core_tokens: int = 512
    max_calls: int = 64
    first_ids: tuple[int, int] = (1, 1)
    parse: Callable[[str, str], list[tools.Call]] = tools.parse_calls  # (response, dialect)
    retriever: str = "bm25"
    dimensions: int = 512
    top_k: int = 20
    answerer: Answerer = extractive_answers
    judge: ContentJudge = judge_contents  # of what the calls write (r4)
    score_judge: scoring.Judge | None = None  # for sources whose metric asks a judge
    # The latest accounts of why reader, judge or writer gave nothing, where they keep any.
    failures: deque[str] = field(default_factory=lambda: deque(maxlen=8), compare=False)


@dataclass(frozen=True)
class Turn:
    """What one episode shows its writer at one chunk; `text` is the chunk, `prompt` token ids, and
    `row` where its memory stands."""

    episode: int
    chunk: int
    text: str
    instance: Instance
    view: MemoryView
    prompt: list[int]
    row: int = 0


@dataclass(frozen=True)
class Response:
    """What a writer emits: token ids, end-of-sequence included, and the sampler's log-probs."""

    tokens: list[int]
    logps: np.ndarray | None = None
    finished: bool = True  # False: cut by its limit
    error: str = ""  # why the writer failed: the episode is not scored


Writer = Callable[[Sequence[Turn]], list[Response]]


@dataclass
class Step:
    """One row of training: a chunk of an episode, with what came of its calls."""

    chunk: int
    prompt: list[int]
    response: Response
    text: str
    calls: list[tools.Call]
    outcomes: list[Outcome]
    fit: list[bool]
    r2: float
    r4: float  # NaN: the judge failed
    view: MemoryView | None = None  # the memory after the step, where it was asked for


@dataclass(frozen=True)
class Recall:
    """What a baseline holds after the last chunk of an instance, and what it took to get there.

    Sizes are in tokens: of the memory by the environment's tokenizer, of prompts and completions by
    that of the model that wrote. `failure` (empty: none) says in the model's own words why there is
    no memory; then nothing is to be scored.
    """

    requests: list[Request]  # one a question
    memory_tokens: int
    view: MemoryView | None = None  # of a system that writes
    failure: str = ""
    rejected: int = 0  # things the model said that could not be used, and changed nothing
    generations: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


Recaller = Callable[[Environment, Sequence[Instance]], list[Recall]]  # one an instance


@dataclass
class Episode:
    """One reading of an instance. `valid` is False where no question could be judged."""

    instance: Instance
    steps: list[Step] = field(default_factory=list)
    view: MemoryView | None = None  # the final memory
    answers: list[Answer] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # NaN: reader, judge or writer failed
    verdicts: list[str] = field(default_factory=list)  # of the judge of answers; "": not asked
    r1: float = float("nan")
    r3: float = float("nan")
    memory_tokens: int = 0
    chunk_tokens: int = 0
    failure: str = ""  # an account of what is without score or verdict, if there is one
    recall: Recall | None = None  # of a baseline

    @property
    def held(self) -> bool:
        """Whether there is a memory: false where a baseline's model failed before its end."""
        return not (self.recall and self.recall.failure)

    @property
    def valid(self) -> bool:
        return not np.isnan(self.r1)


class Clock(defaultdict):
    """Seconds spent in each stage."""

    def __init__(self):
        super().__init__(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[stage] += time.perf_counter() - start


def response_text(env: Environment, response: Response) -> str:
    """The text of a response: special tokens of the chat are not part of it."""
    return decode(env.tokenizer, response.tokens)


@lru_cache(maxsize=8)
def cached_encoder(tokenizer) -> Callable[[str], list[int]]:
    return lru_cache(maxsize=65_536)(lambda text: encode(tokenizer, text))


def encode_text(env: Environment, text: str) -> list[int]:
    """Token ids of a text; cached."""
    return cached_encoder(env.tokenizer)(text)


def count_tokens(env: Environment, text: str) -> int:
    """Tokens of a text, as r3 and the tables count them."""
    return len(cached_encoder(env.tokenizer)(text))


@lru_cache(maxsize=8)
def cached_decoder(tokenizer) -> Callable[[list[int]], str]:
    cached = lru_cache(maxsize=65_536)(lambda ids: decode(tokenizer, ids))
    return lambda ids: cached(tuple(ids))
