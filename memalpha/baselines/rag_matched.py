"""RAG whose reader gets as many tokens as the reader of a memory, for a comparison at equal cost.

The text is stored as pieces of consecutive lines. Set `budget` to the reader tokens of the memory
to compare with; the results of an evaluation state them.
"""

from collections.abc import Sequence

from memalpha.baselines.chats import cut
from memalpha.baselines.store_everything import units
from memalpha.data.cut import fill, pieces
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall, count_tokens
from memalpha.reader import Evidence, Request
from memalpha.retrieval import make_index

PIECE = 128  # tokens: a few sentences, about as long as a written entry


def recall(
    env: Environment, instances: Sequence[Instance], *, budget: int, piece: int = PIECE
) -> list[Recall]:
    """One request per question: pieces of at most `piece` tokens, best first, until `budget` is
    reached; the last piece is truncated. The memory is all chunks."""
    for name, tokens in (("budget", budget), ("piece", piece)):
        if tokens < 1:
            raise ValueError(f"rag_matched: {name} = {tokens}; give at least 1 token")
    return [_recall(env, instance, budget, piece) for instance in instances]


def _recall(env: Environment, instance: Instance, budget: int, piece: int) -> Recall:
    parts = [part for chunk in instance.chunks for part in _pieces(env, chunk, piece)]
    index = make_index(parts, env.reading.retriever, env.reading.dimensions)
    questions = [question.question for question in instance.questions]
    # Every piece has at least one token, so at most `budget` pieces can be shown.
    ranking, _ = index.search(questions, min(len(parts), budget))
    requests = []
    for question, ids in zip(instance.questions, ranking.tolist(), strict=True):
        evidence = _evidence(env, [parts[i] for i in ids if i >= 0], budget)
        requests.append(Request(question.question, instance.source, evidence, question.asked_at))
    return Recall(requests, sum(count_tokens(env, chunk) for chunk in instance.chunks))


def _pieces(env: Environment, chunk: str, limit: int) -> list[str]:
    def count(text: str) -> int:
        return count_tokens(env, text)

    lines = [part for unit in units(chunk) for part in pieces(unit, limit, count)]
    return ["\n".join(group) for group in fill(lines, limit, count, "\n")]


def _evidence(env: Environment, ranked: Sequence[str], budget: int) -> Evidence:
    parts, left = [], budget
    for part in ranked:
        if left < 1 or not (part := cut(env, part, left)):
            break
        parts.append(part)
        left -= count_tokens(env, part + "\n")
    text = cut(env, "\n".join(parts), budget)
    return Evidence(core=text, tokens=count_tokens(env, text))
