"""No memory (closed book): the reader gets the question alone.

What it scores, the questions give away.
"""

from memalpha.data.instance import Instance
from memalpha.reader import Evidence, Request
from memalpha.rollout import Environment


def recall(env: Environment, instance: Instance) -> tuple[list[Request], int]:
    """One request a question, and the tokens held in memory: none."""
    return [Request(q.question, instance.source, Evidence()) for q in instance.questions], 0
