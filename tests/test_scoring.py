"""Metrics against values worked by hand; names of sources; the table in the docs; bad input."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha import metrics, scoring
from memalpha.data import names


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
        # Labels: the box, where there is one; else the only number of the reply.
        ("nlu", "The label is \\boxed{ 17 }.", ("17",), 1),
        ("nlu", "17", ("17",), 1),
        ("nlu", "the label is 17", ("17",), 1),
        ("nlu", "17, as in 18", ("17",), 0),
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
        ("detectiveqa", "\\boxed{}", ('"',), 0),  # nothing said, and a gold of quotes alone
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
        ("recsys_redial_full", "１．　Heat（1995）\n２．　Up", ("Heat", "Up"), 1),
        ("recsys_redial_full", "- 'Up'\n* Heat", ("Up", "Heat"), 1),
    ],
)
def test_golden_table(source, prediction, answers, expected):
    assert scoring.score(source, prediction, answers) == pytest.approx(expected)


PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def documented():
    """The rows of the table of metrics: (sources, reply, gold, score, kind of question)."""
    lines = PAGE.read_text("utf-8").split("\n## Metrics\n")[1].split("\n## ")[0].splitlines()
    for line in [line for line in lines if line.startswith("| `")]:
        sources, _, _, reply, gold, score = map(str.strip, line.strip("|").split("|"))
        golds = tuple(json.loads(gold.strip("`")))
        value = np.nan if score == "masked" else float(score)
        kind = sources.rpartition("`")[2].strip()
        yield re.findall("`(.*?)`", sources), reply.strip("`"), golds, value, kind


@pytest.mark.parametrize(("sources", "reply", "gold", "expected", "kind"), list(documented()))
def test_examples_of_the_table_in_the_docs(sources, reply, gold, expected, kind):
    for source in sources:
        if scoring.METRICS[source][1] is None:
            value = scoring.score(source, "Lund", gold, judge=lambda claims: [reply])
        else:
            value = scoring.score(source, reply, gold, kind=kind)
        assert value == pytest.approx(expected, abs=1e-3, nan_ok=True), source


def test_every_metric_is_in_the_table_of_the_docs():
    assert {name for sources, *_ in documented() for name in sources} == set(scoring.METRICS)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        *((text, "17") for text in ("17", " 17\n", '"17"', "'17'", "“17”", "`17`", "**17**")),
        *((text, "17") for text in ("Label: 17", "label : 17", "Labels: 17", "**Label:** 17")),
        *((text, "17") for text in ("Answer: 17", 'Label: "17"', "Label：17", "１７", "١٧")),
        *((f"It is \\boxed{{{text}}}.", "17") for text in ("17", '"17"', " 17 ", "Label: 17")),
        *((f"$\\boxed{{{text}}}$", "17") for text in ("\\text{17}", "\\textbf{'17'}", "１７")),
        ("\\boxed{\\boxed{17}}", "17"),
        *((text, "17") for text in ("17.", "The label is 17, alarm set.", "#17", "[17]", "17\n17")),
        *(
            (text, "17")
            for text in ("Label - 17", "It is 17: yes, 17.", "标签是17。", "\\text{17}")
        ),
        *((text, None) for text in ("17 or 18", "Label: 17, 18", "17-18", "²", "17:30", "v17")),
        *((text, None) for text in ("17th", "17 or 17.0", "17 \\boxed{}", "\\boxed{17")),
        *((text, None) for text in ("17 18", "-17", "1.7", "1,7", "Label:", "", "\\boxed{}")),
        *((text, None) for text in ("Label: 17\nLabel: 18", "\\boxed{label 17}", "seventeen")),
        ("9" * 5000, "9" * 5000),  # longer than int() reads
        ("017", "017"),
    ],
)
def test_what_says_a_label(reply, label):
    for gold in ("17", "7", "1", "0", "2", "9" * 5000, "017"):
        assert scoring.score("nlu", reply, (gold,)) == (gold == label), gold
    assert label is None or scoring.score("nlu", reply, ("4", f'"{label}"')) == 1


@pytest.mark.parametrize("source", ["nlu", "detectiveqa"])
def test_the_first_or_the_last_box(source):
    reply = "\\boxed{3 \\boxed{5} or \\boxed{4} no \\boxed{6"
    for gold, last, first in (("4", 1, 0), ("5", 0, 1), ("6", 0, 0)):
        assert scoring.score(source, reply, (gold,)) == last
        assert scoring.score(source, reply, (gold,), first_box=True) == first
    for plain in ("4", "\\boxed{4}", "\\boxed{{4}}"):
        (one, other) = (scoring.score(source, plain, ("4",), first_box=f) for f in (False, True))
        assert one == other
    thought = "<think>\\boxed{5}</think>\\boxed{4}"
    assert scoring.score(source, thought, ("4",), first_box=True) == 1
    # Metrics that do not look for a box read the whole reply.
    assert scoring.score("squad", "\\boxed{a} Lund", ("Lund",), first_box=True) == 1
    assert [scoring.reads_box(s) for s in ("nlu", "icl_nlu_9shot", "squad", "lme_train")] == [
        *(True, True, False, False)
    ]


def test_many_open_boxes_are_read_in_one_pass():
    reply = "\\boxed{" * 20_000 + "4"
    assert metrics.boxed(reply) is None and metrics.boxed(reply + "}") == "4"
    assert metrics.through_first_box(reply) == reply


@pytest.mark.parametrize(
    ("reply", "gold", "share"),
    [
        ("1810 and 10000", ("10,000 francs",), 0),
        ("He had 10,000 Francs.", ("10,000 francs, Otto",), 0.5),
        ("Ann in Lund", ("Ann, Lund, Otto, sea",), 0.5),
        ("Ann in Lund", ("Ann, Lund,",), 1),
        ("Ann,Lund", ("Ann,Lund",), 1),  # no space: one keyword
        ("Ann in Lund", ("Ann", "Oslo, Norway"), 0.5),
        ("Oslo without the country", ("Ann", "Oslo, Norway"), 0),
        ("Ann", (",", ", "), 0),
    ],
)
def test_keywords_are_taken_whole_or_cut_at_comma_and_space(reply, gold, share):
    for source in ("booksum", "infbench_sum", "synthetic_story"):
        assert scoring.score(source, reply, gold) == share


REPLIES_WITH_GOLD = {  # source -> (reply, gold) that score 1 in any spelling of their characters
    "squad": ("the café “Zürich’s” of 1914–18", 'café "Zürich\'s" of 1914-18'),
    "perltqa": ("the café “Zürich’s” of 1914–18", "zürich's; 1914-18"),
    "booksum": ("the café “Zürich’s” of 1914–18", "zürich's, café"),
    "ruler_qa1": ("the café “Zürich” of 1914–18", "Cafe\u0301 Zürich"),
    "infbench_qa": ("café “Zürich’s” of 1914–18", "Café Zürich's of 1914-18"),
    "eventqa": ("the café “Zürich’s” of 1914–18", 'café "Zürich\'s"'),
    "detectiveqa": ("\\boxed{Zürich’s}", "ZÜRICH'S"),
    "recsys": ("1. “Zürich’s Café” (1999)", "Zürichs café (1998)"),
    "nlu": ("\\boxed{17}", "17"),
}


@pytest.mark.parametrize("source", REPLIES_WITH_GOLD)
def test_spellings_of_the_same_characters_are_equal(source):
    reply, gold = REPLIES_WITH_GOLD[source]
    wide = str.maketrans({str(digit): chr(0xFF10 + digit) for digit in range(10)})
    spellings = [lambda text: unicodedata.normalize("NFC", text), lambda text: text.translate(wide)]
    spellings += [lambda text: unicodedata.normalize("NFD", text)]
    spellings += [lambda text: text.replace(" ", "\u00a0"), lambda text: text.replace("’", "'")]
    for of_reply in spellings:
        for of_gold in spellings:
            assert scoring.score(source, of_reply(reply), (of_gold(gold),)) == 1
    assert scoring.score("squad", "10²", ("102",)) == 0  # no compatibility forms: another number


def test_rouge_asks_for_nothing_from_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a metric opened a connection")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)
    metrics._rouge_scorer.cache_clear()
    assert scoring.score("infbench_qa", "Running dogs", ("run dog",)) == 1


def test_rouge_is_that_of_the_package_and_reads_the_answer_line():
    from rouge_score import rouge_scorer

    package = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    words = "the running dogs ran to a caring doctor in 1914 and Zürich's cafés".split()
    rng = np.random.default_rng(3)
    for _ in range(50):
        reply, gold = (" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(2))
        wanted = package.score(gold, reply)["rougeL"].fmeasure
        assert scoring.score("infbench_qa", reply, (gold,)) == pytest.approx(wanted, abs=1e-12)
    cases = {
        "Running dogs": 1,
        "I looked it up.\nAnswer: Running dogs\nThat is all.": 1,
        "Answer: cats.\nNo.\nANSWER：running dogs": 1,
        "Running dogs\nas the book says.": 1,  # the first line, where there is no such line
        "Answer:": 0,
        "": 0,
    }
    for reply, wanted in cases.items():
        assert scoring.score("infbench_qa", reply, ("cat and mouse", "run dog")) == wanted, reply


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
    assert metrics.boxed(text) == content


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
    "source",
    [
        *("", "squadron", "recsysx", "nlux", "icl_", "icl_squad", "icl_eventqa_full", "_", "trec"),
        *("squad_dates", "squad_v2", "nlu_9", "hotpotqa_x", "perltqa_en", "booksum_long", "icl_x"),
        *("lme_train_2", "longmemeval_x", "synthetic_facts_2", "ruler_qa1_big", "ruler_qa1_"),
        *("ruler_qa1_197K_x", "infbench_qa_x", "factconsolidation_x_6k", "trec_coarse_fine"),
    ],
)
def test_unknown_source_lists_the_known_ones(source):
    with pytest.raises(ValueError, match=f"{source!r}; known sources: squad, hotpotqa.*names"):
        scoring.score(source, "x", ("x",))


def test_every_variant_belongs_to_a_metric_and_every_name_to_itself():
    assert set(names.PUBLISHED_FORMS) <= set(scoring.METRICS)
    assert [scoring.family(name) for name in scoring.METRICS] == list(scoring.METRICS)


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
    gold = ("red green blue pink grey",)
    said = ("Grey, pink and blue; red.", "red green blue")  # 4 and 3 of 5
    claims = [scoring.Claim("lme_train", "q", reply, gold) for reply in said]
    assert scoring.recall_judge(claims) == ["yes", "no"]
    # A number or date may not be among the words that are left out.
    gold = ("the Sunday before last in May 2023",)
    said = ("Sunday before last, in May 2023", "Sunday before last, in June 2023")
    claims = [scoring.Claim("lme_train", "q", reply, gold) for reply in said]
    assert scoring.recall_judge(claims) == ["yes", "no"]


def test_the_kind_of_a_question_is_its_type_or_that_it_has_no_answer():
    assert scoring.question_kind("multi-session", "gpt4_1a") == "multi-session"
    assert scoring.question_kind("multi-session", "gpt4_1a_abs") == scoring.ABSTENTION
    assert scoring.question_kind("multi-session", "abs_1") == "multi-session"
    assert scoring.question_kind("", "") == ""


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("You have not mentioned a hamster.", True),
        ("It isn’t mentioned.", True),
        ("There is not enough information.", True),
        ("I don't know, you did not say.", True),
        ("That cannot be determined.", True),
        ("No information on that.", True),
        ("The hamster is called Otto.", False),
        ("You mentioned it is not a cat.", False),
    ],
)
def test_the_offline_judge_has_a_rule_for_questions_without_an_answer(reply, right):
    gold = ("You did not tell me of a hamster; only a cat was mentioned.",)
    claims = [
        scoring.Claim("longmemeval", "q", reply, gold, kind) for kind in (scoring.ABSTENTION, "x")
    ]
    assert scoring.scores(claims, scoring.recall_judge) == [right, 0]


@pytest.mark.parametrize("answers", [(), ("",), ("a", " "), "a"])
def test_blank_gold_answers_are_refused(answers):
    with pytest.raises(ValueError, match="answers"):
        scoring.score("squad", "a", answers)


@given(st.sampled_from(sorted(scoring.METRICS)), st.text(), st.text(min_size=1))
def test_any_prediction_scores_between_0_and_1(source, prediction, answer):
    if answer.strip():
        score = scoring.score(source, prediction, (answer,), judge=scoring.recall_judge)
        assert isinstance(score, float) and 0 <= score <= 1


@given(st.text(alphabet="ab\\boxed{}<think>/ \n1", max_size=60))
def test_broken_markup_never_raises(prediction):
    for source in ("nlu", "detectiveqa", "ruler_qa1"):
        assert 0 <= scoring.score(source, prediction, ("1",)) <= 1
