"""MEM1 (arXiv:2506.15841): only an internal state in tags is carried from turn to turn.

This is the mechanism with any model. The model of the paper is trained for it, and its turns are
those of an agent that searches and answers; here each turn shows the next chunk, and the reader
gets the final state. The tags are not those of thinking, which engines take out of replies and chat
templates out of earlier turns. The paper limits the state only by the length of a response; here
the limit is that of `chats.rewrite`.
"""

import re
from functools import partial

from memalpha.baselines.chats import rewrite
from memalpha.replies import visible

# The opening tag may be missing at the start: a small model goes on from the prompt.
_STATE = re.compile(r"(?:<state>|\A)((?:(?!</?state>).)*)</state>", re.DOTALL)


def last_state(text: str) -> str:
    """The text in the last closed pair of state tags, or what follows a tag that a reply which was
    cut off did not close; "" without a tag."""
    body = visible(text)
    states = _STATE.findall(body) or body.split("<state>")[1:]
    return states[-1].strip() if states else ""


def in_tags(state: str) -> str:
    """The reply that has a state."""
    return f"<state>\n{state}\n</state>"


recall = partial(rewrite, "mem1", last_state, wrap=in_tags)
