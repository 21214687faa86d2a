"""MemAgent (arXiv:2507.02259): one free-text memory of fixed size, rewritten at each chunk.

The mechanism with any model; the paper's own is trained for it. There the memory is written for one
question that is shown from the start. Here, as for all writers of the tables, questions come later,
so the prompt says what kind of questions they will be.
"""

from collections.abc import Sequence
from pathlib import Path

from memalpha.baselines.chats import FORMS, rewrite
from memalpha.data.instance import Instance
from memalpha.lm import LanguageModel
from memalpha.rollout import Environment, Recall
from memalpha.scoring import visible

BUDGET = 1024  # tokens (the paper)


def recall(
    env: Environment,
    instances: Sequence[Instance],
    *,
    model: LanguageModel,
    memory_tokens: int = BUDGET,
    temperature: float = 0.0,
    seed: int = 0,
    folder: str | Path = FORMS,
) -> list[Recall]:
    """One request a question with the final memory as core. What the model says past the budget is
    cut off; an empty reply keeps the old memory and counts as rejected."""
    return rewrite(
        env, instances, "memagent", visible, model, memory_tokens, temperature, seed, folder
    )
