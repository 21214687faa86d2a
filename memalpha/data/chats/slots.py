"""The values of a fact, drawn when a template first asks for them."""

import datetime
from collections.abc import Sequence

import numpy as np

from memalpha.data.chats.dates import MONTHS, WEEKDAYS, Day, coming, day_month
from memalpha.data.chats.words import pool, third_person, with_article

TODAY = (" today", " this morning", " this afternoon")
_WHEN = (*TODAY, "", "", "", " yesterday", " last week", " two days ago", " at the weekend")
_CURRENCIES = (
    "€{}", "${}", "£{}", "{} euros", "{} dollars", "{} pounds", "{} CHF", "{} kr", "{} €", "{} EUR",
)  # fmt: skip


class Subject:
    """Somebody whom facts are about: the user, or a person with a name, and their relatives."""

    def __init__(self, name: str = ""):
        self.is_user = not name
        self.name = name or "the user"
        self.relatives: dict[str, str] = {}  # relation -> name
        self.told: set[str] = set()  # names of the kinds of facts that are taken

    def words(self) -> dict[str, str]:
        """How a note or a question names them."""
        whose, upper = f"{self.name}'s", self.name[0].upper() + self.name[1:]
        return {"who": self.name, "whose": whose, "Who": upper, "Whose": f"{upper}'s"}


class Draws:
    """Draws values of one split; a value of a list comes again when all others have come."""

    def __init__(self, rng: np.random.Generator, split: str):
        self.rng, self._split = rng, split
        self.currency = self.pick(_CURRENCIES)  # one a stream
        self._unused: dict[str, list[str]] = {}

    def pick(self, options: Sequence):
        return options[self.rng.integers(len(options))]

    def word(self, slot: str) -> str:
        """The next value of a list of words.toml."""
        unused = self._unused.get(slot)
        if not unused:
            values = pool(slot, self._split)
            unused = self._unused[slot] = [values[i] for i in self.rng.permutation(len(values))]
        return unused.pop()

    def relative(self, subject: Subject) -> tuple[str, str]:
        """A relation and a name; a relative of a subject keeps the name."""
        kin, names = self.pick((("kin_f", "women"), ("kin_m", "men")))
        relation = self.pick(pool(kin, self._split))
        if relation not in subject.relatives:
            subject.relatives[relation] = self.word(names)
        return relation, subject.relatives[relation]

    def person(self) -> str:
        return self.word(self.pick(("women", "men")))


class Values(dict):
    """Slot -> value, for `str.format_map`; `day`: the day on which the fact is told."""

    def __init__(self, draws: Draws, subject: Subject, day: Day):
        super().__init__(subject.words())
        self._draws, self._subject, self._day = draws, subject, day
        self.former: tuple[str, ...] = ()  # values that were corrected
        self._dates: list[datetime.date] = []

    def corrected(self, slot: str, day: Day) -> "Values":
        """A copy told on another day, with a new value of one slot; {old} is the former one."""
        other = Values(self._draws, self._subject, day)
        kept = {k: v for k, v in self.items() if k not in (slot, "when") and k[:2] != "a_"}
        other.update(kept)
        other._dates = list(self._dates)
        other["old"] = self[slot]
        other.former = (*self.former, self[slot])
        while other[slot] in other.former:
            del other[slot]
        return other

    def __missing__(self, slot: str) -> str:
        if slot.startswith("a_"):
            self[slot] = with_article(self[slot.removeprefix("a_")])
        elif slot in ("kin", "rel", "name"):
            self["rel"], self["name"] = self._draws.relative(self._subject)
            self["kin"] = f"{self['rel']} {self['name']}"
        elif slot in ("do", "does"):
            self["verb"], self["object"] = self._draws.word("pursuit").split("|")
            self["do"] = f"{self['verb']} {self['object']}"
            self["does"] = f"{third_person(self['verb'])} {self['object']}"
        elif slot == "did":
            self["verb"], past, self["object"] = self._draws.word("deed").split("|")
            self["did"] = f"{past} {self['object']}"
        elif slot in ("thing", "state"):
            self["thing"], self["state"] = self._draws.word("state").split("|")
        elif slot in ("date", "birthday"):
            self[slot] = self._date(slot)
        elif slot in GENERATED:
            self[slot] = GENERATED[slot](self._draws)
        else:
            self[slot] = self._draws.word(slot)
        return self[slot]

    def _date(self, slot: str) -> str:
        """A date that the fact did not have before."""
        rng, first = self._draws.rng, self._day.date
        latest = 45 if slot == "date" else 365
        while (date := first + datetime.timedelta(int(rng.integers(2, latest)))) in self._dates:
            pass
        self._dates.append(date)
        return coming(rng, date, self._day) if slot == "date" else day_month(rng, date)


def _digits(draws: Draws, count: int) -> str:
    return "".join(map(str, draws.rng.integers(10, size=count)))


def _letters(draws: Draws, count: int) -> str:
    return "".join(draws.pick("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(count))


def _number(draws: Draws, low: int, high: int) -> str:
    return str(draws.rng.integers(low, high + 1))


def _time(draws: Draws) -> str:
    hour, minute = draws.rng.integers(8, 21), draws.pick((0, 5, 10, 15, 20, 30, 40, 45, 50))
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    forms = (f"{hour}:{minute:02d}", f"{hour}:{minute:02d}", f"{twelve}:{minute:02d} {half}")
    return draws.pick((*forms, f"{twelve} {half}"))


def _money(draws: Draws, low: int = 12, high: int = 2400) -> str:
    amount = int(np.exp(draws.rng.uniform(np.log(low), np.log(high))))
    cents = draws.pick(("", "", f".{draws.pick(('50', '90', '99', '25'))}")) if amount < 200 else ""
    return draws.currency.format(f"{amount:,}{cents}")


def _salary(draws: Draws) -> str:
    thousands = draws.rng.integers(28, 140)
    return draws.currency.format(f"{thousands},{draws.pick(('000', '000', '200', '500'))}")


def _address(draws: Draws) -> str:
    street = f"{draws.word('street')} {draws.word('road')}"
    return f"{_number(draws, 2, 190)} {street}"


def _phone(draws: Draws) -> str:
    three, four = (lambda: _digits(draws, 3)), (lambda: _digits(draws, 4))
    return draws.pick((f"0{three()} {three()} {four()}", f"555-{four()}", f"+4{three()} {four()}"))


def _order(draws: Draws) -> str:
    return draws.pick((f"{_letters(draws, 2)}-{_digits(draws, 5)}", _digits(draws, 7)))


def _plate(draws: Draws) -> str:
    numbers = (
        f"{_letters(draws, 2)} {_digits(draws, 3)}",
        f"{_digits(draws, 2)} {_letters(draws, 3)}",
    )
    return f"{_letters(draws, 2)} {draws.pick(numbers)}"


# What stands in no list.
GENERATED = {
    "person": Draws.person,
    "full": lambda d: f"{d.person()} {d.word('last')}",
    "when": lambda d: d.pick(_WHEN),
    "time": _time,
    "weekday": lambda d: d.pick(WEEKDAYS),
    "month": lambda d: d.pick(MONTHS),
    "money": _money,
    "monthly": lambda d: _money(d, 6, 120),
    "price": lambda d: _money(d, 60, 2400),
    "rent": lambda d: _money(d, 420, 2600),
    "salary": _salary,
    "address": _address,
    "phone": _phone,
    "age": lambda d: _number(d, 19, 94),
    "years": lambda d: _number(d, 2, 17),
    "nights": lambda d: _number(d, 3, 21),
    "number": lambda d: _number(d, 2, 480),
    "level": lambda d: _number(d, 1, 9),
    "size": lambda d: _number(d, 35, 48),
    "code": lambda d: _digits(d, d.pick((4, 4, 5, 6))),
    "dose": lambda d: f"{d.pick((5, 10, 15, 20, 25, 40, 50, 75, 100, 150, 200, 250, 400, 500))} mg",
    "km": lambda d: f"{d.rng.integers(3, 42)}.{d.rng.integers(1, 10)} km",
    "flight": lambda d: f"{_letters(d, 2)}{d.pick(('', ' '))}{d.rng.integers(100, 10_000)}",
    "seat": lambda d: f"{d.rng.integers(1, 99)}{d.pick('ABCDEF')}",
    "order": _order,
    "plate": _plate,
    "password": lambda d: f"{d.word('street').lower()}{d.pick(('-', '_', ''))}{_digits(d, 4)}",
}  # fmt: skip
