"""Credit for single calls: every call is paid for its own content, not for that of its neighbours.

r4 is the share of fit calls of a response. With one advantage for all of its tokens (the paper) a
note in the right memory is punished for the one beside it in the wrong memory, and a further call
is a risk without a gain. Here the tokens of call j get

    A(r1 + r2 + beta r3) + gamma (fit_j - mean fit of the executed j-th calls of the group)

A(...) is the advantage of the whole response, as ever. A call that failed has nothing to be judged
and gets A alone, as the tokens after the last call do: whether to call, and how often, is left to
the other rewards. That is why a call is compared with those in its own place: later ones are filed
worse, and against the mean of all they would be discouraged as such.

Axes: R rows, T completion tokens, S calls a response can have.
"""

from collections.abc import Sequence

import numpy as np

from memalpha.batch import Batch
from memalpha.episode import Environment, Episode, Step, response_text
from memalpha.memory import Outcome
from memalpha.tokenizer import decode
from memalpha.tools import DELETE


def add_credit(batch: Batch, episodes: Sequence[Episode], env: Environment) -> Batch:
    """The batch that `to_batch` made of these episodes, with `part` and `fit` (numpy).

    Raises:
        ValueError: a call does not say where in its response it ends.
    """
    steps = [step for episode in episodes for step in episode.steps]
    most = max(len(step.calls) for step in steps)
    part = np.zeros(batch.completion.shape, np.int32)
    fit = np.full((len(part), most + 1), np.nan, np.float32)  # the last: what follows the calls
    for row, step in enumerate(steps):
        if batch.valid[row]:
            part[row, : len(step.response.tokens)] = token_parts(env, step)
            fit[row, : len(step.calls)] = call_fit(step)
    return batch.replace(part=part, fit=fit)


def call_fit(step: Step) -> list[float]:
    """For each call 1 if what it wrote was fit, or its delete found its target, 0 if not, and NaN
    if it was not executed."""
    return [
        float(fit or call.name == DELETE) if outcome == Outcome.OK else float("nan")
        for call, outcome, fit in zip(step.calls, step.outcomes, step.fit, strict=True)
    ]


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
        if len(decode(env.prompt.tokenizer, tokens[:middle])) < characters:
            low = middle + 1
        else:
            high = middle
    return low


def call_advantages(batch: Batch, gamma: float, groups: np.ndarray) -> np.ndarray:
    """What r4 adds to the advantage of every token: [R, T] float32. `groups` [R] int: rows that
    are compared."""
    executed = ~np.isnan(batch.fit)
    fit = np.where(executed, batch.fit, 0)
    _, of_group = np.unique(groups, return_inverse=True)
    total, count = (np.zeros((of_group.max() + 1, fit.shape[1])) for _ in range(2))
    np.add.at(total, of_group, fit)
    np.add.at(count, of_group, executed)
    mean = (total / np.maximum(count, 1))[of_group]
    of_call = np.where(executed, gamma * (fit - mean), 0).astype(np.float32)
    return np.where(batch.completion_mask, np.take_along_axis(of_call, batch.part, axis=1), 0)
