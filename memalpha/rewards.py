"""The four rewards of an action as separate functions, and their weighted sum.

Mem-alpha, section 3.3:

    r_t = r1 + r2_t + beta r3 + gamma r4_t

r1 and r3 belong to an episode and are shared by its steps; r2 and r4 belong to a step. All results
are float32, even for integer or boolean input, because shares are fractions.

Axes: Q questions of an episode, O operations (calls) of a step; `...` any leading axes.

A question without an answer is not a wrong answer: it is masked (docs/concepts.md, "What is masked
where").
"""

from collections.abc import Mapping

import jax
import numpy as np

from memalpha.memory import OpKind, Outcome


def correctness(scores: np.ndarray, answered: np.ndarray | None = None) -> np.ndarray:
    """r1: mean score over the answered questions.

        r1 = sum_q answered_q score_q / sum_q answered_q

    Args:
        scores: [..., Q] in [0, 1]; ignored where the question is not answered.
        answered: [..., Q] bool, False where reader or judge failed; None: all True.

    Returns: [...] float32; NaN where no question is answered, which makes `Episode.valid` False.

    Raises:
        ValueError: scores and answered differ in shape, or are scalars.
    """
    scores = np.asarray(scores, np.float32)
    answered = np.ones(scores.shape, bool) if answered is None else np.asarray(answered, bool)
    _check_last_axis("r1", "Q", scores=scores, answered=answered)
    total = np.where(answered, scores, np.float32(0)).sum(-1, dtype=np.float32)
    return _divide(total, answered.sum(-1), if_none=np.nan)


def format_share(outcomes: np.ndarray) -> np.ndarray:
    """r2: the share of the calls that were executed; 0 without calls.

        r2 = #{o: outcome_o = OK} / #{o: outcome_o != NONE}

    Args:
        outcomes: [..., O] Outcome; NONE is padding; a skipped duplicate counts as not executed.

    Returns: [...] float32.

    Raises:
        ValueError: outcomes is a scalar.
    """
    outcomes = np.asarray(outcomes)
    _check_last_axis("r2", "O", outcomes=outcomes)
    return _divide((outcomes == Outcome.OK).sum(-1), (outcomes != Outcome.NONE).sum(-1))


def compression(memory_tokens: np.ndarray, chunk_tokens: np.ndarray) -> np.ndarray:
    """r3: by how much the memory is shorter than the text it was written from, as a share.

        r3 = 1 - memory_tokens / chunk_tokens

    Negative where the memory is longer.

    Args:
        memory_tokens: [...] of the final memory.
        chunk_tokens: [...] of all chunks, by the same tokenizer; positive.

    Returns: [...] float32.

    Raises:
        ValueError: the two differ in shape, or chunk_tokens is not positive.
    """
    if np.shape(memory_tokens) != np.shape(chunk_tokens):
        raise ValueError(
            f"r3: memory_tokens {np.shape(memory_tokens)} and chunk_tokens "
            f"{np.shape(chunk_tokens)} need the same shape"
        )
    chunk_tokens = np.asarray(chunk_tokens, np.float32)
    if (chunk_tokens <= 0).any():
        raise ValueError(f"r3: chunk_tokens must be positive, got {chunk_tokens.min()}")
    return np.float32(1) - np.asarray(memory_tokens, np.float32) / chunk_tokens


def content_share(kinds: np.ndarray, outcomes: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """r4: the share of the calls whose content fits its memory; 0 without calls.

        r4 = #{o: outcome_o = OK and (kind_o = DELETE or fit_o)} / #{o: outcome_o != NONE}

    Args:
        kinds: [..., O] OpKind.
        outcomes: [..., O] Outcome; only executed calls can count; NONE is padding.
        fit: [..., O] bool, the judge's verdicts. Ignored for a delete, which has no content and
            counts if it was executed.

    Returns: [...] float32.

    Raises:
        ValueError: the three differ in shape, or are scalars.
    """
    kinds, outcomes, fit = np.asarray(kinds), np.asarray(outcomes), np.asarray(fit, bool)
    _check_last_axis("r4", "O", kinds=kinds, outcomes=outcomes, fit=fit)
    valid = (outcomes == Outcome.OK) & ((kinds == OpKind.DELETE) | fit)
    return _divide(valid.sum(-1), (outcomes != Outcome.NONE).sum(-1))


def combine(
    rewards: Mapping[str, np.ndarray | jax.Array], weights: Mapping[str, float]
) -> np.ndarray | jax.Array:
    """The weighted sum of rewards, which GRPO normalises and PPO assigns to tokens.

        r = sum_k w_k r_k,   added in alphabetical order of the names, in float32

    Args:
        rewards: name -> [R] (or any shapes that broadcast).
        weights: name -> weight, one for each reward.

    Returns: [R] float32, numpy if all rewards are; NaN where a reward is NaN, even with weight 0.

    Raises:
        ValueError: rewards and weights have different names.
    """
    check_weights(rewards, weights)
    terms = [np.float32(weights[name]) * _float32(rewards[name]) for name in sorted(rewards)]
    return sum(terms[1:], start=terms[0])


def check_weights(rewards: Mapping[str, object], weights: Mapping[str, float]) -> None:
    """Raises ValueError unless rewards and weights have the same names, at least one."""
    if not rewards or set(rewards) != set(weights):
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)}: give one weight a reward"
        )


def _check_last_axis(reward: str, axis: str, **arrays: np.ndarray) -> None:
    """Raises ValueError unless all arrays have the same shape with at least one axis."""
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or () in shapes:
        given = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{reward}: {given} need the same shape [..., {axis}]")


def _float32(reward: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    on_device = isinstance(reward, jax.Array)
    return reward.astype(np.float32) if on_device else np.asarray(reward, np.float32)


def _divide(total: np.ndarray, count: np.ndarray, if_none: float = 0.0) -> np.ndarray:
    total, count = np.asarray(total, np.float32), np.asarray(count, np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(if_none))
