"""What a step does to a memory: what it keeps of it, what of the chunk it writes, what it makes up.

    preservation   of the sentences in the memory before the step that the chunk does not correct,
                   the share that stands in the memory after it
    coverage       of the notes of the chunk, the share that stands in the memory after the step
    faithfulness   of the contents that the step wrote, the share that says only what stands in the
                   chunk or in the memory that was shown (`exactness`)

The reward of a step is the mean of those that are defined; 1 where none is, for then nothing was
lost. r2 calls an unchanged core in a chunk where nothing happens a failed call or no call at all;
here it costs nothing. After the verified transitions of TrustMem (arXiv:2606.25161).

A sentence stands in a memory if one of its sentences or entries has nearly all its telling words.
What a chunk corrects is known from its notes; without notes, a sentence counts as corrected if the
chunk repeats at least half of its telling words and not all of them.
"""

import math
from collections.abc import Sequence

import numpy as np

from memalpha.episode import Episode, Step
from memalpha.exactness import exact_contents
from memalpha.memory import EMPTY_VIEW, MemoryView
from memalpha.passages import passages, stems

HELD = 0.9  # share of the telling words of a sentence that have to stand together
REPEATED = 0.5  # share of them that a chunk repeats when it corrects the sentence


def transition_rewards(episode: Episode) -> np.ndarray:
    """The reward of each step of an episode: [T] float32 in [0, 1].

    Raises:
        ValueError: a step without its view; run the episode with `keep_views`.
    """
    rewards, before = [], EMPTY_VIEW
    for step in episode.steps:
        if step.view is None:
            raise ValueError("transition_rewards: a step without its view; use keep_views=True")
        parts = transition(episode, step, before)
        known = [share for share in parts.values() if not math.isnan(share)]
        rewards.append(sum(known) / len(known) if known else 1.0)
        before = step.view
    return np.array(rewards, np.float32)


def transition(episode: Episode, step: Step, before: MemoryView) -> dict[str, float]:
    """The three shares of one step by name; NaN where there is nothing to judge."""
    chunk = episode.instance.chunks[step.chunk]
    notes = episode.instance.metadata.get("notes")
    of_chunk = None if notes is None else notes[step.chunk]
    return {
        "preservation": preservation(before, step.view, chunk, of_chunk),
        "coverage": coverage(step.view, of_chunk or ()),
        "faithfulness": _mean(exact_contents(step, chunk)),
    }


def preservation(
    before: MemoryView, after: MemoryView, chunk: str, notes: Sequence[dict] | None = None
) -> float:
    """Of the sentences of `before` that the chunk does not correct, the share that stands in
    `after`; NaN where there are none. notes: of the chunk; None: it has none to go by."""
    held = _terms(after)
    return _mean([_stands(f, held) for f in _terms(before) if not _is_corrected(f, chunk, notes)])


def coverage(after: MemoryView, notes: Sequence[dict]) -> float:
    """Of the notes of a chunk the share that stands in the memory; NaN without notes."""
    held = _terms(after)
    return _mean([_stands(stems(note["content"]).content, held) for note in notes])


def _is_corrected(fact: frozenset[str], chunk: str, notes: Sequence[dict] | None) -> bool:
    if notes is not None:
        replaced = [stems(note["replaces"]).content for note in notes if note["replaces"]]
        return any(_stands(old, [fact]) for old in replaced)
    repeated = len(fact & stems(chunk).content)
    return REPEATED * len(fact) <= repeated < len(fact)


def _stands(fact: frozenset[str], held: Sequence[frozenset[str]]) -> bool:
    return any(len(fact & terms) >= HELD * len(fact) for terms in held)


def _terms(view: MemoryView) -> list[frozenset[str]]:
    """The telling words of every sentence in a memory."""
    texts = [view.core, *(entry.text for entry in (*view.semantic, *view.episodic))]
    found = [passage.stems.content for text in texts for passage in passages(text)]
    return [terms for terms in found if terms]


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")
