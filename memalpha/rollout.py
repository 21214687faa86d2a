"""Episodes, in batches: the seam between strings (prompts, calls, questions) and arrays.

Episodes advance together, one chunk at a time, so that the device sees one full batch:
render -> write -> parse -> apply, and after the last chunk retrieve -> read -> score -> reward.
Between chunks those that are over leave, and those that wait take their rows.
Training, evaluation and use share this code; they differ in the writer alone.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import memory, rewards, scoring, tools
from memalpha.batch import Batch, fill, from_tokens, row_bucket
from memalpha.data.instance import Instance, validate
from memalpha.judge import Verdict, judge
from memalpha.memory import MemoryView, Outcome
from memalpha.prompts import CUT_MARK, Template, fit_prompt
from memalpha.reader import Answer, Answerer, Request, extractive_answers, gather, read
from memalpha.retrieval import make_index
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
    judge: Callable[[Sequence[tools.Call]], list[Verdict]] = judge
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


def run_episodes(
    env: Environment,
    instances: Sequence[Instance],
    writer: Writer,
    seed: int = 0,
    keep_views: bool = False,
    clock: Clock | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
    rows: int = 0,
    ask: bool = True,
) -> list[Episode]:
    """Runs one episode for each instance (repeat an instance for several rollouts of it).

    Args:
        seed: of the first ids of the entries; the writer has its own randomness.
        keep_views: keep the whole memory after every step, to look at.
        on_chunk: called with (chunks done, chunks in all), of all episodes, between chunks.
        rows: episodes at once, best what the writer takes at once; 0: all. It changes no result:
            a writer's sample depends on episode and chunk, not on its company.
        ask: False leaves the questions out, and the episodes without r1 and r3.

    Raises:
        PromptTooLong: a prompt that does not fit even with no entry shown.
    """
    if not instances:
        raise ValueError("run_episodes: no instances; give at least one")
    if rows < 0:
        raise ValueError(f"run_episodes: rows={rows}; give at least 1, or 0 for all at once")
    for instance in instances:
        validate(instance)
    clock = Clock() if clock is None else clock
    episodes = [Episode(instance) for instance in instances]
    lengths = np.array([len(instance.chunks) for instance in instances])
    # The longest first: then the rows run dry at about the same time.
    order = np.argsort(-lengths, kind="stable")
    rows = min(rows or len(order), len(order))
    seats, waiting = np.sort(order[:rows]), deque(order[rows:])  # the episode of each row
    first_ids = draw_first_ids(env, len(episodes), seed)
    state = _empty(env, first_ids[seats])
    while (seats >= 0).any():
        with clock("apply"):
            shown = jax.device_get(memory.newest(state, env.recent))
        with clock("render"):
            turns = [
                _next_turn(env, shown, row, e, episodes[e])
                for row, e in enumerate(seats.tolist())
                if e >= 0
            ]
        state, steps = memorise(env, state, turns, writer, clock)
        over = [turn.chunk + 1 == lengths[turn.episode] for turn in turns]
        with clock("apply"):
            # All of it only when an episode ends: it grows with the stream.
            whole = jax.device_get(state) if keep_views or any(over) else None
        for turn, step, ends in zip(turns, steps, over, strict=True):
            episode = episodes[turn.episode]
            episode.steps.append(step)
            if keep_views:
                step.view = whole_view(env, whole, turn.row)
            if ends:
                episode.view = whole_view(env, whole, turn.row)
                seats[turn.row] = -1
        if on_chunk:
            on_chunk(sum(len(episode.steps) for episode in episodes), int(lengths.sum()))
        with clock("apply"):
            del whole  # it can stand in the way of donating the state
            state, seats = _reseat(state, seats, waiting, first_ids, rows)
    if ask:
        _read_out(env, episodes, clock)
    return episodes


def _reseat(
    state: memory.MemoryState,
    seats: np.ndarray,
    waiting: deque[int],
    first_ids: np.ndarray,
    rows: int,
) -> tuple[memory.MemoryState, np.ndarray]:
    """Waiting episodes take the rows of those that are over (-1 in `seats`); when none waits, the
    memories close up, to as few rows as the writer's batch has."""
    taken = np.flatnonzero(seats < 0)[: len(waiting)]
    if len(taken):
        seats[taken] = [waiting.popleft() for _ in taken]
        fresh = np.isin(np.arange(len(seats)), taken)
        state = memory.refill(state, fresh, first_ids[seats])
    running = int((seats >= 0).sum())
    size = row_bucket(running, rows)
    if 0 < running and size < len(seats):
        kept = np.argsort(seats < 0, kind="stable")[:size]
        state, seats = memory.take(state, kept), seats[kept]
    return state, seats


def memorise(
    env: Environment,
    state: memory.MemoryState,
    turns: Sequence[Turn],
    writer: Writer,
    clock: Clock | None = None,
) -> tuple[memory.MemoryState, list[Step]]:
    """One chunk of an episode each: write, parse, apply.

    `state` is donated. Returns the new state, and one step a turn.

    Raises ValueError for two turns of one row: the calls of one of them would be lost.
    """
    if len({turn.row for turn in turns}) < len(turns):
        raise ValueError(f"memorise: {len(turns)} turns share rows {[turn.row for turn in turns]}")
    clock = Clock() if clock is None else clock
    with clock("write"):
        responses = writer(turns)
    with clock("parse"):
        texts = [response_text(env, response) for response in responses]
        calls = [env.parse(text, env.dialect) for text in texts]
        # Rows without an episode (or a silent one) do nothing.
        of_row: list[list[tools.Call]] = [[] for _ in range(state.core.shape[0])]
        chunks = np.zeros(len(of_row), np.int32)
        for turn, made in zip(turns, calls, strict=True):
            of_row[turn.row], chunks[turn.row] = made, turn.chunk
    with clock("apply"):
        state, ops, outcomes = apply_calls(env, state, of_row, chunks)
    with clock("judge"):
        every = [call for made in calls for call in made]
        verdicts = env.judge(every)
        if len(verdicts) != len(every):
            raise ValueError(f"judge: {len(every)} calls but {len(verdicts)} verdicts")
        ordered = iter(verdicts)
        judged = [[next(ordered) for _ in made] for made in calls]
    with clock("parse"):
        steps = [
            _step(*row, ops, outcomes)
            for row in zip(turns, responses, texts, calls, judged, strict=True)
        ]
    return state, steps


def first_state(env: Environment, rows: int, seed: int) -> memory.MemoryState:
    """Empty memories; the first id of each is drawn from `env.first_ids`."""
    return _empty(env, draw_first_ids(env, rows, seed))


def draw_first_ids(env: Environment, episodes: int, seed: int) -> np.ndarray:
    """[episodes] int32, the id that the first entry of each will have."""
    low, high = env.first_ids
    drawn = np.random.default_rng([seed, 7]).integers(low, high + 1, size=episodes)
    return drawn.astype(np.int32)


def _empty(env: Environment, first_ids: np.ndarray) -> memory.MemoryState:
    capacity = memory.capacity_bucket(env.max_calls)
    return memory.init(len(first_ids), capacity, env.entry_tokens, env.core_tokens, first_ids)


def make_turn(
    env: Environment, host, episode: int, chunk: int, instance: Instance, text: str, row: int = 0
) -> Turn:
    """Shows the chunk `text` with the memory of row `row` of `host` (the state as numpy)."""
    view = memory.view(host, row, _decoder(env.tokenizer), last=env.recent)
    prompt = fit_prompt(
        env.template,
        view,
        text,
        env.tokenizer,
        env.prompt_tokens,
        env.recent,
        env.response_tokens,
        env.dialect,
        env.enabled,
    )
    return Turn(episode, chunk, text, instance, view, prompt, row)


def _next_turn(env: Environment, host, row: int, number: int, episode: Episode) -> Turn:
    chunk, instance = len(episode.steps), episode.instance
    return make_turn(env, host, number, chunk, instance, instance.chunks[chunk], row)


def whole_view(env: Environment, host, row: int) -> MemoryView:
    """All of the memory of one row, as text; `host` is the whole state as numpy."""
    return memory.view(host, row, _decoder(env.tokenizer))


def response_text(env: Environment, response: Response) -> str:
    """The text of a response: special tokens of the chat are not part of it."""
    return decode(env.tokenizer, response.tokens)


def apply_calls(
    env: Environment,
    state: memory.MemoryState,
    calls: Sequence[Sequence[tools.Call]],
    chunks: int | np.ndarray,
) -> tuple[memory.MemoryState, memory.Ops, np.ndarray]:
    """Runs the calls of every row on its memory, which grows where it has to.

    `calls`: one list a row of `state`, which is donated. `chunks`: the chunk number of all rows, or
    of each [R]. Returns state, ops, outcomes [R, O].
    """
    width = max(env.entry_tokens, env.core_tokens)
    ops = tools.calls_to_ops(calls, _encoder(env.tokenizer), width, env.max_calls)
    inserts = (ops.kind == memory.OpKind.INSERT).sum(axis=1)
    state = memory.grow(state, memory.needed_capacity(state, inserts[:, None]))
    chunks = np.broadcast_to(np.asarray(chunks, np.int32), len(calls))
    cut_mark = jnp.asarray(encode(env.tokenizer, CUT_MARK), jnp.int32)
    state, outcomes, _ = memory.apply_batch(state, ops, chunks, cut_mark, jnp.asarray(env.enabled))
    return state, ops, np.asarray(outcomes)


def _step(
    turn: Turn,
    response: Response,
    text: str,
    calls: list[tools.Call],
    verdicts: list[Verdict],
    ops: memory.Ops,
    outcomes: np.ndarray,
) -> Step:
    # Calls past max_calls were not executed: they count as failed.
    left_out = len(calls) - ops.kind.shape[1]
    mine = np.append(outcomes[turn.row], [Outcome.MALFORMED] * left_out).astype(int)
    kinds = np.append(ops.kind[turn.row], [memory.OpKind.MALFORMED] * left_out).astype(int)
    fit = np.zeros(len(mine), bool)
    fit[: len(calls)] = [verdict.valid for verdict in verdicts]
    r4 = float(rewards.content_share(kinds, mine, fit))
    return Step(
        chunk=turn.chunk,
        prompt=turn.prompt,
        response=response,
        text=text,
        calls=calls,
        outcomes=[Outcome(o) for o in mine[: len(calls)]],
        fit=fit[: len(calls)].tolist(),
        r2=float(rewards.format_share(mine)),
        r4=float("nan") if any(verdict.failed for verdict in verdicts) else r4,
    )


def _read_out(env: Environment, episodes: list[Episode], clock: Clock) -> None:
    """Answers the questions of all episodes from their final memories, and scores them."""
    with clock("retrieve"):
        requests = [find_evidence(env, episode.instance, episode.view) for episode in episodes]
    with clock("read"):
        answer(env, episodes, requests, [episode.view.tokens for episode in episodes])


def answer(
    env: Environment,
    episodes: Sequence[Episode],
    requests: Sequence[Sequence[Request]],
    memory_tokens: Sequence[int],
) -> None:
    """Asks the reader for all episodes at once and fills in answers, scores, r1, r3 and sizes."""
    answers = iter(read([request for some in requests for request in some], env.answerer))
    for episode, asked, held in zip(episodes, requests, memory_tokens, strict=True):
        episode.answers = [next(answers) for _ in asked]
        episode.memory_tokens = held
    _score(env, episodes)


def run_baseline(
    env: Environment, instances: Sequence[Instance], recall: Recaller
) -> list[Episode]:
    """Episodes of a system of `memalpha.baselines`, read and scored as all others are.

    They have no steps, so no r2 and r4. An instance whose `failure` is set is masked: its questions
    have no answer and it has no score.
    """
    if not instances:
        raise ValueError("run_baseline: no instances; give at least one")
    recalled = recall(env, [validate(instance) for instance in instances])
    episodes = [
        Episode(instance, view=found.view, recall=found, failure=found.failure)
        for instance, found in zip(instances, recalled, strict=True)
    ]
    kept = [episode for episode in episodes if episode.held]
    held = [episode.recall.memory_tokens for episode in kept]
    if kept:
        answer(env, kept, [episode.recall.requests for episode in kept], held)
    for episode in episodes:
        if not episode.held:
            questions = len(episode.instance.questions)
            episode.answers = [Answer(None, (), (), 0)] * questions
            episode.scores, episode.verdicts = [float("nan")] * questions, [""] * questions
            episode.chunk_tokens = sum(count_tokens(env, c) for c in episode.instance.chunks)
    return episodes


def find_evidence(env: Environment, instance: Instance, view: MemoryView) -> list[Request]:
    """One request to the reader for each question of an instance."""
    questions = [question.question for question in instance.questions]
    indexes = [
        make_index([entry.text for entry in entries], env.retriever, env.dimensions)
        for entries in (view.semantic, view.episodic)
    ]
    requests = gather(
        questions,
        instance.source,
        view,
        *indexes,
        env.top_k,
        count_tokens=lambda text: count_tokens(env, text),
    )
    dates = [question.asked_at for question in instance.questions]
    return [replace(r, asked_at=date) for r, date in zip(requests, dates, strict=True)]


def _score(env: Environment, episodes: Sequence[Episode]) -> None:
    """Scores the answers of all episodes, with one call of the judge, and fills in r1 and r3."""
    claims: dict[tuple[int, int], scoring.Claim] = {}
    for e, episode in enumerate(episodes):
        episode.scores = [float("nan")] * len(episode.answers)
        episode.verdicts = [""] * len(episode.answers)
        if any(step.response.error for step in episode.steps):
            continue  # what the writer could not read is not forgotten: nothing is to be said
        for q, answer in enumerate(episode.answers):
            if answer.text is not None:
                claims[e, q] = _claim(episode.instance, q, answer.text)
    said: dict[int, str] = {}
    found = scoring.scores(list(claims.values()), env.score_judge, said)
    for number, ((e, q), score) in enumerate(zip(claims, found, strict=True)):
        episodes[e].scores[q], episodes[e].verdicts[q] = score, said.get(number, "")
    for episode in episodes:
        scores = np.asarray(episode.scores)
        unjudged = any(np.isnan(step.r4) for step in episode.steps)
        if (unjudged or np.isnan(scores).any()) and env.failures:
            episode.failure = env.failures[-1]
        episode.r1 = float(rewards.correctness(np.nan_to_num(scores), ~np.isnan(scores)))
        episode.chunk_tokens = sum(count_tokens(env, chunk) for chunk in episode.instance.chunks)
        episode.r3 = float(rewards.compression(episode.memory_tokens, episode.chunk_tokens))


def _claim(instance: Instance, number: int, reply: str) -> scoring.Claim:
    asked = instance.questions[number]
    types, ids = (instance.metadata.get(f"question_{name}", ()) for name in ("types", "ids"))
    kind = str(types[number]) if number < len(types) else ""
    if number < len(ids) and str(ids[number]).endswith("_abs"):  # as LongMemEval marks them
        kind = scoring.ABSTENTION
    return scoring.Claim(instance.source, asked.question, reply, asked.answers, kind)


def scripted_writer(env: Environment, respond: Callable[[Turn], str]) -> Writer:
    """A writer from a function that gives the text of a response; it sees what the policy sees."""
    end = env.tokenizer.eos_token_id

    def write(turns: Sequence[Turn]) -> list[Response]:
        return [Response([*encode(env.tokenizer, respond(turn)), end]) for turn in turns]

    return write


def to_batch(
    episodes: Sequence[Episode], rollouts: int, prompt_tokens: int, response_tokens: int, rows: int
) -> Batch:
    """Rows of all steps, episode by episode, filled to `rows` (numpy).

    Consecutive runs of `rollouts` episodes belong to one instance. Rewards are there apart; group
    ids hold the instance number. Rows of an episode without any judged question are not valid, nor
    are those of a step whose calls the judge failed on.
    """
    made = [(e, step) for e, episode in enumerate(episodes) for step in episode.steps]
    batch = from_tokens(
        [step.prompt for _, step in made],
        [step.response.tokens for _, step in made],
        prompt_tokens,
        response_tokens,
    )
    logps = np.full(batch.completion.shape, np.nan, np.float32)  # no log-prob: neutral, counted
    for row, (_, step) in enumerate(made):
        if step.response.logps is not None:
            logps[row, : len(step.response.logps)] = step.response.logps
    of_row = np.array([e for e, _ in made], np.int32)
    valid = np.array([episodes[e].valid and not np.isnan(step.r4) for e, step in made], bool)
    columns = {
        "r1": [episodes[e].r1 for e in of_row],
        "r2": [step.r2 for _, step in made],
        "r3": [episodes[e].r3 for e in of_row],
        "r4": [step.r4 for _, step in made],
    }
    batch = batch.replace(
        sample_logps=logps,
        rewards={k: np.where(valid, v, 0).astype(np.float32) for k, v in columns.items()},
        group=of_row // rollouts,
        episode=of_row,
        chunk=np.array([step.chunk for _, step in made], np.int32),
        valid=valid,
    )
    return fill(batch, rows)


@lru_cache(maxsize=8)
def _encoder(tokenizer) -> Callable[[str], list[int]]:
    return lru_cache(maxsize=65_536)(lambda text: encode(tokenizer, text))


def encode_text(env: Environment, text: str) -> list[int]:
    """Token ids of a text; cached."""
    return _encoder(env.tokenizer)(text)


def count_tokens(env: Environment, text: str) -> int:
    """Tokens of a text, as r3 and the tables count them."""
    return len(_encoder(env.tokenizer)(text))


@lru_cache(maxsize=8)
def _decoder(tokenizer) -> Callable[[list[int]], str]:
    cached = lru_cache(maxsize=65_536)(lambda ids: decode(tokenizer, ids))
    return lambda ids: cached(tuple(ids))
