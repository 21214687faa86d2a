"""Chunks that are too long for a prompt: what is cut, where, and what the pieces carry."""

import re

import pytest

from memalpha.data.instance import Instance, Question
from memalpha.data.notes import add_notes
from memalpha.episode import count_escaped, count_tokens
from memalpha.memory import EMPTY_VIEW
from memalpha.pieces import (
    as_given,
    chunk_number,
    cut_chunks,
    fit_all,
    fits,
    fitting,
    pieces,
    within_room,
)
from memalpha.prompts import PromptTooLong, fit_prompt, load_template
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import INSERT, Call, format_response
from tests.long_chunks import DATES, talk

HELLO = "<User> Good morning.\n<Assistant> Good morning."


@pytest.fixture
def env(micro):
    return micro.env.replace(prompt_tokens=240)


def of(*chunks, **metadata):
    return Instance("squad", "one", chunks, (Question("Which?", ("parrot",)),), metadata)


def prompt_size(env, chunk):
    return len(fit_prompt(env.prompt, EMPTY_VIEW, chunk))


def test_what_fits_is_the_same_object(env):
    instance = of(f"  {talk(DATES[0], 0, 8)}\n", HELLO, notes=[[], []])
    assert count_escaped(env, instance.chunks[0]) > 100
    assert fitting(env, instance) is instance


def test_a_chunk_is_cut_where_the_prompt_does_not_hold_it_and_not_before(env):
    """The whole prompt, to the token, and not the share that leaves a memory its room."""
    chunk = talk(DATES[0], 0, 12)
    size = prompt_size(env.replace(prompt_tokens=900), chunk)
    exact = env.replace(prompt_tokens=size)
    assert fits(exact, chunk) and not within_room(exact, chunk)
    assert fitting(exact, of(chunk)).chunks == (chunk,)
    short = env.replace(prompt_tokens=size - 1)
    assert not fits(short, chunk)
    cut = fitting(short, of(HELLO, chunk, HELLO))
    assert len(cut.chunks) > 3 and cut.chunks[0] == cut.chunks[-1] == HELLO
    assert cut.metadata["piece_of"] == [0, *[1] * (len(cut.chunks) - 2), 2]
    assert max(prompt_size(short, piece) for piece in cut.chunks) < size


def test_text_that_clearly_fits_is_not_rendered(env, monkeypatch):
    fits(env, HELLO)  # the size of the template is measured once
    monkeypatch.setattr("memalpha.pieces.fit_prompt", None)
    assert fits(env, HELLO) and fits(env, talk(DATES[0], 0, 6))


def test_pieces_begin_with_their_date_and_say_all(env):
    text = "\n\n".join((talk(DATES[0], 0, 19), talk(DATES[1], 19, 29)))
    parts = list(pieces(env, text))
    assert len(parts) > 2 and max(count_tokens(env, part) for part in parts) <= 120
    numbers = [re.findall(r"number (\d+)", part) for part in parts]
    assert [int(n) for said in numbers for n in said] == list(range(29))
    for part, said in zip(parts, numbers, strict=True):
        assert part.startswith(DATES[int(said[0]) >= 19])


def test_pieces_are_smaller_where_the_template_takes_more_than_half(micro):
    env = micro.env.replace(template=load_template("brief"), prompt_tokens=160)
    text = talk(DATES[0], 0, 19)
    cut = fitting(env, of(text))
    assert max(prompt_size(env, piece) for piece in cut.chunks) <= 160
    assert re.findall(r"number (\d+)", " ".join(cut.chunks)) == [str(i) for i in range(19)]


def test_a_template_without_room_for_a_piece_says_so(micro):
    env = micro.env.replace(template=load_template("brief"), prompt_tokens=110)
    with pytest.raises(PromptTooLong, match=r"prompt of 110, nor.* template 'brief' alone takes 1"):
        fitting(env, of(talk(DATES[0], 0, 9)))


def test_notes_go_to_the_piece_that_holds_their_words(env):
    """Of a dialogue: the words of the user, under a date that stands in every piece."""
    small_talk = [f"<User> Number {i} is good, thanks.\n<Assistant> Fine." for i in range(16)]
    fact = "<User> Yesterday I adopted a parrot from the shelter in Lyon.\n<Assistant> Fine."
    chunk = "\n".join([DATES[0], *small_talk[:12], fact, *small_talk[12:]])
    instance = add_notes(of(f"{DATES[1]}\n{HELLO}", chunk, title="t"))
    (note,) = instance.metadata["notes"][1]
    cut = fitting(env, instance)
    notes = cut.metadata["notes"]
    assert cut.metadata["title"] == "t" and len(notes) == len(cut.chunks) > 3
    assert notes[0] == instance.metadata["notes"][0]
    held = ["shelter in Lyon" in piece for piece in cut.chunks]
    assert [noted == [note] for noted in notes[1:]] == held[1:] and held.index(True) > 1
    assert sum(map(len, notes[1:])) == 1  # the other pieces hold nothing


def test_a_quote_places_a_note_before_its_content_and_else_most_words(env):
    lines = [f"Line {i} is about nothing at all." for i in range(30)]
    lines[2], lines[25] = "Kofi: I now live in Porto.", "Anna: Two cats, Tom and Kit!"
    quoted = {
        "content": "Kofi lives in Porto.",
        "quote": "5 May: Anna said: Two cats, Tom and Kit!",
    }
    reworded = {"content": "The cats of Anna are Tom and Kit.", "replaces": None}
    absent = {"content": "Xyz.", "replaces": None}
    cut = fitting(env, of("\n".join(lines), notes=[[quoted, reworded, absent]]))
    place = next(n for n, piece in enumerate(cut.chunks) if "Tom and Kit" in piece)
    assert place > 0 and cut.metadata["notes"][place] == [quoted, reworded]
    assert cut.metadata["notes"][0] == [absent]


def test_rollouts_of_an_instance_share_its_pieces_and_can_be_cut_again(env):
    long, short = of(HELLO, talk(DATES[0], 0, 40)), of(HELLO)
    cut = fit_all(env, [long, long, short])
    assert cut[0] is cut[1] and cut[2] is short
    assert fitting(env, cut[0]) is cut[0]
    finer = fitting(env.replace(prompt_tokens=100), cut[0])
    assert len(finer.chunks) > len(cut[0].chunks)
    assert [chunk_number(finer, n) for n in range(len(finer.chunks))] == [
        int("number" in piece) for piece in finer.chunks
    ]


def test_episodes_read_pieces_and_are_given_back_with_whole_chunks(env):
    long, short = of(HELLO, talk(DATES[0], 0, 40)), of(HELLO)
    told = []

    def respond(turn):
        arguments = {"memory_type": "semantic", "content": turn.text.splitlines()[-1]}
        return format_response([Call(INSERT, arguments)], env.prompt.dialect)

    episodes = run_episodes(
        env,
        [long, long, short],
        scripted_writer(env, respond, with_prompts=True),
        on_chunk=lambda done, total: told.append((done, total)),
    )
    first, second, third = episodes
    assert third.instance is short and first.instance is second.instance is not long
    assert [s.chunk for s in first.steps] == list(range(len(first.instance.chunks)))
    assert "number 39" in first.view.semantic[-1].text
    assert cut_chunks(episodes) == cut_chunks([first]) == 1 and cut_chunks([third]) == 0
    assert told[-1] == (5, 5) and told == sorted(told)
    given = as_given(episodes, [long, long, short])
    assert [e.instance for e in given] == [long, long, short]
    assert [s.chunk for s in given[0].steps] == [0, *[1] * (len(first.steps) - 1)]
    assert cut_chunks(given) == 1
