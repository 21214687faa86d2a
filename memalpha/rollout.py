"""Episodes, in batches: the seam between strings (prompts, calls, questions) and arrays.

Episodes advance together, one chunk at a time, so that the device sees one full batch:
render -> write -> parse -> apply, and after the last chunk retrieve -> read -> score -> reward.
Between two chunks, finished episodes leave the batch and waiting ones take over their rows.
Training, evaluation and use run this same code; only the writer differs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import memory, rewards, tools
from memalpha.batch import Batch, fill, from_tokens, row_bucket
from memalpha.data.instance import Instance, validate
from memalpha.episode import (
    Clock,
    Environment,
    Episode,
    Recall,
    Response,
    Step,
    Turn,
    Writer,
    response_text,
)
from memalpha.judge import Verdict
from memalpha.memory import MemoryView, Outcome
from memalpha.pieces import fit_all
from memalpha.prompts import CUT_MARK, fit_prompt
from memalpha.reading import read_out
from memalpha.tokenizer import cached_decoder, cached_encoder, encode, response_end


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

    A chunk that does not fit the prompt of `env`, even with nothing of the memory shown, is read in
    pieces: then the episode carries the instance that `pieces.fitting` makes, with more chunks.

    Args:
        seed: for drawing the id of each episode's first entry; the writer has its own randomness.
        keep_views: store a view of the whole memory in every step, for display.
        clock: receives the time spent in each stage.
        on_chunk: called after each chunk with (chunks done, chunks in total) over all episodes, in
            chunks of the instances as given.
        rows: how many episodes run at the same time; best is the batch size of the writer; 0: all
            of them. It does not change the results, because a sample depends on its episode and
            chunk and not on the other rows of the batch.
        ask: False skips the questions; r1 and r3 stay NaN. `reading.read_later` asks them.

    Raises:
        PromptTooLong: a chunk does not fit, and the template leaves no room for a piece of it.
    """
    if not instances:
        raise ValueError("run_episodes: no instances; give at least one")
    if rows < 0:
        raise ValueError(f"run_episodes: rows={rows}; give at least 1, or 0 for all at once")
    for instance in instances:
        validate(instance)
    clock = Clock() if clock is None else clock
    chunks = sum(len(instance.chunks) for instance in instances)
    report = on_chunk and (lambda done, total: on_chunk(chunks * done // total, chunks))
    with clock("render"):
        instances = fit_all(env, instances)
    steps, views = _memorise_all(env, instances, writer, seed, keep_views, clock, report, rows)
    if ask:
        return read_out(env, instances, steps, views, clock)
    return [
        Episode(instance, Recall([], view.tokens, view), its_steps)
        for instance, its_steps, view in zip(instances, steps, views, strict=True)
    ]


def _memorise_all(
    env: Environment,
    instances: Sequence[Instance],
    writer: Writer,
    seed: int,
    keep_views: bool,
    clock: Clock,
    on_chunk: Callable[[int, int], None] | None,
    rows: int,
) -> tuple[list[list[Step]], list[MemoryView]]:
    """Runs the chunks of all instances; returns the steps and the final memory of each."""
    steps: list[list[Step]] = [[] for _ in instances]
    views: list[MemoryView | None] = [None for _ in instances]
    lengths = np.array([len(instance.chunks) for instance in instances])
    # The longest episodes start first, so that all rows finish at about the same time.
    order = np.argsort(-lengths, kind="stable")
    rows = min(rows or len(order), len(order))
    seats, waiting = np.sort(order[:rows]), deque(order[rows:])  # `seats`: the episode in each row
    first_ids = draw_first_ids(env, len(instances), seed)
    state = _empty(env, first_ids[seats])
    while (seats >= 0).any():
        with clock("apply"):
            host = jax.device_get(memory.newest(state, env.prompt.recent))
        with clock("render"):
            turns = [
                make_turn(env, host, e, len(steps[e]), instances[e], row)
                for row, e in enumerate(seats.tolist())
                if e >= 0
            ]
        state, new_steps = memorise(env, state, turns, writer, clock)
        ends = [turn.chunk + 1 == lengths[turn.episode] for turn in turns]
        with clock("apply"):
            # The whole memory grows with the stream, so it is copied only when an episode ends.
            whole = jax.device_get(state) if keep_views or any(ends) else None
        for turn, step, is_last in zip(turns, new_steps, ends, strict=True):
            view = whole_view(env, whole, turn.row) if keep_views or is_last else None
            steps[turn.episode].append(replace(step, view=view) if keep_views else step)
            if is_last:
                views[turn.episode] = view
                seats[turn.row] = -1
        if on_chunk:
            on_chunk(sum(map(len, steps)), int(lengths.sum()))
        with clock("apply"):
            del whole  # a host copy may alias the buffer of the state and block its donation
            state, seats = _reseat(state, seats, waiting, first_ids, rows)
    return steps, views


def _reseat(
    state: memory.MemoryState,
    seats: np.ndarray,
    waiting: deque[int],
    first_ids: np.ndarray,
    rows: int,
) -> tuple[memory.MemoryState, np.ndarray]:
    """Gives the rows of finished episodes (-1 in `seats`) to waiting ones.

    When none waits, the batch shrinks to the smallest row bucket that holds the running episodes.
    """
    taken = np.flatnonzero(seats < 0)[: len(waiting)]
    if len(taken):
        seats[taken] = [waiting.popleft() for _ in taken]
        fresh = np.isin(np.arange(len(seats)), taken)
        state = memory.refill(state, fresh, first_ids[seats])
    running = int((seats >= 0).sum())
    size = row_bucket(running, rows)
    if 0 < running and size < len(seats):
        order = np.argsort(seats < 0, kind="stable")[:size]
        state, seats = memory.take(state, order), seats[order]
    return state, seats


def memorise(
    env: Environment,
    state: memory.MemoryState,
    turns: Sequence[Turn],
    writer: Writer,
    clock: Clock | None = None,
) -> tuple[memory.MemoryState, list[Step]]:
    """Runs one chunk of each episode: write, parse, apply, judge.

    `state` is donated. Returns the new state and one step per turn.

    Raises ValueError where two turns have the same row: the calls of one would be lost.
    """
    if len({turn.row for turn in turns}) < len(turns):
        raise ValueError(f"memorise: {len(turns)} turns share rows {[turn.row for turn in turns]}")
    clock = Clock() if clock is None else clock
    with clock("write"):
        responses = writer(turns)
    with clock("parse"):
        texts = [response_text(env, response) for response in responses]
        calls = [env.prompt.parse(text, env.prompt.dialect) for text in texts]
        # Rows without a turn, or whose response has no calls, keep an empty list: a no-op.
        of_row: list[list[tools.Call]] = [[] for _ in range(state.core.shape[0])]
        chunks = np.zeros(len(of_row), np.int32)
        for turn, its_calls in zip(turns, calls, strict=True):
            of_row[turn.row], chunks[turn.row] = its_calls, turn.chunk
    with clock("apply"):
        state, outcomes = apply_calls(env, state, of_row, chunks)
    with clock("parse"):
        steps = [
            _step(turn, *parts, outcomes[turn.row])
            for turn, *parts in zip(turns, responses, texts, calls, strict=True)
        ]
    if env.reading.content_judge is not None:
        with clock("judge"):
            steps = judge_steps(env, steps)
    return state, steps


def judge_steps(env: Environment, steps: Sequence[Step]) -> list[Step]:
    """The steps with `fit` and r4; asks the content judge once, about the calls of all of them.

    Raises ValueError where the judge gives too few or too many verdicts.
    """
    every = [call for step in steps for call in step.calls]
    verdicts = env.reading.content_judge(every)
    if len(verdicts) != len(every):
        raise ValueError(f"judge: {len(every)} calls but {len(verdicts)} verdicts")
    ordered = iter(verdicts)
    return [_with_verdicts(step, [next(ordered) for _ in step.calls]) for step in steps]


def _with_verdicts(step: Step, verdicts: list[Verdict]) -> Step:
    kinds = np.array([tools.call_kind(call) for call in step.calls], int)
    outcomes, fit = np.array(step.outcomes, int), np.array([v.valid for v in verdicts], bool)
    failed = any(verdict.failed for verdict in verdicts)
    r4 = float("nan") if failed else float(rewards.content_share(kinds, outcomes, fit))
    return replace(step, fit=fit.tolist(), r4=r4)


def first_state(env: Environment, rows: int, seed: int) -> memory.MemoryState:
    """`rows` empty memories; the first id of each is drawn from `env.memory.first_ids`."""
    return _empty(env, draw_first_ids(env, rows, seed))


def draw_first_ids(env: Environment, episodes: int, seed: int) -> np.ndarray:
    """[episodes] int32, the id that the first entry of each episode will get."""
    low, high = env.memory.first_ids
    drawn = np.random.default_rng([seed, 7]).integers(low, high + 1, size=episodes)
    return drawn.astype(np.int32)


def _empty(env: Environment, first_ids: np.ndarray) -> memory.MemoryState:
    capacity = memory.capacity_bucket(env.memory.max_calls)
    return memory.init(
        len(first_ids), capacity, env.memory.entry_tokens, env.memory.core_tokens, first_ids
    )


def make_turn(
    env: Environment,
    host,
    episode: int,
    chunk: int,
    instance: Instance,
    row: int = 0,
    text: str | None = None,
) -> Turn:
    """The turn of an episode at one chunk.

    Args:
        host: the memory state as numpy, or the part of it that `memory.newest` returns.
        row: the row of `host` that holds the memory of this episode.
        text: replaces the text of the chunk; None: the chunk of the instance.
    """
    view = memory.view(host, row, cached_decoder(env.prompt.tokenizer), last=env.prompt.recent)
    return Turn(
        episode, chunk, instance.chunks[chunk] if text is None else text, instance, view, row
    )


def whole_view(env: Environment, host, row: int) -> MemoryView:
    """The whole memory of one row as text; `host` is the whole state as numpy."""
    return memory.view(host, row, cached_decoder(env.prompt.tokenizer))


def apply_calls(
    env: Environment,
    state: memory.MemoryState,
    calls: Sequence[Sequence[tools.Call]],
    chunks: int | np.ndarray,
) -> tuple[memory.MemoryState, np.ndarray]:
    """Applies the calls of every row to its memory; grows the capacity first where needed.

    `state` is donated. `calls`: one list per row of `state`. `chunks`: the chunk number, one for
    all rows or [R]. Returns the new state and the outcomes [R, O].
    """
    width = max(env.memory.entry_tokens, env.memory.core_tokens)
    ops = tools.calls_to_ops(
        calls, cached_encoder(env.prompt.tokenizer), width, env.memory.max_calls
    )
    inserts = (ops.kind == memory.OpKind.INSERT).sum(axis=1)
    state = memory.grow(state, memory.needed_capacity(state, inserts[:, None]))
    chunks = np.broadcast_to(np.asarray(chunks, np.int32), len(calls))
    cut_mark = jnp.asarray(encode(env.prompt.tokenizer, CUT_MARK), jnp.int32)
    state, outcomes, _ = memory.apply_batch(
        state, ops, chunks, cut_mark, jnp.asarray(env.prompt.enabled)
    )
    return state, np.asarray(outcomes)


def _step(
    turn: Turn,
    response: Response,
    text: str,
    calls: list[tools.Call],
    outcomes: np.ndarray,
) -> Step:
    """Builds a step, not judged yet, from its calls and the outcomes [O] of the executed ones.

    Calls past `max_calls` are not executed and count as malformed.
    """
    executed = min(len(calls), len(outcomes))
    results = np.full(len(calls), Outcome.MALFORMED, int)
    results[:executed] = outcomes[:executed]
    return Step(
        chunk=turn.chunk,
        response=response,
        text=text,
        calls=calls,
        outcomes=[Outcome(outcome) for outcome in results],
        fit=[],
        r2=float(rewards.format_share(results)),
        r4=float("nan"),
        shown=turn.view,
    )


def scripted_writer(
    env: Environment, respond: Callable[[Turn], str], with_prompts: bool = False
) -> Writer:
    """A writer from a function that returns the text of a response; it sees what the policy sees.

    `with_prompts`: each response carries the prompt that a policy would have read; supervised
    training on the responses needs it.
    """
    end = response_end(env.prompt.tokenizer)

    def write_one(turn: Turn) -> Response:
        tokens = np.array([*encode(env.prompt.tokenizer, respond(turn)), end], np.int32)
        if not with_prompts:
            return Response(tokens)
        prompt = fit_prompt(env.prompt, turn.view, turn.text)
        return Response(tokens, prompt=np.array(prompt, np.int32))

    return lambda turns: [write_one(turn) for turn in turns]


def to_batch(
    episodes: Sequence[Episode], rollouts: int, prompt_tokens: int, response_tokens: int, rows: int
) -> Batch:
    """One row per step, episode by episode, filled up with invalid rows to `rows` (numpy).

    `episodes` are grouped by instance: each group of `rollouts` consecutive ones read the same
    instance. The four rewards are stored separately. A row is not valid where no question of its
    episode was judged, or where the content judge failed on the calls of its step.
    """
    steps = [(e, step) for e, episode in enumerate(episodes) for step in episode.steps]
    batch = from_tokens(
        [step.response.prompt for _, step in steps],
        [step.response.tokens for _, step in steps],
        prompt_tokens,
        response_tokens,
    )
    # NaN marks a missing log-prob: the loss treats it as neutral and counts it.
    logps = np.full(batch.tokens.completion.shape, np.nan, np.float32)
    for row, (_, step) in enumerate(steps):
        if step.response.logps is not None:
            logps[row, : len(step.response.logps)] = step.response.logps
    episode_of_row = np.array([e for e, _ in steps], np.int32)
    valid = np.array([episodes[e].valid and not np.isnan(step.r4) for e, step in steps], bool)
    columns = {
        "r1": [episodes[e].r1 for e in episode_of_row],
        "r2": [step.r2 for _, step in steps],
        "r3": [episodes[e].r3 for e in episode_of_row],
        "r4": [step.r4 for _, step in steps],
    }
    batch = batch.with_targets(sample_logps=logps).with_rows(
        rewards={k: np.where(valid, v, 0).astype(np.float32) for k, v in columns.items()},
        instance=episode_of_row // rollouts,
        episode=episode_of_row,
        chunk=np.array([step.chunk for _, step in steps], np.int32),
        valid=valid,
    )
    return fill(batch, rows)
