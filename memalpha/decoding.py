"""One pass of decoding: the next token of every row, and those of its draft as far as they agree.

Each token is drawn with a uniform number that belongs to its row and its place alone. So a sample
depends neither on the other rows nor on how many tokens a pass reads; in float32 on one device it
is the same token for token. What several tokens at a time round differently can change a token
where two are equally near: then the distribution is the same, and the tokens may not be.

Axes: B rows, D tokens of a draft, W slots of a text, V vocabulary, N cache slots.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from memalpha.drafts import accepted, keep, look_up
from memalpha.model import Cache, ModelConfig, Params, Transformer, inverse_temperature, logits

Array = jax.Array

BLOCK = 128  # tokens of the vocabulary summed together before a choice among them


@struct.dataclass
class Choice:
    """How tokens are chosen: temperature [] and top_p [] float32; stop_ids [n] int32 end a row."""

    temperature: Array
    top_p: Array
    stop_ids: Array


@struct.dataclass
class Rows:
    """Rows that are being decoded; each has a cache that holds all its tokens but `last`.

    text [B, W] int32: what drafts are copied from, then the response, `drafts.NOTHING` elsewhere;
    logps [B, W] float32, 0 but for the response; begin [B]: the slot where it begins. keys [B]:
    typed random keys, as `sampler.row_keys` makes them; last [B]: the newest token; prompt [B]:
    tokens of the prompt; count [B]: tokens sampled; passes [B]: passes of the model that gave them;
    limits [B]: the most tokens; done and finished [B] bool: at an end, by a stop token.
    """

    text: Array
    logps: Array
    begin: Array
    keys: Array
    last: Array
    prompt: Array
    count: Array
    passes: Array
    limits: Array
    done: Array
    finished: Array
    cache: Cache | None


def advance(params: Params, config: ModelConfig, rows: Rows, choice: Choice, size: int) -> Rows:
    """The rows after one pass over the newest token and a draft of `size` tokens (static): 1 to
    1 + size tokens more for each row that is not done. The cache needs that many free slots."""
    draft = look_up(rows.text, rows.begin + rows.count, size)
    tokens = jnp.concatenate([rows.last[:, None], jnp.maximum(draft, 0)], axis=1)
    positions = (rows.prompt + rows.count - 1)[:, None] + jnp.arange(1 + size)
    seen = jnp.ones(tokens.shape, bool)
    hidden, cache = Transformer(config).apply(
        {"params": params}, tokens, positions, seen, rows.cache
    )
    after = record(params, config, rows, hidden, draft, choice)
    kept = after.count - rows.count
    return after.replace(cache=keep(cache, 1 + size, kept))


def record(
    params: Params, config: ModelConfig, rows: Rows, hidden: Array, draft: Array, choice: Choice
) -> Rows:
    """The rows with the tokens that follow the newest one, hidden[:, 0], and those after the tokens
    of the draft as far as it agrees: hidden [B, 1 + D, width], draft [B, D] int32."""
    b, size, width = hidden.shape
    places = rows.count[:, None] + jnp.arange(size)
    scores = logits(params, hidden.reshape(b * size, width), config)
    numbers = _uniforms(rows.keys, places).reshape(b * size)
    chosen = choose(scores, numbers, choice.temperature, choice.top_p)
    token, logp = (x.reshape(b, size) for x in chosen)
    ends = jnp.any(token[:, :, None] == choice.stop_ids, axis=-1)
    room = jnp.where(rows.done, 0, rows.limits - rows.count)
    kept = accepted(draft, token, ends, room)
    of_last = lambda x: jnp.take_along_axis(x, jnp.maximum(kept - 1, 0)[:, None], axis=1)[:, 0]
    finished = rows.finished | (of_last(ends) & (kept > 0))
    offset = jnp.arange(rows.text.shape[1]) - (rows.begin + rows.count)[:, None]
    new, at = (offset >= 0) & (offset < kept[:, None]), jnp.clip(offset, 0, size - 1)
    write = lambda buffer, x: jnp.where(new, jnp.take_along_axis(x, at, axis=1), buffer)
    return rows.replace(
        text=write(rows.text, token),
        logps=write(rows.logps, logp),
        last=jnp.where(kept > 0, of_last(token), rows.last),
        count=rows.count + kept,
        passes=rows.passes + (kept > 0),
        done=finished | (rows.count + kept >= rows.limits),
        finished=finished,
    )


def _uniforms(keys: Array, places: Array) -> Array:
    """u [B, n] in [0, 1): that of place t, places [B, n], is from fold_in(the row's key, t)."""

    def one(key, place):
        return jax.random.uniform(jax.random.fold_in(key, place))

    return jax.vmap(jax.vmap(one, (None, 0)))(keys, places)


def choose(scores: Array, uniform: Array, temperature: Array, top_p: Array) -> tuple[Array, Array]:
    """Pick a token of each row: scores [B, V] float32, uniform [B] in [0, 1) -> token, logp [B].

    Sampling inverts the cumulative distribution at `uniform`: exact, and on CPU many times cheaper
    than a Gumbel draw for each of V tokens.
    """
    chex.assert_rank([scores, uniform, temperature, top_p], [2, 1, 0, 0])
    chex.assert_type([scores, uniform, temperature, top_p], float)
    chex.assert_equal_shape_prefix([scores, uniform], 1)
    scaled = scores * inverse_temperature(temperature)
    peak = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled - peak)
    token = lax.switch(
        jnp.where(temperature == 0, 0, jnp.where(top_p < 1, 2, 1)),
        (
            lambda: _first(scaled == peak),
            lambda: _invert(weights, uniform),
            lambda: _invert(_nucleus(weights, top_p), uniform),
        ),
    )
    chosen = jnp.take_along_axis(scaled - peak, token[:, None], axis=-1)[:, 0]
    return token, chosen - jnp.log(jnp.sum(weights, axis=-1))


def _first(flags: Array) -> Array:
    """Index [B] of the first True of flags [B, V] (argmax does not vectorise on CPU)."""
    indices = jnp.arange(flags.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(flags, indices, flags.shape[-1] - 1), axis=-1)


def _invert(weights: Array, uniform: Array) -> Array:
    """Index [B] drawn in proportion to weights [B, V] >= 0 at uniform [B].

    In two steps, a block of the vocabulary and a token in it: cumulative sums over V are slow.
    """
    b, v = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -v % BLOCK))).reshape(b, -1, BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    block, rest = _locate(ends, uniform * ends[:, -1])
    inner = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return block * BLOCK + _locate(inner, rest)[0]


def _locate(ends: Array, point: Array) -> tuple[Array, Array]:
    """The first interval that ends beyond point [B], and how far into it the point lies.

    ends [B, n]: non-decreasing. A point that rounding put at the last end is moved just before it,
    so that the result is never an empty interval.
    """
    point = jnp.minimum(point, ends[:, -1] * (1 - 2**-23))[:, None]
    past = ends <= point
    start = jnp.max(jnp.where(past, ends, 0.0), axis=-1)
    return jnp.sum(past, axis=-1, dtype=jnp.int32), point[:, 0] - start


def _nucleus(weights: Array, top_p: Array) -> Array:
    """weights [B, V], zero outside the fewest likeliest tokens that together reach top_p.

    Ties with the last of them stay too. The threshold comes from a bisection over the bit patterns
    of float32, which are in the order of the numbers: exact, without a sort.
    """
    bits = lax.bitcast_convert_type(weights, jnp.int32)
    goal = top_p * jnp.sum(weights, axis=-1)

    def halve(_, bounds):
        low, high = bounds  # the weights >= low reach the goal; those >= high do not
        middle = (low + high) // 2
        mass = jnp.sum(jnp.where(bits >= middle[:, None], weights, 0.0), axis=-1)
        return jnp.where(mass >= goal, middle, low), jnp.where(mass >= goal, high, middle)

    one = 0x3F800000  # the bits of 1.0, which is the largest weight
    start = jnp.zeros_like(goal, jnp.int32), jnp.full_like(goal, one + 1, jnp.int32)
    low, _ = lax.fori_loop(0, 30, halve, start)  # 2**30 > one + 1
    return jnp.where(bits >= low[:, None], weights, 0.0)
