"""Credit for single calls: every call is paid its own terms of r2 and r4.

r2 and r4 are means over the calls of a response. With one advantage for all of its tokens (the
paper) a good call is punished for the bad one beside it, and one more call is a risk without a
gain, so that a writer learns to make few. Here a call is paid whether it was executed, and whether
it was fit, and compared with other calls to the same chunk:

    A(token of call j) = A(r1 + beta r3) + (ok_j - mean ok) + gamma (fit_j - mean fit)

A(r1 + beta r3) is that of the whole response, as ever, and all that the tokens after the last call
get: stopping earns no share. The mean is over the calls of the group from the second on. The first
is compared with the first of each response, of which a silent one has 0: silence is not a way out.

Axes: R rows, T completion tokens, S calls a response can have.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from memalpha.batch import Batch
from memalpha.memory import Outcome
from memalpha.rollout import Environment, Episode, Step, response_text
from memalpha.tokenizer import decode
from memalpha.tools import DELETE

OF_CALLS = ("r2", "r4")


def add_credit(batch: Batch, episodes: Sequence[Episode], env: Environment) -> Batch:
    """The batch that `to_batch` made of these episodes, with `part`, `calls` and `paid` (numpy).

    Raises:
        ValueError: a call does not say where in its response it ends.
    """
    steps = [step for episode in episodes for step in episode.steps]
    most = max([1, *(len(step.calls) for step in steps)])
    part = np.zeros(batch.completion.shape, np.int32)
    calls = np.zeros(len(part), np.int32)
    paid = {name: np.zeros((len(part), most), np.float32) for name in OF_CALLS}
    for row, step in enumerate(steps):
        if batch.valid[row]:
            calls[row] = len(step.calls)
            part[row, : len(step.response.tokens)] = token_parts(env, step)
            for name, values in zip(OF_CALLS, call_terms(step), strict=True):
                paid[name][row, : len(values)] = values
    return batch.replace(part=part, calls=calls, paid=paid)


def call_terms(step: Step) -> tuple[list[float], list[float]]:
    """Of each call, whether it was executed and whether it wrote what was fit: 0 or 1. Their means
    are the r2 and r4 of the step."""
    executed = [outcome == Outcome.OK for outcome in step.outcomes]
    fit = [
        ok and (fit or call.name == DELETE)
        for call, ok, fit in zip(step.calls, executed, step.fit, strict=True)
    ]
    return [float(ok) for ok in executed], [float(ok) for ok in fit]


def token_parts(env: Environment, step: Step) -> np.ndarray:
    """The call that each token of a response belongs to; after the last one, their number:
    [tokens] int32.

    A token on a border belongs to the earlier call, white space between calls to the later one. A
    call that is cut off has all that follows: ending there is what was wrong with it.
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
    """The fewest tokens whose text has so many characters (by bisection)."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if len(decode(env.tokenizer, tokens[:middle])) < characters:
            low = middle + 1
        else:
            high = middle
    return low


def call_advantages(batch: Batch, weights: Mapping[str, float], groups: np.ndarray) -> np.ndarray:
    """What r2 and r4 add to the advantage of every token: [R, T] float32.

    `weights`: of the rewards; `groups` [R] int: rows that are compared. Rows that are not valid,
    and tokens after the last call of a response that has any, get 0.
    """
    valid = np.asarray(batch.valid, bool)
    total = np.zeros((len(valid), batch.paid["r2"].shape[1] + 1), np.float32)
    made = np.arange(total.shape[1] - 1) < batch.calls[:, None]
    _, of_group = np.unique(groups, return_inverse=True)
    for name in OF_CALLS:
        paid = batch.paid[name]
        first = _means(paid[:, :1], valid[:, None], of_group)
        later = _means(paid[:, 1:], (made & valid[:, None])[:, 1:], of_group)
        total[:, 0] += weights[name] * (paid[:, 0] - first)
        total[:, 1:-1] += weights[name] * (paid[:, 1:] - later[:, None]) * made[:, 1:]
    last = np.minimum(batch.calls, total.shape[1] - 1)
    total[(np.arange(total.shape[1]) >= last[:, None]) & (last[:, None] > 0)] = 0
    taken = np.take_along_axis(total, np.asarray(batch.part), axis=1)
    return np.where(batch.completion_mask & valid[:, None], taken, 0).astype(np.float32)


def _means(values: np.ndarray, there: np.ndarray, of_group: np.ndarray) -> np.ndarray:
    """For each row, the mean of the values that are there over all rows of its group: [R]."""
    total, count = np.zeros(of_group.max() + 1), np.zeros(of_group.max() + 1)
    np.add.at(total, of_group, np.where(there, values, 0).sum(axis=1))
    np.add.at(count, of_group, there.sum(axis=1))
    return (total / np.maximum(count, 1)).astype(np.float32)[of_group]
