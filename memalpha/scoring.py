"""The metric of every source: one module for the reward, the evaluation and the tables.

Mem-alpha, section 4 and its released code. A source is a name such as `squad`, or a published
variant of it such as `icl_nlu_8296shot_balance`, `ruler_qa1_197K` or `pubmed-rct`; `family` turns
either into the key of `FAMILIES`. Every metric maps (prediction, gold answers) to [0, 1].
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from memalpha.data import names

ABSTENTION = "abstention"  # kind of a question that the text does not answer


@dataclass(frozen=True)
class Claim:
    """A prediction to be scored: the reader's reply to a question, and the gold answers (at least
    one, none blank). `kind`: type of the question, for a judge that goes by it; empty: unknown."""

    source: str
    question: str
    prediction: str
    answers: tuple[str, ...]
    kind: str = ""


# Replies with yes or no, one a claim, all at once; None where the judge failed.
Judge = Callable[[Sequence[Claim]], list[str | None]]

_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ANSWER_LINE = re.compile(r"answer\s*:[ \t]*([^\n]*)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_YES = re.compile(r"\byes\b", re.IGNORECASE)
_NO = re.compile(r"\bno\b", re.IGNORECASE)


def visible(text: str) -> str:
    """The text after the last `</think>`; an unclosed `<think>` leaves nothing."""
    _, _, after = text.rpartition("</think>")
    return "" if "<think>" in after else after.strip()


def boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{...}` (braces may nest), or None.

    The last, because a solution that corrects itself ends with its final answer; one that is not
    closed was cut off and does not count.
    """
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end].strip()
    return None


def normalize(text: str) -> str:
    """Lower case without punctuation and articles, single spaces (SQuAD, RULER)."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def occurs(gold: str, prediction: str) -> bool:
    """Whether the gold text stands in the prediction, both lower-cased."""
    return gold.strip().lower() in prediction.lower()


def sub_em(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first gold answer occurs in the prediction, lower-cased."""
    return float(occurs(answers[0], prediction))


def share_of_answers(prediction: str, answers: Sequence[str]) -> float:
    """PerLTQA: share of the `;`-separated gold answers that occur in the prediction."""
    parts = [part for part in answers[0].split(";") if part.strip()]
    return sum(occurs(part, prediction) for part in parts) / len(parts) if parts else 0.0


def label_match(prediction: str, answers: Sequence[str]) -> float:
    r"""1 if the content of `\boxed{}` (else all of it) is digits only and equals a gold label."""
    content = boxed(prediction)
    label = prediction.strip() if content is None else content
    digits = label.isascii() and label.isdigit()
    return float(digits and label in [answer.strip() for answer in answers])


def keyword_share(prediction: str, answers: Sequence[str]) -> float:
    """Share of the gold keywords (a tuple, or comma-separated) that occur in the prediction."""
    keywords = [word for answer in answers for word in answer.split(",") if word.strip()]
    return sum(occurs(k, prediction) for k in keywords) / len(keywords) if keywords else 0.0


def ruler_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if a gold answer is a substring, normalised, of the prediction or its `Answer:` line."""
    lines = _ANSWER_LINE.findall(prediction)
    texts = [normalize(text) for text in (prediction, *lines[-1:])]
    golds = [normalize(answer) for answer in answers]
    return float(any(gold and gold in text for gold in golds for text in texts))


def boxed_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the boxed answer (else all of it) equals a gold answer, case and spaces aside."""
    content = boxed(prediction)
    given = " ".join((prediction if content is None else content).lower().split())
    return float(given in [" ".join(answer.lower().split()) for answer in answers])


def all_occur(prediction: str, answers: Sequence[str]) -> float:
    """1 if every gold element occurs in the prediction."""
    return float(all(occurs(answer, prediction) for answer in answers))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    r"""ROUGE-L F1 over lower-cased `\w+` runs, best over the gold answers (Lin, 2004)."""
    words = _WORD.findall(prediction.lower())
    return max(_rouge_l(words, _WORD.findall(answer.lower())) for answer in answers)


def _rouge_l(words: list[str], gold: list[str]) -> float:
    if not Counter(words) & Counter(gold):
        return 0.0
    row = [0] * (len(gold) + 1)  # longest common subsequence of a prefix of words and gold[:j]
    for word in words:
        diagonal = 0
        for j, other in enumerate(gold, start=1):
            best = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], best
    return 2 * row[-1] / (len(words) + len(gold))  # F1 of lcs / words and lcs / gold


_LISTED = re.compile(r"(?:\(?\d{1,3}[.):]|[-*•])\s+")
RECOMMENDED = 5  # items of a list that count


def recall_at_5(prediction: str, answers: Sequence[str]) -> float:
    """MemoryAgentBench, recommendation: share of the gold titles among the first five listed.

    Items stand one a line, or between commas in a single line; number, bullet, quotes and the year
    in brackets are taken off, and titles compared as `normalize` gives them. The benchmark itself
    maps each item to the nearest of its entities by edit distance; here a title has to be right.
    """
    lines = [line for line in prediction.splitlines() if line.strip()]
    items = lines[0].split(",") if len(lines) == 1 else lines
    listed = [line for line in items if _LISTED.match(line.strip())] or items
    given = {_title(item) for item in listed[:RECOMMENDED]}
    golds = {_title(answer) for answer in answers} - {""}
    return len(golds & given) / len(golds) if golds else 0.0


def _title(item: str) -> str:
    return normalize(re.sub(r"\(\d{4}\)", " ", _LISTED.sub("", item.strip(), count=1)))


def verdict(text: str) -> float:
    """LongMemEval: "yes" without "no", as whole words, is 1; NaN where neither stands there: a
    judge that does not decide has failed."""
    text = visible(text)
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    return float(yes and not no) if yes or no else float("nan")


# family -> (what kind of answer is wanted, metric); None: a judge decides.
FAMILIES: dict[str, tuple[str, Callable[[str, Sequence[str]], float] | None]] = {
    "squad": ("retrieval", sub_em),
    "hotpotqa": ("retrieval", sub_em),
    "perltqa": ("retrieval", share_of_answers),
    "lme_train": ("retrieval", None),
    "longmemeval": ("retrieval", None),
    "ruler_qa1": ("retrieval", ruler_match),
    "ruler_qa2": ("retrieval", ruler_match),
    "detectiveqa": ("retrieval", boxed_match),
    "eventqa": ("retrieval", all_occur),
    "infbench_qa": ("retrieval", rouge_l),
    "recsys": ("retrieval", recall_at_5),
    "factconsolidation": ("retrieval", ruler_match),
    "nlu": ("labels", label_match),
    "trec_coarse": ("labels", label_match),
    "trec_fine": ("labels", label_match),
    "pubmed_rct": ("labels", label_match),
    "banking77": ("labels", label_match),
    "clinic150": ("labels", label_match),
    "clinc150": ("labels", label_match),
    "ttl_train": ("labels", label_match),
    "booksum": ("summary", keyword_share),
    "infbench_sum": ("summary", keyword_share),
    "synthetic_facts": ("retrieval", sub_em),
    "synthetic_events": ("retrieval", sub_em),
    "synthetic_updates": ("retrieval", sub_em),
    "synthetic_labels": ("labels", label_match),
    "synthetic_story": ("summary", keyword_share),
}

_INSTRUCTIONS = {
    "retrieval": "",
    "labels": (
        "Decide the label of the text below by the rules in the core memory and the labelled "
        "examples in the semantic memory. Reply with one number, written as \\boxed{number}.\n\n"
    ),
    "summary": "Base your reply on the summary that the core memory holds.\n\n",
}
_CHOICE_INSTRUCTION = "Give your final choice as \\boxed{choice}.\n\n"


@lru_cache
def family(source: str) -> str:
    """Key of `FAMILIES` for a source name, published variants included; ValueError if none."""
    if (name := names.family(source)) in FAMILIES:
        return name
    raise ValueError(f"unknown source {source!r}; known sources: {', '.join(FAMILIES)}")


def category(source: str) -> str:
    """The kind of answer a source wants: "retrieval", "labels" or "summary"."""
    return FAMILIES[family(source)][0]


def instruction(source: str) -> str:
    """Text to put before a question of this source; empty where the question says it all."""
    return (
        _CHOICE_INSTRUCTION if family(source) == "detectiveqa" else _INSTRUCTIONS[category(source)]
    )


def score(
    source: str,
    prediction: str,
    answers: Sequence[str],
    judge: Judge | None = None,
    question: str = "",
) -> float:
    """Score of one prediction, in [0, 1]; see `scores`."""
    if isinstance(answers, str):
        raise ValueError(f"{source}: answers must be a list of strings, got {answers!r}")
    return scores([Claim(source, question, prediction, tuple(answers))], judge)[0]


def scores(
    claims: Sequence[Claim], judge: Judge | None = None, said: dict[int, str] | None = None
) -> list[float]:
    """Score of every claim, in [0, 1]; text up to `</think>` in a prediction does not count.

    Args:
        judge: for the LongMemEval sources only, asked once for all their claims; NaN where it
            failed or said neither yes nor no. Its exceptions are not caught. A prediction of which
            nothing is left is wrong without asking.
        said: gets the judge's replies, by the number of the claim.

    Raises:
        ValueError: an unknown source, no or blank gold answers, a source that needs a judge, or a
            judge that gives another number of replies.
    """
    results, asked = [0.0] * len(claims), {}
    for i, claim in enumerate(claims):
        if not claim.answers or not all(answer.strip() for answer in claim.answers):
            raise ValueError(
                f"{claim.source}: answers must be non-blank strings, got {claim.answers!r}"
            )
        metric = FAMILIES[family(claim.source)][1]
        reply = visible(claim.prediction)
        if metric is not None:
            results[i] = metric(reply, claim.answers)
        elif judge is None:
            raise ValueError(
                f"{claim.source} is scored by a judge: pass judge=, e.g. scoring.recall_judge"
                " offline"
            )
        elif reply:
            asked[i] = replace(claim, prediction=reply)
    if asked:
        replies = judge(list(asked.values()))
        if len(replies) != len(asked):
            raise ValueError(f"judge: {len(asked)} claims but {len(replies)} replies")
        for i, reply in zip(asked, replies, strict=True):
            results[i] = float("nan") if reply is None else verdict(reply)
            if said is not None and reply is not None:
                said[i] = reply
    return results


def recall_judge(claims: Sequence[Claim]) -> list[str]:
    """Offline stand-in for the rubric judge: yes if the prediction holds most of the gold's words.

    "Most" is 80 % of the distinct normalised words of a gold answer: enough for runs without a
    model, not comparable with published LongMemEval figures.
    """
    return ["yes" if _recalls(claim) else "no" for claim in claims]


def _recalls(claim: Claim) -> bool:
    given = set(normalize(claim.prediction).split())
    golds = [set(normalize(answer).split()) for answer in claim.answers]
    return any(gold and len(gold & given) >= 0.8 * len(gold) for gold in golds)
