"""Days as people write them: at the head of a chat, and within a sentence."""

import datetime
from dataclasses import dataclass

import numpy as np

_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth"
    " fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first"
    " twenty-second twenty-third twenty-fourth twenty-fifth twenty-sixth twenty-seventh"
    " twenty-eighth twenty-ninth thirtieth thirty-first"
).split(" ")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Day:
    """The day of a chunk: the line at its head, and the date as it stands in that line.

    Both are empty for a chunk without a date.
    """

    date: datetime.date
    clock: str
    header: str = ""
    stated: str = ""


def clock(rng: np.random.Generator) -> str:
    return f"{rng.integers(7, 24):02d}:{rng.integers(60):02d}"


def nth(number: int) -> str:
    """1 -> 1st."""
    if 10 < number % 100 < 14:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def head(rng: np.random.Generator, date: datetime.date) -> Day:
    """A day with a line for the head of a chat, in one of the forms in use."""
    d, month, year, time = date.day, MONTHS[date.month - 1], date.year, clock(rng)
    weekday = WEEKDAYS[date.weekday()]
    word = _ORDINALS[d - 1]
    forms = (
        (f"[{weekday}, {d} {month} {year}]", f"{d} {month} {year}"),
        (f"{date.isoformat()} {time}", date.isoformat()),
        (f"[{date.isoformat()} {time}]", date.isoformat()),
        (f"{d} {month} {year}", f"{d} {month} {year}"),
        (f"{month} {d}, {year}, {time}", f"{month} {d}, {year}"),
        (f"--- {weekday}, {month} {nth(d)} {year} ---", f"{month} {nth(d)} {year}"),
        (f"{weekday[:3]} {d} {month[:3]} {year}, {time}", f"{d} {month[:3]} {year}"),
        (f"[{date:%d.%m.%Y}, {time}]", f"{date:%d.%m.%Y}"),
        (f"Date: {date:%Y/%m/%d} ({weekday[:3]})", f"{date:%Y/%m/%d}"),
        (f"Today is {weekday}, the {nth(d)} of {month} {year}.", f"the {nth(d)} of {month} {year}"),
        (f"{weekday}, the {word} of {month} {year}", f"the {word} of {month} {year}"),
        (f"# {weekday} {d} {month} {year}", f"{d} {month} {year}"),
    )
    header, stated = forms[rng.integers(len(forms))]
    return Day(date, time, header, stated)


def day_month(rng: np.random.Generator, date: datetime.date) -> str:
    """A day and its month, without the year."""
    d, month = date.day, MONTHS[date.month - 1]
    forms = (f"the {nth(d)} of {month}", f"{d} {month}", f"{month} {d}", f"{month} {nth(d)}")
    return forms[rng.integers(len(forms))]


def coming(rng: np.random.Generator, date: datetime.date, day: Day) -> str:
    """A later day as somebody names it on `day`; follows the word "on"."""
    d, month, weekday = date.day, MONTHS[date.month - 1], WEEKDAYS[date.weekday()]
    forms = [day_month(rng, date)] * 6
    forms += [f"{d} {month} {date.year}", date.isoformat(), f"{month} {d}, {date.year}"]
    forms += [f"{weekday}, {d} {month}", f"{weekday} the {nth(d)} of {month}"]
    if day.stated and (date - day.date).days < 7:
        forms += [weekday] * 8
    elif day.stated and (date - day.date).days < 25:
        forms += [f"{weekday} the {nth(d)}"] * 3
    return forms[rng.integers(len(forms))]
