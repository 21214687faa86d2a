"""Wrong answers made by rule from the gold answers: how many of them does an answer judge accept?

Three kinds: `vague` names the topic of the question and nothing else, `other entity` is the answer
to another question of the same text, `other date` is the gold answer with one date or number
changed. No gold answer stands in any of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memalpha import scoring
from memalpha.metrics import normalize
from memalpha.passages import stem, stems
from memalpha.retrieval.words import split_words
from memalpha.scoring import ABSTENTION, Claim, Judge

VAGUE, ENTITY, DATE = KINDS = ("vague", "other entity", "other date")
MAX_FALSE_ACCEPTS = 0.05  # share of planted answers; a judge that accepts more is not fit
FEW = 20  # planted answers of a kind; fewer say nothing about the kind alone
_MONTHS = (
    "January February March April May June July August September October November December".split()
)
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_COUNTS = "one two three four five six seven eight nine ten eleven twelve".split()
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)})\b")
_YEAR = re.compile(r"(?<![\d.,])([12]\d{3})(?![\d.,]\d|\d)")
_DAY = re.compile(rf"\b({'|'.join(_DAYS)})\b", re.IGNORECASE)
_COUNT = re.compile(
    rf"\b(\d{{1,3}}|{'|'.join(_COUNTS)})(?= (?:second|minute|hour|day|week|month|year|time)s?\b)",
    re.IGNORECASE,
)
_YES_NO = {"yes": "No", "no": "Yes"}
# Kinds of questions whose right reply is that the text does not tell.
_UNANSWERED = (ABSTENTION, "adversarial")


@dataclass(frozen=True)
class JudgeCheck:
    """What a judge said of planted answers and of the gold answers themselves.

    accepted, decided: by kind of planted answer. gold_accepted, gold_decided: of the gold answers
    as replies. undecided: replies that were neither yes nor no, or missing; they count nowhere
    else.
    """

    accepted: dict[str, int]
    decided: dict[str, int]
    gold_accepted: int
    gold_decided: int
    undecided: int

    @property
    def false_accepts(self) -> float:
        """Share of the planted answers that were accepted; NaN where the judge decided on none."""
        decided = sum(self.decided.values())
        return sum(self.accepted.values()) / decided if decided else float("nan")

    @property
    def fit(self) -> bool:
        """Whether few enough were accepted, of all and of each kind with enough planted answers: a
        judge that cannot tell dates is not fit, however many vague answers it refuses."""
        enough = [kind for kind in KINDS if self.decided[kind] >= FEW]
        rates = [self.accepted[kind] / self.decided[kind] for kind in enough]
        return all(rate <= MAX_FALSE_ACCEPTS for rate in (self.false_accepts, *rates))  # not of NaN


def check_judge(judge: Judge, texts: Sequence[Sequence[Claim]]) -> JudgeCheck:
    """Asks a judge about planted answers and gold answers, in one call.

    Args:
        texts: the questions of each instance; their predictions are not looked at.

    Raises ValueError if the judge gives another number of replies.
    """
    planted = [item for claims in texts for item in plant(claims)]
    golds = [replace(c, prediction=c.answers[0]) for claims in texts for c in claims]
    golds = [claim for claim in golds if claim.kind not in _UNANSWERED]
    asked = [claim for _, claim in planted] + golds
    replies = judge(asked)
    if len(replies) != len(asked):
        raise ValueError(f"judge: {len(asked)} claims but {len(replies)} replies")
    verdicts = [float("nan") if r is None else scoring.verdict(r) for r in replies]
    kinds = [kind for kind, _ in planted] + [""] * len(golds)

    def count(kind: str, *wanted: float) -> int:
        return sum(k == kind and v in wanted for k, v in zip(kinds, verdicts, strict=True))

    accepted = {kind: count(kind, 1.0) for kind in KINDS}
    decided = {kind: count(kind, 0.0, 1.0) for kind in KINDS}
    undecided = sum(v != v for v in verdicts)  # NaN
    return JudgeCheck(accepted, decided, count("", 1.0), count("", 0.0, 1.0), undecided)


def plant(claims: Sequence[Claim]) -> list[tuple[str, Claim]]:
    """Wrong answers to the questions of one text, as (kind, claim with it for a prediction).

    A question gets those that can be made of it: one without a date or number in its answer has no
    `other date`, one whose text has no other answer of the same form no `other entity`.
    """
    planted = []
    for place, claim in enumerate(claims):
        made = {
            VAGUE: vague(claim.question, claim.answers),
            ENTITY: other_entity(place, claims),
            DATE: other_date(claim.answers[0]) if claim.kind not in _UNANSWERED else "",
        }
        planted += [
            (kind, replace(claim, prediction=text))
            for kind, text in made.items()
            if text and not _says(text, claim)
        ]
    return planted


def _says(text: str, claim: Claim) -> bool:
    """Whether a gold answer stands in the text, or the text only leaves words of it out."""
    words = set(normalize(text).split())
    golds = [normalize(answer) for answer in claim.answers]
    return any(gold in normalize(text) or words <= set(gold.split()) for gold in golds)


def vague(question: str, answers: Sequence[str]) -> str:
    """A reply that repeats the topic of a question, without the words of its answers; empty where
    nothing is left of the topic."""
    asked = stems(question).content
    golds = frozenset().union(*(stems(answer).all for answer in answers))
    words = [w for w in split_words(question) if (s := stem(w.lower())) in asked and s not in golds]
    return f"Something to do with {' '.join(words)}." if words else ""


def other_entity(place: int, claims: Sequence[Claim]) -> str:
    """The answer to another of the questions, of the same form and without a common word of
    content; of several the one of the nearest length, and then the nearest that follows. "No" for
    "yes". Empty where there is none."""
    claim = claims[place]
    gold = claim.answers[0]
    unanswered = claim.kind in _UNANSWERED
    if not unanswered and (flipped := _YES_NO.get(normalize(gold))):
        return flipped
    taken = frozenset() if unanswered else stems(" ".join(claim.answers)).content
    candidates = []
    for step in range(1, len(claims)):
        other = claims[(place + step) % len(claims)]
        answer = other.answers[0]
        same_form = unanswered or _form(answer) == _form(gold)
        if other.kind in _UNANSWERED or not same_form or stems(answer).content & taken:
            continue
        if other.question != claim.question and stems(answer).content:
            candidates.append((abs(len(answer.split()) - len(gold.split())), step, answer))
    return min(candidates)[2] if candidates else ""


def _form(answer: str) -> str:
    if other_date(answer):
        return "date"
    return "number" if re.search(r"\d", answer) else "words"


def other_date(answer: str) -> str:
    """The answer with its first month, else year, day of the week or length of time changed; empty
    where it has none of them."""
    for pattern, change in (
        (_MONTH, lambda word: _later(word, _MONTHS, 5)),
        (_YEAR, lambda word: str(int(word) + 2)),
        (_DAY, lambda word: _later(word, _DAYS, 3)),
        (_COUNT, lambda w: str(int(w) + 2) if w.isdigit() else _later(w, _COUNTS, 2)),
    ):
        if match := pattern.search(answer):
            start, end = match.span(1)
            return answer[:start] + change(match[1]) + answer[end:]
    return ""


def _later(word: str, names: Sequence[str], steps: int) -> str:
    """The name that stands so many places further on, in the case of the word."""
    lower = [name.lower() for name in names]
    name = names[(lower.index(word.lower()) + steps) % len(names)]
    return name.capitalize() if word[0].isupper() else name.lower()
