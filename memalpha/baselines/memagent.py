"""MemAgent (arXiv:2507.02259): one free-text memory of fixed size, rewritten at each chunk.

This is the mechanism with any model; the model of the paper is trained for it. In the paper the
memory is written for one question that is shown from the start. Here, as for all writers of the
tables, the questions come later, so the prompt says what kind of questions to expect.
"""

from functools import partial

from memalpha.baselines.chats import rewrite
from memalpha.replies import visible

recall = partial(rewrite, "memagent", visible)
