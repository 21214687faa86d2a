"""Rotary embeddings and attention: causal over a whole sequence, or over a cache.

Axes: B batch, S tokens given, N cache slots, H query heads, K key-value heads, G = H / K, h head
      width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from memalpha.model_config import ModelConfig, Rope

Array = jax.Array
KV = tuple[Array, Array]

MASKED = -1e30  # finite, so that a row with no valid key averages instead of giving NaN
MIN_BLOCK = 64  # query positions; smaller causal blocks cost more in launches than they save
MAX_BLOCKS = 8  # causal query blocks are unrolled: bounds the size of the program


def rope_tables(positions: Array, head_dim: int, rope: Rope) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles, [B, S, 1, h/2] float32 each, from positions [B, S]."""
    frequency = _frequencies(head_dim, rope)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _frequencies(head_dim: int, rope: Rope) -> Array:
    """[h/2] float32. Scaled, waves that turn fewer than `low` times in the original context are
    `factor` times slower, those that turn more than `high` times stay, and between the two the
    frequencies are mixed in proportion (Llama 3 report, arXiv:2407.21783, and its released code).
    """
    half = head_dim // 2
    frequency = rope.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rope.scaling is None:
        return frequency
    factor, low, high, original = rope.scaling
    turns = original * frequency / (2 * math.pi)
    unscaled = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (unscaled + (1 - unscaled) / factor)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of x [B, S, heads, h]; the two halves of a head form the pairs, as in the
    hub's files of all families."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def causal_attention(
    q: Array, k: Array, v: Array, valid: Array, config: ModelConfig, window: int = 0
) -> Array:
    """Attention within one block of tokens: every query sees the valid keys up to its own slot, of
    them the last `window` (0: all).

    q [B,H,T,h] of the last T tokens, k [B,K,h,S], v [B,K,S,h], valid [B,S] -> [B,H,T,h]. Query
    block i is multiplied only with the keys before its end, which saves nearly half of the square.
    """
    t, s = q.shape[2], v.shape[2]
    if config.attention != "blocks":
        # No mask but the causal one, with or without a window, which flash kernels need not read:
        # `Transformer` has moved padding to the end. They align a shorter query with the first
        # key, and take an even number of tokens: hence the zeros.
        q, k, v = q.swapaxes(1, 2), k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
        q = jnp.pad(q, ((0, 0), (s - t, 0), (0, 0), (0, 0)))
        q, k, v = (jnp.pad(x, ((0, 0), (0, s % 2), (0, 0), (0, 0))) for x in (q, k, v))
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=config.query_pre_attn_scalar and config.query_pre_attn_scalar**-0.5,
            is_causal=True,
            local_window_size=(window - 1, 0) if window else None,
            implementation=config.attention,
        )
        return out[:, s - t : s].swapaxes(1, 2)
    block = MIN_BLOCK * math.ceil(t / (MIN_BLOCK * MAX_BLOCKS))
    out = []
    for start in range(0, t, block):
        end = min(start + block, t)
        keys = s - t + end
        causal = jnp.arange(keys) <= jnp.arange(s - t + start, keys)[:, None]
        mask = valid[:, None, None, None, :keys] & causal
        if window:
            mask = mask & _within(valid[:, :keys], keys - (end - start), end - start, window)
        out.append(_attend(q[:, :, start:end], k[..., :keys], v[:, :, :keys], mask, config))
    return jnp.concatenate(out, axis=2)


def write_slots(cache: Array, new: Array, index: Array, axis: int) -> Array:
    """Keys [B,K,h,N] or values [B,K,N,h] with new ones at the slots index + [0..S) of `axis`; the
    caller makes sure that they fit.

    A single slot is written together with one beside it, which keeps its value, where B or K is 1.
    XLA on a CPU takes a smaller update for cheap enough to be done twice, once for the cache and
    once for the product that reads it; then neither is in place, and the array is copied four
    times. That is so in float32; an update in bfloat16 goes over the whole array there anyway.
    """
    doubled = 1 in cache.shape[:2] and new.shape[axis] == 1 and cache.dtype == jnp.float32
    if doubled and cache.shape[axis] > 1:
        start = jnp.minimum(index, cache.shape[axis] - 2)
        pair = lax.dynamic_slice_in_dim(cache, start, 2, axis)
        slots = start + lax.broadcasted_iota(jnp.int32, pair.shape, axis)
        new, index = jnp.where(slots == index, new, pair), start
    return lax.dynamic_update_slice_in_dim(cache, new, index, axis)


def cached_attention(
    q: Array, k: Array, v: Array, valid: Array, index: Array, config: ModelConfig, window: int = 0
) -> Array:
    """Attention of new tokens over a cache: q [B,H,S,h] at slots index + [0..S) -> [B,H,S,h]; each
    sees the last `window` tokens (0: all)."""
    mask = valid[:, None, None, None, :]
    s = q.shape[2]
    if s > 1:  # a single new token sits in the last written slot: nothing lies after it
        mask = mask & (jnp.arange(v.shape[2]) <= index + jnp.arange(s)[:, None])
    if window:
        mask = mask & _within(valid, index, s, window)
    return _attend(q, k, v, mask, config)


def _within(valid: Array, start: int | Array, count: int, window: int) -> Array:
    """Whether keys lie in the window of the queries at slots start + [0..count): valid [B,N] ->
    [B,1,1,count,N] bool. Counted in tokens, not in slots: padding may stand between."""
    number = jnp.cumsum(valid, axis=1)
    queries = lax.dynamic_slice_in_dim(number, start, count, axis=1)
    return (queries[:, :, None] - number[:, None, :] < window)[:, None, None]


def _attend(q: Array, k: Array, v: Array, mask: Array, config: ModelConfig) -> Array:
    """q [B,H,S,h], k [B,K,h,N], v [B,K,N,h], mask broadcastable to [B,K,G,S,N] -> [B,H,S,h]."""
    b, heads, s, h = q.shape
    q = (q * (config.query_pre_attn_scalar or h) ** -0.5).reshape(b, k.shape[1], -1, s, h)
    scores = jnp.einsum("bkgsh,bkhn->bkgsn", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bkgsn,bknh->bkgsh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # Divided after the product: a pass over [S, h] in place of one over [S, N].
    out = out / jnp.sum(weights, axis=-1, keepdims=True)
    return out.astype(v.dtype).reshape(b, heads, s, h)
