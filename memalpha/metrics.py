"""The metrics of answers: pure functions of (prediction, gold answers) to [0, 1].

`memalpha.scoring` assigns them to the sources. Texts are compared after `fold`, which makes
different encodings of the same characters equal. docs/evaluation.md compares each metric with its
published definition.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

# Full-width forms (U+FF01 to U+FF5E) and typographic quotes and dashes, to their ASCII.
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ASCII |= dict.fromkeys(map(ord, "‘’‚‛′"), "'") | dict.fromkeys(map(ord, "“”„‟″«»"), '"')
_ASCII |= dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ANSWER_LINE = re.compile(r"answer\s*[:：][ \t]*([^\n]*)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{(.*)\}")
_BETWEEN_KEYWORDS = re.compile(r",\s+|，\s*")  # numbers never contain a full-width comma
_AROUND = "\"'`*$ "  # quotes and marks of emphasis that a model puts around its answer
# A number in a sentence, with its sign or fraction: -1.5, 1,000, 17:30, 3-4; not the 5 of "v5".
_NUMBER = re.compile(r"(?<![a-z\d_])-?\d+(?:[-.,:/]\d+)*(?![a-z\d_]|[-.,:/]\d)")
_LABEL = re.compile(r"(?:(?:label|answer)s?[\"'`* ]*:[\"'`* ]*)?(\d+)")


def fold(text: str) -> str:
    """The text normalised for comparison: lower case, NFC, single spaces, and ASCII in place of
    full-width forms and of typographic quotes and dashes."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_ASCII).lower().split())


def boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{...}` (braces may nest), or None.

    The last one counts, because a solution that corrects itself ends with its final answer. A box
    that is not closed was cut off and does not count.
    """
    spans = _box_spans(text)
    return text[slice(*spans[-1])].strip() if spans else None


def through_first_box(text: str) -> str:
    r"""The text up to the end of its first closed `\boxed{...}`; the whole text without one."""
    spans = _box_spans(text)
    return text[: spans[0][1] + 1] if spans else text


def _box_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of the content of every closed box, in the order in which they open."""
    starts = {match.end() for match in _BOXED.finditer(text)}
    opened: list[int] = []
    spans = []
    for place, character in enumerate(text if starts else ""):
        if character == "{":
            opened.append(place + 1)
        elif character == "}" and opened and (start := opened.pop()) in starts:
            spans.append((start, place))
    return sorted(spans)


def normalize(text: str) -> str:
    """Lower case without punctuation and articles, single spaces (SQuAD, RULER)."""
    return " ".join(_ARTICLE.sub(" ", fold(text).translate(_PUNCTUATION)).split())


def occurs(gold: str, prediction: str) -> bool:
    """Whether the gold text is a substring of the prediction, both after `fold`."""
    return fold(gold) in fold(prediction)


def sub_em(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first gold answer occurs in the prediction."""
    return float(occurs(answers[0], prediction))


def share_of_answers(prediction: str, answers: Sequence[str]) -> float:
    """PerLTQA: share of the `;`-separated parts of the first gold answer that occur."""
    return _share([part for part in re.split("[;；]", answers[0]) if part.strip()], prediction)


def keyword_share(prediction: str, answers: Sequence[str]) -> float:
    """Share of the gold keywords that occur in the prediction.

    Several gold answers are a list of keywords. A single one is split at a comma followed by a
    space, so that numbers such as 10,000 stay whole.
    """
    keywords = _BETWEEN_KEYWORDS.split(answers[0]) if len(answers) == 1 else answers
    return _share([word.strip(", ") for word in keywords if word.strip(", ")], prediction)


def all_occur(prediction: str, answers: Sequence[str]) -> float:
    """1 if every gold element occurs in the prediction."""
    return float(all(occurs(answer, prediction) for answer in answers))


def _share(parts: Sequence[str], prediction: str) -> float:
    return sum(occurs(part, prediction) for part in parts) / len(parts) if parts else 0.0


def label_match(prediction: str, answers: Sequence[str]) -> float:
    r"""1 if the content of `\boxed{}`, or the only number of a reply without a box, is the number
    of a gold label.

    In a box the number may be in quotes and follow `Label:` or `Answer:`; any other word gives 0.
    A reply without a box may say it in a sentence, and more than once; one that names several
    numbers has not decided.
    """
    label = _number(prediction)
    return float(label is not None and label in map(_number, answers))


def _number(text: str) -> str | None:
    """The decimal digits, in ASCII, of the number that a text decides on; else None."""
    if _BOXED.search(text):
        match = _LABEL.fullmatch(_final_answer(text)) if boxed(text) is not None else None
        numbers = {match[1]} if match else set()
    else:
        numbers = set(_NUMBER.findall(fold(text)))
    number = numbers.pop() if len(numbers) == 1 else ""
    if not number.isdecimal():
        return None
    return "".join(str(unicodedata.decimal(digit)) for digit in number)


def boxed_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the boxed answer, or the whole reply without a box, equals a gold answer, apart from
    case, quotes and spaces."""
    choice = _final_answer(prediction)
    return float(choice != "" and choice in map(_final_answer, answers))


def _final_answer(text: str) -> str:
    """The boxed content, or the whole text, without surrounding text commands and quotes."""
    content = boxed(text)
    answer = fold(text if content is None else content).strip(_AROUND)
    command = _TEXT_COMMAND.fullmatch(answer)
    return command[1].strip(_AROUND) if command else answer


def ruler_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if a gold answer is a substring, normalised, of the prediction or of its answer line."""
    texts = [normalize(text) for text in (prediction, answer_line(prediction))]
    golds = [normalize(answer) for answer in answers]
    return float(any(gold and gold in text for gold in golds for text in texts))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F1 of stemmed words (Lin, 2004; the `rouge-score` package, as in MemoryAgentBench).

    The maximum over the gold answers, and over the whole prediction and its answer line.
    """
    texts = (fold(prediction), fold(answer_line(prediction)))
    golds = [fold(answer) for answer in answers]
    scorers = [_rouge_scorer(re.search("[a-z0-9]", gold) is not None) for gold in golds]
    return max(
        float(scorer.score(gold, text)["rougeL"].fmeasure)
        for gold, scorer in zip(golds, scorers, strict=True)
        for text in texts
    )


@lru_cache
def _rouge_scorer(latin: bool):
    """The scorer for gold answers with or without Latin letters and digits: the package ignores all
    other characters, so answers without any are compared by unstemmed words."""
    from rouge_score import (
        rouge_scorer,
    )  # imported here: it takes a second, and only this metric needs it

    tokenizer = None if latin else SimpleNamespace(tokenize=_WORD.findall)
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=latin, tokenizer=tokenizer)


def stemmed_f1(prediction: str, answers: Sequence[str]) -> float:
    """LoCoMo: F1 of the stemmed words, best over the gold answers; articles, "and" and punctuation
    do not count, a word that both have twice counts twice."""
    return max(_stemmed_f1(prediction, answer) for answer in answers)


def stemmed_f1_of_parts(prediction: str, answers: Sequence[str]) -> float:
    """LoCoMo, multi-hop: a gold answer is a list between commas. The mean over its parts of the F1
    with the nearest part of the prediction."""
    given = prediction.split(",")
    return max(
        sum(max(_stemmed_f1(part, gold) for part in given) for gold in parts) / len(parts)
        for parts in (answer.split(",") for answer in answers)
    )


def stemmed_f1_of_first(prediction: str, answers: Sequence[str]) -> float:
    """LoCoMo, open-domain: F1 with what stands before the first `;`, behind which are reasons."""
    return stemmed_f1(prediction, [answer.split(";")[0] for answer in answers])


def says_not_mentioned(prediction: str, answers: Sequence[str]) -> float:
    """LoCoMo, adversarial: 1 if the reply says that the text does not tell, in one of two ways."""
    return float(any(occurs(said, prediction) for said in _ABSTAINS))


_ABSTAINS = ("no information available", "not mentioned")
_UNSTEMMED = re.compile(r"\b(?:a|an|the|and)\b")


def _stemmed_f1(prediction: str, gold: str) -> float:
    given, wanted = Counter(_stems(prediction)), Counter(_stems(gold))
    same = (given & wanted).total()
    return 2 * same / (given.total() + wanted.total()) if same else 0.0


def _stems(text: str) -> list[str]:
    words = _UNSTEMMED.sub(" ", fold(text).translate(_PUNCTUATION)).split()
    return [_stem(word) for word in words]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _porter().stem(word)


@lru_cache(maxsize=1)
def _porter():
    from nltk.stem.porter import PorterStemmer  # imported here: it takes a second

    return PorterStemmer()


def answer_line(prediction: str) -> str:
    """The rest of the line after the last `Answer:`; without one, the first line of the text."""
    lines = _ANSWER_LINE.findall(prediction) or prediction.strip().splitlines()[:1] or [""]
    return lines[-1]


_LISTED = re.compile(r"(?:\(?\d{1,3}[.):]|[-*•])\s+")
_BETWEEN_TITLES = re.compile(r"(?<!\d),|,(?!\d)")  # any comma but that of "10,000 BC"
RECOMMENDED = 5  # only the first items of a list count


def recall_at_5(prediction: str, answers: Sequence[str]) -> float:
    """MemoryAgentBench, recommendation: share of the gold titles among the first five listed.

    The items are the lines, or the parts between commas of a single line. Number, bullet, quotes
    and the year in brackets are removed, and titles are compared after `normalize`. The benchmark
    itself maps each item to the nearest of its entities by edit distance; here titles must match.
    """
    lines = [line for line in prediction.splitlines() if line.strip()]
    items = _BETWEEN_TITLES.split(fold(lines[0])) if len(lines) == 1 else lines
    listed = [line for line in items if _LISTED.match(line.strip())] or items
    given = {_title(item) for item in listed[:RECOMMENDED]}
    golds = {_title(answer) for answer in answers} - {""}
    return len(golds & given) / len(golds) if golds else 0.0


def _title(item: str) -> str:
    return normalize(re.sub(r"\(\d{4}\)", " ", _LISTED.sub("", fold(item), count=1)))
