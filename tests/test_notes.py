"""Notes of real text: every sentence of the content, nothing of its frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha import tools
from memalpha.baselines.scripted import Flaws, poor_response
from memalpha.data import labelled, squad, text
from memalpha.data.instance import Instance, Question
from memalpha.data.notes import add_notes
from memalpha.memory import MemoryView


def document(*contents: str, **metadata) -> Instance:
    chunks = [
        text.dialogue_chunk(squad.LEAD_IN, squad.ACKNOWLEDGEMENT, index, content)
        for index, content in enumerate(contents)
    ]
    return Instance("squad", "one", tuple(chunks), (Question("Who?", ("he",)),), metadata)


def examples(*contents: str) -> Instance:
    chunks = [
        text.dialogue_chunk(labelled.LEAD_IN, labelled.ACKNOWLEDGEMENT, index, content)
        for index, content in enumerate(contents)
    ]
    metadata = {"label_names": {"3": "alarm_set", "41": "play_music"}}
    return Instance("nlu", "two", tuple(chunks), (Question("x", ("3",)),), metadata)


def contents_of(instance: Instance) -> list[list[str]]:
    return [[note["content"] for note in chunk] for chunk in instance.metadata["notes"]]


def test_every_sentence_of_a_passage_is_a_note():
    noted = add_notes(document("Ada was born in 1815. She met Dr. Lee!\n\nA second one.", "Third"))
    assert contents_of(noted) == [
        ["Ada was born in 1815.", "She met Dr. Lee!", "A second one."],
        ["Third"],
    ]
    assert noted.metadata["notes"][1] == [
        {"memory": "semantic", "content": "Third", "replaces": None}
    ]


def test_an_example_is_noted_with_its_label():
    noted = add_notes(
        examples("Sentence: wake me. Now!\nLabel: 3\n\nSentence: play jazz\nLabel: 41")
    )
    assert contents_of(noted) == [["wake me. Now! Label: 3", "play jazz Label: 41"]]


def test_the_rest_of_the_instance_is_kept_and_the_argument_unchanged():
    plain = document("A fact.", split="train")
    noted = add_notes(plain)
    assert plain.metadata == {"split": "train"}
    assert noted.metadata == {"split": "train", "notes": noted.metadata["notes"]}
    assert (noted.chunks, noted.questions) == (plain.chunks, plain.questions)


@pytest.mark.parametrize("chunk", ["A fact.", "[on day 1]\n<User>Read:\n\nA fact.", "a\n\nb"])
def test_a_chunk_of_another_form_is_an_error_with_its_name(chunk):
    broken = Instance("squad", "one", (chunk,), (Question("Who?", ("he",)),))
    with pytest.raises(ValueError, match="squad/one: a chunk that begins with"):
        add_notes(broken)


@pytest.mark.parametrize("content", ["Sentence: play jazz", "Sentence: a\nLabel: x", "plain text"])
def test_an_example_without_sentence_or_label_is_an_error(content):
    with pytest.raises(ValueError, match="nlu/two: .* is no labelled example"):
        add_notes(examples(content))


printable = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1)


@given(st.lists(printable.filter(str.strip), min_size=1, max_size=4))
def test_notes_lose_nothing_but_white_space(passages):
    content = text.SEPARATOR.join(passages)
    (notes,) = contents_of(add_notes(document(content)))
    assert "".join("".join(notes).split()) == "".join(content.split())
    assert all(note == note.strip() != "" for note in notes)


@given(printable, st.integers(0, 40))
def test_the_content_of_a_dialogue_chunk_comes_back(content, index):
    chunk = text.dialogue_chunk(squad.LEAD_IN, squad.ACKNOWLEDGEMENT, index, content)
    assert text.dialogue_content(chunk) == content


@pytest.mark.parametrize("module", [squad, labelled])
def test_phrases_are_all_of_a_chunk_but_date_and_content(module):
    frame = text.dialogue_phrases(module.LEAD_IN, module.ACKNOWLEDGEMENT)
    chunk = text.dialogue_chunk(module.LEAD_IN, module.ACKNOWLEDGEMENT, 0, "What?")
    assert f"{frame[0]}{text.FIRST_DAY}{frame[1]}What?{frame[2]}" == chunk
    assert set(frame) <= set(module.PHRASES)


def test_the_poor_writer_can_break_a_call_with_quotes_in_it():
    noted = add_notes(document('He said "no" and\tleft.'))
    flaws = Flaws(skip=0, misfile=0, break_call=1, keep_filler=0)
    view = MemoryView("", (), (), 0, 0, 0)
    texts = [
        poor_response(noted, 0, view, "qwen3", np.random.default_rng(seed), flaws)
        for seed in range(20)
    ]
    cut = [text for text in texts if tools.parse_calls(text, "qwen3")[0].error]
    assert cut and all(text.endswith(r"He said \"no\" and\tleft.") for text in cut)


def session(*lines: str, date="2023/05/20 (Sat) 02:21") -> str:
    return f"[Dialogue at timestamp {date}]\n" + "\n".join(lines)


def told(*chunks: str) -> list[list[dict]]:
    instance = Instance("lme_train", "three", chunks, (Question("x", ("y",)),), {})
    return add_notes(instance).metadata["notes"]


def test_a_dialogue_notes_what_the_user_tells_with_its_date():
    chunk = session(
        "<User>I'm looking for a book. By the way, I've just finished my 10th this year. Any?",
        "<Assistant>I read 12 books, and my favourite is on page 200.",
        "<User>Thanks for your help with my list! My sister Ana moved to Porto in spring.",
    )
    (notes,) = told(chunk)
    assert notes == [
        {"memory": "episodic", "content": f"2023/05/20: User said: {said}", "replaces": None}
        for said in (
            "I've just finished my 10th this year.",
            "My sister Ana moved to Porto in spring.",
        )
    ]


def test_sessions_that_share_a_chunk_keep_their_dates_and_silence_is_no_note():
    two = "\n\n".join(
        [session("<User>I bought a red bike in town today."),
         session("<User>We live in a small house by the sea.", date="2023/06/01 (Thu) 10:00")]
    )  # fmt: skip
    first, second = told(two, session("<User>Sounds great, thank you!", "<Assistant>My pleasure."))
    assert [note["content"][:10] for note in first] == ["2023/05/20", "2023/06/01"]
    assert second == []
