"""Planted wrong answers: what the rules make of a question, and what is counted of a judge."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha.metrics import normalize
from memalpha.planted import DATE, ENTITY, VAGUE, JudgeCheck, check_judge, other_date, plant, vague
from memalpha.scoring import ABSTENTION, Claim, recall_judge


def claim(question, *answers, kind=""):
    return Claim("longmemeval", question, "", answers, kind)


TEXT = [
    claim("When did Ida move to Lund?", "7 May 2023"),
    claim("What does Otto play?", "the harp"),
    claim("Which instrument does Zoë play?", "a harp"),
    claim("What did Ida sell?", "her boat"),
    claim("Does Otto swim?", "Yes"),
    claim("What did Zoë sell?", "You did not say.", kind=ABSTENTION),
]


def test_what_is_planted_by_hand():
    made = {(c.question, kind): c.prediction for kind, c in plant(TEXT)}
    assert made["When did Ida move to Lund?", VAGUE] == "Something to do with Ida move Lund."
    assert made["When did Ida move to Lund?", DATE] == "7 October 2023"
    assert ("When did Ida move to Lund?", ENTITY) not in made  # no other date in the text
    # The same instrument is no wrong answer.
    assert made["What does Otto play?", ENTITY] == "her boat"
    assert made["Does Otto swim?", ENTITY] == "No"
    assert made["What did Zoë sell?", ENTITY] in ("7 May 2023", "the harp", "a harp", "her boat")
    assert ("What did Zoë sell?", DATE) not in made


@pytest.mark.parametrize(
    ("answer", "changed"),
    [
        ("the Sunday before 25 May 2023", "the Sunday before 25 October 2023"),
        ("2022", "2024"),
        ("on a sunday", "on a wednesday"),
        ("six months", "eight months"),
        ("12 days", "14 days"),
        ("Twelve times", "Two times"),
        ("in the Alps", ""),
        ("1,500 francs", ""),
        ("she may come", ""),
    ],
)
def test_another_date(answer, changed):
    assert other_date(answer) == changed


def test_a_topic_without_the_answer():
    assert vague("Is Lund or Oslo older?", ["Lund"]) == "Something to do with Oslo older."
    assert vague("Who?", ["Ida"]) == ""


@given(st.lists(st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=30)), max_size=5))
def test_no_planted_answer_holds_a_gold_one(pairs):
    claims = [claim(question, answer) for question, answer in pairs if answer.strip()]
    for kind, made in plant(claims):
        assert kind in (VAGUE, ENTITY, DATE)
        assert normalize(made.answers[0]) not in normalize(made.prediction)
    assert plant(claims) == plant(claims)


def test_a_judge_that_accepts_everything_is_not_fit():
    check = check_judge(lambda claims: ["yes"] * len(claims), [TEXT])
    assert check.false_accepts == 1 and not check.fit
    assert check.accepted == check.decided and check.undecided == 0
    assert (check.gold_accepted, check.gold_decided) == (5, 5)  # without the abstention


def test_a_judge_that_decides_nothing_is_not_fit_and_has_no_rate():
    for reply in (None, "perhaps"):
        check = check_judge(lambda claims, reply=reply: [reply] * len(claims), [TEXT])
        assert math.isnan(check.false_accepts) and not check.fit
        assert check.undecided == len(plant(TEXT)) + 5 and check.gold_decided == 0
    with pytest.raises(ValueError, match="replies"):
        check_judge(lambda claims: [], [TEXT])


def test_a_kind_alone_can_make_a_judge_unfit_if_there_are_enough_of_it():
    def check(dates):
        return JudgeCheck(
            {VAGUE: 0, ENTITY: 0, DATE: 3}, {VAGUE: 99, ENTITY: 99, DATE: dates}, 0, 0, 0
        )

    assert not check(20).fit and check(19).fit and check(60).fit


def test_the_offline_judge_tells_these_from_the_gold_answers():
    check = check_judge(recall_judge, [TEXT])
    assert check.false_accepts == 0 and check.fit and check.gold_accepted == 5
