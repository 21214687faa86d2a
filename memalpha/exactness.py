"""Whether a memory entry says only what stood before its writer: a rule, no reward.

An entry is exact if every number, date and name in it stands in the chunk or in the memory that the
writer was shown. That says nothing about what the entry leaves out, or how the parts are joined.
"""

import datetime
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from memalpha.episode import Episode, Step
from memalpha.memory import MemoryView, Outcome
from memalpha.tools import CONTENT_KEY

_MONTHS = (
    "january february march april may june july august september october november december".split()
)
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
).split()
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth"
    " fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
_IN_WORDS = (
    {word: n for n, word in enumerate(_SMALL)}
    | {word: 10 * n for n, word in enumerate(_TENS, start=3)}
    | {word: n for n, word in enumerate(_ORDINALS, start=1)}
    | {f"twenty {word}": 20 + n for n, word in enumerate(_ORDINALS[:9], start=1)}
    | {"thirtieth": 30, "thirty first": 31, "once": 1, "twice": 2, "half": 30, "noon": 12}
)
# Capitalised words that are no names: words that begin sentences, and what writers call things.
_NO_NAMES = frozenset(
    """a about after all also although always an and another any are as asked asks at because before
    both but by can chat conversation could currently date did do does during each either enjoys
    event every everyone explained fact favourite favorite first for from given had has have he her
    hers him his however i if important in info information is it its just last later likes lives
    made many me memory mentioned more most my name named never new next no none not note noted
    nothing now number of old on once one only or other our over owns person please plans prefers
    previously reminder said says second see she should since so some someone speaker still summary
    that the their them then there these they this those time to today tomorrow told topic two under
    until update updated upcoming us usual wants was we were what when where which while who whose
    why will with works would yesterday yet you your user users assistant appointment address age
    allergy birthday book booked bought code concert cost costs deadline diet drives email family
    flight goes going hobby home hotel job left likes meeting moved moves office order owns party
    password paid pet phone plan plays price trip uses visit visited went wife husband mother father
    son daughter brother sister friend ok mr mrs ms dr am pm takes needs wears weighs drinks eats
    speaks studies teaches learns reads writes travels lent sold sees sings runs owes earns pays
    saves hates loves dislikes wishes celebrates attends meets keeps parks starts stays spends
    avoids feels thinks hopes ran read got came flew met found""".split()
)
# What may follow a verb at the head of a sentence ("Resides in Porto"), and not a name.
_AFTER_VERBS = r"(?:a|an|the|in|at|on|to|for|with|by|from|of|that|about|her|his|their|its|my|\d+)"
_TOKEN = re.compile(
    r"(?P<number>[^\W_]*\d[^\W_]*(?:[.,:/-](?=\w*\d)[^\W_]+)*)(?:\s?(?P<half>[ap])\.?m\b)?"
    r"|(?P<word>[^\W\d_][^\W\d_]*(?:['’-][^\W\d_]+)*)"
)
_SENTENCE = re.compile(r"(?:^|[.!?:;…]|\n|[-*•]|->)[\s\"'“”‘(\[]*$")
# The name of a month or its first letters, and no other word that begins like one.
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" if month[3:] else month for month in _MONTHS)
_MONTH = rf"(?P<month>{_MONTH}|sept)\b\.?"
_NTH = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        r"\b(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})\b",
        r"\b(?P<day>\d{1,2})([-/.])(?P<month>\d{1,2})\2(?P<year>\d{4})\b",
        rf"\b{_NTH}(?: of)? {_MONTH}\b(?:,? (?P<year>\d{{4}})\b)?",
        rf"\b{_MONTH} {_NTH}\b(?:,? (?P<year>\d{{4}})\b)?",
    )
)
_NEAR = range(-7, 15)  # days around a given date that "yesterday" or "on Tuesday" can mean


def strangers(content: str, chunk: str, shown: str = "") -> list[str]:
    """The numbers, dates and names of an entry that stand nowhere in its sources, as written.

    Args:
        content: the entry.
        chunk: the text that the writer read.
        shown: the text of the memory that it was shown.

    Case, accents, possessives, plurals and hyphens do not matter, nor does the form of a date or of
    a time. The month and the weekday of a given date count as given, and near it so do other days,
    where the sources name their weekday, yesterday or tomorrow. A word that begins a sentence
    counts as a name unless it is a common one or reads like a verb.
    """
    sources = _sources(f"{chunk}\n{shown}")
    spans = [match.span() for match, date in _dates(content) if _is_known(date, sources)]
    return [
        match.group()
        for match in _TOKEN.finditer(content)
        if not any(start <= match.start() < end for start, end in spans)
        and not _stands(match, content, sources)
    ]


def is_exact(content: str, chunk: str, shown: str = "") -> bool:
    """Whether the entry has no `strangers`."""
    return not strangers(content, chunk, shown)


def exact_share(episodes: Iterable[Episode]) -> float:
    """The share of the executed inserts and updates whose content is exact; NaN without any."""
    exact = [
        is_so
        for episode in episodes
        for step in episode.steps
        for is_so in exact_contents(step, episode.instance.chunks[step.chunk])
    ]
    return sum(exact) / len(exact) if exact else float("nan")


def exact_contents(step: Step, chunk: str) -> list[bool]:
    """For each executed insert and update of a step, whether its content is exact."""
    return [is_exact(content, chunk, _text(step.shown)) for content in _stored(step)]


def _stored(step: Step) -> list[str]:
    """The contents that the calls of a step have put into the memory."""
    return [
        call.arguments[CONTENT_KEY[call.name]]
        for call, outcome in zip(step.calls, step.outcomes, strict=True)
        if outcome == Outcome.OK and call.name in CONTENT_KEY
    ]


def _text(view: MemoryView | None) -> str:
    """All texts of a view, one a line."""
    if view is None:
        return ""
    return "\n".join([view.core, *(entry.text for entry in (*view.semantic, *view.episodic))])


@dataclass(frozen=True)
class _Sources:
    """What an entry may use: words and numbers in one form, and whole dates."""

    words: frozenset[str]
    numbers: frozenset[str]
    dates: frozenset[datetime.date]


@lru_cache(maxsize=1 << 10)
def _sources(text: str) -> _Sources:
    words: set[str] = set()
    numbers: set[str] = set()
    for match in _TOKEN.finditer(text):
        if match["word"]:
            words |= _word_forms(match["word"]) | set(re.split("['’-]", _plain(match["word"])))
            continue
        numbers |= _number_forms(match)
        if not _is_time(match["number"]):
            numbers |= _parts(match["number"])
            words |= {run for run in _parts(match["number"]) if run.isalpha()}
    plain = re.sub(r"\W+", " ", _plain(text))
    numbers |= {str(n) for word, n in _IN_WORDS.items() if f" {word} " in f" {plain} "}
    dates = _given_dates(text)
    numbers |= {str(part) for date in dates for part in date if part}
    words |= {
        name for _, month, _ in dates for name in (_MONTHS[month - 1], _MONTHS[month - 1][:3])
    }
    whole = _near_dates(dates, words)
    weekdays = {_WEEKDAYS[date.weekday()] for date in whole}
    words |= weekdays | {day[:3] for day in weekdays}
    return _Sources(frozenset(words), frozenset(numbers), frozenset(whole))


def _given_dates(text: str) -> set[tuple[int, int, int]]:
    """(year, month, day) of the dates in a text; the year 0 where none is given."""
    return {date for _, date in _dates(text)}


def _dates(text: str) -> Iterator[tuple[re.Match, tuple[int, int, int]]]:
    for form in _DATES:
        for match in form.finditer(text):
            name = match["month"].lower()
            short = [month[:3] for month in _MONTHS]
            month = int(name) if name.isdecimal() else 1 + short.index(name[:3])
            if 1 <= month <= 12:
                yield match, (int(match["year"] or 0), month, int(match["day"]))


def _near_dates(dates: set[tuple[int, int, int]], words: set[str]) -> set[datetime.date]:
    """The whole dates, a year of the text taken for those without one, and the days near them that
    the words of the text can mean."""
    years = {year for year, _, _ in dates if year}
    whole = set()
    for year, month, day in dates:
        for y in [year] if year else years:
            try:
                whole.add(datetime.date(y, month, day))
            except ValueError:  # no such day
                continue
    offsets = {-1: "yesterday", 1: "tomorrow"}
    near = set(whole)
    for date, days in product(whole, _NEAR):
        try:
            other = date + datetime.timedelta(days)
        except OverflowError:
            continue
        if offsets.get(days) in words or _WEEKDAYS[other.weekday()] in words:
            near.add(other)
    return near


def _is_known(date: tuple[int, int, int], sources: _Sources) -> bool:
    """Whether a date is given, or its parts are."""
    year, month, day = date
    if any((d.month, d.day) == (month, day) and year in (0, d.year) for d in sources.dates):
        return True
    named = _MONTHS[month - 1] in sources.words or str(month) in sources.numbers
    return named and str(day) in sources.numbers and (not year or str(year) in sources.numbers)


def _stands(match: re.Match, content: str, sources: _Sources) -> bool:
    """Whether a token of the entry needs no source, or has one."""
    if match["number"]:
        if _number_forms(match) & sources.numbers:
            return True
        given = sources.numbers | sources.words
        return not _is_time(match["number"]) and _parts(match["number"]) <= given
    word = match["word"]
    if not word[0].isupper() or not _word_forms(word).isdisjoint(sources.words | _NO_NAMES):
        return True
    pieces = [p for p in re.split("['’-]", _plain(word)) if len(p) > 1]
    if len(pieces) > 1 and sources.words.issuperset(pieces):
        return True
    begins = _SENTENCE.search(content[: match.start()]) is not None
    return begins and _reads_like_a_verb(word, content[match.end() :])


def _is_time(number: str) -> bool:
    """Whether a number is a time or a fraction: its parts mean nothing alone."""
    return re.search(r"\d[:.]\d", number) is not None


def _reads_like_a_verb(word: str, rest: str) -> bool:
    """Whether the first word of a sentence is hardly a name: "Working", "Resides in"."""
    ends = word.endswith(("ing", "ed", "ly"))
    return ends or re.match(rf"\s+{_AFTER_VERBS}\b", rest) is not None


def _plain(word: str) -> str:
    """Lower case, without accents."""
    if word.isascii():
        return word.lower()
    letters = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in letters if not unicodedata.combining(c))


@lru_cache(maxsize=1 << 14)
def _word_forms(word: str) -> frozenset[str]:
    """A word without accents and case, and without possessive, plural and hyphens."""
    whole = _plain(word).replace("’", "'")
    stem = whole.removesuffix("'s").removesuffix("s'")
    forms = {whole, stem, stem.replace("-", "").replace("'", "")}
    forms |= {form.removesuffix(end) for form in set(forms) for end in ("s", "es")}
    return frozenset(form for form in forms if len(form) > 1 or form == whole)


def _number_forms(match: re.Match) -> set[str]:
    """A number or time without the things in which its forms differ: 09:30 and 9.30, 1,250 and
    1250, 4th and 4, 6 pm and 18."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", match["number"].casefold()).replace(":", ".")
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", text)
    half = match["half"]
    if ending := re.fullmatch(r"([\d.]+)([ap])m", text):
        text, half = ending.groups()
    if not re.fullmatch(r"\d+(?:\.\d+)?", text):
        return {text}
    forms = {_shortest(text)}
    hour, _, minute = text.partition(".")
    if half and int(hour) <= 12:
        clock = int(hour) % 12 + 12 * (half.lower() == "p")
        forms.add(_shortest(f"{clock}.{minute}" if minute else str(clock)))
    return forms


def _shortest(number: str) -> str:
    """Decimal digits without zeros at the ends that do not count."""
    whole, _, rest = number.partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")


def _parts(text: str) -> set[str]:
    """The runs of digits and of letters in a token such as 2025-04-12 or LH1234."""
    return {run.lstrip("0") or "0" if run.isdecimal() else run for run in _runs(text)}


def _runs(text: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", _plain(text))
