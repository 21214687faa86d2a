"""MEM1 (arXiv:2506.15841): only an internal state in think tags is carried from turn to turn.

This is the mechanism with any model. The model of the paper is trained for it, and its turns are
those of an agent that searches and answers; here each turn shows the next chunk, and the reader
gets the final state. The engine must not remove the text between think tags. The paper limits the
state only by the length of a response; here the limit is that of `chats.rewrite`.
"""

import re
from functools import partial

from memalpha.baselines.chats import rewrite

# The opening tag may be missing at the start: some chat templates put it into the prompt.
_STATE = re.compile(r"(?:<think>|\A)((?:(?!</?think>).)*)</think>", re.DOTALL)


def last_state(text: str) -> str:
    """The text in the last closed pair of think tags; "" if there is none."""
    states = _STATE.findall(text)
    return states[-1].strip() if states else ""


recall = partial(rewrite, "mem1", last_state)
