"""The metric of every source: one module for the reward, the evaluation and the tables.

Mem-alpha, section 4 and its released code; docs/evaluation.md has a table of every metric, its
published definition and where ours differs. A source is a name such as `squad`, or the name of a
published variant of it such as `icl_nlu_8296shot_balance` or `ruler_qa1_197K`; `family` turns
either into the key of `METRICS`. The metrics themselves are in `memalpha.metrics`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from memalpha.data import names
from memalpha.data.locomo import NOT_MENTIONED
from memalpha.metrics import (
    all_occur,
    boxed_match,
    fold,
    keyword_share,
    label_match,
    normalize,
    recall_at_5,
    rouge_l,
    ruler_match,
    says_not_mentioned,
    share_of_answers,
    stemmed_f1,
    stemmed_f1_of_first,
    stemmed_f1_of_parts,
    sub_em,
    through_first_box,
)
from memalpha.replies import visible

ABSTENTION = "abstention"  # kind of a question that the text does not answer


@dataclass(frozen=True)
class Claim:
    """A prediction to be scored: the reader's reply to a question, and the gold answers (at least
    one, none blank). `kind`: type of the question (`question_kind`), by which a judge chooses its
    criteria and a source its metric; empty: unknown."""

    source: str
    question: str
    prediction: str
    answers: tuple[str, ...]
    kind: str = ""


# Takes all claims at once and returns a reply with yes or no per claim; None where it failed.
Judge = Callable[[Sequence[Claim]], list[str | None]]
Metric = Callable[[str, Sequence[str]], float]

_YES = re.compile(r"\byes\b", re.IGNORECASE)
_NO = re.compile(r"\bno\b", re.IGNORECASE)


def verdict(text: str) -> float:
    """LongMemEval: 1 for "yes" without "no" as whole words, else 0; NaN with neither word,
    because a judge that does not decide has failed."""
    text = visible(text)
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    return float(yes and not no) if yes or no else float("nan")


_LOCOMO = {  # by the kind of the question
    "multi-hop": stemmed_f1_of_parts,
    "open-domain": stemmed_f1_of_first,
    "adversarial": says_not_mentioned,
    "": stemmed_f1,
}
# family -> (what kind of answer is wanted, metric); None: a judge decides. A mapping has a metric
# for some kinds of question, and under "" that of all others.
METRICS: dict[str, tuple[str, Metric | Mapping[str, Metric] | None]] = {
    "squad": ("retrieval", sub_em),
    "hotpotqa": ("retrieval", sub_em),
    "perltqa": ("retrieval", share_of_answers),
    "locomo": ("retrieval", _LOCOMO),
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
    "ttl_train": ("labels", label_match),
    "booksum": ("summary", keyword_share),
    "infbench_sum": ("summary", keyword_share),
    "synthetic_facts": ("retrieval", sub_em),
    "synthetic_events": ("retrieval", sub_em),
    "synthetic_updates": ("retrieval", sub_em),
    "synthetic_chats": ("retrieval", sub_em),
    "synthetic_conflicts": ("retrieval", sub_em),
    "synthetic_labels": ("labels", label_match),
    "synthetic_story": ("summary", keyword_share),
}

_INSTRUCTIONS = {
    "retrieval": "",
    "labels": "Give the number of the label, bare or as \\boxed{number}.\n\n",
    "summary": "Base your reply on the summary that the core memory holds.\n\n",
}
CATEGORIES = frozenset(_INSTRUCTIONS)  # of answers that sources want
_NEWEST = (
    "Facts are numbered. Where two contradict each other, the one with the larger number holds."
)
# family -> the instruction of a family that has its own.
_OWN_INSTRUCTIONS = {
    "factconsolidation": f"{_NEWEST}\n\n",
    "synthetic_conflicts": f"{_NEWEST}\n\n",
    "detectiveqa": "Give your final choice as \\boxed{choice}.\n\n",
    "locomo": "Answer in a few words, with the date where one is asked for. If the memory does not"
    f" tell, reply: {NOT_MENTIONED}.\n\n",
}


def family(source: str) -> str:
    """Key of `METRICS` for a source name or a published variant of one (`data.names`).

    Raises:
        ValueError: any other name, such as squad_dates, whose metric nobody has chosen.
    """
    if (name := names.family(source)) in METRICS:
        return name
    raise ValueError(
        f"unknown source {source!r}; known sources: {', '.join(METRICS)}, and published variants of"
        " them (memalpha/data/names.py); add your own to scoring.METRICS"
    )


def category(source: str) -> str:
    """The kind of answer a source wants: "retrieval", "labels" or "summary"."""
    return METRICS[family(source)][0]


def instruction(source: str) -> str:
    """Text to put before a question of this source; empty where none is needed."""
    return _OWN_INSTRUCTIONS.get(family(source), _INSTRUCTIONS[category(source)])


def without_answer(source: str) -> str:
    """What a reader says where the memory does not tell: nothing, but for sources that ask for
    words."""
    return NOT_MENTIONED if family(source) in names.OVERLAP else ""


def reads_box(source: str) -> bool:
    r"""Whether the metric of a source looks for a `\boxed{}` answer."""
    return METRICS[family(source)][1] in (label_match, boxed_match)


def question_kind(question_type: str, question_id: str) -> str:
    """`Claim.kind` of a LongMemEval question: its type, except that an id that ends in `_abs` marks
    one that the text does not answer; such questions are judged as abstentions."""
    return ABSTENTION if question_id.endswith("_abs") else question_type


def score(
    source: str,
    prediction: str,
    answers: Sequence[str],
    judge: Judge | None = None,
    question: str = "",
    first_box: bool = False,
    kind: str = "",
) -> float:
    """Score of one prediction, in [0, 1]; see `scores`."""
    if isinstance(answers, str):
        raise ValueError(f"{source}: answers must be a list of strings, got {answers!r}")
    claim = Claim(source, question, prediction, tuple(answers), kind)
    return scores([claim], judge, first_box=first_box)[0]


def scores(
    claims: Sequence[Claim],
    judge: Judge | None = None,
    replies: dict[int, str] | None = None,
    first_box: bool = False,
) -> list[float]:
    r"""Score of every claim, in [0, 1]. Of a prediction only the text after the last `</think>`
    counts (`visible`).

    Args:
        judge: scores the LongMemEval sources, in one call for all their claims; the score is NaN
            where it failed or said neither yes nor no. Its exceptions are not caught. A prediction
            that is empty after the thinking scores 0 without the judge.
        replies: a dict that is filled with the judge's replies, by the index of the claim.
        first_box: of several `\boxed{}` answers the first counts, as in Mem-alpha's released code.
            By default the last one counts: it is the answer of a reply that corrects itself.

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
        metric = METRICS[family(claim.source)][1]
        if isinstance(metric, Mapping):
            metric = metric.get(claim.kind, metric[""])
        reply = visible(claim.prediction)
        if metric is not None:
            boxes = first_box and reads_box(claim.source)
            results[i] = metric(through_first_box(reply) if boxes else reply, claim.answers)
        elif judge is None:
            raise ValueError(
                f"{claim.source} is scored by a judge: pass judge=, e.g. scoring.recall_judge"
                " offline"
            )
        elif reply:
            asked[i] = replace(claim, prediction=reply)
    if asked:
        given = judge(list(asked.values()))
        if len(given) != len(asked):
            raise ValueError(f"judge: {len(asked)} claims but {len(given)} replies")
        for i, reply in zip(asked, given, strict=True):
            results[i] = float("nan") if reply is None else verdict(reply)
            if replies is not None and reply is not None:
                replies[i] = reply
    return results


_DECLINES = re.compile(  # folded text of a reply that says that there is no answer
    r"\b(?:not (?:have )?enough|never mentioned|insufficient|unknown|unanswerable"
    r"|no (?:information|mention|record|answer)"
    r"|(?:is|was|are|were|has|have|did|do|does)(?: not|n't) (?:been )?"
    r"(?:mention|specif|state|provide|know|say|give|tell|told)\w*"
    r"|(?:can(?:not| not|'t)|could(?: not|n't)) (?:be )?(?:answer|determin|tell|find|say)\w*)"
)


# Words of a gold answer that no reply may leave out: numbers, months, days of the week.
_EXACT = re.compile(
    r".*\d.*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july"
    r"|august|september|october|november|december"
)


def recall_judge(claims: Sequence[Claim]) -> list[str]:
    """Offline stand-in for the rubric judge: yes if the prediction holds most of the gold's words.

    "Most" is 80 % of the distinct normalised words of a gold answer, with all of its numbers and
    dates: enough for runs without a model, not comparable with published LongMemEval figures. For a
    question that the text does not
    answer, a prediction that says so (`_DECLINES`) is right.
    """
    right = (
        _DECLINES.search(fold(claim.prediction)) if claim.kind == ABSTENTION else _recalls(claim)
        for claim in claims
    )
    return ["yes" if good else "no" for good in right]


recall_judge.name = "recall_judge-2"  # in results; raised whenever it judges otherwise than before


def _recalls(claim: Claim) -> bool:
    given = set(normalize(claim.prediction).split())
    golds = [set(normalize(answer).split()) for answer in claim.answers]
    return any(
        gold
        and len(gold & given) >= 0.8 * len(gold)
        and not any(_EXACT.fullmatch(word) for word in gold - given)
        for gold in golds
    )
