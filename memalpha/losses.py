"""Advantages, KL estimators, surrogates and value losses: arrays in, arrays out, all float32.

Axes: R rows, T completion tokens. `batch` says what a row, an instance, an episode, a group and a
valid row are; `mask` [R, T] bool is True at the tokens of a row that are learned from.

Nothing here is averaged before the end: `aggregate` gives (unreduced sum, count), and who calls
divides once, so that micro-batches, devices and padding do not change the gradient.
Values where the mask is False may be anything, NaN included; they reach neither a value nor a
gradient. Ranks and types are asserted in the first lines: an integer reward would lose its
fractions, and a float mask would scale.
"""

from collections.abc import Mapping
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from memalpha.rewards import check_weights, combine

EPSILON = 1e-6  # added to the standard deviation of a group; Mem-alpha's released code
MAX_LOG_RATIO = 20.0  # e^20 is far past any clip, and its square is still finite in float32
GROUPINGS = ("rows", "episodes", "chunk")


def group_ids(instance: np.ndarray, episode: np.ndarray, chunk: np.ndarray, how: str) -> np.ndarray:
    """The group of each row: [R] int32, equal for rows that are compared. On the host.

    Args:
        instance: [R] int, the instance of each row.
        episode: [R] int, the episode (rollout of an instance), unique over the batch.
        chunk: [R] int, the chunk index.
        how: "rows" groups by instance: all rows of an instance, each with its own reward (the
            released code of Mem-alpha). "episodes" groups by instance too, but compares whole
            episodes, each with one value (pass `episode` to `group_advantages` as well). "chunk"
            groups by instance and chunk index (the other reading of Mem-alpha, section 3.3).

    Raises:
        ValueError: unknown `how`, or an episode that belongs to two instances.
    """
    chex.assert_rank([instance, episode, chunk], 1)
    chex.assert_type([instance, episode, chunk], int)
    chex.assert_equal_shape([instance, episode, chunk])
    if how not in GROUPINGS:
        raise ValueError(f"advantage groups {how!r}: choose one of {', '.join(GROUPINGS)}")
    pairs = np.unique(np.stack([episode, instance]), axis=1)
    twice = pairs[0][:-1][pairs[0][:-1] == pairs[0][1:]]
    if twice.size:
        raise ValueError(f"episode {twice[0]} has rows of two instances: number episodes apart")
    key = np.stack([instance, chunk]) if how == "chunk" else instance[None]
    _, ids = np.unique(key, axis=1, return_inverse=True)
    return ids.reshape(-1).astype(np.int32)


@partial(jax.jit, static_argnames="divide_by_std")
def group_advantages(
    rewards: jax.Array,
    groups: jax.Array,
    valid: jax.Array,
    *,
    episode: jax.Array | None = None,
    divide_by_std: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Rewards normalised within their group (GRPO; Mem-alpha, section 3.3).

        A_i = (r_i - mean) / (std + 1e-6),   std with n - 1 in the denominator

    A group whose rewards are all equal gets 0 by comparison, not by a division of rounding errors.
    A group of one gets A = r, as in the released code. With `episode`, the reward of an episode is
    the mean over its rows, an episode counts once in mean and std, and all its rows get its A.

    Args:
        rewards: [R] float.
        groups: [R] int, any values; see `group_ids`.
        valid: [R] bool; other rows take no part and get 0.
        episode: [R] int or None, see above.
        divide_by_std: False gives r - mean (Dr. GRPO).

    Returns:
        advantages [R], and counts as float32 scalars: `groups`, `zero_variance` (two or more equal
        rewards) and `single` (groups of one).
    """
    chex.assert_rank([rewards, groups, valid], 1)
    chex.assert_type([rewards, groups, valid], [float, int, bool])
    chex.assert_equal_shape([rewards, groups, valid])
    if episode is not None:
        chex.assert_type(episode, int)
        chex.assert_equal_shape([rewards, episode])
    r = jnp.where(valid, jnp.asarray(rewards, jnp.float32), 0.0)
    votes = valid
    if episode is not None:
        of_episode = _dense(episode)
        r = jnp.where(valid, _segment_mean(r, valid, of_episode), 0.0)
        row = jnp.where(valid, jnp.arange(r.size), r.size)
        first = jax.ops.segment_min(row, of_episode, num_segments=r.size)
        votes = valid & (row == first[of_episode])  # one row speaks for its episode
    of_group = _dense(groups)
    n = jax.ops.segment_sum(votes.astype(jnp.float32), of_group, num_segments=r.size)
    low = _segment_min(r, votes, of_group)
    high = -_segment_min(-r, votes, of_group)
    centred = jnp.where(valid, r - _segment_mean(r, votes, of_group), 0.0)
    squares = jnp.where(votes, jnp.square(centred), 0.0)
    variance = jax.ops.segment_sum(squares, of_group, num_segments=r.size) / jnp.maximum(n - 1, 1)
    equal, alone = (n >= 2) & (low == high), n == 1
    advantages = centred / (jnp.sqrt(variance)[of_group] + EPSILON) if divide_by_std else centred
    advantages = jnp.where(equal[of_group], 0.0, advantages)
    advantages = jnp.where(alone[of_group], r, advantages)
    counts = {"groups": n > 0, "zero_variance": equal, "single": alone}
    return (
        jnp.where(valid, advantages, 0.0),
        {k: jnp.sum(v, dtype=jnp.float32) for k, v in counts.items()},
    )


def combined_advantages(
    rewards: Mapping[str, jax.Array],
    weights: Mapping[str, float],
    groups: jax.Array,
    valid: jax.Array,
    *,
    normalise_each: bool = False,
    **options,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Advantages of several weighted rewards.

        sum first (Mem-alpha):       A = normalise(sum_k w_k r_k), see `rewards.combine`
        normalise_each (GDPO):       A = sum_k w_k normalise(r_k)

    Summed first, a reward that varies little against the others hardly counts, whatever its weight.

    Args:
        rewards: name -> [R] float.
        weights: name -> weight, one for each reward.
        groups, valid: as in `group_advantages`.
        options: `episode`, `divide_by_std` of `group_advantages`.

    Returns:
        advantages [R]; counts as in `group_advantages`, with normalise_each `zero_variance` is the
        mean over the rewards and each reward's own is `zero_variance_<name>`.

    Raises:
        ValueError: rewards and weights name different things.
    """
    chex.assert_rank(list(rewards.values()), 1)
    chex.assert_type(list(rewards.values()), float)
    check_weights(rewards, weights)
    named = {k: jnp.asarray(r, jnp.float32) for k, r in sorted(rewards.items())}
    if normalise_each:
        parts = {k: group_advantages(r, groups, valid, **options) for k, r in named.items()}
        advantages = sum(weights[k] * a for k, (a, _) in parts.items())
        counts = dict(next(iter(parts.values()))[1])
        own = {k: c["zero_variance"] for k, (_, c) in parts.items()}
        counts["zero_variance"] = sum(own.values()) / len(own)
        counts |= {f"zero_variance_{k}": c for k, c in own.items()}
    else:
        advantages, counts = group_advantages(combine(named, weights), groups, valid, **options)
    return advantages, counts


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(var + 1e-8) over the entries where the mask is True, 0 elsewhere.

    x float and mask bool of one shape, whichever. var has n in the denominator.
    """
    chex.assert_type([x, mask], [float, bool])
    chex.assert_equal_shape([x, mask])
    x = jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0)
    n = jnp.maximum(mask.sum(), 1)
    centred = jnp.where(mask, x - x.sum() / n, 0.0)
    return centred * jax.lax.rsqrt(jnp.square(centred).sum() / n + 1e-8)


def log_ratio(logps: jax.Array, other: jax.Array | None, mask: jax.Array) -> jax.Array:
    """log(pi / other) at each token, 0 where the mask is False: all [R, T].

    Where `other` is not finite (or None) the ratio is 1, the neutral value, and the gradient is
    that of an on-policy token: a NaN set to log-prob 0 would mean probability 1, a huge ratio.
    """
    _check_per_token(mask, logps, other)
    other = logps if other is None else jnp.asarray(other, jnp.float32)
    anchor = jax.lax.stop_gradient(jnp.where(jnp.isfinite(other), other, logps))
    difference = jnp.where(mask, logps, 0.0) - jnp.where(mask, anchor, 0.0)
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_estimate(log_ratio_to_ref: jax.Array, kind: str) -> jax.Array:
    """Per-token estimate of KL(pi || ref) from samples of pi; d = log pi - log ref (any shape).

        k1 = d                unbiased, either sign
        k2 = d^2 / 2          biased, >= 0
        k3 = e^-d - 1 + d     unbiased, >= 0, low variance

    (Schulman, "Approximating KL divergence".) What each is good for, on-policy:
      - k1 belongs into the reward (`add_kl_to_rewards`). As a loss its expected gradient is 0.
      - k2 as a loss has the gradient E[d * grad log pi], that of KL(pi || ref).
      - k3 as a loss has the gradient of KL(ref || pi) instead, which agrees only near pi = ref.
      - "k3+" is worth k3 and has the gradient of k2: the corrected form.

    Raises:
        ValueError: unknown kind.
    """
    chex.assert_type(log_ratio_to_ref, float)
    d = log_ratio_to_ref
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind in ("k3", "k3+"):
        k3 = jnp.expm1(-d) + d
        if kind == "k3":
            return k3
        k2 = 0.5 * jnp.square(d)
        return k2 + jax.lax.stop_gradient(k3 - k2)
    raise ValueError(f"KL estimator {kind!r}: choose k1, k2, k3 or k3+")


def clipped_surrogate(
    log_ratios: jax.Array, advantages: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """Pessimistic policy-gradient loss (PPO, equation 7), the two clips apart (DAPO's clip-higher).

        rho = exp(log_ratio);   loss = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    Args:
        log_ratios: [R, T], log new - log old.
        advantages: [R, T] or [R].

    Returns:
        loss [R, T], and 1.0 where the clip was the smaller and stops the gradient [R, T].
    """
    chex.assert_rank([log_ratios, advantages], [2, {1, 2}])
    chex.assert_type([log_ratios, advantages], float)
    chex.assert_equal_shape_prefix([log_ratios, advantages], 1)
    advantages = per_token(advantages)
    ratio = jnp.exp(log_ratios)
    unclipped = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    return -jnp.minimum(unclipped, clipped), (clipped < unclipped).astype(jnp.float32)


def importance_weight(
    old_logps: jax.Array, sample_logps: jax.Array | None, mask: jax.Array, cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Truncated importance weight from the sampler to the learner: min(pi_old / pi_sampler, cap).

    Sampler and learner compute the same policy with different numerics, or the sampler that of
    parameters before the last update; the weight corrects for that at bounded variance. A log-prob
    that is not finite gives weight 1 and is counted. old_logps, sample_logps, mask: [R, T].

    Returns:
        weight [R, T] without gradient (ones when cap is None or there are no sampler log-probs),
        and the number of such log-probs under the mask.
    """
    _check_per_token(mask, old_logps, sample_logps)
    old_logps = jax.lax.stop_gradient(old_logps)
    sampled = old_logps if sample_logps is None else jnp.asarray(sample_logps, jnp.float32)
    good = jnp.isfinite(sampled) & jnp.isfinite(old_logps)
    broken = jnp.sum(mask & ~good, dtype=jnp.float32)
    if cap is None:
        return jnp.ones_like(old_logps), broken
    return jnp.minimum(jnp.exp(log_ratio(old_logps, sampled, mask & good)), cap), broken


def terminal_rewards(reward: jax.Array, mask: jax.Array) -> jax.Array:
    """A row's reward at its last token, 0 elsewhere: reward [R], mask [R, T] -> [R, T]."""
    chex.assert_rank([reward, mask], [1, 2])
    chex.assert_type([reward, mask], [float, bool])
    chex.assert_equal_shape_prefix([reward, mask], 1)
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return jnp.where(mask & (later == 1), jnp.asarray(reward, jnp.float32)[:, None], 0.0)


def add_kl_to_rewards(
    rewards: jax.Array, logps: jax.Array, ref_logps: jax.Array, mask: jax.Array, coef: float
) -> jax.Array:
    """k1 in the reward: r_t - coef (log pi_old - log ref), without gradient. All [R, T]."""
    _check_per_token(mask, rewards, logps, ref_logps)
    return jax.lax.stop_gradient(rewards - coef * log_ratio(logps, ref_logps, mask))


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation over the tokens of a response (Schulman et al. 2016).

        delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lam A_{t+1}

    t + 1 is the next token where the mask is True. After the last one V and A are 0, because a
    response ends its episode. Gamma discounts per token.

    Args:
        rewards: [R, T]. values: [R, T], V before each token. mask: [R, T].

    Returns:
        advantages and returns (A + V), both [R, T], 0 where the mask is False.
    """
    _check_per_token(mask, rewards, values)
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)
    rewards = jnp.where(mask, rewards, 0.0).astype(jnp.float32)

    def step(carry, now):
        next_value, next_advantage = carry
        reward, value, here = now
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(here, value, next_value), jnp.where(here, advantage, next_advantage)
        return carry, jnp.where(here, advantage, 0.0)

    zeros = jnp.zeros(rewards.shape[0], jnp.float32)
    columns = (rewards.T, values.T, mask.T)
    _, advantages = jax.lax.scan(step, (zeros, zeros), columns, reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)


def value_loss(
    values: jax.Array,
    old_values: jax.Array | None,
    returns: jax.Array,
    mask: jax.Array,
    clip: float | None,
) -> jax.Array:
    """Squared error of the critic, pessimistically clipped around its old values (PPO): [R, T].

        loss = max((V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2) / 2

    No clip where `clip` or `old_values` is None. All arrays [R, T]; 0 where the mask is False.
    """
    _check_per_token(mask, values, old_values, returns)
    old_values = values if old_values is None else old_values
    values, old_values, returns = (jnp.where(mask, x, 0.0) for x in (values, old_values, returns))
    error = jnp.square(values - returns)
    if clip is not None:
        near = old_values + jnp.clip(values - old_values, -clip, clip)
        error = jnp.maximum(error, jnp.square(near - returns))
    return 0.5 * error


def aggregate(
    x: jax.Array, mask: jax.Array, how: str, constant: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Per-token values to an (unreduced sum, count); the loss is sum / count over all batches.

        token     sum of all tokens                      / number of tokens
        sequence  sum over rows of the mean of a row     / number of rows   (Mem-alpha, section 3.3)
        dr_grpo   sum of all tokens                      / (number of rows * constant)

    A row without a token does not count as a row.

    Args:
        x: [R, T]. mask: [R, T]. constant: for dr_grpo, usually the completion length limit.

    Raises:
        ValueError: unknown `how`, or dr_grpo without a positive constant.
    """
    _check_per_token(mask, x)
    x = jnp.where(mask, x, 0.0).astype(jnp.float32)
    lengths = mask.sum(axis=1).astype(jnp.float32)
    rows = jnp.sum(lengths > 0, dtype=jnp.float32)
    if how == "token":
        return x.sum(), lengths.sum()
    if how == "sequence":
        return jnp.sum(x.sum(axis=1) / jnp.maximum(lengths, 1.0)), rows
    if how == "dr_grpo":
        if not constant or constant < 0:
            raise ValueError(f"dr_grpo constant {constant}: give the completion length limit, > 0")
        return x.sum(), rows * constant
    raise ValueError(f"aggregation {how!r}: choose token, sequence or dr_grpo")


def per_token(x: jax.Array) -> jax.Array:
    """[R] -> [R, 1], so that it broadcasts over tokens; [R, T] stays as it is."""
    chex.assert_rank(x, {1, 2})
    return x[:, None] if x.ndim == 1 else x


def _check_per_token(mask: jax.Array, *arrays: jax.Array | None) -> None:
    """Assert that all are [R, T], the arrays (or None) float and the mask bool."""
    present = [x for x in arrays if x is not None]
    chex.assert_rank([mask, *present], 2)
    chex.assert_type(mask, bool)
    chex.assert_type(present, float)
    chex.assert_equal_shape([mask, *present])


def _dense(ids: jax.Array) -> jax.Array:
    """Any integers [R] to 0..R-1, equal ones to the same."""
    ids = jnp.asarray(ids)
    return jnp.unique(ids, return_inverse=True, size=ids.size)[1].reshape(-1)


def _segment_min(x: jax.Array, counted: jax.Array, ids: jax.Array) -> jax.Array:
    """The smallest counted entry of every segment: [R]."""
    return jax.ops.segment_min(jnp.where(counted, x, jnp.inf), ids, num_segments=x.size)


def _segment_mean(x: jax.Array, counted: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean over the counted entries of each entry's segment: [R] -> [R].

    Taken above the smallest entry, so that the mean of equal numbers is that number exactly.
    """
    low = _segment_min(x, counted, ids)[ids]
    above = jnp.where(counted, x - low, 0.0)
    total = jax.ops.segment_sum(above, ids, num_segments=x.size)
    n = jax.ops.segment_sum(counted.astype(jnp.float32), ids, num_segments=x.size)
    return low + (total / jnp.maximum(n, 1.0))[ids]
