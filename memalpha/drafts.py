"""Drafts of the next tokens, copied from text that is at hand, which one pass of the model checks.

A memory is written largely by copying, so much of a response stands in its prompt already. After
the last tokens of a row, what once followed the same tokens is a guess of how it goes on (prompt
lookup). The model reads the guess in one pass; `decoding` then chooses the token of each place as
always and keeps the guess as far as it agrees. So a draft decides how many passes a response takes,
never what it says.

Axes: B rows, W slots of the text that is searched, D tokens of a draft, N cache slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from memalpha.model import Cache
from memalpha.sharding import CACHE, ROWS, constrain

Array = jax.Array

NOTHING = -1  # in a text or a draft: no token
LONGEST = 3  # tokens that are compared; more of them found no better drafts


@struct.dataclass
class Drafts:
    """What drafts are made of: text [F] int32, searched after a row's own prompt and response, and
    not shown to the model; size (static): the tokens of a draft, 0 for none."""

    text: Array
    size: int = struct.field(pytree_node=False)


def make_drafts(size: int, text=()) -> Drafts:
    """Drafts of `size` tokens; text: token ids."""
    if size < 0:
        raise ValueError(f"drafts of {size} tokens: give the tokens of a draft, or 0 for none")
    return Drafts(np.asarray(text if size else (), np.int32), int(size))


def look_up(text: Array, end: Array, size: int) -> Array:
    """What followed the same tokens before: a draft [B, size] of how each row goes on.

    text [B, W] int32, NOTHING where there is no token; end [B] int32: the slots of each row that
    are written, of which the last hold its newest tokens. Of all places after the same `LONGEST`
    tokens, or else after the same fewer, the latest counts. NOTHING where a draft has no token.
    """
    slots = jnp.arange(text.shape[1])
    before = lambda array, n: jnp.pad(array, ((0, 0), (n, 0)), constant_values=NOTHING)[:, :-n]
    same, length = (slots > 0) & (slots < end[:, None]), jnp.zeros(text.shape, jnp.int32)
    for n in range(1, LONGEST + 1):
        newest = jnp.take_along_axis(text, jnp.maximum(end - n, 0)[:, None], axis=1)
        same &= (before(text, n) == newest) & (newest != NOTHING) & (end >= n)[:, None]
        length += same
    best = jnp.argmax(length * len(slots) + slots, axis=1)
    found = jnp.max(length, axis=1) > 0
    draft = best[:, None] + jnp.arange(size)
    inside = found[:, None] & (draft < end[:, None])
    copied = jnp.take_along_axis(text, jnp.minimum(draft, text.shape[1] - 1), axis=1)
    return jnp.where(inside, copied, NOTHING)


def accepted(draft: Array, chosen: Array, ends: Array, room: Array) -> Array:
    """How many of the chosen tokens each row keeps, [B] int32.

    draft [B, D]; chosen [B, 1 + D]: the model's token after the newest one, and after each token
    of the draft; ends [B, 1 + D] bool: those that end a row; room [B]: the most to keep. A token
    counts where everything before it in the draft is what the model chose, and did not end the row.
    """
    agrees = (draft == chosen[:, :-1]) & ~ends[:, :-1]
    count = 1 + jnp.sum(jnp.cumprod(agrees.astype(jnp.int32), axis=1), axis=1)
    return jnp.minimum(count, room).astype(jnp.int32)


def keep(cache: Cache, size: int, kept: Array) -> Cache:
    """The cache after a pass over `size` tokens a row, of which the first `kept` [B] stay. The next
    pass writes over what no row keeps; what only some rows keep leaves holes in the others."""
    begin = cache.index - size
    valid = jnp.arange(size) < kept[:, None]
    valid = lax.dynamic_update_slice(cache.valid, valid, (0, begin))
    return cache.replace(valid=valid, index=begin + jnp.max(kept))


def close_holes(cache: Cache, live: Array, start: int = 0) -> Cache:
    """The same keys and values in the same order, those of a row without holes between, from slot
    `start` (static) on. Rows that are not live, [B] bool, are dropped."""
    valid = cache.valid & live[:, None]
    order = jnp.argsort(~valid[:, start:], axis=1, stable=True)

    def move(x: Array, axis: int) -> Array:
        tail = lax.slice_in_dim(x, start, x.shape[axis], axis=axis)
        at = jnp.expand_dims(order, [i for i in range(1, x.ndim) if i != axis])
        tail = jnp.take_along_axis(tail, at, axis=axis)
        return lax.dynamic_update_slice_in_dim(x, tail, start, axis=axis)

    return Cache(
        k=tuple(constrain(move(k, 3), CACHE) for k in cache.k),
        v=tuple(constrain(move(v, 2), CACHE) for v in cache.v),
        valid=constrain(move(valid, 1), ROWS),
        index=start + jnp.max(jnp.sum(valid[:, start:], axis=1, dtype=jnp.int32)),
    )
