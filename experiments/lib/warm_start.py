"""Warm start: supervised training before reinforcement learning.

A model from scratch first learns to copy, as any pretrained model can: spans of random tokens, then
pieces of the lines of a chunk inside of calls. Then it learns to imitate a scripted writer: the
deliberately poor one, or for pretrained models a careful one (`config.warm_start.teacher`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.lib.instances import training_batches
from experiments.lib.objects import build_lora, first_trained
from experiments.lib.progress import progress, worries
from experiments.lib.step_log import check_finite
from experiments.lib.workdir import MetricsLog, own_folder
from experiments.lib.writers import is_flat, teacher
from memalpha import lora
from memalpha.batch import Batch, Rows, Tokens, plan_micro_batches, take
from memalpha.checkpoint import open_checkpoints, restore, save
from memalpha.episode import Environment, Turn, Writer
from memalpha.learner import init_state, make_supervised_update
from memalpha.memory import MEMORY_NAMES
from memalpha.model import ModelConfig, Params
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.pieces import cut_chunks
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.tokenizer import decode, encode
from memalpha.tools import INSERT, UPDATE, Call, format_response

COPY_CONTEXT, COPY_SPAN = 24, 16  # tokens; copying is learned fastest in short contexts
QUOTE_SHARE, QUOTE_CUT = 0.6, 3  # share of lines quoted; most tokens cut at either end
QUOTE_CORE = 0.3  # share of responses to an empty core that write to it
TRACES = 100_000_000  # index offset: imitation uses other instances than RL does


def warm_start(
    config: ConfigDict,
    workdir: Path,
    env: Environment,
    model: ModelConfig,
    params: Params,
    events: bool = False,
) -> Params:
    """Trains a writer to copy, to quote, then to imitate the teacher; continues from its
    checkpoints. Returns what `config.lora` says is trained, the model or its adapters, after
    `config.warm_start.steps` updates in all; 0: as it was. `params` are not changed. `events`:
    write TensorBoard events beside the log.
    """
    stage, adapters = config.warm_start, build_lora(config)
    if not stage.steps:
        return first_trained(config, params) if adapters.rank else params
    trace_steps = max(stage.steps - stage.copy_steps - stage.quote_steps, 1)
    # A short memory of squared gradients (b2): with 0.999 copying had not appeared after 300 steps.
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=stage.learning_rate,
            warmup_steps=stage.warmup_steps,
            total_steps=stage.steps,
            schedule="stable_decay",
            decay_share=trace_steps / stage.steps,
            optimizer=stage.optimizer,
            weight_decay=0.0,
            b2=0.99,
        )
    )
    attach = partial(lora.attach, config=adapters)
    update = make_supervised_update(model, optimizer, attach, stage.get("first_weight", 1.0))
    batches = training_batches(config)
    state, first = init_state(first_trained(config, params), optimizer), 0
    with open_checkpoints(workdir / "checkpoints" / "warm_start") as checkpoints:
        if (checkpoint := restore(checkpoints, state)) is not None:
            first, state = checkpoint
        log = MetricsLog(own_folder(workdir) / "warm_start.jsonl", first, events)
        cut: Counter[int] = Counter()  # step -> chunks that were read in pieces

        def make(step: int) -> Batch:
            if step < stage.copy_steps:
                return copy_batch(config, len(env.prompt.tokenizer), step)
            if step < stage.copy_steps + stage.quote_steps:
                return quote_batch(config, env, batches, step, cut)
            return trace_batch(config, env, batches, step, cut)

        with progress("warm start", stage.steps, first) as report:
            for step, batch in ahead(make, range(first, stage.steps)):
                plan = plan_micro_batches(batch, stage.micro_batch or None)
                state, metrics = update(state, batch, plan, params if adapters.rank else None)
                metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
                metrics["cut_chunks"] = float(cut[step])
                log.write(step, metrics)
                check_finite(metrics, step, "warm start")
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == stage.steps:
                    save(checkpoints, step + 1, state)
                report.warn(step, *worries(metrics))
                report(step + 1, f"loss {metrics['loss']:.3f}")
    return state.params


def ahead(make: Callable[[int], Batch], steps: Sequence[int]) -> Iterator[tuple[int, Batch]]:
    """Yields (step, make(step)); a thread makes the next batch while the current one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for step in steps:
            batch = make(step) if coming is None else coming.result()
            coming = thread.submit(make, step + 1) if step + 1 in steps else None
            yield step, batch


def copy_batch(config: ConfigDict, vocab_size: int, step: int) -> Batch:
    """Rows of distinct random tokens; the completion repeats a span of the prompt."""
    rng = np.random.default_rng([config.seed, step, 17])
    rows, length, span = config.warm_start.copy_rows, COPY_CONTEXT, COPY_SPAN
    context = np.argsort(rng.random((rows, vocab_size)), axis=1)[:, :length].astype(np.int32)
    start = rng.integers(length - span + 1, size=(rows, 1))
    completion = np.take_along_axis(context, start + np.arange(span), axis=1)
    mask = np.ones(context.shape, bool)
    tokens = Tokens(context, mask, completion, mask[:, :span])
    return Batch(tokens, rows=Rows(valid=mask[:, 0]))


def quote_batch(
    config: ConfigDict, env: Environment, batches, step: int, cut: Counter[int] | None = None
) -> Batch:
    """Rows of normal prompts with calls that store pieces of randomly chosen lines of the chunk, in
    reading order. They teach how to quote from any position, and nothing about what to quote.
    `cut`: receives how many chunks were read in pieces, under `step`."""
    rng = np.random.default_rng([config.seed, step, 19])
    lists = MEMORY_NAMES[1:]
    core_share = 1.0 if is_flat(env) else QUOTE_CORE if env.prompt.enabled[0] else 0.0
    room = config.prompt.response_tokens - 1  # one token is the end of sequence

    def quote(turn: Turn) -> str:
        lines = [line for line in turn.instance.chunks[turn.chunk].split("\n") if line.strip()]
        quoted = [line for line in lines if rng.random() < QUOTE_SHARE] or lines[:1]
        pieces = [
            decode(env.prompt.tokenizer, _piece(rng, encode(env.prompt.tokenizer, s)))
            for s in quoted
        ]
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        core = turn.view.core
        if core or rng.random() < core_share:  # the existing core is kept and extended
            pieces = pieces[: rng.integers(len(pieces)) + 1] if pieces else []
            joined = (" ".join([core, *pieces[:n]]) for n in range(1, len(pieces) + 1))
            tries = [[_store("core", text.strip())] for text in joined]
        else:
            calls = [_store(str(rng.choice(lists)), piece) for piece in pieces]
            tries = [calls[:n] for n in range(1, len(calls) + 1)]
        texts = [format_response(calls, env.prompt.dialect) for calls in tries]
        return max(
            (t for t in texts if len(encode(env.prompt.tokenizer, t)) <= room), key=len, default=""
        )

    return _batch(config, env, batches, step, scripted_writer(env, quote, with_prompts=True), cut)


def _piece(rng: np.random.Generator, tokens: list[int]) -> list[int]:
    """The tokens without a few at either end, if enough are left."""
    first, last = (int(n) for n in rng.integers(QUOTE_CUT + 1, size=2))
    return tokens[first : len(tokens) - last] or tokens


def _store(memory: str, content: str) -> Call:
    name, field = (UPDATE, "new_content") if memory == "core" else (INSERT, "content")
    return Call(name, {"memory_type": memory, field: content})


def trace_batch(
    config: ConfigDict, env: Environment, batches, step: int, cut: Counter[int] | None = None
) -> Batch:
    """Rows of the teacher's episodes. `cut`: as in `quote_batch`."""
    rng = np.random.default_rng([config.seed, step, 11])
    return _batch(config, env, batches, step, teacher(config, env, rng), cut)


def _batch(
    config: ConfigDict,
    env: Environment,
    batches,
    step: int,
    writer: Writer,
    cut: Counter[int] | None,
) -> Batch:
    """`rows` rows of episodes of a writer; responses over the token limit are left out.

    Where streams differ in length there are twice as many steps, of which `rows` are drawn."""
    rows, limit = config.warm_start.rows, config.prompt.response_tokens
    lengths = config.data.lengths or (config.data.chunks,)
    wanted = 2 * rows if config.data.lengths else rows
    instances = batches(TRACES // rows + step, -(-wanted * len(lengths) // sum(lengths)))
    episodes = run_episodes(env, instances, writer, seed=step, ask=False)
    if cut is not None:
        cut[step] = cut_chunks(episodes)
    room = max(rows, sum(len(episode.steps) for episode in episodes))
    episodes = [
        replace(e, steps=[s for s in e.steps if len(s.response.tokens) <= limit]) for e in episodes
    ]
    count = sum(len(episode.steps) for episode in episodes)
    whole = to_batch(episodes, 1, config.prompt.tokens, limit, room)
    chosen = np.arange(rows)
    if config.data.lengths and count > rows:
        rng = np.random.default_rng([config.seed, step, 23])
        chosen = rng.choice(count, size=rows, replace=False)
    batch = take(whole, chosen)
    # The questions were skipped, so no row has a reward; every row with a response is valid here.
    return Batch(batch.tokens, rows=Rows(valid=batch.tokens.completion_mask.any(axis=1)))
