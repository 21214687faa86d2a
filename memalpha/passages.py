"""Text analysis of the offline reader: passages, light stemming, term weights, labelled examples.

Everything here depends on a string alone and is cached by it: the same entries are read for every
question, and most of them again at the next training step.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from memalpha.retrieval.words import has_no_spaces, normalize, split_pieces, split_words

_ABBREVIATIONS = ("Mr", "Ms", "Dr", "St", "No", "vs", "Mrs", "Prof")
_NO_STOP = "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS) + r"(?<!\b[A-Z]\.)"
# The stops that need no space behind them, and the brackets and quotes that may close after them.
_STOPS, _CLOSERS = "。！？；｡။។", "”’」』）》】"
_BREAK = re.compile(
    rf"(?<=[.!?؟۔।॥]){_NO_STOP}\s+|(?<=[;؛])\s+|\s*\n\s*"
    rf"|(?<=[{_STOPS}])(?![{_STOPS}{_CLOSERS}])\s*|(?<=[{_STOPS}][{_CLOSERS}])\s*"
)
_STOP_WORDS = frozenset(
    """a an and any are as at be been being but by can could did do does for from had has have he
    her hers him his how if in into is it its me my no not now of on or our she should so some s t
    than that the their them then there these they this those to us was we were what when where
    which who whom whose why will with would you your""".split()
)
# What stop words are to English, in Chinese, Japanese and Thai: question words and particles.
_STOP_PHRASES = re.compile(
    "|".join(
        """什么时候 什麼時候 为什么 為什麼 什么 什麼 哪里 哪裡 哪儿 哪个 哪個 哪些 哪 怎么 怎麼 怎样
        怎樣 多少 请问 請問 谁 誰 吗 嗎 呢 的 了 是 在
        でしょうか ですか ました ます です いつ どこ どの どれ なぜ どう 何
        は が の を に で と も か
        เมื่อไหร่ เมื่อไร ที่ไหน อย่างไร อะไร ทำไม ใคร ของ คือ เป็น ที่ ใน และ""".split()
    )
)
_IRREGULAR = {
    "ate": "eat", "became": "become", "began": "begin", "bought": "buy", "broke": "break",
    "brought": "bring", "built": "build", "came": "come", "caught": "catch", "chose": "choose",
    "drank": "drink", "drove": "drive", "fell": "fall", "felt": "feel", "flew": "fly",
    "found": "find", "gave": "give", "got": "get", "grew": "grow", "held": "hold", "kept": "keep",
    "knew": "know", "left": "leave", "led": "lead", "lost": "lose", "made": "make", "met": "meet",
    "paid": "pay", "ran": "run", "said": "say", "sang": "sing", "sat": "sit", "saw": "see",
    "sent": "send", "slept": "sleep", "sold": "sell", "spent": "spend", "spoke": "speak",
    "swam": "swim", "taught": "teach", "thought": "think", "told": "tell", "took": "take",
    "went": "go", "won": "win", "wore": "wear", "wrote": "write",
}  # fmt: skip


@dataclass(frozen=True)
class Stems:
    """Terms of a text: all of them, those with content, and those written with a capital."""

    all: frozenset[str]
    content: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True)
class Passage:
    """A sentence or line of a memory."""

    text: str
    stems: Stems


@dataclass(frozen=True)
class LabelExample:
    """A text, or the name of a class, with its label."""

    text: str
    label: int
    stems: Stems


@lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
    """A lower-cased word without plural, -ed and -ing endings; irregular past tenses as present.

    The result need not be a word, only the same for all forms: moves, moved, moving -> mov.
    """
    word = _IRREGULAR.get(word, word)
    if not word.isalpha():
        return word.replace("/", "-")  # 2024/01/07 is 2024-01-07
    if len(word) > 3:
        word = _without_ending(word)
    return word[:-1] + "i" if word.endswith("y") else word  # city and citi(es) agree


def _without_ending(word: str) -> str:
    if word.endswith(("ies", "ied")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3:
            doubled = len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz"
            return root[:-1] if doubled else root
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


@lru_cache(maxsize=1 << 17)
def stems(text: str) -> Stems:
    """Stems of a text. Of scripts without spaces the terms are those of `retrieval.words`.

    A date, time or number with inner marks is one term, so that dates that share a year differ.
    """
    terms = [(stem(word.lower()), word) for word in split_words(text, whole_numbers=True)]
    telling = terms
    if has_no_spaces(text):
        cut = _STOP_PHRASES.sub(" ", normalize(text))
        telling = [(stem(word.lower()), word) for word in split_words(cut, whole_numbers=True)]
    content = [(term, word) for term, word in telling if word.lower() not in _STOP_WORDS]
    return Stems(
        frozenset(term for term, _ in terms),
        frozenset(term for term, _ in content),
        frozenset(term for term, word in content if word[0].isupper()),
    )


@lru_cache(maxsize=1 << 16)
def passages(text: str) -> tuple[Passage, ...]:
    """The sentences and lines of a text, in order."""
    parts = [part.strip() for part in _BREAK.split(text)]
    return tuple(Passage(part, stems(part)) for part in parts if part)


def idf(terms: Collection[str], documents: Sequence[Collection[str]]) -> dict[str, float]:
    """log(1 + N / n) for every term that n > 0 of the N documents hold; in a fixed order.

    Never below log 2: a term that all passages share still counts against a passage without it.
    """
    size = len(documents)
    counts = {term: sum([term in document for document in documents]) for term in sorted(terms)}
    return {term: math.log1p(size / count) for term, count in counts.items() if count}


def best_window(text: str, weights: dict[str, float], max_words: int) -> tuple[str, int]:
    """The run of at most max_words words with most weight, and how many words are left over.

    Of equal runs the middle one: what surrounds the matched words is what is asked for. In scripts
    without spaces two letters are a word (`split_pieces`).
    """
    words = split_pieces(text)
    if len(words) <= max_words:
        return "".join(words).strip(), max_words - len(words)
    totals = [0.0]
    for word in words:
        totals.append(totals[-1] + sum(weights.get(term, 0.0) for term in sorted(stems(word).all)))
    starts = range(len(words) - max_words + 1)
    gains = [totals[start + max_words] - totals[start] for start in starts]
    best = max(gains) - 1e-9  # the totals are sums in another order
    equal = [start for start in starts if gains[start] >= best]
    start = equal[len(equal) // 2]
    return "".join(words[start : start + max_words]).strip(), 0


# ---------------------------------------------------------------------------- labelled examples

_LABEL_QUESTION = re.compile(r"\s*what\s+(?:is|are)\s+the\s+labels?\b.*\Z", re.I | re.S)
_TEXT_TAG = r"(?:sentence|sample|text|query|question|utterance|example|input)"
_LEAD = re.compile(rf"^\s*[-*•]?\s*(?:{_TEXT_TAG}\s*:\s*)?", re.I)
_TAGGED = re.compile(
    rf"{_TEXT_TAG}\s*:\s*(?P<text>.+?)[\s,;|]*\b(?:labels?|class|category)\s*[:=]?\s*(?P<label>\d{{1,4}})\b",
    re.I | re.S,
)
_TIE = r"(?:->|=>|→|=|:|：)"
_FORMS = tuple(
    re.compile(form, re.I)
    for form in (
        rf"^labels?\s*(?P<label>\d{{1,4}})\s*(?:{_TIE}|-|is|means|stands for)?\s*(?P<text>.+)$",
        r"^(?P<text>.+?)\W{0,5}\b(?:label|labels|class)\W{0,3}(?P<label>\d{1,4})\W*$",
        rf"^(?P<text>.*\S)\s*(?<![\d]){_TIE}\s*(?P<label>\d{{1,4}})\W*$",
        rf"^(?P<label>\d{{1,4}})\s*(?:{_TIE}|[.)]|\s-|means|is\b)\s*(?P<text>.+)$",
        r"^(?P<text>.+?)[\s,]+[\[(]?(?P<label>\d{1,4})\W*$",
    )
)
# Rules often stand in one line: "Labels: 0 = music, 1 = travel; label 2: mail".
_RULE_BREAK = re.compile(
    rf"\s*\n\s*|;\s+|[,.:]\s+(?=(?:labels?\s*)?\d{{1,4}}\s*(?:{_TIE}|means))", re.I
)


def strip_label_question(question: str) -> str:
    """The text to be labelled, without its tag and the question after it."""
    return _LEAD.sub("", _LABEL_QUESTION.sub("", question), count=1).strip()


@lru_cache(maxsize=1 << 16)
def label_examples(text: str) -> tuple[LabelExample, ...]:
    """Labelled examples in free forms, and rules such as "3 = play music", in order.

    Forms: "Sentence: x Label: 3" (any number of them), and one a line or between semicolons
    "x -> 3", "x = 3", "x (label 3)", "x 3", "label 3: x", "3 = x".
    """
    tagged = list(_TAGGED.finditer(text))
    if tagged:
        return tuple(_example(match) for match in tagged)
    lines = [_LEAD.sub("", line, count=1).strip() for line in _RULE_BREAK.split(text)]
    matches = [next(filter(None, (form.match(line) for form in _FORMS)), None) for line in lines]
    return tuple(_example(match) for match in matches if match)


def _example(match: re.Match) -> LabelExample:
    text = match["text"].strip()
    return LabelExample(text, int(match["label"]), stems(text))
