"""MemAgent (arXiv:2507.02259): one free-text memory of fixed size, rewritten at each chunk.

The mechanism with any model; the paper's own is trained for it. There the memory is written for one
question that is shown from the start. Here, as for all writers of the tables, questions come later,
so the prompt says what kind of questions they will be.
"""

from functools import partial

from memalpha.baselines.chats import rewrite
from memalpha.replies import visible

recall = partial(rewrite, "memagent", visible)
