"""No memory (closed book): the reader gets the question alone.

What it scores, the questions give away.
"""

from collections.abc import Sequence

from memalpha.data.instance import Instance
from memalpha.episode import Environment, Recall
from memalpha.reader import Evidence, Request


def recall(env: Environment, instances: Sequence[Instance]) -> list[Recall]:
    """One request a question; no tokens are held in memory."""
    return [
        Recall([Request(q.question, i.source, Evidence(), q.asked_at) for q in i.questions], 0)
        for i in instances
    ]
