"""Synthetic instances: reproducible, disjoint splits, answerable from the notes and only so."""

import re

import numpy as np
import pytest

from memalpha.baselines import no_memory, store_everything
from memalpha.baselines.scripted import perfect
from memalpha.data import lexicon, synthetic, tales
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import format_response

FAMILIES = list(synthetic.GENERATORS)
CAPITAL = r"[A-Z]\w+ [A-Z]\w+"


def notes_of(instance):
    return [note for notes in instance.metadata["notes"] for note in notes]


def lines_of(instance):
    return [line for chunk in instance.chunks for line in chunk.split("\n")]


def perfect_episodes(env, instances):
    def respond(turn):
        return format_response(perfect(turn.instance, turn.chunk, turn.view), env.prompt.dialect)

    return run_episodes(env, instances, scripted_writer(env, respond))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_arguments_give_the_same_instance(family):
    first = synthetic.generate(family, "train", 3, seed=5, chunks=4)
    assert synthetic.generate(family, "train", 3, seed=5, chunks=4) == first
    for index, seed, split in ((4, 5, "train"), (3, 6, "train"), (3, 5, "test")):
        other = synthetic.generate(family, split, index, seed=seed, chunks=4)
        assert other.chunks != first.chunks
        assert other.instance_id != first.instance_id


def entities(instance):
    """Whole entities named in an instance: all pairs of words, looked up in the pools."""
    text = "\n".join([*instance.chunks, *(q.question for q in instance.questions)])
    words = re.findall(r"\w+", text)
    pairs = {" ".join(pair) for pair in zip(words, words[1:], strict=False)}
    found = pairs & ALL_ENTITIES
    asked = re.findall(rf"^(.*){re.escape(tales.LABEL_TAIL)}", text, re.MULTILINE)
    return found | {*asked, *re.findall(r"^Sentence: (.*)\nLabel: ", text, re.MULTILINE)}


ALL_ENTITIES = {
    f"{a} {b}"
    for left, right in (
        (lexicon.FIRST_NAMES, lexicon.LAST_NAMES),
        (lexicon.FIRM_NAMES, lexicon.FIRM_KINDS),
        (lexicon.COLOURS, lexicon.ITEMS),
        (lexicon.PLACE_ADJECTIVES, lexicon.PLACES),
    )
    for a in left
    for b in right
}


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_person_firm_thing_place_or_request(family):
    seen = {}
    for split in synthetic.SPLITS:
        made = [synthetic.generate(family, split, i, chunks=3) for i in range(20)]
        seen[split] = set().union(*map(entities, made))
        assert len(seen[split]) >= 10  # the test has something to compare
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_every_word_of_an_entity_is_seen_in_training():
    for kind in ("people", "firms", "things", "places"):
        split_words = {
            split: {word for name in tales._owned(kind, split) for word in name.split()}
            for split in synthetic.SPLITS
        }
        assert split_words["test"] <= split_words["train"]


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_answers_and_notes_stand_in_the_chunks(family):
    instance = synthetic.generate(family, "test", 0, chunks=6)
    text = "\n".join(instance.chunks)
    for question in instance.questions:
        for answer in question.answers:
            stands = f"Label: {answer}\n" if family == "labels" else answer
            assert stands in text
    for chunk, notes in zip(instance.chunks, instance.metadata["notes"], strict=True):
        for note in notes:
            content = note["content"]
            content = re.sub(r"^\d{4}/\d\d/\d\d: ", "", content)
            content = re.sub(r"^(.*) (Label: \d+)$", r"Sentence: \1\n\2", content)
            assert content in chunk


def test_instances_have_what_their_family_promises():
    facts = synthetic.generate("facts", "train", 0, chunks=20)
    two_hops = [q for q in facts.questions if "employer of" in q.question]
    assert two_hops
    for question in two_hops:  # neither statement holds both the person and the town
        person = re.search(f"employer of ({CAPITAL})", question.question)[1]
        (answer,) = question.answers
        assert not any(person in line and answer in line for line in lines_of(facts))
    labels = synthetic.generate("labels", "train", 0, chunks=4)
    examples = {line.removeprefix("Sentence: ") for line in lines_of(labels)}
    assert len(labels.metadata["label_names"]) == 3
    for question in labels.questions:  # asked sentences are new, their labels are known
        assert question.question.removesuffix(tales.LABEL_TAIL) not in examples
        assert question.answers[0] in labels.metadata["label_names"]
    story = synthetic.generate("story", "train", 0, chunks=4)
    assert len(story.questions) == 1 and len(story.questions[0].answers) == 5
    assert {note["memory"] for note in notes_of(story)} == {"core"}
    events = synthetic.generate("events", "train", 0, chunks=4)
    assert {note["memory"] for note in notes_of(events)} == {"episodic"}


def test_updates_ask_the_latest_value_once():
    instance = synthetic.generate("updates", "train", 1, chunks=12)
    stated: dict[str, list[str]] = {}
    for line in lines_of(instance):
        match = re.fullmatch(
            rf"(?:The|By now the) ([a-z ]+ of {CAPITAL}) is (?:a )?([\w ]+)\.", line
        )
        if match:
            stated.setdefault(match[1], []).append(match[2])
    assert any(len(values) == 2 for values in stated.values())
    assert any(len(values) == 1 for values in stated.values())
    asked = {
        q.question.removeprefix("What is the ").removesuffix(" now?"): q.answers
        for q in instance.questions
    }
    assert len(asked) == len(instance.questions)
    assert asked == {what: (values[-1],) for what, values in stated.items()}
    assert all(len(set(values)) == len(values) for values in stated.values())
    replaced = [note["replaces"] for note in notes_of(instance) if note["replaces"]]
    contents = [note["content"] for note in notes_of(instance)]
    assert sum(len(v) == 2 for v in stated.values()) == len(replaced)
    for note in notes_of(instance):
        if note["replaces"]:
            assert contents.index(note["replaces"]) < contents.index(note["content"])


def test_of_conflicting_facts_the_largest_number_holds_over_both_hops():
    instance = synthetic.generate("conflicts", "train", 1, chunks=24)
    numbers, holds, superseded = [], {}, []
    for number, what, value in re.findall(
        r"^(\d+)\. The ([a-z ]+ of [\w ]+) is (?:an? |in )?([\w ]+)\.$",
        "\n".join(instance.chunks),
        re.M,
    ):
        numbers.append(int(number))
        superseded += [holds[what]] if what in holds else []
        holds[what] = value
    assert numbers == list(range(len(notes_of(instance)))) and len(superseded) > 10
    kinds = instance.metadata["question_types"]
    assert len(kinds) == len(instance.questions) and set(kinds) == {"one hop", "two hops"}
    for question, kind in zip(instance.questions, kinds, strict=True):
        what = re.search(rf"[a-z ]+ of {CAPITAL}", question.question.split("the ")[-1])[0]
        answer = holds[what]
        assert question.answers == (
            (answer,) if kind == "one hop" else (holds[f"head office of {answer}"],)
        )
    contents = [note["content"] for note in notes_of(instance)]
    replaced = [note["replaces"] for note in notes_of(instance) if note["replaces"]]
    assert len(replaced) == len(superseded) and set(replaced) < set(contents)
    few = synthetic.generate("conflicts", "train", 1, chunks=24, max_questions=3)
    assert len(few.metadata["question_types"]) == 3


def test_what_conflicting_facts_score(micro):
    """The perfect writer updates what it is shown. Who keeps all of it depends on the reader: the
    offline one takes the newest of equals and is right, one that takes the oldest is not."""
    instances = [synthetic.generate("conflicts", "test", n, chunks=4) for n in range(6)]

    def oldest(requests):
        replies = []
        for request in requests:
            what = request.question.removeprefix("What is the ").rstrip("?")
            entries = sorted(request.evidence.semantic, key=lambda entry: entry.id)
            replies.append(next((e.text for e in entries if what in e.text), ""))
        return replies

    def of_one_hop(episodes):
        return np.mean(
            [
                score
                for e in episodes
                for score, kind in zip(e.scores, e.instance.metadata["question_types"], strict=True)
                if kind == "one hop"
            ]
        )

    best = perfect_episodes(micro.env, instances)
    everything = run_baseline(micro.env, instances, store_everything.recall)
    assert [e.r1 for e in best] == [e.r1 for e in everything] == [1.0] * 6
    backward = micro.env.replace(answerer=oldest, recent=50)
    # Not 1: two facts of one chunk may contradict each other, and a prompt shows 320 tokens.
    assert of_one_hop(perfect_episodes(backward, instances)) > 0.7
    assert of_one_hop(run_baseline(backward, instances, store_everything.recall)) < 0.2
    entries = sum(len(e.view.semantic) for e in best)
    assert entries < sum(len(notes_of(i)) for i in instances)  # superseded ones were updated


@pytest.mark.parametrize("retriever", ["bm25", "scann"])
def test_a_perfect_memory_answers_the_questions(micro, retriever):
    instances = synthetic.generate_many(FAMILIES, "test", 4, chunks=2)
    episodes = perfect_episodes(micro.env.replace(retriever=retriever), instances)
    assert np.mean([episode.r1 for episode in episodes]) >= 0.9
    for episode in episodes:
        assert all(step.r2 == (1.0 if step.calls else 0.0) for step in episode.steps)


def test_without_memory_nothing_is_answered(micro):
    instances = synthetic.generate_many(FAMILIES, "test", 4, chunks=2)
    episodes = run_baseline(micro.env, instances, no_memory.recall)
    assert [episode.r1 for episode in episodes] == [0.0] * len(instances)
    for instance in instances:
        if instance.source != "synthetic_labels":  # a digit can stand in a sentence by chance
            for question in instance.questions:
                assert not any(a.lower() in question.question.lower() for a in question.answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_filler_share(family):
    def sentences(share):
        instance = synthetic.generate(family, "train", 2, chunks=10, filler_share=share)
        kept = len(notes_of(instance))
        lines = [s for s in lines_of(instance) if s and s[0] not in "<[" and "Label:" not in s]
        lines = [s for s in lines if not s.startswith("Event happened")]
        return kept, len(lines) - kept

    kept, filler = sentences(0.0)
    assert filler == 0
    kept, some = sentences(0.5)
    _, much = sentences(0.75)
    if family == "story":  # few beats, however long: filler fills the chunks to their usual size
        assert much > some > 0
    else:
        assert some == kept
        assert much == 3 * kept


@pytest.mark.parametrize("family", FAMILIES)
def test_any_length_and_question_limit(family):
    instance = synthetic.generate(family, "test", 0, chunks=60, max_questions=25)
    assert len(instance.chunks) == len(instance.metadata["notes"]) == 60
    assert len(instance.questions) == (1 if family == "story" else 25)
    whole = synthetic.generate(family, "test", 0, chunks=60, max_questions=10_000)
    assert whole.chunks == instance.chunks
    assert set(instance.questions) <= set(whole.questions)
    days = [re.search(r"\d{4}[-/]\d\d[-/]\d\d", chunk)[0] for chunk in instance.chunks]
    assert days == sorted(set(days))  # one day a chunk


def test_generate_many_alternates_families():
    made = synthetic.generate_many(["facts", "story"], "train", 2, first_index=7, chunks=1)
    sources = [instance.source for instance in made]
    assert sources == ["synthetic_facts", "synthetic_story"] * 2
    assert made[2] == synthetic.generate("facts", "train", 8, chunks=1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(family="poems"), "unknown synthetic family 'poems'; known: facts, events"),
        (dict(split="dev"), "unknown split 'dev'; known: train"),
        (dict(chunks=0), "chunks, facts_per_chunk"),
        (dict(facts_per_chunk=0), "chunks, facts_per_chunk"),
        (dict(filler_share=1.0), "filler_share"),
        (dict(filler_share=-0.1), "filler_share"),
        (dict(empty_share=1.1), "empty_share"),
        (dict(max_questions=0), "max_questions"),
        (dict(family="events", chunks=5000), "test split has .* events only"),
        (dict(family="labels", chunks=5000), "test split has too few sentences"),
        (dict(family="facts", chunks=20_000), "test split has no more facts"),
        (dict(family="updates", chunks=20_000), "test split has no more facts"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    arguments = dict(family="facts", split="test", index=0) | change
    with pytest.raises(ValueError, match=message):
        synthetic.generate(**arguments)
