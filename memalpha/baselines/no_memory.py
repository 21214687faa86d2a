"""No memory (closed book): the reader gets only the question.

Its score shows how much can be answered without reading the text.
"""

from collections.abc import Sequence

from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall
from memalpha.reader import Evidence, Request


def recall(env: Environment, instances: Sequence[Instance]) -> list[Recall]:
    """One request per question; the memory has no tokens."""
    return [
        Recall([Request(q.question, i.source, Evidence(), q.asked_at) for q in i.questions], 0)
        for i in instances
    ]
