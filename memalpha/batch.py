"""The `Batch` struct and pure reshapes of it.

Axes: R rows, P prompt, T completion, S = P + T sequence, M micro-batch rows.
A row is one (instance, rollout, chunk). Prompts are right-aligned and completions left-aligned, so
the two meet between column P - 1 and column P and the whole batch shares one write index.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


@struct.dataclass
class Batch:
    """What one update learns from; every leaf has the leading axis R.

    Only the tokens, their masks and `valid` are always there. A field that a stage does not need is
    None: a supervised batch has no log-probs, and `old_logps=None` means that the update is the
    first after sampling, so that the old policy is the present one.
    """

    prompt: Array  # [R, P] int32, right-aligned
    prompt_mask: Array  # [R, P] bool
    completion: Array  # [R, T] int32, left-aligned
    completion_mask: Array  # [R, T] bool, the end-of-sequence token included
    sample_logps: Array | None = None  # [R, T] float32, from the sampler
    old_logps: Array | None = None  # [R, T] float32, from the learner before the first update
    ref_logps: Array | None = None  # [R, T] float32, from the frozen reference policy
    values: Array | None = None  # [R, T] float32, from the critic before the first update
    advantages: Array | None = None  # [R] or [R, T] float32
    returns: Array | None = None  # [R, T] float32, the targets of the critic
    rewards: dict[str, Array] | None = None  # r1..r4, each [R] float32
    part: Array | None = None  # [R, T] int32, the call a token belongs to (see `credit`)
    fit: Array | None = None  # [R, S] float32, of each call: 1 fit, 0 not, NaN not executed
    group: Array | None = None  # [R] int32
    episode: Array | None = None  # [R] int32, unique over the batch
    chunk: Array | None = None  # [R] int32
    valid: Array | None = None  # [R] bool; None: every row is real


def row_bucket(count: int, rows: int, parts: int = 1) -> int:
    """The rows of an array that is to hold `count` of at most `rows`: all of them, a half, a
    quarter or an eighth, rounded up to whole `parts`. Four shapes, and four compilations."""
    sizes = (-(-rows // (half * parts)) * parts for half in (8, 4, 2))
    return next((size for size in sizes if count <= size < rows), rows)


def row_mask(batch: Batch) -> jax.Array:
    """Valid rows: [R] bool."""
    if batch.valid is None:
        return jnp.ones(batch.completion.shape[0], bool)
    return jnp.asarray(batch.valid, bool)


def token_mask(batch: Batch) -> jax.Array:
    """Completion tokens that are learned from, none of a row with valid = 0: [R, T] bool."""
    return jnp.asarray(batch.completion_mask, bool) & row_mask(batch)[:, None]


def sequence(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompt and completion side by side, as the model reads them.

    Returns tokens [R, S] int32, positions [R, S] int32 (0 at the first token of the prompt) and
    mask [R, S] bool (keys that may be attended to), with S = P + T.
    """
    tokens = jnp.concatenate([batch.prompt, batch.completion], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.completion_mask], axis=1).astype(bool)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    return tokens.astype(jnp.int32), positions, mask


def take(batch: Batch, rows: Array) -> Batch:
    """The given rows, in the given order (minibatches of PPO). rows: [N] int."""
    return jax.tree.map(lambda x: x[rows], batch)


def fill(batch: Batch, rows: int) -> Batch:
    """Append rows with valid = 0 until there are `rows`; on the host, leaves become numpy.

    Filler is zero everywhere, its masks too; its group, episode and chunk are -1.

    Raises:
        ValueError: the batch already has more rows.
    """
    have = batch.completion.shape[0]
    if have > rows:
        raise ValueError(f"batch of {have} rows cannot be filled to {rows}: raise the row count")
    valid = np.ones(have, bool) if batch.valid is None else batch.valid

    def pad(leaf: Array, value: int = 0) -> np.ndarray:
        leaf = np.asarray(leaf)
        widths = [(0, rows - have)] + [(0, 0)] * (leaf.ndim - 1)
        return np.pad(leaf, widths, constant_values=value)

    named = ("group", "episode", "chunk")
    ids = {n: pad(getattr(batch, n), -1) for n in named if getattr(batch, n) is not None}
    return jax.tree.map(pad, batch.replace(valid=valid)).replace(**ids)


def micro_batches(batch: Batch, size: int | None) -> list[tuple[np.ndarray, Batch]]:
    """Cut a batch into rows of like length, each part without the columns that none of it uses.

    `size` rows a part (None: one part). A part has two, three or four quarters of P and a half or
    all of T, so that at most six shapes are ever compiled. On the host, leaves become
    numpy; nothing that is masked in is ever dropped. Returns (row numbers, part) pairs.

    Raises:
        ValueError: `size` does not divide the rows.
    """
    rows = batch.completion.shape[0]
    size = rows if size is None else size
    if size < 1 or rows % size:
        raise ValueError(
            f"batch of {rows} rows: micro_batch={size} does not divide it; "
            "choose a divisor, or fill the batch to a multiple with batch.fill"
        )
    batch = jax.tree.map(np.asarray, batch)
    p, t = batch.prompt.shape[1], batch.completion.shape[1]
    prompts = np.maximum(_parts_used(batch.prompt_mask[:, ::-1], 4), 2)
    completions = _parts_used(batch.completion_mask, 2)
    order = np.lexsort((batch.completion_mask.sum(axis=1), prompts))
    parts = []
    for some in order.reshape(-1, size):
        widths = -(-prompts[some].max() * p // 4), -(-completions[some].max() * t // 2)
        parts.append((some, _trim(take(batch, some), *widths)))
    return parts


def _parts_used(mask: np.ndarray, parts: int) -> np.ndarray:
    """How many of so many equal parts of its columns each row uses, from the left: [R] from 1."""
    used = (mask.astype(bool) * np.arange(1, mask.shape[1] + 1)).max(axis=1)
    return np.maximum(-(-parts * used // mask.shape[1]), 1)


def _trim(batch: Batch, p: int, t: int) -> Batch:
    """The last p columns of the prompts and the first t of all that belongs to completions."""
    columns = {"prompt": batch.prompt[:, -p:], "prompt_mask": batch.prompt_mask[:, -p:]}
    names = ("completion", "completion_mask", "sample_logps", "old_logps", "ref_logps", "values")
    for name in (*names, "returns", "advantages"):
        leaf = getattr(batch, name)
        if leaf is not None and leaf.ndim == 2:
            columns[name] = leaf[:, :t]
    return batch.replace(**columns)


def from_tokens(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_length: int | None = None,
    completion_length: int | None = None,
) -> Batch:
    """Lay token lists out as a batch (numpy): for the warm start, and for tests.

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
    return Batch(
        prompt=prompt,
        prompt_mask=p_mask,
        completion=completion,
        completion_mask=c_mask,
        valid=np.ones(len(prompts), bool),
    )


def _layout(
    name: str, lists: Sequence[Sequence[int]], length: int, right: bool
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(lists), length), np.int32)
    mask = np.zeros((len(lists), length), bool)
    for row, ids in enumerate(lists):
        if len(ids) > length:
            raise ValueError(
                f"{name} of row {row} has {len(ids)} tokens, the axis holds {length}: "
                "shorten it or raise the length"
            )
        where = slice(length - len(ids), length) if right else slice(0, len(ids))
        tokens[row, where] = ids
        mask[row, where] = True
    return tokens, mask
