"""The names of the sources: ours, and those that the published files use for them.

A published name says more than its source: `icl_nlu_8296shot_balance` is nlu with so many examples,
`ruler_qa1_197K` a length of ruler_qa1. Every form is written out here, and a name has to match one
as a whole: a source of your own that is called `squad_dates` is not taken for squad.
"""

import re

_SHOTS = r"(_\d+shot(_balance)?)?"
# The benchmark documents the names of detectiveqa, eventqa and recsys sets only as "the name, and
# something after it".
# family -> the forms of its published names, lower-case, "-" as "_", without a final "*".
PUBLISHED_FORMS = {
    "locomo": r"locomo(10)?",
    "longmemeval": r"longmemeval(_s|_m|_oracle)?(_star|_cleaned)?",
    "ruler_qa1": r"ruler_qa1(_\d+k)?",
    "ruler_qa2": r"ruler_qa2(_\d+k)?",
    "detectiveqa": r"detective_?qa(_\w+)?",
    "eventqa": r"eventqa(_\w+)?",
    "infbench_qa": r"infbench_qa(_eng)?(_shots\d+)?",
    "infbench_sum": r"infbench_sum(_eng)?(_shots\d+)?",
    "recsys": r"recsys(_\w+)?",
    "factconsolidation": r"factconsolidation(_[sm]h)?(_\d+k)?",
    "nlu": rf"(icl_)?nlu{_SHOTS}",
    "trec_coarse": rf"(icl_)?trec_coarse{_SHOTS}",
    "trec_fine": rf"(icl_)?trec_fine{_SHOTS}",
    "banking77": rf"(icl_)?banking77{_SHOTS}",
    "clinic150": rf"(icl_)?clini?c150{_SHOTS}",  # the benchmark's spelling, and the publisher's
    "pubmed_rct": rf"(icl_)?pubmed_rct{_SHOTS}",
}
LABELLED = frozenset(
    ("ttl_train", "nlu", "trec_coarse", "trec_fine", "banking77", "clinic150", "pubmed_rct")
)  # families whose answers are integers
OVERLAP = frozenset(("locomo",))  # scored by the words in common: no answer is wholly in the text
JUDGED = frozenset(("lme_train", "longmemeval"))  # families that are graded by a judge
SUMMARIES = frozenset(("booksum", "infbench_sum"))  # families that ask for a summary


def family(source: str) -> str:
    """The family of a source name, published variants included.

    A name that is of no published form is its own family: lower-case, "-" as "_", no final "*".
    """
    name = source.lower().replace("-", "_").rstrip("*")
    for known, form in PUBLISHED_FORMS.items():
        if re.fullmatch(form, name):
            return known
    return name
