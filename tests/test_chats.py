"""Synthetic chats: natural in form, exact in their notes, disjoint between splits."""

import re
import string
from dataclasses import replace

import numpy as np
import pytest

from configs import tiny
from experiments.lib.instances import training_batches
from experiments.lib.sources import known_sources
from experiments.lib.writers import poor_writer
from memalpha.agent.memory_agent import dialogue
from memalpha.baselines import no_memory
from memalpha.baselines.scripted import careful, perfect
from memalpha.data import synthetic
from memalpha.data.chats import _shortened, words
from memalpha.data.chats.dates import Day, coming, head, nth
from memalpha.data.chats.facts import kinds, tell
from memalpha.data.chats.forms import Line
from memalpha.data.chats.slots import Draws, Subject
from memalpha.judge_rules import judge_content
from memalpha.memory import MEMORY_NAMES, MemoryView
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import format_response

PERSONS = {"who", "whose", "Who", "Whose"}
VERB = ("verb", "object")
COMPOSED = {"kin": ("rel", "name"), "do": VERB, "does": VERB, "did": VERB}  # slot -> its slots


def chats(split="train", count=40, chunks=4, **sizes):
    return [synthetic.generate("chats", split, i, chunks=chunks, **sizes) for i in range(count)]


def noted(instance):
    """(chunk, note) of every note."""
    return [
        (chunk, note)
        for chunk, notes in zip(instance.chunks, instance.metadata["notes"], strict=True)
        for note in notes
    ]


def slots_of(template):
    names = {f.removeprefix("a_") for _, f, _, _ in string.Formatter().parse(template) if f}
    return {part for name in names for part in COMPOSED.get(name, (name,))}


def test_the_same_arguments_give_the_same_instance():
    first = synthetic.generate("chats", "train", 3, seed=5, chunks=4)
    assert synthetic.generate("chats", "train", 3, seed=5, chunks=4) == first
    for index, seed, split in ((4, 5, "train"), (3, 6, "train"), (3, 5, "test")):
        other = synthetic.generate("chats", split, index, seed=seed, chunks=4)
        assert other.chunks != first.chunks and other.instance_id != first.instance_id


def test_every_value_of_a_list_belongs_to_one_split():
    for slot, values in words._lists().items():
        if slot in words.SHARED:
            continue
        pools = [words._own(slot, split) for split in synthetic.SPLITS]
        assert sorted(v for pool in pools for v in pool) == sorted(values), slot
        assert len(set(values)) == len(values) and min(map(len, pools)) >= 2, slot
        assert len(pools[0]) > len(pools[1]) + len(pools[2]), slot
    for slot in ("firm", "book", "hotel", "spot"):
        pools = [set(words.pool(slot, split)) for split in synthetic.SPLITS]
        assert all(pools) and not (pools[0] & pools[1] | pools[0] & pools[2] | pools[1] & pools[2])


def test_names_of_one_split_are_in_no_chunk_of_another():
    names = {
        split: {*words.pool("women", split), *words.pool("men", split), *words.pool("town", split)}
        for split in synthetic.SPLITS
    }
    for split in synthetic.SPLITS:
        seen = set(re.findall(r"\w+", "\n".join(c for i in chats(split) for c in i.chunks)))
        assert len(seen & names[split]) >= 20  # the test has something to compare
        for other in synthetic.SPLITS.keys() - {split}:
            assert not sorted(seen & names[other])


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_phrasing_holds_all_that_its_note_says(kind):
    note = slots_of(kind.note) - PERSONS - {"when"}
    assert len(set(kind.said)) == len(kind.said) >= 6
    for phrasing in (*kind.said, *kind.fix):
        assert note <= slots_of(phrasing), phrasing
    assert bool(kind.change) == bool(kind.fix) and (not kind.fix or len(set(kind.fix)) >= 6)
    for phrasing in kind.fix:
        assert {"old", kind.change} <= slots_of(phrasing) and kind.change in note, phrasing
    for question, answer in kind.ask:
        assert slots_of(question) - PERSONS <= note and slots_of(answer) <= note
        assert not slots_of(question) & slots_of(answer), question
    assert kind.memory in ("fact", "dated", "core")


@pytest.mark.parametrize("split", synthetic.SPLITS)
def test_a_note_says_what_its_chunk_says_and_fits_its_memory(split):
    corrected = 0
    for instance in chats(split):
        earlier = []
        for chunk, note in noted(instance):
            stated = note["content"]
            for word in re.findall(r"[\w€$£#]*\d[\w.,:]*|[A-Z]\w+", stated)[1:]:
                said = word in ("The", "User") or word.rstrip(".:,").lower() in chunk.lower()
                assert said, (word, chunk)
            assert judge_content(MEMORY_NAMES.index(note["memory"]), stated).valid, note
            if note["replaces"]:
                corrected += 1
                before = next(n for n in earlier if n["content"] == note["replaces"])
                assert before["memory"] == note["memory"] and before["content"] != stated
            earlier.append(note)
    assert corrected >= 5


def test_what_was_corrected_is_asked_as_it_is_now():
    for instance in chats(chunks=8):
        notes = [note for _, note in noted(instance)]
        old = {note["replaces"] for note in notes} - {None}
        holding = {note["content"] for note in notes} - old
        assert len(instance.questions) == len(instance.metadata["evidence"])
        for question, evidence in zip(
            instance.questions, instance.metadata["evidence"], strict=True
        ):
            (statement,) = evidence
            assert statement in holding
            assert question.answers[0].lower() in statement.lower()
            assert question.answers[0].lower() not in question.question.lower()


@pytest.mark.parametrize("retriever", ["bm25", "scann"])
def test_a_perfect_memory_answers_and_an_empty_one_does_not(micro, retriever):
    env = micro.env.replace(retriever=retriever, prompt_tokens=900)

    def respond(turn):
        return format_response(perfect(turn.instance, turn.chunk, turn.view), env.prompt.dialect)

    instances = chats("test", 12)
    episodes = run_episodes(env, instances, scripted_writer(env, respond))
    assert np.mean([episode.r1 for episode in episodes]) >= 0.95
    blank = run_baseline(env, instances, no_memory.recall)
    assert [episode.r1 for episode in blank] == [0.0] * len(instances)


def test_a_config_trains_on_them(micro):
    config = tiny.get_config("data.chunks=3")
    assert "synthetic_chats" in known_sources(config, "train")
    config.data.sources = ("synthetic_chats",)
    instances = training_batches(config)(0, 6)
    assert [len(instance.chunks) for instance in instances] == [3] * 6
    env = micro.env.replace(prompt_tokens=1500)
    writer = poor_writer(config, env, np.random.default_rng(0))
    episodes = run_episodes(env, instances, writer)
    calls = [call for episode in episodes for step in episode.steps for call in step.calls]
    assert len(calls) > 5 and 0 < np.mean([episode.r1 for episode in episodes]) < 0.9


def test_empty_share():
    def empty(share):
        notes = [n for i in chats(count=60, empty_share=share) for n in i.metadata["notes"]]
        return sum(not n for n in notes) / len(notes)

    assert empty(0.0) == 0
    assert 0.15 < empty(0.25) < 0.35 < 0.4 < empty(0.5) < 0.6
    (one,) = chats(count=1, chunks=1, empty_share=1.0)
    assert one.metadata["notes"][0] and one.questions


def test_filler_share():
    def words(share):
        some = chats(count=60, filler_share=share, empty_share=0.0)
        return np.mean([len(chunk.split()) for i in some for chunk in i.chunks])

    assert words(0.0) < words(0.4) < words(0.8)


def test_any_length_and_question_limit():
    whole = synthetic.generate("chats", "test", 0, chunks=150, max_questions=10_000)
    assert len(whole.chunks) == len(whole.metadata["notes"]) == 150
    some = synthetic.generate("chats", "test", 0, chunks=150, max_questions=25)
    assert some.chunks == whole.chunks and len(some.questions) == 25
    pairs = zip(whole.questions, whole.metadata["evidence"], strict=True)
    both = [(question, tuple(evidence)) for question, evidence in pairs]
    assert len({question.question for question, _ in both}) == len(both)  # nothing is asked twice
    pairs = zip(some.questions, some.metadata["evidence"], strict=True)
    assert all((question, tuple(evidence)) in both for question, evidence in pairs)


@pytest.mark.parametrize("facts", [1, 2, 5])
def test_no_chunk_holds_more_facts_than_asked_for(facts):
    counts = {len(n) for i in chats(facts_per_chunk=facts) for n in i.metadata["notes"]}
    assert max(counts) == facts


def test_a_stream_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="validation split has no more names"):
        synthetic.generate("chats", "validation", 0, chunks=4000, facts_per_chunk=8)


def test_a_date_at_the_head_is_part_of_its_line():
    rng, day = np.random.default_rng(0), np.datetime64("2025-04-12").astype(object)
    heads = [head(rng, day) for _ in range(200)]
    assert len({re.sub(r"\d+:\d+", "", h.header) for h in heads}) == 12
    assert all(h.stated in h.header for h in heads)
    assert {"12 April 2025", "2025-04-12", "the twelfth of April 2025"} <= {h.stated for h in heads}
    later = np.datetime64("2025-04-15").astype(object)
    bare = {coming(rng, later, replace(heads[0], header="", stated="")) for _ in range(200)}
    assert "Tuesday" not in bare and "the 15th of April" in bare
    assert "Tuesday" in {coming(rng, later, heads[0]) for _ in range(200)}
    assert [nth(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd".split()
    )


def test_a_correction_never_repeats_the_value():
    day = Day(np.datetime64("2025-04-12").astype(object), "18:30", "12 April 2025", "12 April 2025")
    draws = Draws(np.random.default_rng(1), "validation")
    for kind in (k for k in kinds() if k.fix):
        fact = tell(kind, Subject(), draws, day)
        for _ in range(10):
            new = fact.values.corrected(kind.change, day)
            assert new[kind.change] != new["old"] == fact.values[kind.change]
            assert new.corrected(kind.change, day)[kind.change] not in new.former
            unchanged = slots_of(kind.note) - {kind.change, "when"}
            assert all(new[slot] == fact.values[slot] for slot in unchanged)


@pytest.mark.parametrize(
    "value, said",
    [("MRI", "an MRI"), ("ukulele", "a ukulele"), ("iguana", "an iguana"), ("tent", "a tent")],
)
def test_articles(value, said):
    assert words.with_article(value) == said


def test_many_single_messages_look_as_the_agent_shows_them():
    typed = re.compile(
        r"\[Dialogue between User and Assistant on (\S+ \S+)\]\n<User> (.*)\n<Assistant> Noted\.",
        re.DOTALL,
    )
    found = [typed.fullmatch(chunk) for i in chats("train") for chunk in i.chunks]
    found = [match for match in found if match]
    assert len(found) >= 20
    assert all(dialogue(match[2], match[1]) == match[0] for match in found)


def test_small_talk_is_left_out_of_a_dialogue_that_is_too_long():
    lines = [Line("A", "one two three", True), Line("B", "x " * 60), Line("A", "y " * 60)]
    assert _shortened(lines) == lines[:2]
    facts = [Line("A", "z " * 70, True)] * 2
    assert _shortened(facts) == facts


def test_the_careful_teacher_quotes_what_was_said():
    quoted = replaced = 0
    for instance in chats(chunks=6):
        empty, known = MemoryView("", (), (), 0, 0, 0), set()
        for number, (chunk, notes) in enumerate(
            zip(instance.chunks, instance.metadata["notes"], strict=True)
        ):
            for note in notes:
                who, said = note["quote"].split(" said: ", 1)
                assert said in chunk and who.split(": ")[-1] in {"User", *chunk_names(chunk)}
                assert note["replaces_quote"] is None or note["replaces_quote"] in known
                assert bool(note["replaces"]) == bool(note["replaces_quote"])
                known.add(note["quote"])
                replaced += bool(note["replaces"])
            calls = careful(instance, number, empty)
            written = [
                call.arguments[key]
                for call in calls
                for key in ("content", "new_content")
                if key in call.arguments
            ]
            for note in notes:
                assert any(note["quote"] in text for text in written)
                quoted += 1
    assert quoted > 50 and replaced > 5


def chunk_names(chunk):
    return set(re.findall(r"[^\W\d_][\w'-]*(?: [^\W\d_][\w'-]*)?", chunk))
