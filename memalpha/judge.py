"""The content judge of r4: is what a call wrote fit for the memory it went to?

Mem-alpha, section 3.3. A content judge is any function from calls to verdicts: the offline one of
`judge_rules`, or a language model (`lm.roles`). It is not the answer judge (`scoring.Judge`), which
says whether the answer to a question is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memalpha.tools import CONTENT_KEY, DELETE, Call, memory_type_index


@dataclass(frozen=True)
class Verdict:
    """Whether a content is fit for its memory; `failed`: the judge failed, there is no verdict."""

    valid: bool
    failed: bool = False


ContentJudge = Callable[[Sequence[Call]], list[Verdict]]


def to_judge(call: Call) -> Verdict | tuple[int, str]:
    """(memory type, content) of a call, or the verdict where there is nothing to judge.

    A malformed call or one without a known memory type and text is invalid. A delete has no content
    and passes here: whether its target existed decides (`rewards.content_share`).
    """
    if call.error:
        return Verdict(False)
    if call.name == DELETE:
        return Verdict(True)
    memory_type = memory_type_index(str(call.arguments.get("memory_type", "")))
    content = call.arguments.get(CONTENT_KEY.get(call.name, ""))
    if memory_type < 0 or not isinstance(content, str):
        return Verdict(False)
    return memory_type, content
