"""Sampling in small programs: prompts are read in blocks, replies decoded a few tokens at a time.

`sampler.generate` is one program for a prompt bucket and a response buffer. That suits training,
which has few shapes and many batches; for a model of thirty layers it takes minutes to compile.
Chats have any length. Here a cache is filled with blocks of `BLOCK` tokens and then decoded `STEPS`
tokens at a time: two programs that compile in seconds serve every length up to their number of
slots. The samples are those of `sampler.generate` at top-p 1.

Axes: B rows, S tokens of a block, W slots of a text, N cache slots.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from memalpha.decoding import Choice, Rows, advance
from memalpha.drafts import NOTHING, close_holes
from memalpha.model import Cache, ModelConfig, Params, Transformer, grow
from memalpha.sharding import (
    CACHE,
    ROWS,
    WHOLE,
    check_rows,
    constrain,
    mesh_of,
    place,
    row_parts,
    use,
)

Array = jax.Array

BLOCK = 64  # tokens of a prompt that are read together
STEPS = 16  # tokens of a reply between two looks of the host
FEWEST_SLOTS = 256
LEAVE = 4  # finished rows leave a batch once a fourth of it goes on: each size is compiled


class Reply(NamedTuple):
    """Tokens of a reply, the stop token included, and the passes of the model that gave them."""

    tokens: list[int]
    passes: int


def slots_for(tokens: int) -> int:
    """Slots of a cache for so many tokens: few sizes, of which at most an eighth is spare."""
    step = max(FEWEST_SLOTS, (1 << (tokens - 1).bit_length()) // 8)
    return -(-tokens // step) * step


@partial(jax.jit, static_argnames=("config", "rows"))
def _empty(config: ModelConfig, rows: int) -> Cache:
    k = jnp.zeros((rows, config.num_kv_heads, config.head_dim, 0), config.dtype)
    layers = range(config.num_layers)
    return Cache(
        k=tuple(k for _ in layers),
        v=tuple(k.swapaxes(2, 3) for _ in layers),
        valid=jnp.zeros((rows, 0), bool),
        index=jnp.int32(0),
    )


def prolong(
    params: Params, config: ModelConfig, start: Cache | None, tokens: Sequence[int]
) -> Cache:
    """The keys and values of a start (None: of nothing) and of the tokens that follow it, without
    free slots; on a mesh a copy for each shard of rows, so that every device computes its own."""
    rows, known = row_parts(mesh_of(params)), _tokens_of(start)
    cache = _fill(params, config, start, [tokens] * rows, rows)
    return head_of(cache, known + len(tokens))


def _tokens_of(start: Cache | None) -> int:
    return 0 if start is None else start.valid.shape[1]


def _fill(
    params: Params,
    config: ModelConfig,
    start: Cache | None,
    texts: Sequence[Sequence[int]],
    rows: int,
) -> Cache:
    """A cache of so many rows: the start and a text in each, and slots for some tokens more; rows
    without a text have the start alone."""
    mesh, size = mesh_of(params), -(-max(map(len, texts)) // BLOCK) * BLOCK
    slots = slots_for(_tokens_of(start) + max(size, BLOCK) + STEPS)
    tokens, mask = np.zeros((rows, size), np.int32), np.zeros((rows, size), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    with use(mesh):
        cache = _open(_empty(config, rows) if start is None else start, rows, slots)
        for begin in range(0, size, BLOCK):
            block = (jnp.asarray(x[:, begin : begin + BLOCK]) for x in (tokens, mask))
            cache = _read(params, config, cache, *place(tuple(block), mesh, ROWS))
    return cache


@partial(jax.jit, static_argnames=("rows", "slots"))
def _open(start: Cache, rows: int, slots: int) -> Cache:
    each = lambda x, spec: constrain(jnp.repeat(x, rows // x.shape[0], axis=0), spec)
    return grow(
        start.replace(
            k=tuple(each(k, CACHE) for k in start.k),
            v=tuple(each(v, CACHE) for v in start.v),
            valid=each(start.valid, ROWS),
        ),
        slots,
    )


def head_of(cache: Cache, tokens: int) -> Cache:
    """The first so many tokens of every row, without free slots."""
    return Cache(
        k=tuple(k[..., :tokens] for k in cache.k),
        v=tuple(v[:, :, :tokens] for v in cache.v),
        valid=cache.valid[:, :tokens],
        index=jnp.int32(tokens),
    )


def begin(
    params: Params,
    config: ModelConfig,
    start: Cache | None,
    texts: Sequence[Sequence[int]],
    keys: Array,
    max_new_tokens: int,
    searched: Sequence[Sequence[int]] = (),
) -> Rows:
    """Rows whose prompts are read: what `start` holds and then a text of at least one token each.

    keys [B], as `sampler.row_keys` makes them; where there are more of them than texts, the other
    rows write nothing. searched: for each text, the tokens that drafts are copied from beside the
    reply itself.
    """
    mesh, known, b = mesh_of(params), _tokens_of(start), len(keys)
    check_rows(mesh, b, "begin")
    last, prompt, limits, begin = (np.zeros(b, np.int32) for _ in range(4))
    width = slots_for(max(map(len, searched), default=0) + max_new_tokens)
    text, zero = np.full((b, width), NOTHING, np.int32), np.zeros(b, np.int32)
    for row, own in enumerate(texts):
        last[row], prompt[row], limits[row] = own[-1], known + len(own), max_new_tokens
    for row, tokens in enumerate(searched):
        text[row, : len(tokens)], begin[row] = tokens, len(tokens)
    cache = _fill(params, config, start, [own[:-1] for own in texts], b)
    by_row = dict(
        text=text, logps=np.zeros(text.shape, np.float32), begin=begin, keys=keys, last=last,
        prompt=prompt, count=zero, passes=zero, limits=limits, finished=zero > 0,
    )  # fmt: skip
    by_row = place({name: jnp.asarray(x) for name, x in by_row.items()}, mesh, ROWS)
    return Rows(**by_row, done=place(jnp.arange(b) >= len(texts), mesh, WHOLE), cache=cache)


def finish(
    params: Params,
    config: ModelConfig,
    rows: Rows,
    temperature: float,
    stop_ids: Sequence[int],
    on_tokens: Callable[[int], None] = lambda count: None,
    draft_tokens: int = 0,
) -> list[Reply]:
    """The reply of every row; the rows are used up.

    temperature >= 0, where 0 is greedy; stop_ids: a row ends with the first of these; on_tokens:
    told of so many new tokens; draft_tokens: how many tokens a pass checks beside the newest one.
    """
    replies = [Reply([], 0) for _ in rows.done]
    numbers, told = np.arange(len(replies)), 0  # the rows that are still computed
    parts, done = row_parts(mesh_of(params)), np.asarray(rows.done)
    while not done.all():
        rows, seen = _more(params, config, rows, temperature, stop_ids, draft_tokens)
        text, begin, count, passes, done = jax.device_get(seen)
        for row, number in enumerate(numbers):
            tokens = text[row, begin[row] : begin[row] + count[row]].tolist()
            replies[number] = Reply(tokens, int(passes[row]))
        new = sum(len(reply.tokens) for reply in replies) - told
        on_tokens(new)
        told += new
        live = np.sum(~done)
        if parts == 1 and 0 < live * LEAVE <= len(done):
            order = np.argsort(done, stable=True)[: 1 << (int(live) - 1).bit_length()]
            rows, numbers, done = _take(rows, order), numbers[order], done[order]
    return replies


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(params: Params, config: ModelConfig, cache: Cache, tokens: Array, mask: Array) -> Cache:
    # Padding stands behind the tokens of a row, so that slots are positions where it matters.
    positions = jnp.broadcast_to(cache.index + jnp.arange(tokens.shape[1]), tokens.shape)
    model = Transformer(config)
    return model.apply({"params": params}, tokens, positions, mask, cache, last=1)[1]


def _more(params, config, rows, temperature, stop_ids, size) -> tuple[Rows, tuple[Array, ...]]:
    """`_decode`, with room made in the cache where there is none."""
    mesh, room, slots = mesh_of(params), STEPS + size, rows.cache.valid.shape[1]
    if size and len(rows.last) > 1 and int(rows.cache.index) + room > slots:
        with use(mesh):
            rows = _close(rows)
    if (used := int(rows.cache.index) + room) > slots:
        rows = rows.replace(cache=grow(rows.cache, slots_for(used)))
    how = Choice(jnp.float32(temperature), jnp.float32(1), jnp.asarray(stop_ids, jnp.int32))
    with use(mesh):
        return _decode(params, config, rows, place(how, mesh, WHOLE), size)


@partial(jax.jit, donate_argnames="rows")
def _close(rows: Rows) -> Rows:
    return rows.replace(cache=close_holes(rows.cache, ~rows.done))


@partial(jax.jit, static_argnames=("config", "size"), donate_argnames="rows")
def _decode(params, config, rows, choice, size) -> tuple[Rows, tuple[Array, ...]]:
    """The rows after at least `STEPS` tokens more of one of them, where they do not all end before;
    and what the host looks at: their text, begin, count, passes and done."""
    end = rows.cache.index + STEPS

    def more(rows: Rows) -> Array:
        return (rows.cache.index < end) & ~jnp.all(rows.done)

    rows = lax.while_loop(more, lambda rows: advance(params, config, rows, choice, size), rows)
    seen = (rows.text, rows.begin, rows.count, rows.passes, rows.done)
    seen = tuple(constrain(x, WHOLE) for x in seen)
    return rows.replace(done=seen[-1]), seen


@jax.jit
def _take(rows: Rows, numbers: Array) -> Rows:
    """Some of the rows; numbers [b] int32."""
    return jax.tree.map(lambda x: x[numbers] if x.ndim else x, rows)
