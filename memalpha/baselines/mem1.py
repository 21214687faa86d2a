"""MEM1 (arXiv:2506.15841): an internal state in think tags that is carried from turn to turn, while
all else is dropped.

The mechanism with any model; the paper's own is trained for it, and there the turns are those of an
agent that searches and answers. Here a turn brings the next chunk, and the final state goes to the
reader. An engine must leave the text between think tags in its reply. The paper sets no budget but
the length of a response; ours is that of `chats.rewrite`.
"""

import re
from functools import partial

from memalpha.baselines.chats import rewrite

# The opening tag may be missing at the start: some chat templates put it into the prompt.
_STATE = re.compile(r"(?:<think>|\A)((?:(?!</?think>).)*)</think>", re.DOTALL)


def last_state(text: str) -> str:
    """What stands in the last closed pair of think tags; "" if there is none."""
    states = _STATE.findall(text)
    return states[-1].strip() if states else ""


recall = partial(rewrite, "mem1", last_state)
