"""What stands below a table: costs by hand, what was not told, and no judged table without more."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.lib.judged import (
    check_table,
    claims_of,
    describe_check,
    judge_notes,
    read_checks,
    total,
    write_checks,
)
from experiments.lib.kinds import kind_tables
from experiments.lib.pool import read_pool
from experiments.lib.provenance import prompt_hashes, versions
from experiments.lib.results import Results, ResultsError, instance_row
from experiments.tables import small_tables
from memalpha.data.instance import Instance, Question
from memalpha.episode import Episode, Recall, Response, Step
from memalpha.memory import EMPTY_VIEW, Entry, MemoryView, Outcome
from memalpha.planted import DATE, ENTITY, VAGUE, JudgeCheck, check_judge
from memalpha.reader import Answer
from memalpha.scoring import ABSTENTION, recall_judge
from memalpha.tools import Call

TRAINED = {"trained": {"seed": 3, "data": {"sources": ["squad", "nlu", "squad"]}}}
ABOUT = {
    "split": "test", "seed": 7, "reward": {"beta": 0, "gamma": 0},
    "reading": {
        "reader": "rules", "judge": "kind judge", "retriever": "scann", "dimensions": 64,
        "top_k": 5, "tokenizer": "t",
    },
    "systems": {"trained": TRAINED, "rag_top2": {}, "perfect": {}}, "sources": {},
    "prompts": {"writer": "abc"}, "versions": [{"jax": "1.0"}],
}  # fmt: skip


def instance(source="squad", dropped=2, types=("a", "b")):
    asked = (Question("When did Ida leave?", ("7 May 2023",)), Question("Who left?", ("Ida",)))
    about = {"dropped_questions": dropped, "question_types": list(types)}
    return Instance(source, "one", ("a chunk", "another"), asked, about)


def episode(of, steps=(), **recall):
    answers = [Answer("Ida", (), (), 10), Answer(None, (), (), 20)]
    return Episode(
        of, Recall([], 5, **recall), list(steps), answers, [1.0, math.nan], r1=1.0, r3=0.5,
        chunk_tokens=50,
    )  # fmt: skip


def step(prompt, tokens):
    response = Response(np.zeros(tokens, np.int32), prompt=np.zeros(prompt, np.int32))
    return Step(0, response, "", [], [], [], 1.0, 1.0)


def failing_step():
    call = Call("memory_delete", {})
    return replace(step(5, 5), calls=[call], outcomes=[Outcome.UNKNOWN_ID])


def results(path, source="squad", about=ABOUT):
    of = instance(source)
    by_model = episode(of, generations=4, prompt_tokens=300, completion_tokens=20)
    with Results(path, about) as out:
        out.add("trained", [episode(of, [step(100, 10), step(50, 5)])], (2.5, 1.0))
        out.add("perfect", [episode(of, [step(0, 10)])], (1.0, 1.0))
        out.add("rag_top2", [by_model], (0.5, 1.0))
    return str(path)


def whole(folder):
    return small_tables(read_pool([], [folder]))[0]


def test_calls_and_tokens_of_writing_are_those_of_models():
    row = instance_row("a", episode(instance(), [step(100, 10), step(50, 5)]), 1.0)
    assert (row["write_calls"], row["write_prompt_tokens"], row["write_tokens"]) == (2, 150, 15)
    prompted = replace(step(0, 10), response=Response(np.zeros(10, np.int32), prompt_tokens=80))
    row = instance_row("a", episode(instance(), [prompted]), 1.0)
    assert (row["write_calls"], row["write_prompt_tokens"], row["write_tokens"]) == (1, 80, 10)
    scripted = instance_row("a", episode(instance(), [step(0, 10)]), 1.0)
    assert (scripted["write_calls"], scripted["write_tokens"], scripted["dropped"]) == (0, 0, 2)


def test_every_system_has_a_line(tmp_path):
    notes = whole(results(tmp_path / "a")).notes
    assert "Reader: rules; judge: kind judge; retriever: scann of 64 dimensions; top k: 5." in notes
    assert "Questions: squad 2, 2 more dropped before they were asked." in notes
    assert (
        "Mem-α, trained writer: writes with 2.0 model calls an instance, 150 tokens in and 15 out,"
        " the reader gets 15 tokens a question, 2.5 s an instance, 1 questions failed; trained on"
        " squad, nlu, seed 3." in notes
    )
    assert any(
        note.startswith("perfect scripted writer: writes without a model")
        and note.endswith("not trained, it is told what to store.")
        for note in notes
    )
    assert any("RAG-Top2: writes with 4.0 model calls" in note for note in notes)
    assert "Prompts (SHA-256): writer abc." in notes and "Versions: jax 1.0." in notes
    assert any(note.startswith("Seeds of the evaluation: 7; intervals: 95%") for note in notes)


def test_what_a_model_did_not_follow_stands_in_its_line(tmp_path):
    form = "You read a long text in parts and keep one written memory of it."
    copied = [Entry(1, form, 0), Entry(2, "Ida left.", 0), Entry(3, "Ida left!", 1)]
    refused = {"reply without facts": 2, "unknown operation": 3}
    with Results(tmp_path, ABOUT) as out:
        held = MemoryView("", tuple(copied), (), 3, 0, 9)
        full, empty = instance(), replace(instance(), instance_id="two")
        out.add("rag_top2", [episode(full, rejected=refused, view=held)], (1.0, 1.0))
        out.add("rag_top2", [episode(empty, view=EMPTY_VIEW)], (1.0, 1.0))
        out.add("trained", [replace(episode(instance()), steps=[failing_step()])], (1.0, 1.0))
    notes = whole(str(tmp_path)).notes
    line = next(note for note in notes if note.startswith("RAG-Top2"))
    refusals = "parts of replies refused an instance: unknown operation 1.5, reply without facts 1"
    assert refusals in line
    assert "words that repeat our prompts 78%, copied entries 33%" in line
    assert any(
        "parts of replies refused an instance: call: unknown id 1;" in note for note in notes
    )


def test_a_folder_keeps_the_versions_that_wrote_it_and_refuses_other_prompts(tmp_path):
    folder = results(tmp_path / "a")
    with Results(folder, ABOUT | {"versions": [{"jax": "2.0"}]}):
        pass
    assert "Versions: jax 1.0; jax 2.0." in whole(folder).notes
    with pytest.raises(ResultsError, match="prompts.writer: was 'abc', is 'def'"):
        Results(folder, ABOUT | {"prompts": {"writer": "def"}})
    before = {k: v for k, v in ABOUT.items() if k not in ("prompts", "versions")}
    old = results(tmp_path / "b", about=before)
    with Results(old, ABOUT):
        pass
    assert "Versions: jax 1.0." in whole(old).notes


def test_hashes_follow_the_texts(micro):
    config = {"reader": {"engine": "offline"}, "judge": {"engine": "offline"}}
    first = prompt_hashes(micro.env.prompt, config)
    assert first == prompt_hashes(micro.env.prompt, config)
    assert set(first) == {"writer", "baselines", "instructions"}
    model = {"engine": "flax", "template": "full"}
    both = prompt_hashes(micro.env.prompt, {"reader": model, "judge": model})
    assert {"reader", "judge"} <= set(both) and both["writer"] == first["writer"]
    brief = prompt_hashes(micro.env.prompt, {"reader": model | {"template": "brief"}})
    assert brief["reader"] != both["reader"]
    assert {"jax", "python", "data"} <= set(versions())


def test_no_judged_table_without_its_false_accepts(tmp_path):
    folder = results(tmp_path / "a", "longmemeval_s")
    with pytest.raises(ResultsError, match="'kind judge', of which nobody.*judge_check"):
        whole(folder)
    with pytest.raises(ResultsError, match="judge_check"):
        kind_tables(read_pool([], [folder]), {})
    yes = check_judge(lambda claims: ["yes"] * len(claims), claims_of([instance()], 9))
    write_checks(folder, "another judge", {"longmemeval_s": yes})
    with pytest.raises(ResultsError, match="judge_check"):
        whole(folder)
    write_checks(folder, "kind judge", {"longmemeval_s": yes})
    table = whole(folder)
    assert table.title.endswith("test split: judge not fit")
    (line,) = [note for note in table.notes if "accepts 100.0% of planted wrong" in note]
    assert line.endswith("Measured on longmemeval_s.")
    assert kind_tables(read_pool([], [folder]), {})[0].title.endswith(": judge not fit")
    # A table without judged columns does not ask for a judge.
    assert whole(results(tmp_path / "b")).title.endswith("test split")
    write_checks(folder, "kind judge", {"locomo": yes})  # what was measured on this source counts
    fit = JudgeCheck({VAGUE: 1, ENTITY: 0, DATE: 0}, {VAGUE: 99, ENTITY: 9, DATE: 0}, 8, 9, 1)
    write_checks(folder, "kind judge", {"longmemeval_s": fit})
    table = whole(folder)
    assert table.title.endswith("test split")
    assert (
        "The judge accepts 0.9% of planted wrong answers (vague 1 of 99, other entity 0 of 9), and"
        " 8 of 9 gold answers; no verdict on 1. Measured on longmemeval_s." in table.notes
    )


def test_checks_of_other_sources_stay_and_add_up(tmp_path):
    one = JudgeCheck({VAGUE: 1, ENTITY: 0, DATE: 0}, {VAGUE: 2, ENTITY: 1, DATE: 0}, 3, 4, 0)
    write_checks(tmp_path, "j", {"squad": one})
    path = write_checks(tmp_path, "j", {"locomo": one})
    checks = read_checks([tmp_path, tmp_path / "none"], "j")
    assert list(checks) == ["locomo", "squad"] and read_checks([tmp_path], "k") == {}
    assert total(checks.values()).decided == {VAGUE: 4, ENTITY: 2, DATE: 0}
    table = check_table("j", checks)
    assert table.title == "Planted wrong answers, judged by j: judge not fit"
    assert table.rows[-1][:4] == ("all", "0.333 (2 of 6)", "0.500 (2 of 4)", "0.000 (0 of 2)")
    write_checks(tmp_path, "k", {"squad": one})  # another judge takes the place of the first
    assert json.loads(path.read_text())["judge"] == "k"
    none = JudgeCheck(one.accepted | {VAGUE: 0}, dict.fromkeys(one.decided, 0), 0, 0, 7)
    assert describe_check(none).startswith("The judge decided on none")
    path.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_checks([tmp_path], "j")


def test_other_tables_say_whether_their_judge_was_measured(tmp_path):
    assert judge_notes(tmp_path, ["squad"]) == []
    (warning,) = judge_notes(tmp_path, ["squad", "lme_train"])
    assert warning.startswith("lme_train: scored by the judge") and "judge_check" in warning
    yes = check_judge(lambda claims: ["yes"] * len(claims), claims_of([instance()], 9))
    write_checks(tmp_path, "kind judge", {"lme_train": yes})
    (line,) = judge_notes(tmp_path, ["squad", "lme_train"])
    assert line.startswith("lme_train by kind judge. The judge accepts 100.0%")


def test_claims_carry_the_kind_and_end_at_the_count():
    (claims,) = claims_of([instance(types=("a", ABSTENTION))], 9)
    assert [c.kind for c in claims] == ["a", ABSTENTION]
    assert [len(c) for c in claims_of([instance(), instance()], 3)] == [2, 1]
    assert check_judge(recall_judge, [claims]).fit
