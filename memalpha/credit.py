"""Credit for single calls: what each call of a response changed of the reward of its episode.

The method of the paper gives every token of a response the same advantage, so a good call is
punished for the bad one beside it, and a chunk for what was missed in another. Here a response is
cut into parts: call 0, call 1, ..., and what follows the last call, which is the decision to stop.
Each part is paid what it changed:

    r1    its share of the questions answered: a question pays the core and the entries that the
          reader had for it, the more of its words and of the reply's one holds the more, and an
          entry pays the call that last wrote it. What the core is paid is shared by all calls that
          wrote it
    r2    share of executed calls after it, less the share before it
    r3    tokens it took from the memory, less those it added, by the tokens of the chunks
    r4    share of fit calls after it, less the share before it

and compared with the same part of the other responses to the same chunk; those that stopped there
were paid 0. The parts of r2, r3 and r4 add up to the reward (less the 1 that an empty memory has
of r3), so nothing new is rewarded; those of r1 do where everything that an answer rests on was
written by a call. A delete or an update that spoils another call's entry is blamed for r2 to r4
alone, so this is meant to be mixed with the advantage of the whole response (`mix`).

Axes: R rows, T completion tokens, S parts of a response.
"""

from collections.abc import Iterator, Mapping, Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import losses, scoring
from memalpha.batch import Batch
from memalpha.memory import CORE, Outcome
from memalpha.passages import stems
from memalpha.rollout import Environment, Episode, Step, response_text
from memalpha.tokenizer import decode
from memalpha.tools import DELETE, memory_type_index

SHARPNESS = 4  # an entry with half of the words of the best has a sixteenth of its share


def call_gains(episode: Episode) -> list[dict[str, np.ndarray]]:
    """What every call of an episode changed of r1..r4: for each step, name -> [calls] float32.

    Raises:
        ValueError: the episode was not read out yet.
    """
    if len(episode.scores) != len(episode.instance.questions):
        raise ValueError("call_gains: the episode has no scores yet; give one of run_episodes")
    sizes = _size_changes(episode)
    shares = _answer_shares(episode)
    return [
        {
            "r1": shares[s],
            "r2": running_share_gains([o == Outcome.OK for o in step.outcomes]),
            "r3": -sizes[s] / np.float32(max(episode.chunk_tokens, 1)),
            "r4": running_share_gains(
                [
                    o == Outcome.OK and (fit or call.name == DELETE)
                    for call, o, fit in zip(step.calls, step.outcomes, step.fit, strict=True)
                ]
            ),
        }
        for s, step in enumerate(episode.steps)
    ]


def running_share_gains(good: Sequence[bool]) -> np.ndarray:
    """By how much each call moves the share of good calls so far, which starts at 0: [calls]."""
    shares = np.cumsum(np.asarray(good, np.float32)) / np.arange(1, len(good) + 1)
    return np.diff(shares, prepend=0.0).astype(np.float32)


def evidence_shares(words: Set[str], texts: Sequence[str]) -> np.ndarray:
    """How much of an answer each text accounts for: [texts] float32 that sum to 1, or all 0.

    `words`: the stems of question and reply. A text counts by (words it holds / most that any
    holds)^SHARPNESS. The scores of the retriever would not do: Okapi's are 0 or less for all of
    two entries.
    """
    held = np.array([len(words & stems(text).content) for text in texts], np.float64)
    if not held.any():
        return np.zeros(len(held), np.float32)
    weights = (held / held.max()) ** SHARPNESS
    return (weights / weights.sum()).astype(np.float32)


def _answer_shares(episode: Episode) -> list[np.ndarray]:
    """The share of r1 that each call of each step has."""
    gains = [np.zeros(len(step.calls), np.float32) for step in episode.steps]
    writer_of, core_writers = {}, []
    for place, step, call in _executed(episode):
        if _on_core(step, call):
            core_writers.append(place)
        elif step.calls[call].name == DELETE:
            writer_of.pop(step.ids[call], None)
        else:
            writer_of[step.ids[call]] = place
    view, source = episode.view, episode.instance.source
    text_of = {entry.id: entry.text for entry in (*view.semantic, *view.episodic)}
    summary = scoring.category(source) == "summary"  # is read from the core alone
    judged = max(int((~np.isnan(episode.scores)).sum()), 1)
    asked = episode.instance.questions
    for question, answer, score in zip(asked, episode.answers, episode.scores, strict=True):
        if np.isnan(score) or score <= 0:
            continue
        ids = () if summary else answer.ids
        words = stems(question.question).content | stems(answer.text).content
        core, *shares = evidence_shares(words, [view.core, *(text_of[i] for i in ids)])
        paid = [(writer_of.get(i), share) for i, share in zip(ids, shares, strict=True)]
        paid += [(place, core / len(core_writers)) for place in core_writers]
        for place, share in paid:
            if place is not None:
                gains[place[0]][place[1]] += score / judged * share
    return gains


def _size_changes(episode: Episode) -> list[np.ndarray]:
    """Tokens that each call of each step added to the memory, or took from it (negative)."""
    changes = [np.zeros(len(step.calls), np.float32) for step in episode.steps]
    held: dict[int, int] = {}
    for (s, c), step, call in _executed(episode):
        key = -1 if _on_core(step, call) else step.ids[call]  # -1: the core
        size = 0 if step.calls[call].name == DELETE else step.sizes[call]
        changes[s][c] = size - held.get(key, 0)
        held[key] = size
    return changes


def _executed(episode: Episode) -> Iterator[tuple[tuple[int, int], Step, int]]:
    for s, step in enumerate(episode.steps):
        for c, outcome in enumerate(step.outcomes):
            if outcome == Outcome.OK:
                yield (s, c), step, c


def _on_core(step: Step, call: int) -> bool:
    return memory_type_index(str(step.calls[call].arguments.get("memory_type", ""))) == CORE


def token_parts(env: Environment, step: Step) -> np.ndarray | None:
    """The part each token of a response belongs to: [tokens] int32; None where a call does not say
    where it ends, as one that another parser made.

    A token on a border belongs to the earlier part; white space between calls to the later one. A
    call that is cut off has all that follows: ending there is what was wrong with it.
    """
    tokens, text = step.response.tokens, response_text(env, step.response)
    ends = [call.end for call in step.calls]
    if any(end < 0 for end in ends) or ends != sorted(ends):
        return None
    parts = np.full(len(tokens), len(ends), np.int32)
    start = 0
    for part, (call, end) in enumerate(zip(step.calls, ends, strict=True)):
        if call.error and end >= len(text):
            stop = len(tokens)
        else:
            stop = _tokens_of(env, tokens, end)
        parts[start:stop] = part
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


def add_credit(batch: Batch, episodes: Sequence[Episode], env: Environment) -> Batch:
    """The batch that `to_batch` made of these episodes, with `part` and `gains` (numpy).

    Parts from `env.max_calls` on are one.
    """
    parts = np.full(batch.completion.shape, -1, np.int32)
    last = env.max_calls
    gains = {name: np.zeros((len(parts), last + 1), np.float32) for name in batch.rewards}
    row = 0
    for episode in episodes:
        for step, of_step in zip(episode.steps, call_gains(episode), strict=True):
            found = token_parts(env, step)
            if found is not None and batch.valid[row]:
                parts[row, : len(found)] = np.minimum(found, last)
                for name, values in of_step.items():
                    np.add.at(gains[name][row], np.minimum(np.arange(len(values)), last), values)
            row += 1
    return batch.replace(part=parts, gains=gains)


def part_advantages(
    batch: Batch,
    weights: Mapping[str, float],
    groups: np.ndarray,
    **options,
) -> jax.Array:
    """Advantages of the parts, each compared with the same part of its group: [R, T] float32.

    `groups` [R], `options`: as for `losses.combined_advantages`. 0 where a token has no part.
    """
    count = next(iter(batch.gains.values())).shape[1]
    part = np.where(batch.completion_mask, batch.part, -1)
    reached = (part[:, :, None] == np.arange(count)).any(axis=1)
    of_part = np.asarray(groups)[:, None] * count + np.arange(count)
    values, _ = losses.combined_advantages(
        {name: gain.reshape(-1) for name, gain in batch.gains.items()},
        weights, of_part.reshape(-1), reached.reshape(-1), single="zero", **options,
    )  # fmt: skip
    taken = jnp.take_along_axis(values.reshape(-1, count), np.maximum(part, 0), axis=1)
    return jnp.where(part >= 0, taken, 0.0)


def mix(whole: jax.Array, parts: jax.Array, batch: Batch, share: float) -> jax.Array:
    """(1 - share) of the advantage of the whole response [R] and `share` of that of the part
    [R, T]; tokens without a part have that of the whole response alone. [R, T] float32."""
    whole = jnp.broadcast_to(whole[:, None], parts.shape)
    return jnp.where(batch.part >= 0, (1 - share) * whole + share * parts, whole)
