"""RAG-Top2: BM25 with the question over the raw chunks; the reader gets the best two
(Mem-alpha, section 4.1)."""

from collections.abc import Sequence

from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.reader import Evidence, Request
from memalpha.retrieval import BM25Index

CHUNKS = 2


def recall(env: Environment, instances: Sequence[Instance]) -> list[Recall]:
    """One request per question; the memory is all chunks."""
    return [_recall(env, instance) for instance in instances]


def _recall(env: Environment, instance: Instance) -> Recall:
    questions = [question.question for question in instance.questions]
    ranking, _ = BM25Index(instance.chunks).search(questions, CHUNKS)
    requests = []
    for question, ids in zip(instance.questions, ranking, strict=True):
        text = "\n".join(instance.chunks[i] for i in ids if i >= 0)
        evidence = Evidence(core=text, tokens=count_tokens(env, text))
        requests.append(Request(question.question, instance.source, evidence, question.asked_at))
    return Recall(requests, sum(count_tokens(env, chunk) for chunk in instance.chunks))
