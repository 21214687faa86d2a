"""Verdicts of the offline content judge, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha.judge import Verdict
from memalpha.judge_rules import judge_content, judge_contents
from memalpha.memory import CORE, EPISODIC, SEMANTIC
from memalpha.tools import Call


@pytest.mark.parametrize(
    ("memory_type", "content"),
    [
        (CORE, "Mira Voss is a baker who lives in Lund."),
        (CORE, "label 3: booking travel; label 4: music"),
        (CORE, "Mira lost her memory in an accident and found it again."),
        (CORE, "Nothing in the house was hers."),
        (SEMANTIC, "The employer of Mira Voss is Norvik Press."),
        (SEMANTIC, "The war ended in 1945."),
        (SEMANTIC, "Mira was born on 8 May 1990 in Lund."),
        (SEMANTIC, "The shop opens on Monday at 9:00."),
        (SEMANTIC, "Semantic memory stores facts about the world."),
        (SEMANTIC, "A plaque was added in memory of the founder."),
        (SEMANTIC, "wake me on 8 May 2023 at noon -> 3"),
        (SEMANTIC, "Sentence: wake me on 8 May 2023\nLabel: 3"),
        (EPISODIC, "2024-01-07: Mira bought a blue kayak."),
        (EPISODIC, "2015/03/04: I cleaned the red chair."),
        (EPISODIC, "On 8 May 2023 at 14:05 the user booked a flight."),
        (EPISODIC, "May 8th, 2023: Otto moved house"),
        (EPISODIC, "On Monday at 14:30 Mira visited the dentist."),
        (EPISODIC, "In May 2023 the user moved to Lund."),
        (SEMANTIC, "小明的宠物是一只鹦鹉。"),
        (SEMANTIC, "แมวของมานะชื่อสีดา"),
        (EPISODIC, "小明在2024年1月7日买了一只鹦鹉。"),
        (EPISODIC, "2024年1月7日、田中さんは猫を買った。"),
        (EPISODIC, "2024년 1월 7일: 미라는 카약을 샀다."),
    ],
)
def test_fit_content(memory_type, content):
    assert judge_content(memory_type, content) == Verdict(True)


@pytest.mark.parametrize(
    ("memory_type", "content"),
    [
        (CORE, ""),
        (CORE, " ... "),
        (CORE, "N/A"),
        (CORE, "None."),
        (CORE, "[empty]"),
        (CORE, "No information yet."),
        (CORE, "The core memory has been updated."),
        (CORE, "This is the core memory of the user."),
        (CORE, "Memory has been updated with the new facts."),
        (CORE, "Updated summary saved."),
        (CORE, "All information has been saved to memory."),
        (SEMANTIC, "I added two facts to the semantic memory."),
        (SEMANTIC, "none"),
        (SEMANTIC, "kayak"),
        (SEMANTIC, "2024-01-07: Mira bought a blue kayak."),
        (SEMANTIC, "[2024/01/07 (Sun) 01:55] Mira bought a kayak"),
        (SEMANTIC, "Mira bought a blue kayak on 8 May 2023."),
        (SEMANTIC, "Mira left on May 8 at 14:30."),
        (SEMANTIC, "8 May 2023: a child was born"),
        (EPISODIC, "Mira bought a blue kayak."),
        (EPISODIC, "Mira bought a blue kayak in 2023."),
        (EPISODIC, "Yesterday Mira bought a blue kayak."),
        (EPISODIC, "2024-13-45: Mira bought a kayak."),
        (EPISODIC, "2024-01-07 14:30"),
        (EPISODIC, "2024-01-07: none"),
        (EPISODIC, "2024-01-07: nothing happened"),
        (EPISODIC, "2024-01-07: memory updated"),
        (SEMANTIC, "猫"),
        (SEMANTIC, "हिन्दी"),
        (SEMANTIC, "e\u0301lan"),
        (SEMANTIC, "2024年1月7日小明买了一只鹦鹉。"),
        (EPISODIC, "小明买了一只鹦鹉。"),
        (EPISODIC, "2024年13月7日小明买了一只鹦鹉。"),
        (EPISODIC, "2024年1月7日"),
    ],
)
def test_unfit_content(memory_type, content):
    assert judge_content(memory_type, content) == Verdict(False)


def test_the_same_text_fits_one_list_and_not_the_other():
    for text in ("2024-01-07: Mira bought a blue kayak.", "The pet of Mira is a parrot."):
        assert judge_content(SEMANTIC, text).valid != judge_content(EPISODIC, text).valid


def test_calls_are_judged_by_the_text_they_write():
    fact, event = "The pet of Mira is a parrot.", "2024-01-07: Mira bought a parrot."
    insert, update, delete = "new_memory_insert", "memory_update", "memory_delete"
    calls = [
        Call(insert, {"memory_type": "semantic_memory", "content": fact}),
        Call(insert, {"memory_type": "semantic", "content": event}),
        Call(update, {"memory_type": "episodic", "new_content": event, "memory_id": "3"}),
        Call(update, {"memory_type": "core_memory", "new_content": "n/a"}),
        Call(delete, {"memory_type": "episodic_memory", "memory_id": "3"}),
        Call(insert, {"memory_type": "semantic", "content": fact}, error="no content"),
        Call(insert, {"memory_type": "diary", "content": fact}),
        Call(insert, {}),
        Call(update, {"memory_type": "core", "content": fact}),  # not update's argument
        Call("", {}, error="no JSON"),
    ]
    verdicts = judge_contents(calls)
    expected = [True, False, True, False, True, False, False, False, False, False]
    assert [v.valid for v in verdicts] == expected
    assert not any(v.failed for v in verdicts)


def test_no_calls_no_verdicts():
    assert judge_contents([]) == []


def test_unknown_memory_type_is_refused():
    with pytest.raises(ValueError, match="memory type 3"):
        judge_content(3, "text")


@given(st.sampled_from((CORE, SEMANTIC, EPISODIC)), st.text(st.characters()))
def test_any_text_gets_a_verdict(memory_type, text):
    assert judge_content(memory_type, text) in (Verdict(True), Verdict(False))


@given(st.text(alphabet=" .,;:-_/()[]\n\t*#", max_size=40))
def test_punctuation_alone_is_never_fit(text):
    for memory_type in (CORE, SEMANTIC, EPISODIC):
        assert not judge_content(memory_type, text).valid
