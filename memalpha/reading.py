"""Questions to scores: evidence from a memory, the reader, the metric, r1 and r3."""

from collections.abc import Sequence

import numpy as np

from memalpha import rewards, scoring
from memalpha.data.instance import Instance, validate
from memalpha.episode import Clock, Environment, Episode, Recaller, count_tokens
from memalpha.memory import MemoryView
from memalpha.reader import Answer, Request, gather, read
from memalpha.retrieval import make_index


def read_out(env: Environment, episodes: list[Episode], clock: Clock) -> None:
    """Answers the questions of all episodes from their final memories, and scores them."""
    with clock("retrieve"):
        requests = [find_evidence(env, episode.instance, episode.view) for episode in episodes]
    with clock("read"):
        answer(env, episodes, requests, [episode.view.tokens for episode in episodes])


def answer(
    env: Environment,
    episodes: Sequence[Episode],
    requests: Sequence[Sequence[Request]],
    memory_tokens: Sequence[int],
) -> None:
    """Asks the reader for all episodes at once and fills in answers, scores, r1, r3 and sizes."""
    answers = iter(read([request for some in requests for request in some], env.answerer))
    for episode, asked, held in zip(episodes, requests, memory_tokens, strict=True):
        episode.answers = [next(answers) for _ in asked]
        episode.memory_tokens = held
    _score(env, episodes)


def run_baseline(
    env: Environment, instances: Sequence[Instance], recall: Recaller
) -> list[Episode]:
    """Episodes of a system of `memalpha.baselines`, read and scored as all others are.

    They have no steps, so no r2 and r4. An instance whose `failure` is set is masked: its questions
    have no answer and it has no score.
    """
    if not instances:
        raise ValueError("run_baseline: no instances; give at least one")
    recalled = recall(env, [validate(instance) for instance in instances])
    episodes = [
        Episode(instance, view=found.view, recall=found, failure=found.failure)
        for instance, found in zip(instances, recalled, strict=True)
    ]
    kept = [episode for episode in episodes if episode.held]
    held = [episode.recall.memory_tokens for episode in kept]
    if kept:
        answer(env, kept, [episode.recall.requests for episode in kept], held)
    for episode in episodes:
        if not episode.held:
            questions = len(episode.instance.questions)
            episode.answers = [Answer(None, (), (), 0)] * questions
            episode.scores, episode.verdicts = [float("nan")] * questions, [""] * questions
            episode.chunk_tokens = sum(count_tokens(env, c) for c in episode.instance.chunks)
    return episodes


def find_evidence(env: Environment, instance: Instance, view: MemoryView) -> list[Request]:
    """One request to the reader for each question of an instance."""
    questions = [question.question for question in instance.questions]
    indexes = [
        make_index([entry.text for entry in entries], env.retriever, env.dimensions)
        for entries in (view.semantic, view.episodic)
    ]
    return gather(
        questions,
        instance.source,
        view,
        indexes,
        env.top_k,
        count_tokens=lambda text: count_tokens(env, text),
    )


def _score(env: Environment, episodes: Sequence[Episode]) -> None:
    """Scores the answers of all episodes, with one call of the judge, and fills in r1 and r3."""
    claims: dict[tuple[int, int], scoring.Claim] = {}
    for e, episode in enumerate(episodes):
        episode.scores = [float("nan")] * len(episode.answers)
        episode.verdicts = [""] * len(episode.answers)
        if any(step.response.error for step in episode.steps):
            continue  # what the writer could not read is not forgotten: nothing is to be said
        for q, answer in enumerate(episode.answers):
            if answer.text is not None:
                claims[e, q] = _claim(episode.instance, q, answer.text)
    said: dict[int, str] = {}
    found = scoring.scores(list(claims.values()), env.score_judge, said)
    for number, ((e, q), score) in enumerate(zip(claims, found, strict=True)):
        episodes[e].scores[q], episodes[e].verdicts[q] = score, said.get(number, "")
    for episode in episodes:
        scores = np.asarray(episode.scores)
        unjudged = any(np.isnan(step.r4) for step in episode.steps)
        if (unjudged or np.isnan(scores).any()) and env.failures:
            episode.failure = env.failures[-1]
        episode.r1 = float(rewards.correctness(np.nan_to_num(scores), ~np.isnan(scores)))
        episode.chunk_tokens = sum(count_tokens(env, chunk) for chunk in episode.instance.chunks)
        episode.r3 = float(rewards.compression(episode.memory_tokens, episode.chunk_tokens))


def _claim(instance: Instance, number: int, reply: str) -> scoring.Claim:
    asked = instance.questions[number]
    types, ids = (instance.metadata.get(f"question_{name}", ()) for name in ("types", "ids"))
    kind = str(types[number]) if number < len(types) else ""
    if number < len(ids) and str(ids[number]).endswith("_abs"):  # as LongMemEval marks them
        kind = scoring.ABSTENTION
    return scoring.Claim(instance.source, asked.question, reply, asked.answers, kind)
