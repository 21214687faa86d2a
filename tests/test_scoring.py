"""Metrics against values worked by hand; names of sources; prefixes; what must be refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha import scoring


@pytest.mark.parametrize(
    ("source", "prediction", "answers", "expected"),
    [
        # SubEM: the first gold answer only, lower-cased.
        ("squad", "It was in LUND, I think.", ("Lund",), 1),
        ("squad", "It was in Oslo.", ("Lund", "Oslo"), 0),
        ("hotpotqa", "Lun", ("Lund",), 0),
        ("synthetic_facts", "The pet of Mira is a parrot.", ("parrot",), 1),
        ("synthetic_events", "2024/01/07: I cleaned the lamp.", ("2024/01/07",), 1),
        ("synthetic_updates", "", ("parrot",), 0),
        # PerLTQA: share of the parts, 2 of 3; without `;` as SQuAD.
        ("perltqa", "in may, with Otto", ("May; Otto; Lund",), 2 / 3),
        ("perltqa", "with Otto", ("Otto",), 1),
        # Labels: digits only, equal; boxed first.
        ("nlu", "The label is \\boxed{ 17 }.", ("17",), 1),
        ("nlu", "17", ("17",), 1),
        ("nlu", "17.", ("17",), 0),
        ("nlu", "the label is 17", ("17",), 0),
        ("nlu", "\\boxed{label 17}", ("17",), 0),
        ("nlu", "17 \\boxed{3}", ("17",), 0),
        ("trec_fine", "\\boxed{3} no, wait: \\boxed{4}", ("4",), 1),
        ("trec_fine", "\\boxed{3} no, wait: \\boxed{4}", ("3",), 0),
        ("trec_coarse", "\\boxed{3} and \\boxed{4", ("3",), 1),
        ("synthetic_labels", "\\boxed{²}", ("2",), 0),
        # Keywords: 2 of 4, as a tuple or with commas.
        ("booksum", "Mira went to the OLD mill.", ("Mira, old mill, Otto, harbour",), 0.5),
        ("synthetic_story", "Mira went to the old mill.", ("Mira", "old mill", "Otto", "sea"), 0.5),
        ("infbench_sum", "", ("Mira",), 0),
        # RULER: normalised substring, any gold answer.
        ("ruler_qa1", "Answer: the Mr. Smith's  house", ("Mr Smiths house",), 1),
        ("ruler_qa2", "It is an Oslo thing", ("Lund", "the Oslo"), 1),
        ("ruler_qa2", "It is Bergen", ("Lund", "Oslo"), 0),
        ("ruler_qa1", "Whatever", ("The",), 0),
        ("detectiveqa", "So \\boxed{ B }", ("b",), 1),
        ("detectiveqa", "So \\boxed{B. Otto}", ("B",), 0),
        ("eventqa", "Mira left and Otto stayed", ("mira left", "otto stayed"), 1),
        ("eventqa", "Mira left", ("mira left", "otto stayed"), 0),
        # ROUGE-L: "mira in lund" is the common subsequence of 5 and 4 words: 2 * 3 / 9.
        ("infbench_qa", "Mira lives in old Lund", ("Mira was in Lund",), 2 * 3 / 9),
        ("infbench_qa", "yes it is", ("no", "it is"), 2 * 2 / 5),
        ("infbench_qa", "", ("Lund",), 0),
        # Fact consolidation: as RULER. An old fact beside the new one still holds the new one.
        ("factconsolidation_sh_6k", "Answer: The Oslo", ("oslo",), 1),
        ("factconsolidation_mh_262k", "Lund", ("Oslo",), 0),
        ("detective_qa", "\\boxed{B}", ("B",), 1),
        # Recommendation: gold titles among the first five listed, 2 of 3, then 1 of 2.
        (
            "recsys_redial_full",
            "Try these:\n1. Jaws (1975)\n2. the Alien\n3. A\n4. B\n5. C\n6. Heat",
            ("Alien (1979)", "jaws", "Heat"),
            2 / 3,
        ),
        ("recsys_redial_full", "Jaws, Heat", ("Heat", "Up"), 1 / 2),
        ("recsys_redial_full", "", ("Heat",), 0),
        ("recsys_redial_full", "- 'Up'\n* Heat", ("Up", "Heat"), 1),
    ],
)
def test_golden_table(source, prediction, answers, expected):
    assert scoring.score(source, prediction, answers) == pytest.approx(expected)


def test_only_text_after_thinking_counts():
    assert scoring.score("squad", "<think>Lund?</think> Oslo", ("Lund",)) == 0
    assert scoring.score("squad", "<think>Oslo?</think> Lund", ("Lund",)) == 1
    assert scoring.score("squad", "Oslo?</think> Lund", ("Lund",)) == 1
    assert scoring.score("squad", "<think>it must be Lund", ("Lund",)) == 0
    assert scoring.score("nlu", "<think>\\boxed{4}</think>\\boxed{5}", ("4",)) == 0


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{a}", "a"),
        ("\\boxed {a{b}c} x", "a{b}c"),
        ("\\boxed{a} \\boxed{b}", "b"),
        ("\\boxed{a} \\boxed{b", "a"),
        ("\\boxed{}", ""),
        ("boxed a", None),
    ],
)
def test_boxed(text, content):
    assert scoring.boxed(text) == content


@pytest.mark.parametrize(
    ("published", "family", "category"),
    [
        ("icl_nlu_8296shot_balance", "nlu", "labels"),
        ("icl_banking77_5900shot_balance", "banking77", "labels"),
        ("icl_clinic150_7050shot_balance", "clinic150", "labels"),
        ("icl_trec_coarse_6600shot_balance", "trec_coarse", "labels"),
        ("icl_trec_fine_6400shot_balance", "trec_fine", "labels"),
        ("pubmed-rct", "pubmed_rct", "labels"),
        ("ttl_train", "ttl_train", "labels"),
        ("synthetic_labels", "synthetic_labels", "labels"),
        ("ruler_qa1_197K", "ruler_qa1", "retrieval"),
        ("ruler_qa2_421K", "ruler_qa2", "retrieval"),
        ("longmemeval_s*", "longmemeval", "retrieval"),
        ("lme_train", "lme_train", "retrieval"),
        ("eventqa_full", "eventqa", "retrieval"),
        ("eventqa_65536", "eventqa", "retrieval"),
        ("infbench_qa_eng_shots2", "infbench_qa", "retrieval"),
        ("detective_qa", "detectiveqa", "retrieval"),
        ("recsys_redial_full", "recsys", "retrieval"),
        ("factconsolidation_mh_262k", "factconsolidation", "retrieval"),
        ("infbench_sum_eng_shots2", "infbench_sum", "summary"),
        ("InfBench-Sum", "infbench_sum", "summary"),
        ("booksum", "booksum", "summary"),
        ("synthetic_story", "synthetic_story", "summary"),
    ],
)
def test_published_names(published, family, category):
    assert scoring.family(published) == family
    assert scoring.category(published) == category


@pytest.mark.parametrize(
    "source", ["", "squadron", "recsysx", "nlux", "icl_", "squad_dates", "icl_squad", "nlu_x"]
)
def test_unknown_source_lists_the_known_ones(source):
    with pytest.raises(ValueError, match="known sources: squad, hotpotqa"):
        scoring.score(source, "x", ("x",))


def test_instruction_by_category():
    assert scoring.instruction("squad") == ""
    assert "\\boxed{" in scoring.instruction("icl_nlu_8296shot_balance")
    assert "summary" in scoring.instruction("booksum")
    assert "\\boxed{" in scoring.instruction("detective_qa")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        *(("Yes.", 1), ("yes and no", 0), ("No", 0), ("I know: YES", 1)),
        *(("maybe", np.nan), ("", np.nan), (None, np.nan), ("<think>yes", np.nan)),
    ],
)
def test_judge_verdicts(reply, expected):
    seen = []

    def judge(claims):
        seen.extend(claims)
        return [reply]

    given_answer = "<think>?</think>7 days"
    score = scoring.score("longmemeval_s*", given_answer, ("7",), judge=judge, question="How long?")
    np.testing.assert_equal(score, expected)
    assert seen == [scoring.Claim("longmemeval_s*", "How long?", "7 days", ("7",))]


def test_a_judge_is_asked_once_for_all_its_claims_and_for_no_others():
    asked = []

    def judge(claims):
        asked.append([claim.prediction for claim in claims])
        return [{"a": "yes", "b": None, "c": "no"}[claim.prediction] for claim in claims]

    claims = [
        scoring.Claim("lme_train", "q", "a", ("x",)),
        scoring.Claim("squad", "q", "the x", ("x",)),
        scoring.Claim("lme_train", "q", "b", ("x",)),
        scoring.Claim("lme_train", "q", "<think>yes", ("x",)),
        scoring.Claim("longmemeval_s", "q", "c", ("x",), "multi-session"),
    ]
    said = {}
    np.testing.assert_equal(scoring.scores(claims, judge, said), [1, 1, np.nan, 0, 0])
    assert said == {0: "yes", 4: "no"}
    assert asked == [["a", "b", "c"]]
    assert scoring.scores([]) == []
    with pytest.raises(ValueError, match="1 claims but 2 replies"):
        scoring.scores(claims[:1], lambda _: ["yes", "no"])


def test_judge_is_needed_and_its_failure_is_not_a_score():
    def broken(claims):
        raise ConnectionError("down")

    with pytest.raises(ValueError, match="judge"):
        scoring.score("lme_train", "x", ("x",))
    with pytest.raises(ConnectionError):
        scoring.score("lme_train", "x", ("x",), judge=broken)
    # An empty reply is wrong without asking, whatever a judge would say of it.
    assert scoring.score("lme_train", "<think>x", ("x",), judge=broken) == 0


def test_recall_judge_needs_most_words_of_a_gold_answer():
    gold = ("one two three four five",)
    said = ("Five, four and three; one.", "one two three")  # 4 and 3 of 5
    claims = [scoring.Claim("lme_train", "q", reply, gold) for reply in said]
    assert scoring.recall_judge(claims) == ["yes", "no"]


@pytest.mark.parametrize("answers", [(), ("",), ("a", " "), "a"])
def test_blank_gold_answers_are_refused(answers):
    with pytest.raises(ValueError, match="answers"):
        scoring.score("squad", "a", answers)


@given(st.sampled_from(sorted(scoring.FAMILIES)), st.text(), st.text(min_size=1))
def test_any_prediction_scores_between_0_and_1(source, prediction, answer):
    if answer.strip():
        score = scoring.score(source, prediction, (answer,), judge=scoring.recall_judge)
        assert isinstance(score, float) and 0 <= score <= 1


@given(st.text(alphabet="ab\\boxed{}<think>/ \n1", max_size=60))
def test_broken_markup_never_raises(prediction):
    for source in ("nlu", "detectiveqa", "ruler_qa1"):
        assert 0 <= scoring.score(source, prediction, ("1",)) <= 1
