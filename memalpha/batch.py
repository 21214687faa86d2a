"""The `Batch` struct, pure reshapes of it, and the plan of its micro-batches.

Axes: R rows, P prompt, T completion, S = P + T sequence, M rows of a micro-batch, K calls of a row.

One meaning each, here and in `losses`, `credit` and `learner`:
    row       one response of the writer: the answer to one chunk in one rollout of an instance
              (in `memory` a row is the memory of one episode)
    instance  the stream of chunks that was read; all of its rollouts have its number
    episode   one rollout of an instance: its rows share r1 and r3
    group     the rows whose rewards are compared with each other. `losses.group_ids` makes the
              groups from instance, episode and chunk; a batch does not hold them
    valid     the row counts. Not so for filler, and for rows whose reward nobody could judge

Prompts are right-aligned and completions left-aligned, so that the two meet between column P - 1
and column P and the whole batch shares one write index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


@struct.dataclass
class Tokens:
    """What the model reads."""

    prompt: Array  # [R, P] int32, right-aligned
    prompt_mask: Array  # [R, P] bool
    completion: Array  # [R, T] int32, left-aligned
    completion_mask: Array  # [R, T] bool, the end-of-sequence token included


@struct.dataclass
class Targets:
    """What the learner trains towards, token by token: [R, T] float32, or None where a stage does
    not need it. An advantage that all tokens of a row share may be [R].

    `old_logps=None` means that the update is the first after sampling, so that the old policy is
    the present one.
    """

    sample_logps: Array | None = None  # from the sampler
    old_logps: Array | None = None  # from the learner before the first update
    ref_logps: Array | None = None  # from the frozen reference policy
    values: Array | None = None  # from the critic before the first update
    advantages: Array | None = None
    returns: Array | None = None  # the targets of the critic


@struct.dataclass
class Rows:
    """Bookkeeping: where each row comes from and what it earned. The loss reads `valid` alone."""

    rewards: dict[str, Array] | None = None  # r1..r4, each [R] float32
    instance: Array | None = None  # [R] int32
    episode: Array | None = None  # [R] int32, unique over the batch
    chunk: Array | None = None  # [R] int32
    call: Array | None = None  # [R, T] int32, the call a token belongs to (see `credit`)
    fit: Array | None = None  # [R, K] float32, of each call: 1 fit, 0 not, NaN not executed
    valid: Array | None = None  # [R] bool; None: every row is valid


@struct.dataclass
class Batch:
    """What one update learns from; every leaf has the leading axis R."""

    tokens: Tokens
    targets: Targets = struct.field(default_factory=Targets)
    rows: Rows = struct.field(default_factory=Rows)

    def with_targets(self, **fields: Array | None) -> "Batch":
        """A copy with these fields of `targets`."""
        return self.replace(targets=self.targets.replace(**fields))

    def with_rows(self, **fields: Array | dict[str, Array] | None) -> "Batch":
        """A copy with these fields of `rows`."""
        return self.replace(rows=self.rows.replace(**fields))


@dataclass(frozen=True)
class MicroBatch:
    """Which part of a batch goes through the model at once."""

    rows: np.ndarray  # [M] int, row numbers
    prompt: int  # columns of the prompt, from the right
    completion: int  # columns of the completion, from the left


def row_bucket(count: int, rows: int, parts: int = 1) -> int:
    """How many rows an array gets that is to hold `count` of at most `rows`: all of them, a half, a
    quarter or an eighth, rounded up to a multiple of `parts`. So there are at most four shapes, and
    four compilations."""
    sizes = (-(-rows // (half * parts)) * parts for half in (8, 4, 2))
    return next((size for size in sizes if count <= size < rows), rows)


def row_mask(batch: Batch) -> jax.Array:
    """Valid rows: [R] bool."""
    if batch.rows.valid is None:
        return jnp.ones(len(batch.tokens.completion), bool)
    chex.assert_rank(batch.rows.valid, 1)
    chex.assert_type(batch.rows.valid, bool)
    return jnp.asarray(batch.rows.valid)


def token_mask(batch: Batch) -> jax.Array:
    """Completion tokens that are learned from, none of a row that is not valid: [R, T] bool."""
    _check_tokens(batch.tokens)
    return jnp.asarray(batch.tokens.completion_mask) & row_mask(batch)[:, None]


def sequence(tokens: Tokens) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompt and completion side by side, as the model reads them.

    Returns token ids [R, S] int32, positions [R, S] int32 (0 at the first token of the prompt) and
    mask [R, S] bool (keys that may be attended to), with S = P + T.
    """
    _check_tokens(tokens)
    ids = jnp.concatenate([tokens.prompt, tokens.completion], axis=1)
    mask = jnp.concatenate([tokens.prompt_mask, tokens.completion_mask], axis=1)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    return ids.astype(jnp.int32), positions, mask


def lean(batch: Batch) -> Batch:
    """Without the bookkeeping that the loss does not read: it need not travel to the device, and a
    change of it compiles nothing."""
    return batch.replace(rows=Rows(valid=batch.rows.valid))


def take(batch: Batch, rows: Array) -> Batch:
    """The given rows, in the given order (minibatches of PPO). rows: [N] int."""
    chex.assert_rank(rows, 1)
    chex.assert_type(rows, int)
    return jax.tree.map(lambda x: x[rows], batch)


def fill(batch: Batch, rows: int) -> Batch:
    """Append rows that are not valid until there are `rows`; on the host, leaves become numpy.

    Filler is zero everywhere, its masks too; its instance, episode and chunk are -1.

    Raises:
        ValueError: the batch already has more rows.
    """
    _check_tokens(batch.tokens)
    before = len(batch.tokens.completion)
    if before > rows:
        raise ValueError(f"batch of {before} rows cannot be filled to {rows}: raise the row count")

    def pad(leaf: Array, value: int = 0) -> np.ndarray:
        leaf = np.asarray(leaf)
        widths = [(0, rows - before)] + [(0, 0)] * (leaf.ndim - 1)
        return np.pad(leaf, widths, constant_values=value)

    bookkeeping = batch.rows
    valid = np.ones(before, bool) if bookkeeping.valid is None else bookkeeping.valid
    numbers = {name: getattr(bookkeeping, name) for name in ("instance", "episode", "chunk")}
    numbers = {name: pad(x, -1) for name, x in numbers.items() if x is not None}
    return jax.tree.map(pad, batch.with_rows(valid=valid)).with_rows(**numbers)


def plan_micro_batches(batch: Batch, size: int | None) -> list[MicroBatch]:
    """How a batch is cut into rows of like length, without the columns that none of them uses.

    `size` rows a micro-batch (None: all in one). Each has two, three or four quarters of P and a
    half or all of T, so that at most six shapes are ever compiled. Only the masks are read: one
    plan serves log-probs and updates of a step, and nothing that is masked in is ever dropped.
    Micro-batches without a token are left out (of an empty batch, all but one).

    Raises:
        ValueError: `size` does not divide the rows.
    """
    _check_tokens(batch.tokens)
    rows = len(batch.tokens.completion)
    size = rows if size is None else size
    if size < 1 or rows % size:
        raise ValueError(
            f"batch of {rows} rows: micro_batch={size} does not divide it; "
            "choose a divisor, or fill the batch to a multiple with batch.fill"
        )
    prompt_mask = np.asarray(batch.tokens.prompt_mask)
    completion_mask = np.asarray(batch.tokens.completion_mask)
    p, t = prompt_mask.shape[1], completion_mask.shape[1]
    quarters = np.maximum(_parts_used(prompt_mask[:, ::-1], 4), 2)
    halves = _parts_used(completion_mask, 2)
    order = np.lexsort((completion_mask.sum(axis=1), quarters))
    parts = order.reshape(-1, size)
    filled = [numbers for numbers in parts if completion_mask[numbers].any()]
    return [
        MicroBatch(
            rows=numbers,
            prompt=int(-(-quarters[numbers].max() * p // 4)),
            completion=int(-(-halves[numbers].max() * t // 2)),
        )
        for numbers in filled or parts[:1]
    ]


def take_micro_batch(batch: Batch, micro: MicroBatch) -> Batch:
    """The rows of a micro-batch, tokens and targets cut to its columns; numpy where the batch is.

    `rows.call` keeps all its columns: the loss does not read it.
    """
    part = take(batch, micro.rows)
    p, t = micro.prompt, micro.completion

    def first(leaf: Array) -> Array:
        return leaf[:, :t] if leaf.ndim == 2 else leaf

    tokens = Tokens(
        prompt=part.tokens.prompt[:, -p:],
        prompt_mask=part.tokens.prompt_mask[:, -p:],
        completion=first(part.tokens.completion),
        completion_mask=first(part.tokens.completion_mask),
    )
    return part.replace(tokens=tokens, targets=jax.tree.map(first, part.targets))


def _parts_used(mask: np.ndarray, parts: int) -> np.ndarray:
    """How many of so many equal parts of its columns each row uses, from the left: [R] from 1."""
    used = (mask * np.arange(1, mask.shape[1] + 1)).max(axis=1)
    return np.maximum(-(-parts * used // mask.shape[1]), 1)


def _check_tokens(tokens: Tokens) -> None:
    """Assert ranks, shapes and types."""
    ids, masks = (tokens.prompt, tokens.completion), (tokens.prompt_mask, tokens.completion_mask)
    chex.assert_rank([*ids, *masks], 2)
    chex.assert_type(ids, int)
    chex.assert_type(masks, bool)
    chex.assert_equal_shape([ids[0], masks[0]])
    chex.assert_equal_shape([ids[1], masks[1]])
    chex.assert_equal_shape_prefix(ids, 1)


def from_tokens(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_length: int | None = None,
    completion_length: int | None = None,
) -> Batch:
    """Lay token lists out as a batch (numpy).

    Args:
        prompts: one list of token ids a row.
        completions: the same number of lists, each with its end-of-sequence token.
        prompt_length: P; the longest prompt when None.
        completion_length: T; the longest completion when None.

    Raises:
        ValueError: the two differ in number, or a list is longer than its axis.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions: pair them")
    p_length = prompt_length or max([1, *map(len, prompts)])
    t_length = completion_length or max([1, *map(len, completions)])
    prompt, p_mask = _layout("prompt", prompts, p_length, right=True)
    completion, c_mask = _layout("completion", completions, t_length, right=False)
    tokens = Tokens(prompt, p_mask, completion, c_mask)
    return Batch(tokens, rows=Rows(valid=np.ones(len(prompts), bool)))


def _layout(
    name: str, lists: Sequence[Sequence[int]], length: int, right: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [R, length] int32, aligned at the right or the left, and their mask."""
    tokens = np.zeros((len(lists), length), np.int32)
    mask = np.zeros((len(lists), length), bool)
    for row, ids in enumerate(lists):
        if len(ids) > length:
            raise ValueError(
                f"{name} of row {row} has {len(ids)} tokens, the axis holds {length}: "
                "shorten it or raise the length"
            )
        columns = slice(length - len(ids), length) if right else slice(0, len(ids))
        tokens[row, columns] = ids
        mask[row, columns] = True
    return tokens, mask
