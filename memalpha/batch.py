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
    group: Array | None = None  # [R] int32
    episode: Array | None = None  # [R] int32, unique over the batch
    chunk: Array | None = None  # [R] int32
    valid: Array | None = None  # [R] bool; None: every row is real


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


def split(batch: Batch, micro_batch: int) -> Batch:
    """Cut into micro-batches: every leaf [R, ...] becomes [R / M, M, ...].

    Micro-batch i takes the rows i, i + R / M, ...: where rows are sharded over devices in runs,
    each device then holds its share of every micro-batch and nothing moves.

    Raises:
        ValueError: `micro_batch` does not divide the rows.
    """
    rows = batch.completion.shape[0]
    if micro_batch < 1 or rows % micro_batch:
        raise ValueError(
            f"batch of {rows} rows: micro_batch={micro_batch} does not divide it; "
            "choose a divisor, or fill the batch to a multiple with batch.fill"
        )
    shape = (micro_batch, rows // micro_batch)
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(shape + x.shape[1:]), 0, 1), batch)


def merge(leaf: jax.Array) -> jax.Array:
    """Undo `split` on one array: [R / M, M, ...] -> [R, ...], rows in their first order."""
    return jnp.swapaxes(leaf, 0, 1).reshape((-1,) + leaf.shape[2:])


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


def trim(batch: Batch, multiple: int = 16) -> Batch:
    """Drop columns that no row uses; on the host, leaves become numpy.

    P and T become the longest prompt and completion, rounded up to `multiple` tokens so that few
    distinct shapes are compiled. Nothing that is masked in is ever dropped.
    """
    batch = jax.tree.map(np.asarray, batch)

    def keep(used: np.ndarray) -> int:
        return min(max(1, -(-int(used) // multiple)) * multiple, limit)

    limit = p = batch.prompt.shape[1]
    p = keep((batch.prompt_mask.astype(bool) * np.arange(p, 0, -1)).max(initial=1))
    limit = t = batch.completion.shape[1]
    t = keep((batch.completion_mask.astype(bool) * np.arange(1, t + 1)).max(initial=1))
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
