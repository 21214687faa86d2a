"""Baselines: what they hold, what the reader gets of it, and how they compare."""

from dataclasses import replace

import numpy as np
import pytest

from memalpha.baselines import (
    long_context,
    make_baseline,
    no_memory,
    rag_matched,
    rag_top2,
    store_everything,
)
from memalpha.baselines.scripted import Flaws, perfect, poor_response
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.episode import count_tokens
from memalpha.memory import Entry, MemoryView
from memalpha.reading import run_baseline
from memalpha.tools import parse_calls

RECALLS = {
    "none": no_memory.recall,
    "all": store_everything.recall,
    "rag": rag_top2.recall,
}


def instances(family):
    return [synthetic.generate(family, "test", i, chunks=12) for i in range(3)]


def means(env, family):
    made = instances(family)
    return {
        name: np.mean([episode.r1 for episode in run_baseline(env, made, recall)])
        for name, recall in RECALLS.items()
    }


def test_order_on_facts(micro):
    r1 = means(micro.env, "facts")
    assert r1["none"] == 0.0
    # A question may have two hops, or match a namesake: the reader of two chunks sees less.
    assert r1["none"] + 0.5 < r1["rag"] <= r1["all"]


def test_order_on_labels(micro):
    r1 = means(micro.env, "labels")
    assert r1["none"] == 0.0
    assert r1["rag"] > 1 / 3  # more than a guess among three classes
    assert r1["all"] >= r1["rag"]


@pytest.mark.parametrize("family", ["facts", "labels", "story"])
def test_memory_tokens_and_compression(micro, family):
    made = instances(family)
    size = [sum(count_tokens(micro.env, chunk) for chunk in i.chunks) for i in made]
    for name, recall in RECALLS.items():
        episodes = run_baseline(micro.env, made, recall)
        held = [0] * len(made) if name == "none" else size
        assert [e.memory_tokens for e in episodes] == held
        assert [e.chunk_tokens for e in episodes] == size
        assert [e.r3 for e in episodes] == [1.0 if name == "none" else 0.0] * len(made)
        assert all(e.steps == [] and e.valid for e in episodes)
        assert all(len(e.answers) == len(i.questions) for e, i in zip(episodes, made, strict=True))


CHUNKS = (
    "Some notes:\nThe pet of Anna Berger is a parrot.\nIt rained.",
    "More notes:\n\nThe trade of Paul Lind is a pilot.",
    "Last notes:\nThe hobby of Rosa Voss is chess.",
)


def by_hand(source="synthetic_facts"):
    questions = (Question("What is the pet of Anna Berger?", ("parrot",)),)
    return Instance(source, "by hand", CHUNKS, questions)


def recalled(baseline, env, instance, **sizes):
    (found,) = baseline.recall(env, [instance], **sizes)
    assert not found.failure and found.generations == 0
    return found.requests, found.memory_tokens


def test_no_memory_gives_the_reader_the_question_alone(micro):
    (request,), held = recalled(no_memory, micro.env, by_hand())
    assert request.question == "What is the pet of Anna Berger?" and held == 0
    assert request.evidence.core == "" and request.evidence.entries == ()


@pytest.mark.parametrize(
    "baseline, sizes",
    [
        (no_memory, {}), (rag_top2, {}), (rag_matched, {"budget": 30}), (long_context, {}),
        (store_everything, {}),
    ],
)  # fmt: skip
def test_the_date_of_a_question_reaches_the_reader_and_not_the_retriever(micro, baseline, sizes):
    asked = by_hand("lme_train")
    dated = replace(asked.questions[0], asked_at="It rained. More notes: Last notes:")
    (plain,), _ = recalled(baseline, micro.env, asked, **sizes)
    (request,), _ = recalled(baseline, micro.env, replace(asked, questions=(dated,)), **sizes)
    assert request == replace(plain, asked_at=dated.asked_at)


def test_rag_gives_the_two_best_chunks_best_first(micro):
    (request,), held = recalled(rag_top2, micro.env, by_hand())
    assert request.evidence.core.startswith(CHUNKS[0])
    assert request.evidence.core.removeprefix(CHUNKS[0] + "\n") in CHUNKS[1:]
    assert request.evidence.tokens == count_tokens(micro.env, request.evidence.core) < held
    one = replace(by_hand(), chunks=CHUNKS[:1])
    assert recalled(rag_top2, micro.env, one)[0][0].evidence.core == CHUNKS[0]


def test_long_context_keeps_whole_chunks_from_the_end(micro):
    def kept(budget):
        (request,), held = recalled(long_context, micro.env, by_hand(), budget=budget)
        assert held == request.evidence.tokens == count_tokens(micro.env, request.evidence.core)
        return request.evidence.core

    whole, two = "\n".join(CHUNKS), "\n".join(CHUNKS[1:])
    assert kept(32_000) == kept(count_tokens(micro.env, whole)) == whole
    assert kept(count_tokens(micro.env, whole) - 1) == kept(count_tokens(micro.env, two)) == two
    assert kept(count_tokens(micro.env, two) - 1) == CHUNKS[2]
    # Of a last chunk that is too long alone, its end.
    assert kept(5) == CHUNKS[2][-len(kept(5)) :] and kept(5).endswith("chess.")
    assert count_tokens(micro.env, kept(5)) == 5 and count_tokens(micro.env, kept(1)) == 1


def test_long_context_of_all_is_the_stream(micro):
    made = instances("facts")
    found = long_context.recall(micro.env, made)
    texts = [{request.evidence.core for request in one.requests} for one in found]
    assert texts == [{"\n".join(instance.chunks)} for instance in made]


def test_rag_matched_fills_its_budget_with_the_best_pieces(micro):
    def shown(budget, piece):
        sizes = {"budget": budget, "piece": piece}
        (request,), held = recalled(rag_matched, micro.env, by_hand(), **sizes)
        assert held == sum(count_tokens(micro.env, chunk) for chunk in CHUNKS)
        assert request.evidence.tokens == count_tokens(micro.env, request.evidence.core) <= budget
        return request.evidence.core

    line = "The pet of Anna Berger is a parrot."
    size = count_tokens(micro.env, line)
    assert shown(size, size) == line  # the piece asked for, and not the line before it
    assert shown(4, size) == line[: len(shown(4, size))] != ""
    # With room for all, all of it is there, the best first.
    whole = shown(500, size)
    assert whole.startswith(line)
    assert sorted(whole.split("\n")) == sorted(x for c in CHUNKS for x in c.split("\n") if x)
    assert shown(500, 500).startswith(CHUNKS[0])  # a chunk is one piece


def test_rag_matched_uses_its_budget_up(micro):
    made = synthetic.generate("facts", "test", 0, chunks=40)
    (found,) = rag_matched.recall(micro.env, [made], budget=200, piece=30)
    sizes = [request.evidence.tokens for request in found.requests]
    assert max(sizes) <= 200 and min(sizes) > 190


def test_the_best_of_equal_price(micro):
    made = [synthetic.generate("facts", "test", i, chunks=12) for i in range(3)]
    top2 = run_baseline(micro.env, made, rag_top2.recall)
    price = int(np.mean([answer.tokens for episode in top2 for answer in episode.answers]))
    matched = run_baseline(micro.env, made, make_baseline("rag_matched", budget=price, piece=40))
    late = run_baseline(micro.env, made, make_baseline("long_context", budget=price))
    r1 = [np.mean([e.r1 for e in some]) for some in (late, matched)]
    # At one price, what is asked for beats what came last.
    assert r1[0] + 0.3 < r1[1]


def test_a_baseline_of_no_instances_is_an_error(micro):
    with pytest.raises(ValueError, match="run_baseline: no instances"):
        run_baseline(micro.env, [], no_memory.recall)


def test_store_everything_holds_a_line_an_entry(micro):
    (request,), _ = recalled(store_everything, micro.env, by_hand())
    entries = sorted(request.evidence.semantic, key=lambda entry: entry.id)
    lines = [line for chunk in CHUNKS for line in chunk.split("\n") if line]
    assert [entry.text for entry in entries] == lines
    assert [entry.written_at for entry in entries] == [0, 0, 0, 1, 1, 2, 2]
    assert request.evidence.semantic[0].text == "The pet of Anna Berger is a parrot."
    (request,), _ = recalled(store_everything, micro.env.replace(top_k=2), by_hand())
    assert len(request.evidence.semantic) == 2


def test_store_everything_keeps_a_label_with_its_sentence_and_summarises_the_stream(micro):
    label = Instance(
        "synthetic_labels", "x", ("Sentence: ring me\nLabel: 3",), (Question("ring", ("3",)),)
    )
    (request,), _ = recalled(store_everything, micro.env, label)
    assert [entry.text for entry in request.evidence.semantic] == ["Sentence: ring me Label: 3"]
    (request,), _ = recalled(store_everything, micro.env, by_hand("synthetic_story"))
    assert request.evidence.core == "\n".join(CHUNKS)


@pytest.mark.parametrize("source, room", [("synthetic_story", 20), ("synthetic_facts", 30)])
def test_store_everything_shows_what_the_reader_has_room_for(micro, source, room):
    (request,), held = recalled(store_everything, micro.env, by_hand(source), budget=room)
    assert 0 < request.evidence.tokens <= room < held
    if source == "synthetic_story":
        assert "\n".join(CHUNKS).startswith(request.evidence.core) and request.evidence.core


def noted(*notes, chunk="Title.\nOne line.\nLabel: 3"):
    notes = [dict(zip(("memory", "content", "replaces"), note, strict=True)) for note in notes]
    questions = (Question("q", ("a",)),)
    return Instance("synthetic_facts", "noted", (chunk,), questions, {"notes": [notes]})


def view(core="", semantic=(), episodic=()):
    return MemoryView(core, semantic, episodic, len(semantic), len(episodic), 0)


def test_the_perfect_writer_by_hand():
    notes = (
        ("core", "Ann went.", None),
        ("semantic", "Fact B.", None),
        ("semantic", "Fact A2.", "Fact A."),
        ("semantic", "Fact C2.", "Fact C."),
        ("episodic", "2019/03/14: rain.", None),
    )
    before = view("Once.", semantic=(Entry(7, "Fact A.", 0),))
    calls = [(c.name, c.arguments) for c in perfect(noted(*notes), 0, before)]
    inserts = {"memory_type": "semantic", "content": "Fact B."}
    assert calls == [
        ("new_memory_insert", inserts),
        (
            "memory_update",
            {"memory_type": "semantic", "new_content": "Fact A2.", "memory_id": "7"},
        ),
        ("new_memory_insert", inserts | {"content": "Fact C2."}),  # the old entry is out of sight
        ("new_memory_insert", {"memory_type": "episodic", "content": "2019/03/14: rain."}),
        ("memory_update", {"memory_type": "core", "new_content": "Once. Ann went."}),
    ]
    (call,) = perfect(noted(*notes), 0, view("Fact A. Old."), flat=True)
    assert call.arguments["memory_type"] == "core"
    kept = "Old. Ann went. Fact B. Fact A2. Fact C2. 2019/03/14: rain."
    assert call.arguments["new_content"] == kept


def poor(instance, seed, **flaws):
    rng = np.random.default_rng(seed)
    chances = dict(skip=0.0, misfile=0.0, break_call=0.0, keep_filler=0.0) | flaws
    return poor_response(instance, 0, view(), "qwen3", rng, Flaws(**chances))


def test_the_poor_writer_has_each_flaw_and_no_other():
    instance = noted(("semantic", "Fact B.", None))
    (sound,) = parse_calls(poor(instance, 0), "qwen3")
    assert sound.arguments == {"memory_type": "semantic", "content": "Fact B."} and not sound.error
    assert poor(instance, 0, skip=1.0) == ""
    (wrong,) = parse_calls(poor(instance, 0, misfile=1.0), "qwen3")
    assert wrong.arguments == {"memory_type": "episodic", "content": "Fact B."}
    filler = parse_calls(poor(instance, 0, keep_filler=1.0), "qwen3")
    assert [call.arguments["content"] for call in filler][0] == "Fact B."
    assert filler[1].arguments["content"] in ("Title.", "One line.")
    broken = {poor(instance, seed, break_call=1.0) for seed in range(20)}
    assert len(broken) == 3 and poor(instance, 0) not in broken


def test_the_poor_writer_skips_its_share_of_all_notes_but_not_evenly():
    instance = noted(*(("semantic", f"Fact {letter}.", None) for letter in "ABC"))
    kept = [len(parse_calls(poor(instance, seed, skip=0.6), "qwen3")) for seed in range(2000)]
    assert np.mean(kept) / 3 == pytest.approx(0.4, abs=0.02)
    # E[a ** 3] of a Beta(0.2, 0.3), where notes skipped one by one would all be kept in 0.4 ** 3.
    everything = (0.2 * 1.2 * 2.2) / (0.5 * 1.5 * 2.5)
    assert np.mean(np.array(kept) == 3) == pytest.approx(everything, abs=0.03)


def test_scripted_writers_need_notes():
    bare = replace(noted(), metadata={})
    with pytest.raises(ValueError, match="synthetic_facts/noted has no metadata"):
        perfect(bare, 0, view())
