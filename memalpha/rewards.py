"""The four rewards of an action, each kept apart, and their weighted sum.

Mem-alpha, section 3.3:

    r_t = r1 + r2_t + beta r3 + gamma r4_t

r1 and r3 belong to an episode and are shared by its steps; r2 and r4 belong to a step. All results
are float32, also of integer or boolean input: a share of calls is a fraction.

Axes: Q questions of an episode, O operations (calls) of a step; `...` any leading axes.

A question that nobody answered is not a wrong answer, and this is how it is kept out of training.
Where the engine of the reader fails, `reader.read` gives an answer without text; `rollout` then
leaves the score of that question NaN, as it does where the judge gives no verdict or the writer
failed. `correctness` takes the mean over the other questions, and is NaN where there are none:
`Episode.valid` is False. `rollout.to_batch` writes that into `Batch.valid`, for every row of the
episode, and puts 0 in the place of its rewards. `losses.group_advantages` leaves such rows out of
mean and deviation and gives them 0, `credit.add_credit` gives their calls NaN, and
`batch.token_mask` takes their tokens out of every loss and count. A step whose calls the judge of
contents failed on (r4 is NaN) loses its row alone. Before any of that `check_answers` of
`experiments` has stopped a run that lost more than `config.max_failed_share` of its questions.
"""

from collections.abc import Mapping

import jax
import numpy as np

from memalpha.memory import OpKind, Outcome


def correctness(scores: np.ndarray, answered: np.ndarray | None = None) -> np.ndarray:
    """r1: mean score over the answered questions.

        r1 = sum_q answered_q score_q / sum_q answered_q

    Args:
        scores: [..., Q] in [0, 1]; may be anything where the question is not answered.
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
    """r2: share of the calls that executed, 0 without a call.

        r2 = #{o: outcome_o = OK} / #{o: outcome_o != NONE}

    Args:
        outcomes: [..., O] Outcome; NONE is padding, and a skipped duplicate did not execute.

    Returns: [...] float32.

    Raises:
        ValueError: outcomes is a scalar.
    """
    outcomes = np.asarray(outcomes)
    _check_last_axis("r2", "O", outcomes=outcomes)
    return _divide((outcomes == Outcome.OK).sum(-1), (outcomes != Outcome.NONE).sum(-1))


def compression(memory_tokens: np.ndarray, chunk_tokens: np.ndarray) -> np.ndarray:
    """r3: what the memory is shorter by than the text it was made of, as a share of that text.

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
    """r4: share of the calls that wrote something fit for its memory, 0 without a call.

        r4 = #{o: outcome_o = OK and (kind_o = DELETE or fit_o)} / #{o: outcome_o != NONE}

    Args:
        kinds: [..., O] OpKind.
        outcomes: [..., O] Outcome; only an executed call can count, NONE is padding.
        fit: [..., O] bool, the judge's verdicts. Not looked at for a delete, which has no content:
            it counts when its target was there.

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
    """The weighted sum of rewards: the one that GRPO normalises and PPO spreads over tokens.

        r = sum_k w_k r_k,   in the order of the names, float32 throughout

    Args:
        rewards: name -> [R] (or any shapes that broadcast).
        weights: name -> weight, one for each reward.

    Returns: [R] float32, numpy if all rewards are; NaN where a reward is NaN, whatever its weight.

    Raises:
        ValueError: rewards and weights name different things.
    """
    check_weights(rewards, weights)
    terms = [np.float32(weights[name]) * _float32(rewards[name]) for name in sorted(rewards)]
    return sum(terms[1:], start=terms[0])


def check_weights(rewards: Mapping[str, object], weights: Mapping[str, float]) -> None:
    """Raises ValueError unless there is one weight for each reward, and at least one reward."""
    if not rewards or set(rewards) != set(weights):
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)}: give one weight a reward"
        )


def _check_last_axis(reward: str, axis: str, **arrays: np.ndarray) -> None:
    """Raises ValueError unless all arrays have one shape, with at least its last axis."""
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
