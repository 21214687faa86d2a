"""The offline content judge: fixed rules in place of the language model of Mem-alpha, section 3.3.

They follow what that model is asked: core must have content and not talk about itself; semantic
holds knowledge and whatever fits neither other memory; episodic holds an event with a clear time.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from memalpha.judge import Verdict, to_judge
from memalpha.memory import CORE, EPISODIC, SEMANTIC
from memalpha.retrieval.words import drop_marks, normalize, spread
from memalpha.tools import Call

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
# The spaces are those of `spread`; 2024年1月7日 in Chinese and Japanese, 2024년 1월 7일 in Korean.
_EAST_ASIAN_MONTH = r"\b\d{4} *[年년] *(?:0?[1-9]|1[0-2]) *[月월]"
_EAST_ASIAN_DATE = rf"{_EAST_ASIAN_MONTH} *{_DAY} *[日号號일]"
_DAY_MONTH = rf"\b{_DAY}(?:st|nd|rd|th)?(?: of)? {_MONTH}|\b{_MONTH} {_DAY}(?:st|nd|rd|th)?\b"
_MONTH_YEAR = rf"\b{_MONTH},? \d{{4}}\b|{_EAST_ASIAN_MONTH}"


def _pattern(text: str) -> re.Pattern:
    return re.compile(text, re.IGNORECASE)


FULL_DATE = _pattern(rf"{_NUMERIC_DATE}|{_EAST_ASIAN_DATE}|(?:{_DAY_MONTH}),? \d{{4}}\b")
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


def judge_contents(calls: Sequence[Call]) -> list[Verdict]:
    """The offline `judge.ContentJudge`: one verdict a call, deterministic."""
    verdicts = []
    for call in calls:
        item = to_judge(call)
        verdicts.append(judge_content(*item) if isinstance(item, tuple) else item)
    return verdicts


@lru_cache(maxsize=1 << 16)
def judge_content(memory_type: int, content: str) -> Verdict:
    """Verdict on one text for one memory (CORE, SEMANTIC or EPISODIC).

    Raises ValueError for any other memory type; any text gets a verdict.
    """
    if memory_type not in (CORE, SEMANTIC, EPISODIC):
        raise ValueError(
            f"judge: memory type {memory_type!r}; give {CORE}, {SEMANTIC} or {EPISODIC}"
        )
    content = spread(normalize(content))
    if _is_placeholder(content) or not WORD.search(content):
        return Verdict(False)
    if SELF_TALK.search(content) or (memory_type == CORE and CORE_SELF_TALK.search(content)):
        return Verdict(False)
    if memory_type == SEMANTIC:
        return Verdict(_is_knowledge(content))
    return Verdict(memory_type == CORE or _is_event(content))


def _is_knowledge(content: str) -> bool:
    """A labelled example, or a statement that is not an event with its time."""
    if EXAMPLE.search(content):
        return True
    if _count_words(content) < 2:
        return False  # a fragment, not a statement
    date = FULL_DATE.search(content)
    opens_with_date = date is not None and not WORD.search(content[: date.start()])
    if date and (opens_with_date or not LASTING.search(content)):
        return False
    return not (DAY_MONTH.search(content) and CLOCK.search(content))


def _is_event(content: str) -> bool:
    """A text with a clear time and, beside the time, with what happened."""
    day = FULL_DATE.search(content) or DAY_MONTH.search(content) or MONTH_YEAR.search(content)
    if not day and not (WEEKDAY.search(content) and CLOCK.search(content)):
        return False
    what = TIME_PARTS.sub(" ", content)
    return _count_words(what) >= 2 and not _is_placeholder(what)


def _count_words(text: str) -> int:
    return len(WORD.findall(drop_marks(text)))


def _is_placeholder(text: str) -> bool:
    """Whether the words of a text, in lower case and with single spaces, stand for no content."""
    return " ".join(re.findall(r"\w+", text.lower())) in PLACEHOLDERS
