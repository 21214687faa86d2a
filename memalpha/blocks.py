"""Sampling in small programs: prompts are read in blocks, replies decoded a few tokens at a time.

`sampler.generate` is one program for a prompt bucket and a response buffer. That suits training,
which has few shapes and many batches; for a model of thirty layers it takes minutes to compile.
Chats have any length. Here a cache is filled with blocks of `BLOCK` tokens and then decoded `STEPS`
tokens at a time: two programs that compile in seconds serve every length up to their number of
slots. The samples are those of `sampler.generate` at top-p 1.

Axes: B rows, S tokens of a block, N cache slots.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from memalpha.model import Cache, ModelConfig, Params, Transformer, grow, logits
from memalpha.sampler import choose
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


@struct.dataclass
class Rows:
    """Rows that are being decoded; each has a cache that holds all its tokens but `last`.

    last [B] int32: the newest token; position [B] int32: its place in the text; step [] int32: the
    tokens sampled so far; done [B] bool; keys [B] typed random keys, as `sampler.row_keys` makes
    them; limits [B] int32: the most tokens of each row; cache: of N slots.
    """

    last: Array
    position: Array
    step: Array
    done: Array
    keys: Array
    limits: Array
    cache: Cache


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
) -> Rows:
    """Rows whose prompts are read: what `start` holds and then a text of at least one token each.

    keys [B], as `sampler.row_keys` makes them; where there are more of them than texts, the other
    rows write nothing.
    """
    mesh, known, b = mesh_of(params), _tokens_of(start), len(keys)
    check_rows(mesh, b, "begin")
    last, position, limits = (np.zeros(b, np.int32) for _ in range(3))
    for row, text in enumerate(texts):
        last[row], position[row], limits[row] = text[-1], known + len(text) - 1, max_new_tokens
    cache = _fill(params, config, start, [text[:-1] for text in texts], b)
    last, position, limits, keys = place(
        (*map(jnp.asarray, (last, position, limits)), keys), mesh, ROWS
    )
    step, done = place((jnp.int32(0), jnp.asarray(np.arange(b) >= len(texts))), mesh, WHOLE)
    return Rows(last, position, step, done, keys, limits, cache)


def finish(
    params: Params,
    config: ModelConfig,
    rows: Rows,
    temperature: float,
    stop_ids: Sequence[int],
    on_tokens: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """The tokens of every row, the stop token included; the rows are used up.

    temperature >= 0, where 0 is greedy; stop_ids: a row ends with the first of these; on_tokens:
    told of so many new tokens.
    """
    replies = [[] for _ in rows.done]
    numbers = np.arange(len(replies))  # of the rows that are still computed
    parts, done = row_parts(mesh_of(params)), np.asarray(rows.done)
    while not done.all():
        rows, tokens, mask = _more(params, config, rows, temperature, stop_ids)
        tokens, mask, done = jax.device_get((tokens, mask, rows.done))
        for row, number in enumerate(numbers):
            replies[number] += tokens[row][mask[row]].tolist()
        on_tokens(int(mask.sum()))
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


def _more(params, config, rows, temperature, stop_ids) -> tuple[Rows, Array, Array]:
    """`_decode`, with room made in the cache where there is none."""
    mesh, used = mesh_of(params), int(rows.cache.index) + STEPS
    if used > rows.cache.valid.shape[1]:
        rows = rows.replace(cache=grow(rows.cache, slots_for(used)))
    how = jnp.asarray(temperature, jnp.float32), jnp.asarray(stop_ids, jnp.int32)
    with use(mesh):
        return _decode(params, config, rows, *place(how, mesh, WHOLE))


@partial(jax.jit, static_argnames="config", donate_argnames="rows")
def _decode(params, config, rows, temperature, stop_ids) -> tuple[Rows, Array, Array]:
    """The rows after at most `STEPS` tokens more; tokens [B, STEPS] int32 and mask [B, STEPS] bool,
    a stop token included."""
    b = rows.last.shape[0]
    model, one = Transformer(config), jnp.ones((b, 1), bool)

    def more(carry):
        i, rows, _, _ = carry
        return (i < STEPS) & ~jnp.all(rows.done)

    def step(carry):
        i, rows, tokens, mask = carry
        hidden, cache = model.apply(
            {"params": params}, rows.last[:, None], rows.position[:, None], one, rows.cache
        )
        number = lambda key: jax.random.uniform(jax.random.fold_in(key, rows.step))
        scores = logits(params, hidden[:, 0], config)
        token, _ = choose(scores, jax.vmap(number)(rows.keys), temperature, jnp.float32(1))
        token, live = jnp.where(rows.done, 0, token), ~rows.done
        tokens = lax.dynamic_update_slice(tokens, token[:, None], (0, i))
        mask = lax.dynamic_update_slice(mask, live[:, None], (0, i))
        stopped = jnp.any(token[:, None] == stop_ids, axis=1)
        done = rows.done | stopped | (rows.step + 1 >= rows.limits)
        rows = rows.replace(
            last=token, position=rows.position + 1, step=rows.step + 1, done=done, cache=cache
        )
        return i + 1, rows, tokens, mask

    none = jnp.zeros((b, STEPS), jnp.int32)
    _, rows, tokens, mask = lax.while_loop(more, step, (jnp.int32(0), rows, none, none > 0))
    tokens, mask, done = (constrain(x, WHOLE) for x in (tokens, mask, rows.done))
    return rows.replace(done=done), tokens, mask


@jax.jit
def _take(rows: Rows, numbers: Array) -> Rows:
    """Some of the rows; numbers [b] int32."""
    return jax.tree.map(lambda x: x[numbers] if x.ndim else x, rows)
