"""Sampling: prompts padded to a bucket, then prefill and decoding in one jitted call.

Static: the prompt bucket P, the response buffer T, the row count B. Everything else is traced, so
that a new temperature, top-p, limit or stop id takes effect without a recompilation.

Axes: B rows, P prompt slots, T response slots, V vocabulary. A row is one prompt with its response.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import NamedSharding

from memalpha.model import (
    Cache,
    ModelConfig,
    Params,
    Transformer,
    grow,
    inverse_temperature,
    logits,
)
from memalpha.sharding import (
    CACHE,
    ROWS,
    WHOLE,
    check_rows,
    constrain,
    constrain_tree,
    mesh_of,
    place,
    row_parts,
    use,
)

Array = jax.Array

MIN_SEGMENT = 32  # decode steps with one cache size
MAX_SEGMENTS = 8  # one compiled loop each: bounds the size of the program
BLOCK = 128  # tokens of the vocabulary summed together before a choice among them


@struct.dataclass
class Samples:
    """tokens [B, T] int32 (0 where the mask is False); mask [B, T] bool, True for every sampled
    token, the stop token included; logps [B, T] float32; finished [B] bool: ended by a stop token
    (False: cut by its limit)."""

    tokens: Array
    mask: Array
    logps: Array
    finished: Array


@struct.dataclass
class _Inputs:
    """The traced arguments of `generate`, as its docstring has them."""

    prompts: Array  # [B, P] int32
    prompt_mask: Array  # [B, P] bool
    keys: Array  # [B] typed random keys
    temperature: Array  # [] float32
    top_p: Array  # [] float32
    limits: Array  # [B] int32
    stop_ids: Array  # [n] int32


@struct.dataclass
class _State:
    """The state of the decoding loop."""

    step: Array  # [] int32, the next response slot
    last: Array  # [B] int32, the newest token of each row
    done: Array  # [B] bool
    samples: Samples
    cache: Cache | None


def pad_prompts(
    prompts: Sequence[Sequence[int]], buckets: Sequence[int], rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Right-align prompts in the smallest bucket that holds the longest.

    rows: B, filled up with empty prompts (give those a limit of 0); None: one for each prompt.

    Returns:
        tokens [B, P] int32 and mask [B, P] bool.

    Raises:
        ValueError: no bucket is long enough, or there are more prompts than rows.
    """
    rows = len(prompts) if rows is None else rows
    if len(prompts) > rows:
        raise ValueError(f"pad_prompts: {len(prompts)} prompts do not fit in rows={rows}")
    longest = max((len(p) for p in prompts), default=0)
    width = min((b for b in buckets if b >= longest), default=None)
    if width is None:
        raise ValueError(
            f"pad_prompts: a prompt of {longest} tokens exceeds the largest bucket of "
            f"{sorted(buckets)}; add a bucket or shorten the prompt"
        )
    tokens = np.zeros((rows, width), np.int32)
    mask = np.zeros((rows, width), bool)
    for i, prompt in enumerate(prompts):
        if len(prompt):
            tokens[i, -len(prompt) :] = prompt
            mask[i, -len(prompt) :] = True
    return tokens, mask


def row_keys(key: Array, *ids: Array | Sequence[int]) -> Array:
    """One typed key for each row, [B], from the key of a run and one or several numbers of the rows
    themselves, [B] int each, which are folded in one after the other. These should not be places in
    the batch: a row's sample must not depend on its company."""

    def one(*numbers):
        return reduce(jax.random.fold_in, numbers, key)

    numbers = [np.asarray(x) if isinstance(x, Sequence) else x for x in ids]
    chex.assert_rank(numbers, 1)
    chex.assert_type(numbers, int)
    return jax.vmap(one)(*(jnp.asarray(x, jnp.uint32) for x in numbers))


def prefill(params: Params, config: ModelConfig, tokens: Sequence[int]) -> Cache:
    """The keys and values of a prefix that prompts share, for `generate`.

    One row; on a mesh one for each shard of data x fsdp, so that every device computes its own.
    """
    if not len(tokens):
        raise ValueError("prefill: no tokens; call generate without a prefix")
    mesh = mesh_of(params)
    rows = np.tile(np.asarray(tokens, np.int32), (row_parts(mesh), 1))
    with use(mesh):
        return _prefill(params, config, place(jnp.asarray(rows), mesh, ROWS))


@partial(jax.jit, static_argnames="config")
def _prefill(params, config, tokens) -> Cache:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = jnp.ones(tokens.shape, bool)
    return Transformer(config).apply({"params": params}, tokens, positions, mask, last=1)[1]


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    temperature: float,
    top_p: float,
    limits: Array,
    stop_ids: Array,
    max_new_tokens: int,
    prefix: Cache | None = None,
) -> Samples:
    """Sample a response to every prompt.

    prompts [B, P] int32 and prompt_mask [B, P] bool, right-aligned (see `pad_prompts`); keys [B]
    typed random keys (see `row_keys`): a row's sample depends on its own key and prompt, not on
    padding or on the other rows; temperature >= 0, where 0 is greedy; top_p in (0, 1]; limits [B]
    int32: the most tokens of each row, 0 for a row to skip; stop_ids [n] int32: a row ends with the
    first of these it samples (-1 never occurs); max_new_tokens: the static buffer T; prefix: what
    all prompts begin with, from `prefill` with the same parameters; `prompts` are then the rest.

    `logps` are those of the whole distribution at this temperature (not of its top-p part), and of
    the raw distribution when greedy. With parameters on a mesh, rows are sharded over data x fsdp,
    of which B has to be a multiple.

    Raises:
        ValueError: a shape or type that does not fit, or rows that the mesh does not divide.
    """
    b = prompts.shape[0]
    if prompts.ndim != 2 or prompts.shape != prompt_mask.shape:
        raise ValueError(
            f"generate: prompts {prompts.shape} and prompt_mask {prompt_mask.shape} must be [B, P]"
        )
    limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), (b,))
    if keys.shape != (b,) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"generate: keys must be [{b}] typed keys, got {keys.dtype} {keys.shape}; use row_keys"
        )
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens {max_new_tokens}; needs at least 1")
    mesh = mesh_of(params)
    check_rows(mesh, b, "generate")
    prompts, prompt_mask, keys, limits = place(
        (jnp.asarray(prompts, jnp.int32), jnp.asarray(prompt_mask, bool), keys, limits), mesh, ROWS
    )
    temperature, top_p, stop_ids = place(
        (
            jnp.asarray(temperature, jnp.float32),
            jnp.asarray(top_p, jnp.float32),
            jnp.asarray(stop_ids, jnp.int32).reshape(-1),
        ),
        mesh,
        WHOLE,
    )
    inputs = _Inputs(prompts, prompt_mask, keys, temperature, top_p, limits, stop_ids)
    with use(mesh):
        return _generate(params, config, inputs, max_new_tokens, prefix)


def lower(params: Params, config: ModelConfig, rows: int, prompt_tokens: int, max_new_tokens: int):
    """`generate` on shapes alone, to be compiled ahead of time: `lower(...).compile()`.

    params: arrays or shapes, with the shardings that all of it would have.
    """
    mesh = mesh_of(params)

    def shape(of: tuple[int, ...], dtype, spec=WHOLE):
        where = None if mesh is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(of, dtype, sharding=where)

    keys = jax.eval_shape(lambda: row_keys(jax.random.key(0), jnp.arange(rows)))
    inputs = _Inputs(
        prompts=shape((rows, prompt_tokens), jnp.int32, ROWS),
        prompt_mask=shape((rows, prompt_tokens), bool, ROWS),
        keys=shape((rows,), keys.dtype, ROWS),
        temperature=shape((), jnp.float32),
        top_p=shape((), jnp.float32),
        limits=shape((rows,), jnp.int32, ROWS),
        stop_ids=shape((1,), jnp.int32),
    )
    with use(mesh):
        return _generate.lower(params, config, inputs, max_new_tokens)


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def _generate(
    params: Params,
    config: ModelConfig,
    inputs: _Inputs,
    max_new_tokens: int,
    prefix: Cache | None = None,
) -> Samples:
    """Prefill, the first token, then one loop for each segment of the response."""
    b, p = inputs.prompts.shape
    prompt_mask = inputs.prompt_mask
    shared = 0 if prefix is None else prefix.valid.shape[1]
    model = Transformer(config)
    lengths = shared + jnp.sum(prompt_mask, axis=1)
    uniforms = _uniforms(inputs.keys, max_new_tokens)

    def advance(state: _State, hidden: Array, cache: Cache) -> _State:
        u = lax.dynamic_index_in_dim(uniforms, state.step, axis=1, keepdims=False)
        scores = logits(params, hidden, config)
        token, logp = choose(scores, u, inputs.temperature, inputs.top_p)
        return _record(state, token, logp, inputs).replace(cache=cache)

    def decode(state: _State) -> _State:
        positions = (lengths + state.step - 1)[:, None]
        seen = jnp.ones((b, 1), bool)
        hidden, cache = model.apply(
            {"params": params}, state.last[:, None], positions, seen, state.cache
        )
        return advance(state, hidden[:, 0], cache)

    positions = shared + jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    past = None if prefix is None else _repeat(prefix, b)
    hidden, cache = model.apply(
        {"params": params}, inputs.prompts, positions, prompt_mask, past, last=1, full=True
    )
    state = advance(_start(inputs, max_new_tokens), hidden[:, -1], cache)
    # The cache grows from segment to segment, so that no step attends to slots far ahead of it: to
    # at most an eighth of the prompt, or a few, because every segment is compiled for itself.
    few = max(MIN_SEGMENT, math.ceil(max_new_tokens / MAX_SEGMENTS))
    segment = max(few, (shared + p) // 8)
    for begin in range(0, max_new_tokens, segment):
        end = min(begin + segment, max_new_tokens)
        state = state.replace(cache=grow(state.cache, shared + p + end))
        state = lax.while_loop(lambda s, end=end: (s.step < end) & ~jnp.all(s.done), decode, state)
    return constrain_tree(state.samples, WHOLE)  # small, and read by every process


def _start(inputs: _Inputs, max_new_tokens: int) -> _State:
    """Before the first token."""
    b = len(inputs.prompts)
    empty = Samples(
        tokens=jnp.zeros((b, max_new_tokens), jnp.int32),
        mask=jnp.zeros((b, max_new_tokens), bool),
        logps=jnp.zeros((b, max_new_tokens), jnp.float32),
        finished=jnp.zeros(b, bool),
    )
    last, done = inputs.prompts[:, -1], inputs.limits <= 0
    return _State(step=jnp.int32(0), last=last, done=done, samples=empty, cache=None)


def _record(state: _State, token: Array, logp: Array, inputs: _Inputs) -> _State:
    """Write token and logp, [B] each, to slot `state.step` of the rows that are not done yet."""
    live = ~state.done
    stopped = live & jnp.any(token[:, None] == inputs.stop_ids, axis=1)
    before = state.samples

    def write(buffer, value):
        return lax.dynamic_update_slice(buffer, value[:, None], (0, state.step))

    samples = Samples(
        tokens=write(before.tokens, jnp.where(live, token, 0)),
        mask=write(before.mask, live),
        logps=write(before.logps, jnp.where(live, logp, 0.0)),
        finished=before.finished | stopped,
    )
    step = state.step + 1
    done = state.done | stopped | (step >= inputs.limits)
    return state.replace(step=step, last=token, done=done, samples=samples)


def _repeat(prefix: Cache, rows: int) -> Cache:
    """The same prefix in each of `rows` rows; every device repeats its own copy."""

    def each(x, spec):
        return constrain(jnp.repeat(x, rows // x.shape[0], axis=0), spec)

    return prefix.replace(
        k=tuple(each(k, CACHE) for k in prefix.k),
        v=tuple(each(v, CACHE) for v in prefix.v),
        valid=each(prefix.valid, ROWS),
    )


def _uniforms(keys: Array, steps: int) -> Array:
    """u [B, steps] in [0, 1): number t of a row comes from fold_in(the row's key, t) alone."""

    def one(key, step):
        return jax.random.uniform(jax.random.fold_in(key, step))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, jnp.arange(steps))


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
