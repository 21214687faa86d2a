"""Credit per call: the reward of a call depends on its own content and not on its neighbours'.

r4 is the share of the calls of a response that the judge approved. With one advantage for all of
its tokens (the paper), a note in the right memory is penalised for its neighbour in the wrong one,
and a further call can only lose. Here token t of row r, which belongs to call j = call[r, t], gets

    A_r + gamma (fit[r, j] - mean_j),   A_r the advantage of r1 + r2 + beta r3 of the response
    mean_j = mean of fit[s, j] over the rows s of the group of r whose j-th call was executed

A failed call has no content to judge and gets A_r, as do the tokens after the last call: whether
to make a call, and how many, is decided by the other rewards.

The mean is over calls at the same position, the j-th of a response, because later calls go to the
wrong memory more often: a mean over all positions would penalise later calls for being late.

Axes: R rows, T completion tokens, K calls of a response plus one for the tokens after the last.
"""

from collections.abc import Sequence

import chex
import numpy as np

from memalpha.batch import Batch
from memalpha.episode import Environment, Episode, Step, response_text
from memalpha.memory import Outcome
from memalpha.tokenizer import decode
from memalpha.tools import DELETE


def add_credit(batch: Batch, episodes: Sequence[Episode], env: Environment) -> Batch:
    """The batch that `to_batch` made of these episodes, with `rows.call` and `rows.fit` (numpy).

    Args:
        batch: completion [R, T], valid [R]; the first rows are the steps in order, then padding.
        episodes: the ones that were given to `to_batch`.

    Returns: the batch with `call` [R, T] int32, the call of each token, and `fit` [R, K] float32,
        `call_fit` of each call; NaN where there is none, and in rows that are not valid.

    Raises:
        ValueError: a call has no `end`, its position in the response.
    """
    completion, valid = batch.tokens.completion, batch.rows.valid
    chex.assert_rank([completion, valid], [2, 1])
    chex.assert_equal_shape_prefix([completion, valid], 1)
    steps = [step for episode in episodes for step in episode.steps]
    most = max(len(step.calls) for step in steps)
    call = np.zeros(completion.shape, np.int32)
    fit = np.full(
        (len(call), most + 1), np.nan, np.float32
    )  # the last column: tokens after the calls
    for row, step in enumerate(steps):
        if valid[row]:
            call[row, : len(step.response.tokens)] = token_calls(env, step)
            fit[row, : len(step.calls)] = call_fit(step)
    return batch.with_rows(call=call, fit=fit)


def call_fit(step: Step) -> list[float]:
    """For each call: 1 if its content was judged fit or it deleted an entry, 0 if its content was
    not fit, NaN if the call was not executed."""
    return [
        float(fit or call.name == DELETE) if outcome == Outcome.OK else float("nan")
        for call, outcome, fit in zip(step.calls, step.outcomes, step.fit, strict=True)
    ]


def token_calls(env: Environment, step: Step) -> np.ndarray:
    """[tokens] int32, the index of the call that each token of a response belongs to; tokens after
    the last call get the number of calls.

    A token that spans the border of two calls belongs to the earlier one, white space between calls
    to the later one. A call that is cut off gets all the tokens that follow, the end included.
    """
    tokens, text = step.response.tokens, response_text(env, step.response)
    parts = np.full(len(tokens), len(step.calls), np.int32)
    start = 0
    for number, call in enumerate(step.calls):
        if call.end < 0:
            raise ValueError(
                "credit for single calls: a call does not say where it ends. A parser of your own"
                " has to keep Call.end (dataclasses.replace); or set config.rl.call_credit=False"
            )
        cut_off = call.error and call.end >= len(text)
        stop = len(tokens) if cut_off else _tokens_of(env, tokens, call.end)
        parts[start:stop] = number
        start = max(start, stop)
    return parts


def _tokens_of(env: Environment, tokens: Sequence[int], characters: int) -> int:
    """The smallest number of tokens whose text has at least `characters` characters."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if len(decode(env.prompt.tokenizer, tokens[:middle])) < characters:
            low = middle + 1
        else:
            high = middle
    return low


def call_advantages(batch: Batch, gamma: float, groups: np.ndarray) -> np.ndarray:
    """The part of every token's advantage that comes from r4; see the equation above.

    Args:
        batch: `call` [R, T] int, `fit` [R, K] float and `completion_mask` [R, T] bool, numpy.
        gamma: the weight of r4.
        groups: [R] int; rows with the same number are compared.

    Returns: [R, T] float32, 0 outside of the completion and of executed calls.
    """
    call, fit, mask = batch.rows.call, batch.rows.fit, batch.tokens.completion_mask
    chex.assert_rank([call, fit, groups], [2, 2, 1])
    chex.assert_equal_shape([call, mask])
    chex.assert_equal_shape_prefix([call, fit, groups], 1)
    chex.assert_type([call, fit, mask, groups], [int, float, bool, int])
    executed = ~np.isnan(fit)
    fit = np.where(executed, fit, 0)
    _, of_group = np.unique(groups, return_inverse=True)
    total, count = (np.zeros((of_group.max() + 1, fit.shape[1])) for _ in range(2))
    np.add.at(total, of_group, fit)
    np.add.at(count, of_group, executed)
    mean = (total / np.maximum(count, 1))[of_group]
    of_call = np.where(executed, gamma * (fit - mean), 0).astype(np.float32)
    return np.where(mask, np.take_along_axis(of_call, call, axis=1), 0)
