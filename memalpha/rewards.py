"""The four rewards of an action, each kept apart, and their weighted sum.

Mem-alpha, section 3.3: r_t = r1 + r2_t + beta r3 + gamma r4_t. r1 and r3 belong to an episode and
are shared by its steps; r2 and r4 belong to a step. All results are float32, also of integer or
boolean input: a share of calls is a fraction.

Axes: Q questions of an episode, O operations (calls) of a step; `...` any leading axes.
"""

from collections.abc import Mapping

import numpy as np

from memalpha.memory import OpKind, Outcome


def correctness(scores: np.ndarray, answered: np.ndarray | None = None) -> np.ndarray:
    """r1: mean score over the questions. [..., Q] -> [...] float32.

    `answered` [..., Q] bool: False masks a question whose reader or judge failed. NaN where no
    question is left: the caller masks that episode; it must not enter a mean as a number.
    """
    scores = np.asarray(scores, np.float32)
    if answered is None:
        answered = np.ones(scores.shape, bool)
    answered = np.asarray(answered, bool)
    if answered.shape != scores.shape or scores.ndim == 0:
        raise ValueError(
            f"r1: scores {scores.shape} and answered {answered.shape} need the same shape [..., Q]"
        )
    total = np.where(answered, scores, np.float32(0)).sum(-1, dtype=np.float32)
    return _divide(total, answered.sum(-1), if_none=np.nan)


def format_share(outcomes: np.ndarray) -> np.ndarray:
    """r2: share of the calls that executed, 0 without a call. [..., O] Outcome -> [...] float32.

    Outcome.NONE is padding; a skipped duplicate is a call that did not execute.
    """
    outcomes = np.asarray(outcomes)
    return _divide((outcomes == Outcome.OK).sum(-1), (outcomes != Outcome.NONE).sum(-1))


def compression(memory_tokens: np.ndarray, chunk_tokens: np.ndarray) -> np.ndarray:
    """r3: 1 - memory tokens / chunk tokens, by the same tokenizer. [...] -> [...] float32.

    Negative where the memory is longer than what it was made of.
    """
    chunk_tokens = np.asarray(chunk_tokens, np.float32)
    if (chunk_tokens <= 0).any():
        raise ValueError(f"r3: chunk_tokens must be positive, got {chunk_tokens.min()}")
    return np.float32(1) - np.asarray(memory_tokens, np.float32) / chunk_tokens


def content_share(kinds: np.ndarray, outcomes: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """r4: share of the calls that wrote something fit for its memory, 0 without a call.

    Args:
        kinds: [..., O] OpKind.
        outcomes: [..., O] Outcome; only an executed call can count, NONE is padding.
        fit: [..., O] bool, the judge's verdicts. Not looked at for a delete, which has no content:
            it counts when its target was there.

    Returns: [...] float32.
    """
    kinds, outcomes, fit = np.asarray(kinds), np.asarray(outcomes), np.asarray(fit, bool)
    if not kinds.shape == outcomes.shape == fit.shape or kinds.ndim == 0:
        raise ValueError(
            f"r4: kinds {kinds.shape}, outcomes {outcomes.shape} and fit {fit.shape} need the same "
            "shape [..., O]"
        )
    valid = (outcomes == Outcome.OK) & ((kinds == OpKind.DELETE) | fit)
    return _divide(valid.sum(-1), (outcomes != Outcome.NONE).sum(-1))


def combine(rewards: Mapping[str, np.ndarray], beta: float, gamma: float) -> np.ndarray:
    """r1 + r2 + beta r3 + gamma r4, in float32; the four broadcast. NaN where r1 is NaN."""
    missing = {"r1", "r2", "r3", "r4"} - set(rewards)
    if missing:
        raise ValueError(f"combine: rewards lack {sorted(missing)}; give r1, r2, r3 and r4")
    r1, r2, r3, r4 = (np.asarray(rewards[name], np.float32) for name in ("r1", "r2", "r3", "r4"))
    return r1 + r2 + np.float32(beta) * r3 + np.float32(gamma) * r4


def _divide(total: np.ndarray, count: np.ndarray, if_none: float = 0.0) -> np.ndarray:
    total, count = np.asarray(total, np.float32), np.asarray(count, np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(if_none))
