"""Long-Context: the reader gets the end of the stream, 32k tokens in the paper
(Mem-alpha, section 4.1)."""

from collections.abc import Sequence

from memalpha.baselines.chats import cut
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.reader import Evidence, Request

BUDGET = 32_000  # tokens


def recall(
    env: Environment, instances: Sequence[Instance], *, budget: int = BUDGET
) -> list[Recall]:
    """One request per question, all with the same text: the last whole chunks of the stream,
    at most `budget` tokens in total, or the end of the last chunk if it alone is longer."""
    if budget < 1:
        raise ValueError(f"long_context: budget = {budget}; give at least 1 token")
    return [_recall(env, instance, budget) for instance in instances]


def _recall(env: Environment, instance: Instance, budget: int) -> Recall:
    first, used = len(instance.chunks), 0
    while first and (used := used + count_tokens(env, instance.chunks[first - 1])) <= budget:
        first -= 1
    text = "\n".join(instance.chunks[first:])
    while (
        first < len(instance.chunks) and count_tokens(env, text) > budget
    ):  # line breaks count too
        first += 1
        text = "\n".join(instance.chunks[first:])
    text = text or cut(env, instance.chunks[-1], budget, end=True)
    evidence = Evidence(core=text, tokens=count_tokens(env, text))
    requests = [
        Request(q.question, instance.source, evidence, q.asked_at) for q in instance.questions
    ]
    return Recall(requests, evidence.tokens)
