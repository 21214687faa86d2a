"""LoCoMo: the published files, its scores worked by hand, and a table by the kind of question."""

import json
import os
from pathlib import Path

import pytest

from experiments.lib.intervals import pooled
from experiments.lib.kinds import kind_tables
from experiments.lib.pool import read_pool
from experiments.lib.results import Results
from memalpha import scoring
from memalpha.data import checks, load_source, locomo
from memalpha.data.sizes import Sizes, default_sizes
from memalpha.episode import Episode, Recall
from memalpha.reader import Answer, Evidence
from memalpha.reader_rules import extractive_reader

SHARED = Path(
    os.environ.get("MEMALPHA_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def turn(speaker, text, **more):
    return {"speaker": speaker, "dia_id": "D1:1", "text": text} | more


def asked(question, answer, category):
    name = "adversarial_answer" if category == 5 else "answer"
    return {"question": question, name: answer, "evidence": ["D1:1"], "category": category}


def talk(name, *sessions, qa=()):
    conversation = {"speaker_a": "Ida", "speaker_b": "Otto"}
    for number, turns in enumerate(sessions, start=1):
        conversation[f"session_{number}"] = turns
        conversation[f"session_{number}_date_time"] = f"1:00 pm on {number} May, 2023"
    return {"sample_id": name, "conversation": conversation, "qa": list(qa)}


def objection(question, published, corrected):
    return {
        "question": question, "golden_answer": published, "correct_answer": corrected,
        "error_type": "TEMPORAL_ERROR", "category": 2,
    }  # fmt: skip


QA = (
    asked("When did Ida move?", 2022, 2),
    asked("What does Otto play?", "chess, the harp", 1),
    asked("Would Ida swim?", "Likely no; she fears water", 3),
    asked("What did Otto sell?", "a boat", 4),
    asked("What did Ida sell?", "a boat", 5),
)
ONE = talk(
    "one",
    [turn("Ida", "I moved last year."), turn("Otto", "", blip_caption="a photo of a harp")],
    [turn("Otto", "I play chess."), turn("Ida", "", img_url=["x"])],
    qa=QA,
)
AUDIT = [
    objection("When did Ida move?", "2022", "2021 (last year, said in 2022)"),
    objection("What did Otto sell?", "a boat", "It was Ida, not Otto, who sold a boat."),
    objection("Who is Zoë?", "nobody", "a cat"),
]


def folder(path, conversations=(ONE,), audit=AUDIT):
    (path / "locomo").mkdir(exist_ok=True)
    (path / "locomo" / "locomo10.json").write_text(json.dumps(list(conversations)))
    if audit:
        (path / "locomo" / "errors.json").write_text(json.dumps(audit))
    return path


def load(path, chunks=10, questions=10, chunk_tokens=30):
    sizes = Sizes(1, chunks, chunk_tokens, questions)
    (instance,) = load_source("locomo", path, "test", sizes, 0, lambda text: len(text.split()))
    return instance


def test_sessions_become_chunks_and_categories_kinds(tmp_path):
    instance = load(folder(tmp_path))
    assert instance.chunks == (
        "[Dialogue at timestamp 1:00 pm on 1 May, 2023]\n<Ida> I moved last year.\n"
        "<Otto> (shares a picture: a photo of a harp)",
        "[Dialogue at timestamp 1:00 pm on 2 May, 2023]\n<Otto> I play chess.",
    )
    assert [(q.question, q.answers) for q in instance.questions][0] == (
        "When did Ida move?",
        ("2022",),
    )
    assert instance.questions[4].answers == (locomo.NOT_MENTIONED,)
    assert instance.metadata["question_types"] == [
        "temporal", "multi-hop", "open-domain", "single-hop", "adversarial",
    ]  # fmt: skip
    assert instance.metadata["corrected_answers"] == [
        ["2021"], ["chess, the harp"], ["Likely no; she fears water"], [], [locomo.NOT_MENTIONED],
    ]  # fmt: skip
    assert instance.metadata["dropped_questions"] == 0
    assert checks.answerable(instance) == [None] * 5


def test_what_is_left_out_is_counted(tmp_path):
    silent = talk("two", [turn("Ida", "", img_url=["x"])], qa=QA[:2])
    unanswered = ONE | {"qa": [*QA, asked("Why?", " ", 4)]}
    records = locomo.load_folder(folder(tmp_path, [unanswered, silent]))
    assert [c.name for c in records.conversations] == ["one"]
    assert records.left_out == {
        "pictures without a caption": 2,
        "questions without an answer": 1,
        "conversations without a word": 1,
        "questions about them": 2,
        "entries of the audit about no question here": 1,
    }
    few = load(tmp_path, questions=2)
    assert len(few.questions) == 2 and few.metadata["dropped_questions"] == 3
    assert len(few.metadata["corrected_answers"]) == 2


def test_bad_files_name_the_place(tmp_path):
    with pytest.raises(ValueError, match="no conversation with words in locomo10.json"):
        load(folder(tmp_path, [talk("two", [turn("Ida", "")])]))
    with pytest.raises(ValueError, match="no train split"):
        load_source("locomo", folder(tmp_path), "train", Sizes(1, 9, 99, 9), 0, len)
    with pytest.raises(ValueError, match="one has 2 chunks of 30 tokens, not at most 1"):
        load(tmp_path, chunks=1)
    with pytest.raises(ValueError, match=r"record 0: qa\[0\]: category is 6"):
        load(folder(tmp_path, [ONE | {"qa": [asked("a?", "b", 6)]}]))
    with pytest.raises(ValueError, match=r"errors.json: record 0: field 'correct_answer'"):
        load(folder(tmp_path, audit=[{"question": "a?", "golden_answer": "b"}]))
    (tmp_path / "locomo" / "errors.json").unlink()
    assert "corrected_answers" not in load(folder(tmp_path, audit=None)).metadata


@pytest.mark.parametrize(
    ("corrected", "expected"),
    [
        ("old car (answer is correct, but question says 2023)", "gold"),
        ("Strength (to keep going)", "Strength"),
        ("five months", "five months"),
        ("Unclear - the evidence is contradictory.", None),
        ("This is Joanna's statement, not Nate's.", None),
        ("(a remark)", None),
    ],
)
def test_what_an_audit_leaves_of_an_answer(corrected, expected):
    assert locomo.corrected_answer("gold", corrected) == expected


@pytest.mark.parametrize(
    ("kind", "reply", "gold", "expected"),
    [
        (
            "single-hop",
            "She was running.",
            "the runs",
            1 / 2,
        ),  # run; she, was, run: 2 * 1 / (3 + 1)
        ("temporal", "7 May, 2023", "7 May 2023", 1),
        ("temporal", "May May", "May", 2 / 3),
        ("", "and the", "Lund", 0),
        ("multi-hop", "chess", "chess, the harp", 1 / 2),
        ("multi-hop", "a harp, chess", "chess, the harp", 1),
        ("open-domain", "Likely no", "Likely no; she fears water", 1),
        ("adversarial", "It is not mentioned.", locomo.NOT_MENTIONED, 1),
        ("adversarial", "No information available", locomo.NOT_MENTIONED, 1),
        ("adversarial", "I do not know.", locomo.NOT_MENTIONED, 0),
        ("adversarial", "", locomo.NOT_MENTIONED, 0),
    ],
)
def test_scores_by_hand(kind, reply, gold, expected):
    assert scoring.score("locomo", reply, [gold], kind=kind) == pytest.approx(expected)


def test_the_offline_reader_abstains_in_the_words_that_count():
    assert extractive_reader("What did Ida sell?", "locomo", Evidence()) == locomo.NOT_MENTIONED
    assert extractive_reader("What did Ida sell?", "squad", Evidence()) == ""
    assert locomo.NOT_MENTIONED in scoring.instruction("locomo")


def test_questions_count_alike_and_the_interval_draws_instances():
    # Drawn are both, or one of them twice: means 1/3 (1/2), 0 (1/4) and 1 (1/4).
    value = pooled([[0.0, 0.0], [1.0], []])
    assert (value.mean, value.low, value.high) == (pytest.approx(1 / 3), 0, 1)
    assert pooled([[0.0, 1.0]]).low is None
    with pytest.raises(ValueError, match="needs a value"):
        pooled([[]])


def results(path, instance, replies):
    about = {
        "split": "test", "reward": {"beta": 0, "gamma": 0}, "systems": {"a": {}},
        "reading": {"reader": "r", "judge": "j", "retriever": "bm25", "top_k": 9, "tokenizer": "t"},
        "sources": {"locomo": {}},
    }  # fmt: skip
    kinds = instance.metadata["question_types"]
    scores = [
        float("nan") if reply is None else scoring.score("locomo", reply, q.answers, kind=kind)
        for reply, q, kind in zip(replies, instance.questions, kinds, strict=True)
    ]
    answers = [Answer(reply, (), (), 1) for reply in replies]
    episode = Episode(instance, Recall([], 5), answers=answers, scores=scores, r1=0.5, r3=0.5)
    with Results(path, about) as written:
        written.add("a", [episode], (1.0, 1.0))
    return path


def test_a_table_by_kind_with_both_keys(tmp_path):
    instance = load(folder(tmp_path))
    replies = ["2021", "chess", None, "a boat", "not mentioned"]
    out = results(tmp_path / "out", instance, replies)
    (table,) = kind_tables(read_pool([str(out)]), {"a": "system A"})
    (row,) = table.rows
    cells = dict(zip(table.heads, row, strict=True))
    assert table.title == "locomo by the kind of question, test split"
    assert cells["system"] == "system A"
    assert (cells["temporal (1)"], cells["temporal, corrected key (1)"]) == ("0.000", "1.000")
    assert cells["multi-hop (1)"] == cells["multi-hop, corrected key (1)"] == "0.500"
    assert cells["open-domain (1)"] == ""  # failed: no score and no zero
    assert (cells["single-hop (1)"], cells["single-hop, corrected key (0)"]) == ("1.000", "")
    assert cells["all (5)"] == f"{(0 + 0.5 + 1 + 1) / 4:.3f}"
    assert cells["all, corrected key (4)"] == f"{(1 + 0.5 + 1) / 3:.3f}"
    assert "1 of 5 answers are other ones; 1 questions are left out" in table.notes[1]


@pytest.mark.skipif(not (SHARED / "locomo").is_dir(), reason="the published LoCoMo is not here")
def test_the_published_file_has_all_its_questions():
    sizes = default_sizes("locomo", "test")
    instances = load_source("locomo", SHARED, "test", sizes, 0, lambda text: len(text.split()))
    kinds = [kind for i in instances for kind in i.metadata["question_types"]]
    counts = {kind: kinds.count(kind) for kind in locomo.CATEGORIES.values()}
    assert counts == {
        "multi-hop": 282, "temporal": 321, "open-domain": 96, "single-hop": 841, "adversarial": 446,
    }  # fmt: skip
    assert sum(i.metadata["dropped_questions"] for i in instances) == 0
    key = [new for i in instances for new in i.metadata["corrected_answers"]]
    assert sum(new == [] for new in key) == 46
