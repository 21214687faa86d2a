"""Results on disk: whole instances or none, whatever happens; and nothing of another config."""

import json
import math
from dataclasses import replace

import pytest

from experiments.lib.results import (
    INSTANCES,
    MEMORIES,
    QUESTIONS,
    Results,
    ResultsError,
    digest,
    instance_row,
    question_rows,
    read_lines,
    read_results,
)
from memalpha.data.instance import Instance, Question
from memalpha.episode import Episode, Recall, Response, Step
from memalpha.memory import Entry, MemoryView
from memalpha.reader import Answer

ABOUT = {"split": "test", "reading": {"top_k": 20}, "systems": {"a": {}}, "sources": {"squad": {}}}


def episode(name="one", scores=(1.0, 0.0), r1=0.5):
    asked = tuple(Question(f"q{n}", ("gold", "other")) for n in range(len(scores)))
    instance = Instance("squad", name, ("first chunk", "second"), asked)
    answers = [Answer(None if math.isnan(s) else "said", (7, 9), (1.0, 0.5), 12) for s in scores]
    return Episode(
        instance,
        Recall([], memory_tokens=5),
        answers=answers,
        scores=list(scores),
        verdicts=[""] * len(scores),
        r1=r1,
        r3=0.75,
        chunk_tokens=20,
    )


def names(folder, file):
    return [row["instance"] for row in read_lines(folder / file)]


def test_rows_by_hand():
    made = episode(scores=(1.0, math.nan), r1=1.0)
    first, failed = question_rows("a", made, 0.25)
    assert first == {
        "system": "a", "source": "squad", "instance": "one", "number": 0, "kind": "",
        "question": "q0", "gold": ["gold", "other"], "corrected": None, "prediction": "said",
        "score": 1.0, "verdict": None, "retrieved": [7, 9],
        "reader_tokens": 12, "seconds": 0.25, "failed": False,
    }  # fmt: skip
    assert failed["failed"] and failed["prediction"] is None and failed["score"] is None
    row = instance_row("a", made, 2.0)
    assert (row["r1"], row["r2"], row["r3"], row["r4"]) == (1.0, None, 0.75, None)
    assert (row["questions"], row["failed"], row["chunks"], row["reader_tokens"]) == (2, 1, 2, 12)
    assert (row["memory_tokens"], row["chunk_tokens"], row["seconds"]) == (5, 20, 2.0)
    assert instance_row("a", episode(scores=(math.nan,), r1=math.nan), 1)["r1"] is None


def test_a_baseline_whose_model_failed_has_no_sizes_and_is_kept(tmp_path):
    recall = Recall([], 0, failure="no answer")  # as `run_baseline` leaves it
    failed = replace(episode(scores=(math.nan,), r1=math.nan), r3=math.nan, recall=recall)
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [failed], (1.0, 0.1))
    ((row,), (asked,)) = (read_lines(tmp_path / name) for name in (INSTANCES, QUESTIONS))
    assert [row[k] for k in ("r1", "r3", "memory_tokens", "reader_tokens")] == [None] * 4
    assert (row["chunk_tokens"], row["failed"], asked["reader_tokens"]) == (20, 1, None)


def test_steps_without_a_verdict_are_left_out_of_r4(tmp_path):
    def step(r4):
        return Step(0, Response([]), "", [], [], [], 0.5, r4)

    made = replace(episode(), steps=[step(1.0), step(math.nan), step(0.5)])
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [made], (1.0, 0.1))
    (row,) = read_lines(tmp_path / INSTANCES)
    assert (row["r2"], row["r4"]) == (0.5, 0.75)
    unjudged = replace(made, steps=[step(math.nan)])
    assert instance_row("a", unjudged, 1.0)["r4"] is None


def test_final_memories_are_kept_to_be_read_and_go_with_their_instance(tmp_path):
    held = MemoryView("core", (Entry(1, "Ida rows.", 0),), (Entry(1, "2 May", 1),), 1, 1, 5)
    made = replace(episode(), recall=Recall([], memory_tokens=5, view=held))
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [made], (1.0, 0.1))
    name = {"system": "a", "source": "squad", "instance": "one"}
    kept = name | {"core": "core", "semantic": [[0, "Ida rows."]], "episodic": [[1, "2 May"]]}
    assert read_lines(tmp_path / MEMORIES) == [kept]
    (tmp_path / INSTANCES).write_text("")  # as a kill before the row of the instance leaves it
    with Results(tmp_path, ABOUT):
        assert read_lines(tmp_path / MEMORIES) == []


def test_what_is_written_is_found_again(tmp_path):
    with Results(tmp_path, ABOUT) as results:
        assert results.missing("a", episode("one").instance)
        results.add("a", [episode("one"), episode("two")], (1.0, 0.1))
        assert not results.missing("a", episode("one").instance)
    with Results(tmp_path, ABOUT) as results:
        assert not results.missing("a", episode("two").instance)
        assert results.missing("a", episode("three").instance)
        assert results.missing("b", episode("one").instance)
        results.add("a", [episode("three")], (1.0, 0.1))
    about, rows = read_results(tmp_path)
    assert about == ABOUT
    assert [row["instance"] for row in rows] == ["one", "two", "three"]
    assert names(tmp_path, QUESTIONS) == ["one", "one", "two", "two", "three", "three"]


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_last_line_that_was_cut_off_is_no_instance(tmp_path, cut):
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("one"), episode("two")], (1.0, 0.1))
    path = tmp_path / INSTANCES
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["instance"] for row in read_results(tmp_path)[1]] == ["one"]
    with Results(tmp_path, ABOUT) as results:
        assert not results.missing("a", episode("one").instance)
        assert results.missing("a", episode("two").instance)
        assert names(tmp_path, QUESTIONS) == ["one", "one"]  # those of the unfinished one are gone
        results.add("a", [episode("two")], (1.0, 0.1))
    assert names(tmp_path, INSTANCES) == ["one", "two"]
    assert names(tmp_path, QUESTIONS) == ["one", "one", "two", "two"]


def test_question_rows_cut_off_before_their_instance_are_dropped(tmp_path):
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("one")], (1.0, 0.1))
    half = json.dumps(question_rows("a", episode("two"), 0.1)[0])
    with (tmp_path / QUESTIONS).open("a") as file:
        file.write(half + "\n" + half[:40])
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("two")], (1.0, 0.1))
    assert names(tmp_path, QUESTIONS) == ["one", "one", "two", "two"]


def test_a_damaged_line_elsewhere_is_an_error_with_its_place(tmp_path):
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("one"), episode("two")], (1.0, 0.1))
    path = tmp_path / INSTANCES
    path.write_bytes(b"xx" + path.read_bytes())
    with pytest.raises(ResultsError, match=r"instances.jsonl: line 1 is damaged"):
        Results(tmp_path, ABOUT)


def test_results_of_another_config_are_refused_with_what_differs(tmp_path):
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("one")], (1.0, 0.1))
    before = (tmp_path / INSTANCES).read_bytes()
    with pytest.raises(ResultsError, match=r"reading.top_k: was 20, is 5"):
        Results(tmp_path, ABOUT | {"reading": {"top_k": 5}})
    with pytest.raises(ResultsError, match=r"systems.a.step: was '\(absent\)', is 3"):
        Results(tmp_path, ABOUT | {"systems": {"a": {"step": 3}}})
    with pytest.raises(ResultsError, match=r"sources.squad.seed"):
        Results(tmp_path, ABOUT | {"sources": {"squad": {"seed": 3}, "nlu": {}}})
    assert (tmp_path / INSTANCES).read_bytes() == before


def test_systems_and_sources_that_are_new_are_added(tmp_path):
    with Results(tmp_path, ABOUT):
        pass
    more = ABOUT | {"systems": {"b": {"step": 3}}, "sources": {"nlu": {}}}
    with Results(tmp_path, more):
        pass
    about, _ = read_results(tmp_path)
    assert set(about["systems"]) == {"a", "b"} and set(about["sources"]) == {"squad", "nlu"}
    with pytest.raises(ResultsError, match="systems.b.step: was 3, is 4"):
        Results(tmp_path, ABOUT | {"systems": {"b": {"step": 4}}})


def test_other_text_under_the_same_name_is_refused(tmp_path):
    with Results(tmp_path, ABOUT) as results:
        results.add("a", [episode("one")], (1.0, 0.1))
        other = replace(episode("one").instance, chunks=("other text",))
        assert digest(other) != digest(episode("one").instance)
        with pytest.raises(ResultsError, match="squad/one has other chunks"):
            results.missing("a", other)


def test_a_folder_is_written_by_one_process_alone(tmp_path):
    with Results(tmp_path, ABOUT):
        with pytest.raises(ResultsError, match="another process"):
            Results(tmp_path, ABOUT)
    with Results(tmp_path, ABOUT):
        pass


def test_a_folder_without_results_says_how_to_make_them(tmp_path):
    with pytest.raises(ResultsError, match="python -m experiments.evaluate"):
        read_results(tmp_path)
