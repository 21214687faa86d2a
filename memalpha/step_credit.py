"""Credit per step: which steps brought the answers, and what is known right after a step.

r1 is shared by all steps of an episode (Mem-alpha, section 3.3): a step that stored what was asked
for earns no more than one that stored nothing. Two options, both after Fine-Mem (arXiv:2601.08435):

    evidence credit    step t of T earns (1 - b) r1 + b T N_t in place of r1
    chunk questions    step t earns besides the mean score on questions that its chunk answers,
                       asked of the memory right after the step

N_t is the part of r1 that entries written by step t brought; their sum over the steps is r1. With
b = 0 and no weight on chunk questions the rewards are those of the paper.

Axes: T steps of an episode, Q its questions.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memalpha import scoring
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode
from memalpha.memory import Entry, MemoryView
from memalpha.reader_rules import extractive_answers
from memalpha.reading import read_out

MOST_QUESTIONS = 5  # of a chunk


def evidence_credit(episode: Episode, share: float) -> np.ndarray:
    """What each step earns in place of r1: [T] float32; NaN where r1 is.

    A question gives its score in equal parts to the entries that were retrieved for it, and so to
    the steps that wrote them last; where none was retrieved, to all steps. Questions without a
    score are left out, as in r1. The mean over the steps is r1, whatever `share` is.

    Args:
        episode: scored, with one step a chunk.
        share: b, in [0, 1].

    Raises:
        ValueError: `share` out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"evidence_credit: share={share}; give a number in [0, 1]")
    steps = len(episode.steps)
    brought = np.zeros(steps)
    scores = np.asarray(episode.scores, float)
    for request, score in zip(episode.recall.requests, scores, strict=True):
        if np.isnan(score):
            continue
        written = [entry.written_at for entry in request.evidence.entries]
        parts = np.bincount(written, minlength=steps) if written else np.ones(steps)
        brought += score * parts / parts.sum()
    known = max(np.count_nonzero(~np.isnan(scores)), 1)
    credit = (1 - share) * episode.r1 + share * steps * brought / known
    return credit.astype(np.float32)


def chunk_scores(
    env: Environment, episodes: Sequence[Episode], clock: Clock | None = None
) -> list[np.ndarray]:
    """For each episode the mean score of each step on the questions of its chunk: [T] float32; NaN
    where the chunk answers none, or where no answer could be judged.

    All questions of all steps are retrieved and read in one call. The episodes have to be run with
    `keep_views`.

    Raises:
        ValueError: a step without its view.
    """
    asked: dict[int, list[list[int]]] = {}  # id of an instance -> its questions, chunk by chunk
    probes, views, places = [], [], []
    for e, episode in enumerate(episodes):
        instance = episode.instance
        if id(instance) not in asked:  # rollouts share their instance
            asked[id(instance)] = chunk_questions(env, instance)
        for number, step in enumerate(episode.steps):
            if step.view is None:
                raise ValueError("chunk_scores: a step without its view; run with keep_views=True")
            if chosen := asked[id(instance)][step.chunk]:
                questions = tuple(instance.questions[q] for q in chosen)
                probes.append(replace(instance, questions=questions))
                views.append(step.view)
                places.append((e, number))
    scores = [np.full(len(episode.steps), np.nan, np.float32) for episode in episodes]
    if probes:
        read = read_out(env, probes, [[] for _ in probes], views, clock or Clock())
        for (e, number), probe in zip(places, read, strict=True):
            scores[e][number] = probe.r1
    return scores


def chunk_questions(env: Environment, instance: Instance) -> list[list[int]]:
    """For each chunk the numbers of the questions that it answers by itself, at most
    MOST_QUESTIONS, the first ones.

    They are those that the offline rules answer right from the notes of the chunk alone, or from
    its text where the instance has no notes. What a later chunk corrects is not among them: the
    questions ask for what holds in the end.
    """
    notes = instance.metadata.get("notes") or [None] * len(instance.chunks)
    views = [
        _as_memory([{"memory": "semantic", "content": chunk}] if noted is None else noted)
        for chunk, noted in zip(instance.chunks, notes, strict=True)
    ]
    offline = env.replace(answerer=extractive_answers, answer_judge=scoring.recall_judge)
    read = read_out(offline, [instance] * len(views), [[] for _ in views], views, Clock())
    return [
        [q for q, score in enumerate(episode.scores) if score == 1][:MOST_QUESTIONS]
        for episode in read
    ]


def _as_memory(notes: Sequence[dict]) -> MemoryView:
    """A memory that holds these notes and nothing else."""
    texts = {
        name: [note["content"] for note in notes if note["memory"] == name]
        for name in ("core", "semantic", "episodic")
    }
    lists = (
        tuple(Entry(number, text, 0) for number, text in enumerate(texts[name], first))
        for name, first in (("semantic", 1), ("episodic", len(notes) + 1))
    )
    semantic, episodic = lists
    core = " ".join(texts["core"])
    return MemoryView(core, semantic, episodic, len(semantic), len(episodic), 0)
