"""Exactness: what an entry may take from its sources, by hand; and the notes of synthetic data."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.lib.measure import summarise, table_rows
from experiments.lib.results import instance_row
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.exactness import exact_share, is_exact, strangers
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import INSERT, UPDATE, Call, format_response

CHAT = "[Saturday, 12 April 2025]\nMara: my sister Ana moved to Porto, dentist on Tuesday at 9:30"


@pytest.mark.parametrize(
    "content, chunk",
    [
        ("Mara's sister Ana moved to Porto.", CHAT),
        ("12 April 2025: Mara has a dentist appointment on Tuesday at 9:30.", CHAT),
        # Forms of a date, and what a calendar says of it.
        ("2025-04-12: Ana moved.", CHAT),
        ("April 12th, 2025: Ana moved.", CHAT),
        ("12/04/2025: Ana moved on a Saturday in April.", CHAT),
        ("12 April 2025: Ana moved.", "2025-04-12 18:30 Ana moved"),
        ("Sat 12 Apr: Ana moved.", "2025-04-12 18:30 Ana moved"),
        ("12 April 2025: Ana moved.", "Saturday, the twelfth of April 2025\nAna moved"),
        ("The dentist is on 15 April 2025.", CHAT),
        ("Ana comes on 13 April 2025.", "2025-04-12 Ana comes tomorrow"),
        ("Ana came on 2025-04-11.", "12 April 2025: Ana came yesterday"),
        ("The user sees the vet on 4 March.", "vet is on the 4th of March"),
        ("The user sees the vet on March 4, 2025.", "[2025-02-01] vet is on the 4th of March"),
        # Times and amounts.
        ("Dinner at 7 pm.", "dinner at 19:00"),
        ("Dinner at 19:30.", "dinner at 7:30pm"),
        ("Dinner at 09:30.", "dinner at 9.30"),
        ("Paid 1,250.50 euros and 3 percent.", "paid 1250.5 euros, three percent"),
        ("Takes flight LH 1234 in seat 14c.", "flight LH1234, seat 14C"),
        ("Weighs 20mg.", "20 mg"),
        ("The code is KT-01802.", "code KT-01802"),
        # Possessives, plurals, hyphens, case and accents.
        ("The Okafors live in Zürich.", "Okafor lives in zurich"),
        ("Mara’s dog.", "Mara has a dog"),
        ("James' e-mail is about Jean-Luc.", "james wrote an email to Jean Luc"),
        ("Sinéad O'Connor sang.", "Sinead O’Connor"),
        ("José likes it.", "JOSE\u0301 likes it"),
        # First words that are no names, and words that are always there.
        ("Resides in Porto. Working from home.", CHAT),
        ("The User said: Prefers Porto. I", CHAT),
        ("- Appointment at 9:30\n- Favourite town: Porto", CHAT),
        ("", CHAT),
        ("nothing to see", ""),
        ("葉月は東京に住んでいる。", ""),
    ],
)
def test_exact(content, chunk):
    assert strangers(content, chunk) == []
    assert is_exact(content, "", chunk)  # the memory that is shown is as good a source


@pytest.mark.parametrize(
    "content, chunk, wrong",
    [
        ("Mara's sister Eva moved to Lyon.", CHAT, ["Eva", "Lyon"]),
        ("Sarah moved to Porto.", CHAT, ["Sarah"]),
        ("Moved. Sarah's sister is Ana.", CHAT, ["Sarah's"]),
        ("12 April 2024: Ana moved.", CHAT, ["2024"]),
        ("2025-04-18: Ana moved.", CHAT, ["2025-04-18"]),
        ("Ana moved on Friday in May.", CHAT, ["Friday", "May"]),
        ("The dentist is on 16 April 2025.", CHAT, ["16"]),
        ("The dentist is at 9:45, not 3.5.", CHAT, ["9:45", "3.5"]),
        ("Dinner at 7 pm.", "dinner at 9:07", ["7 pm"]),
        ("Seat 14C, phone 555-0199.", "seat 14B, phone 555-0198", ["14C", "555-0199"]),
        ("Paid 1,250.", "paid 125", ["1,250"]),
        ("The user has 3 dogs.", "I have two dogs", ["3"]),
        ("On Saturday.", "my sister", ["Saturday"]),
        ("Lives with Jean-Paul.", "Jean-Luc", ["Jean-Paul"]),
        ("Works at ACME.", "I work", ["ACME"]),
    ],
)
def test_strangers(content, chunk, wrong):
    assert strangers(content, chunk) == wrong
    assert not is_exact(content, chunk)
    assert is_exact(content, chunk, content)


def notes(family, split="test"):
    """(chunk, content) of the notes of a few instances."""
    return [
        (chunk, note["content"])
        for index in range(30)
        for instance in [synthetic.generate(family, split, index, chunks=4)]
        for chunk, of_chunk in zip(instance.chunks, instance.metadata["notes"], strict=True)
        for note in of_chunk
    ]


@pytest.mark.parametrize("family", synthetic.FAMILIES)
def test_the_notes_of_synthetic_data_are_exact(family):
    for chunk, content in notes(family):
        assert strangers(content, chunk) == [], (content, chunk)


def test_a_note_of_another_chat_is_not():
    pairs = notes("chats")
    others = [chunk for chunk, _ in pairs]
    random.Random(0).shuffle(others)
    told = [
        is_exact(content, other)
        for (chunk, content), other in zip(pairs, others, strict=True)
        if chunk != other and any(c.isupper() or c.isdigit() for c in content[9:])
    ]
    assert len(told) > 50 and sum(told) <= 0.15 * len(told)  # a few say nothing but "walnuts"


@given(st.text(), st.text())
def test_any_text_is_read(content, chunk):
    assert all(word in content for word in strangers(content, chunk))


def test_the_share_of_stored_contents_that_are_exact(micro):
    """By hand: of four calls two are stored and exact, one is stored and invents, one fails."""
    chunks = ("my sister Ana moved to Porto", "she is 31 now")
    instance = Instance("squad", "one", chunks, (Question("Where?", ("Porto",)),))
    said = (
        [insert("Ana moved to Porto."), insert("Ana moved to Lyon.")],
        [insert("Ana is 31 years old."), Call(UPDATE, {"memory_type": "core"})],
    )

    def respond(turn):
        return format_response(said[turn.chunk], micro.env.prompt.dialect)

    (episode,) = run_episodes(micro.env, [instance], scripted_writer(micro.env, respond))
    assert exact_share([episode]) == 2 / 3
    assert summarise([episode])["exact"] == instance_row("a", episode, 1.0)["exact"] == 2 / 3
    unseen = replace(episode, steps=[replace(step, shown=None) for step in episode.steps])
    assert exact_share([unseen]) == 1 / 3  # Ana stands in the memory that was shown alone


def insert(content):
    return Call(INSERT, {"memory_type": "semantic", "content": content})


def test_a_source_of_which_nothing_was_stored_has_no_share(micro):
    def respond(turn):
        stores = turn.instance.source == "squad"
        return format_response([insert(turn.text)] if stores else [], micro.env.prompt.dialect)

    made = [Instance(s, "one", ("Ana.",), (Question("Who?", ("Ana",)),)) for s in ("squad", "nlu")]
    table = table_rows(run_episodes(micro.env, made, scripted_writer(micro.env, respond)))
    assert math.isnan(table["nlu"]["exact"])
    assert table["squad"]["exact"] == table["mean"]["exact"] == 1.0
    assert math.isnan(exact_share([]))


@pytest.mark.parametrize(
    "content, chunk",
    [
        ("Martin has 3 dogs.", "Martin is 12 years old."),
        ("They met 12 people in December.", "That was 4 decades ago."),
        ("He was born in March.", "I have 2 marbles."),
    ],
)
def test_a_word_that_begins_like_a_month_is_none(content, chunk):
    assert strangers(content, chunk)


@pytest.mark.parametrize("date", ["3 Sept 2024", "Sep. 3, 2024", "3rd of September 2024"])
def test_months_are_known_by_their_short_forms(date):
    assert not strangers("It was on 3 September 2024.", f"We met on {date}.")
