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

from memalpha.decoding import Choice, Rows, advance, record
from memalpha.drafts import NOTHING, Drafts, close_holes, make_drafts
from memalpha.model import Cache, ModelConfig, Params, Transformer, grow
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
SPARE_PASSES = 4  # with drafts: passes that the cache has room for after its holes were closed


@struct.dataclass
class Samples:
    """tokens [B, T] int32 (0 where the mask is False); mask [B, T] bool, True for every sampled
    token, the stop token included; logps [B, T] float32; finished [B] bool: ended by a stop token
    (False: cut by its limit); passes [B] int32: passes of the model that gave the tokens of a row,
    one a token without drafts."""

    tokens: Array
    mask: Array
    logps: Array
    finished: Array
    passes: Array


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
    drafts: Drafts


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
    drafts: Drafts | None = None,
) -> Samples:
    """Sample a response to every prompt.

    prompts [B, P] int32 and prompt_mask [B, P] bool, right-aligned (see `pad_prompts`); keys [B]
    typed random keys (see `row_keys`): a row's sample depends on its own key and prompt, not on
    padding or on the other rows; temperature >= 0, where 0 is greedy; top_p in (0, 1]; limits [B]
    int32: the most tokens of each row, 0 for a row to skip; stop_ids [n] int32: a row ends with the
    first of these it samples (-1 never occurs); max_new_tokens: the static buffer T; prefix: what
    all prompts begin with, from `prefill` with the same parameters; `prompts` are then the rest;
    drafts: how many tokens one pass checks beside the newest one, and what they are copied from
    beside prompt and response (`drafts`): the same samples in fewer passes.

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
    drafts = place(make_drafts(0) if drafts is None else drafts, mesh, WHOLE)
    inputs = _Inputs(prompts, prompt_mask, keys, temperature, top_p, limits, stop_ids, drafts)
    with use(mesh):
        return _generate(params, config, inputs, max_new_tokens, prefix)


def lower(
    params: Params,
    config: ModelConfig,
    rows: int,
    prompt_tokens: int,
    max_new_tokens: int,
    draft_tokens: int = 0,
):
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
        drafts=Drafts(shape((0,), jnp.int32), draft_tokens),
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
    prompt_mask, size = inputs.prompt_mask, inputs.drafts.size
    shared = 0 if prefix is None else prefix.valid.shape[1]
    choice = Choice(inputs.temperature, inputs.top_p, inputs.stop_ids)
    positions = shared + jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    past = None if prefix is None else _repeat(prefix, b)
    hidden, cache = Transformer(config).apply(
        {"params": params}, inputs.prompts, positions, prompt_mask, past, last=1, full=True
    )
    rows, none = _start(inputs, shared, max_new_tokens), jnp.zeros((b, 0), jnp.int32)
    rows = record(params, config, rows, hidden, none, choice).replace(cache=cache)
    # The cache grows from segment to segment, so that no step attends to slots far ahead of it: to
    # at most an eighth of the prompt, or a few, because every segment is compiled for itself.
    few = max(MIN_SEGMENT, math.ceil(max_new_tokens / MAX_SEGMENTS))
    segment = max(few, (shared + p) // 8)
    for begin in range(0, max_new_tokens, segment):
        end = min(begin + segment, max_new_tokens)
        rows = _decode(params, config, rows, choice, (shared + p, end, size))
    tokens, logps = (x[:, -max_new_tokens:] for x in (rows.text, rows.logps))
    mask = jnp.arange(max_new_tokens) < rows.count[:, None]
    samples = Samples(jnp.where(mask, tokens, 0), mask, logps, rows.finished, rows.passes)
    return constrain_tree(samples, WHOLE)  # small, and read by every process


def _decode(
    params: Params,
    config: ModelConfig,
    rows: Rows,
    choice: Choice,
    sizes: tuple[int, int, int],
) -> Rows:
    """The rows when one of them has `end` tokens or all are done; sizes: slots of the prompt,
    `end`, tokens of a draft."""
    prompt, end, size = sizes
    holes = size > 0 and len(rows.last) > 1  # rows keep different numbers of tokens of a pass
    spare = SPARE_PASSES * (1 + size) if holes else size
    slots = prompt + end + spare
    rows = rows.replace(cache=grow(rows.cache, slots))

    def has_room(rows: Rows) -> Array:
        return (rows.cache.index + 1 + size < slots) & ~jnp.all(rows.done)

    def fill(rows: Rows) -> Rows:
        step = lambda rows: advance(params, config, rows, choice, size)
        return lax.while_loop(has_room, step, rows)

    def goes_on(rows: Rows) -> Array:
        return (jnp.max(jnp.where(rows.done, 0, rows.count)) < end) & ~jnp.all(rows.done)

    def fill_and_close(rows: Rows) -> Rows:
        rows = fill(rows)
        return rows.replace(cache=close_holes(rows.cache, ~rows.done, prompt))

    return lax.while_loop(goes_on, fill_and_close, rows) if holes else fill(rows)


def _start(inputs: _Inputs, shared: int, max_new_tokens: int) -> Rows:
    """Before the first token; shared: tokens of the prefix."""
    b = len(inputs.prompts)
    fixed = jnp.broadcast_to(inputs.drafts.text, (b, inputs.drafts.text.shape[0]))
    prompts = jnp.where(inputs.prompt_mask, inputs.prompts, NOTHING)
    response = jnp.full((b, max_new_tokens), NOTHING, jnp.int32)
    text = jnp.concatenate([fixed, prompts, response], axis=1)
    limits, zero = jnp.minimum(inputs.limits, max_new_tokens), jnp.zeros(b, jnp.int32)
    return Rows(
        text=text,
        logps=jnp.zeros(text.shape, jnp.float32),
        begin=jnp.full(b, text.shape[1] - max_new_tokens),
        keys=inputs.keys,
        last=inputs.prompts[:, -1],
        prompt=shared + jnp.sum(inputs.prompt_mask, axis=1),
        count=zero,
        passes=zero,
        limits=limits,
        done=limits <= 0,
        finished=zero > 0,
        cache=None,
    )


def _repeat(prefix: Cache, rows: int) -> Cache:
    """The same prefix in each of `rows` rows; every device repeats its own copy."""

    def each(x, spec):
        return constrain(jnp.repeat(x, rows // x.shape[0], axis=0), spec)

    return prefix.replace(
        k=tuple(each(k, CACHE) for k in prefix.k),
        v=tuple(each(v, CACHE) for v in prefix.v),
        valid=each(prefix.valid, ROWS),
    )
