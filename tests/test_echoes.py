"""What of a memory repeats the prompts or itself, by hand-made memories."""

import math

import pytest

from memalpha.echoes import RUN, echoed_share, repeated_share
from memalpha.memory import EMPTY_VIEW, Entry, MemoryView
from memalpha.prompts import BUILT_IN


def view(core="", *texts):
    entries = tuple(Entry(i, text, 0) for i, text in enumerate(texts))
    return MemoryView(core, entries, (), len(entries), 0, 0)


def instruction():
    """The first ten words of a prompt of a baseline, as they stand there."""
    text = (BUILT_IN / "baselines" / "memagent.txt").read_text("utf-8")
    return " ".join(text.split()[:10])


def test_words_that_stand_in_a_prompt_are_echoes():
    assert echoed_share(view("Ida rows on the lake every morning before work.")) == 0
    assert echoed_share(view(instruction())) == 1
    half = view(instruction(), "Ida has rowed on Lake Bled every single morning this year.")
    assert echoed_share(half) == pytest.approx(10 / 21)


def test_fewer_words_in_a_row_than_a_run_are_no_echo():
    short = " ".join(instruction().split()[: RUN - 1])
    assert echoed_share(view(f"{short} Ida")) == 0


def test_the_tail_of_a_placeholder_does_not_join_what_stands_around_it():
    text = (BUILT_IN / "baselines" / "memagent.txt").read_text("utf-8")
    before, after = text.split("$task")
    joined = " ".join([*before.split()[-4:], *after.split()[:4]])
    assert echoed_share(view(joined)) < 1


def test_words_of_an_example_are_echoes_too():
    assert echoed_share(view("Aske painted the Otterbeck lighthouse red.")) == 1


def test_copies_are_counted_without_case_and_punctuation():
    assert repeated_share(view("core", "Ida rows.", "ida ROWS", "Bo sails.")) == pytest.approx(
        1 / 3
    )
    assert repeated_share(view("", "Ida rows.", "Ida sails.")) == 0


def test_an_empty_memory_has_no_shares():
    assert math.isnan(echoed_share(EMPTY_VIEW))
    assert math.isnan(repeated_share(view("core alone")))
