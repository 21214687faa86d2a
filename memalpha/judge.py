"""The content judge of r4: is what a call wrote fit for the memory it went to?

Offline rules that stand in for the frozen language model of Mem-alpha, section 3.3, and follow
what that model is asked: core must have content and not talk about itself; semantic holds knowledge
and whatever fits neither other store; episodic holds an event with a clear time. A judge is any
function `judge(calls) -> list[Verdict]`, so a model takes the place of `judge` as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from memalpha.memory import CORE, EPISODIC, SEMANTIC
from memalpha.tools import CONTENT_KEY, DELETE, Call, memory_type_index


@dataclass(frozen=True)
class Verdict:
    """`valid`, and the reasons where it is not; `failed`: the judge failed, there is no verdict."""

    valid: bool
    issues: tuple[str, ...] = ()
    failed: bool = False


_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_WEEKDAY = r"\b(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\b"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_CLOCK = r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b|\b(?:0?[1-9]|1[0-2])\s?[ap]\.?m\b"
_NUMERIC_DATE = (
    rf"\b\d{{4}}([-/.])(?:0?[1-9]|1[0-2])\1{_DAY}(?!\d)"
    rf"|\b{_DAY}([-/.])(?:0?[1-9]|1[0-2])\2\d{{4}}\b|\b(?:0?[1-9]|1[0-2])/{_DAY}/\d{{4}}\b"
)
_DAY_MONTH = rf"\b{_DAY}(?:st|nd|rd|th)?(?: of)? {_MONTH}|\b{_MONTH} {_DAY}(?:st|nd|rd|th)?\b"
_MONTH_YEAR = rf"\b{_MONTH},? \d{{4}}\b"


def _pattern(text: str) -> re.Pattern:
    return re.compile(text, re.IGNORECASE)


FULL_DATE = _pattern(rf"{_NUMERIC_DATE}|(?:{_DAY_MONTH}),? \d{{4}}\b")
DAY_MONTH, WEEKDAY, CLOCK = _pattern(_DAY_MONTH), _pattern(_WEEKDAY), _pattern(_CLOCK)
TIME_PARTS = _pattern(
    rf"{FULL_DATE.pattern}|{_DAY_MONTH}|{_MONTH_YEAR}|{_WEEKDAY}|{_CLOCK}|\b(?:on|at|in)\b"
)
MONTH_YEAR = _pattern(_MONTH_YEAR)
# A date that states a lasting fact is knowledge, unless the text opens with it as a log line does.
LASTING = _pattern(r"\b(?:born|birthday|died|founded|established)\b")
# "request -> 3", "Sentence: ... Label: 3": a classification example, whatever its words are about.
EXAMPLE = _pattern(r"\blabels?\b\s*[:=]?\s*\d+|(?:->|=>|→|=)\s*\d+\s*$")
WORD = re.compile(r"\w*[^\W\d_]\w*|\d+")

PLACEHOLDERS = frozenset(
    phrase.strip()
    for phrase in """
    none, n a, na, null, nil, nothing, empty, tbd, todo, unknown, placeholder, not available,
    not applicable, no data, no content, no information, no information yet, no new information,
    no information available, nothing yet, nothing to add, nothing to remember, nothing to store,
    nothing happened, no summary, no summary yet, no event, no events, no facts, no update,
    no updates, no changes, to be added, to be determined, core memory, semantic memory,
    episodic memory, memory is empty, empty memory
    """.split(",")
)
_DONE = "(?:updated|saved|stored|recorded|added|inserted|cleared|noted|deleted|written|modified)"
_NAMED_MEMORY = r"(?:core|semantic|episodic)[ _]memory\b"
SELF_TALK = _pattern(
    rf"\bmemory(?: entry)?\s+(?:(?:has|have|had|is|was|will)\s+)?(?:now\s+)?(?:be(?:en)?\s+)?"
    rf"(?:successfully\s+)?{_DONE}\b"
    rf"|\b{_DONE}\b[^.\n]{{0,60}}?\b(?:{_NAMED_MEMORY}|to (?:the |my )?memory\b(?! of\b))"
    r"|\b(?:summary|information|entry)\s+(?:(?:has|have)\s+been\s+|was\s+|is\s+(?:now\s+)?)?"
    r"(?:successfully\s+)?(?:updated|saved|stored)\b"
)
CORE_SELF_TALK = _pattern(r"\bcore memory\b")


@lru_cache(maxsize=1 << 16)
def judge_content(memory_type: int, content: str) -> Verdict:
    """Verdict on one text for one memory (CORE, SEMANTIC or EPISODIC).

    Raises ValueError for any other memory type; any text gets a verdict.
    """
    if memory_type not in (CORE, SEMANTIC, EPISODIC):
        raise ValueError(
            f"judge: memory type {memory_type!r}; give {CORE}, {SEMANTIC} or {EPISODIC}"
        )
    if _plain(content) in PLACEHOLDERS or not WORD.search(content):
        return Verdict(False, ("placeholder without content",))
    if SELF_TALK.search(content) or (memory_type == CORE and CORE_SELF_TALK.search(content)):
        return Verdict(False, ("talks about the memory itself",))
    issues: tuple[str, ...] = ()  # a core with content is fit for it
    if memory_type == SEMANTIC:
        issues = _semantic_issues(content)
    elif memory_type == EPISODIC:
        issues = _episodic_issues(content)
    return Verdict(not issues, issues)


def judge(calls: Sequence[Call]) -> list[Verdict]:
    """One verdict a call; offline, deterministic.

    A malformed call or one without known memory type and text is invalid. A delete has no content
    and passes here: whether its target existed decides (`rewards.content_share`).
    """
    return [
        judge_content(*found) if isinstance(found := to_judge(call), tuple) else found
        for call in calls
    ]


def to_judge(call: Call) -> Verdict | tuple[int, str]:
    """(memory type, content) of a call, or the verdict where there is nothing to judge."""
    if call.error:
        return Verdict(False, (f"malformed call: {call.error}",))
    if call.name == DELETE:
        return Verdict(True)
    memory_type = memory_type_index(str(call.arguments.get("memory_type", "")))
    content = call.arguments.get(CONTENT_KEY.get(call.name, ""))
    if memory_type < 0 or not isinstance(content, str):
        return Verdict(False, ("no memory type or no content to judge",))
    return memory_type, content


def _semantic_issues(content: str) -> tuple[str, ...]:
    if EXAMPLE.search(content):
        return ()
    if len(WORD.findall(content)) < 2:
        return ("a fragment, not a statement",)
    date = FULL_DATE.search(content)
    opens_with_date = date is not None and not WORD.search(content[: date.start()])
    if date and (opens_with_date or not LASTING.search(content)):
        return ("a dated event: it belongs in episodic memory",)
    if DAY_MONTH.search(content) and CLOCK.search(content):
        return ("an event with day and time: it belongs in episodic memory",)
    return ()


def _episodic_issues(content: str) -> tuple[str, ...]:
    day = FULL_DATE.search(content) or DAY_MONTH.search(content) or MONTH_YEAR.search(content)
    issues = []
    if not day and not (WEEKDAY.search(content) and CLOCK.search(content)):
        issues.append("no clear time")
    what = TIME_PARTS.sub(" ", content)
    if len(WORD.findall(what)) < 2 or _plain(what) in PLACEHOLDERS:
        issues.append("does not tell what happened")
    return tuple(issues)


def _plain(text: str) -> str:
    """Lower-cased words with single spaces, to compare with the placeholders."""
    return " ".join(re.findall(r"\w+", text.lower()))
