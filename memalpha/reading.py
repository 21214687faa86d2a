"""Questions to scores: evidence from a memory, the reader, the metric, r1 and r3.

Where reader, judge or writer fails, the score is NaN; "What is masked where" in docs/concepts.md
says what follows from that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from memalpha import rewards, scoring
from memalpha.data.instance import Instance, validate
from memalpha.episode import Clock, Environment, Episode, Recall, Recaller, Step, count_tokens
from memalpha.memory import Entry, MemoryView
from memalpha.reader import BUDGET, Answer, Request, gather, read
from memalpha.retrieval import make_index

INDEXES = 256  # the most indexes cached while the memories of one batch are read


def read_out(
    env: Environment,
    instances: Sequence[Instance],
    steps: Sequence[list[Step]],
    views: Sequence[MemoryView],
    clock: Clock,
) -> list[Episode]:
    """Answers the questions of all instances from their final memories, and scores them."""
    with clock("retrieve"):
        recalls = recall_all(env, instances, views)
    with clock("read"):
        return finish(env, instances, recalls, steps)


def read_later(env: Environment, episodes: Sequence[Episode], clock: Clock) -> list[Episode]:
    """Episodes of `run_episodes(ask=False)` with the answers to their questions and the scores."""
    instances, steps = [e.instance for e in episodes], [e.steps for e in episodes]
    return read_out(env, instances, steps, [e.view for e in episodes], clock)


def recall_all(
    env: Environment, instances: Sequence[Instance], views: Sequence[MemoryView]
) -> list[Recall]:
    """The evidence for every question of every instance.

    Equal lists of entries, which rollouts of one instance often have, are indexed only once.
    """

    @lru_cache(maxsize=INDEXES)
    def index(texts: tuple[str, ...]):
        return make_index(list(texts), env.reading.retriever, env.reading.dimensions)

    return [
        Recall(find_evidence(env, instance, view, index), view.tokens, view)
        for instance, view in zip(instances, views, strict=True)
    ]


def find_evidence(
    env: Environment,
    instance: Instance,
    view: MemoryView,
    index=None,
    budget_tokens: int = BUDGET,
) -> list[Request]:
    """One request to the reader for each question of an instance.

    `index`: a function from a tuple of texts to their index; None: `retrieval.make_index`.
    `budget_tokens`: see `reader.gather`.
    """

    def index_of(entries: Sequence[Entry]):
        texts = tuple(entry.text for entry in entries)
        if index is not None:
            return index(texts)
        return make_index(list(texts), env.reading.retriever, env.reading.dimensions)

    requests = gather(
        [question.question for question in instance.questions],
        instance.source,
        view,
        (index_of(view.semantic), index_of(view.episodic)),
        env.reading.top_k,
        budget_tokens,
        count_tokens=lambda text: count_tokens(env, text),
    )
    dates = [question.asked_at for question in instance.questions]
    return [replace(r, asked_at=date) for r, date in zip(requests, dates, strict=True)]


def run_baseline(
    env: Environment, instances: Sequence[Instance], recall: Recaller
) -> list[Episode]:
    """Episodes of a system of `memalpha.baselines`, read and scored like those of a writer.

    They have no steps, hence no r2 and r4. Where `Recall.failure` is set, the questions of the
    instance have no answer and no score.
    """
    if not instances:
        raise ValueError("run_baseline: no instances; give at least one")
    recalls = recall(env, [validate(instance) for instance in instances])
    return finish(env, instances, recalls, [[] for _ in instances])


def finish(
    env: Environment,
    instances: Sequence[Instance],
    recalls: Sequence[Recall],
    steps: Sequence[list[Step]],
) -> list[Episode]:
    """Answers and scores all questions; calls reader and answer judge once, with the whole batch.

    Where the writer failed, all scores of the episode are NaN: they are missing, not zero.
    """
    requests = [request for recall in recalls if not recall.failure for request in recall.requests]
    replies = iter(read(requests, env.reading.answerer) if requests else [])
    answers = [_answers(*pair, replies) for pair in zip(instances, recalls, strict=True)]
    claims: dict[tuple[int, int], scoring.Claim] = {}
    for e, (instance, its_steps) in enumerate(zip(instances, steps, strict=True)):
        if not any(step.response.error for step in its_steps):
            for q, answer in enumerate(answers[e]):
                if answer.text is not None:
                    claims[e, q] = _claim(instance, q, answer.text)
    words: dict[int, str] = {}
    scores = scoring.scores(list(claims.values()), env.reading.answer_judge, words)
    judged = {
        place: (score, words.get(number, ""))
        for number, (place, score) in enumerate(zip(claims, scores, strict=True))
    }
    unjudged = (float("nan"), "")
    return [
        _episode(
            env,
            instances[e],
            recalls[e],
            steps[e],
            answers[e],
            [judged.get((e, q), unjudged) for q in range(len(answers[e]))],
        )
        for e in range(len(instances))
    ]


def _answers(instance: Instance, recall: Recall, replies: Iterator[Answer]) -> list[Answer]:
    if recall.failure:
        return [Answer(None, (), (), 0)] * len(instance.questions)
    return [next(replies) for _ in recall.requests]


def _episode(
    env: Environment,
    instance: Instance,
    recall: Recall,
    steps: list[Step],
    answers: list[Answer],
    judged: list[tuple[float, str]],
) -> Episode:
    scores = np.asarray([score for score, _ in judged])
    missing = np.isnan(scores).any() or any(np.isnan(step.r4) for step in steps)
    chunk_tokens = sum(count_tokens(env, chunk) for chunk in instance.chunks)
    r3 = float("nan")
    if not recall.failure:
        r3 = float(rewards.compression(recall.memory_tokens, chunk_tokens))
    failures = env.reading.failures
    return Episode(
        instance=instance,
        recall=recall,
        steps=steps,
        answers=answers,
        scores=[score for score, _ in judged],
        verdicts=[verdict for _, verdict in judged],
        r1=float(rewards.correctness(np.nan_to_num(scores), ~np.isnan(scores))),
        r3=r3,
        chunk_tokens=chunk_tokens,
        failure=recall.failure or (failures[-1] if missing and failures else ""),
    )


def _claim(instance: Instance, number: int, reply: str) -> scoring.Claim:
    question, kind = instance.questions[number], question_kind(instance, number)
    return scoring.Claim(instance.source, question.question, reply, question.answers, kind)


def question_kind(instance: Instance, number: int) -> str:
    """The kind of a question by what the metadata of its instance say; empty where they do not."""
    types, ids = (instance.metadata.get(f"question_{name}", ()) for name in ("types", "ids"))
    kind, name = (str(field[number]) if number < len(field) else "" for field in (types, ids))
    return scoring.question_kind(kind, name)
