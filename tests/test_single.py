"""Statements of other sources as single messages."""

import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.lib.instances import SINGLES, build_every, build_instances, training_batches
from memalpha.agent.memory_agent import dialogue
from memalpha.baselines.scripted import careful
from memalpha.data.instance import Instance, Question
from memalpha.data.single import single_messages
from memalpha.memory import EMPTY_VIEW

NOTES = [
    [
        {"memory": "semantic", "content": "The tower stands in Oslo.", "replaces": None},
        {"memory": "semantic", "content": "Nothing is asked about this.", "replaces": None},
    ],
    [{"memory": "episodic", "content": "2023/05/20: User said: I ran 7 miles.", "replaces": None}],
]
QUESTIONS = (
    Question("Where does the tower stand?", ("Oslo",)),
    Question("How far did I run?", ("7 miles",)),
    Question("Who built it?", ("Ida",)),
)
INSTANCE = Instance("squad", "a", ("The tower. It stands in Oslo.", "I ran."), QUESTIONS)


def with_notes(notes, instance=INSTANCE):
    return Instance(
        instance.source,
        instance.instance_id,
        instance.chunks,
        instance.questions,
        {"notes": notes, "evidence": [1, 2, 3]},
    )


def test_a_message_is_a_statement_that_answers_a_question():
    made = single_messages(with_notes(NOTES), seed=0)
    assert [q.question for q in made.questions] == [q.question for q in QUESTIONS[:2]]
    assert made.source == "squad" and set(made.metadata) == {"notes"}
    for chunk, notes, words in zip(
        made.chunks, made.metadata["notes"], ("tower stands in Oslo", "ran 7 miles"), strict=True
    ):
        stamp = chunk.split(" on ")[1].split("]")[0]
        day, _, said = notes[0]["content"].partition("User said: ")
        assert words in said and "2023" not in said
        assert day == ("" if notes[0]["memory"] == "semantic" else f"{stamp[:10]}: ")
        assert chunk == dialogue(said, stamp)  # as the agent shows what it is told
    assert [notes[0]["memory"] for notes in made.metadata["notes"]] == ["semantic", "episodic"]
    assert made == single_messages(with_notes(NOTES), seed=0)
    assert made.chunks != single_messages(with_notes(NOTES), seed=1).chunks


def test_no_more_messages_than_chunks():
    one = Instance("squad", "a", INSTANCE.chunks[:1], QUESTIONS)
    made = single_messages(with_notes([NOTES[0] + NOTES[1]], one), seed=0)
    assert len(made.chunks) == len(made.questions) == 1
    assert made.questions[0].answers[0] in made.chunks[0]


def test_without_an_answer_there_is_no_instance():
    assert single_messages(with_notes([NOTES[0][1:], []]), seed=0) is None
    with pytest.raises(ValueError, match="squad/a has no metadata"):
        single_messages(INSTANCE, seed=0)


def test_a_question_goes_to_the_statement_that_shares_most_words_with_it():
    said = ("The trade of Tom Voss is a nurse.", "The trade of Lukas Voss is a nurse.")
    notes = [[{"memory": "semantic", "content": text, "replaces": None}] for text in said]
    questions = (Question("What is the trade of Lukas Voss?", ("nurse",)),)
    instance = Instance("synthetic_facts", "b", said, questions, {"notes": notes})
    (chunk,) = single_messages(instance, seed=0).chunks
    assert "Lukas" in chunk


def test_the_careful_teacher_quotes_every_message():
    notes = [[{"memory": "semantic", "content": "all known works need it", "replaces": None}]]
    questions = (Question("What needs it?", ("works",)),)
    made = single_messages(Instance("squad", "c", ("Text.",), questions, {"notes": notes}), seed=0)
    (call,) = careful(made, 0, EMPTY_VIEW)
    assert call.arguments["content"] == made.metadata["notes"][0][0]["content"]


@pytest.mark.parametrize("source", SINGLES)
def test_every_synthetic_one_makes_messages(source):
    if source.startswith("synthetic_"):
        config = tiny.get_config()
        made = [build_instances(config, f"single_{source}", "train", 1, i, 1) for i in range(40)]
        assert all(len(instances) == 1 for instances in made)


@pytest.mark.parametrize(
    "sources, message",
    [
        (("single_synthetic_story", "synthetic_facts"), "single_synthetic_story: single messages"),
        (("single_synthetic_facts",), "and single messages have none"),
    ],
)
def test_other_sources_are_refused(sources, message):
    config = tiny.get_config()
    config.data.sources = sources
    with pytest.raises(ValueError, match=message):
        check(config)


def test_as_a_source_of_a_config():
    config = tiny.get_config()
    config.data.sources = ("single_synthetic_updates", "synthetic_chats")
    config.data.lengths = (1, 3)
    made = build_instances(config, "single_synthetic_updates", "test", 4, chunks=3)
    assert [len(i.chunks) for i in made] == [3] * 4
    assert {i.source for i in build_every(config, "test", 2)} == {"synthetic_chats"}
    batches = training_batches(config)
    assert [len(i.chunks) for i in batches(0, 4)] == [1, 1, 3, 3]
    assert batches(0, 4) == batches(0, 4)
