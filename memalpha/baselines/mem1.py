"""MEM1 (arXiv:2506.15841): an internal state in think tags that is carried from turn to turn, while
all else is dropped.

The mechanism with any model; the paper's own is trained for it, and there the turns are those of an
agent that searches and answers. Here a turn brings the next chunk, and the final state goes to the
reader. An engine must leave the text between think tags in its reply.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from memalpha.baselines.chats import FORMS, rewrite
from memalpha.data.instance import Instance
from memalpha.lm import LanguageModel
from memalpha.rollout import Environment, Recall

BUDGET = 1024  # tokens; the paper sets none but the length of a response

# The opening tag may be missing at the start: some chat templates put it into the prompt.
_STATE = re.compile(r"(?:<think>|\A)((?:(?!</?think>).)*)</think>", re.DOTALL)


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
    """One request a question with the final state as core. A reply without a closed, filled pair of
    think tags keeps the old state and counts as rejected; past the budget a state is cut off."""
    return rewrite(
        env, instances, "mem1", last_state, model, memory_tokens, temperature, seed, folder
    )


def last_state(text: str) -> str:
    """What stands in the last closed pair of think tags; "" if there is none."""
    states = _STATE.findall(text)
    return states[-1].strip() if states else ""
