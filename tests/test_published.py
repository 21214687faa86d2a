"""The published parquet files, in both layouts, on small files written here."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memalpha import scoring
from memalpha.data import build, built_sets, published
from memalpha.data.instance import Question


def count_words(string):
    return len(string.split())


def rows(count=3, source="squad", first=0):
    return [
        {
            "instance_id": f"{source}-{i}",
            "prompt": "ignored",
            "chunks": [f"chunk {i} a", f"chunk {i} b"],
            "questions_and_answers": [
                {"question": f"Which {i}?", "answer": [f"chunk {i}", "other"]},
                {"question": "And?", "answer": ["b"]},
            ],
            "data_source": source,
            "metadata": "ignored",
        }
        for i in range(first, first + count)
    ]


def labelled(count, source, first=0):
    asked = [{"question": "Sentence: a", "answer": "17"}]
    return [row | {"questions_and_answers": asked} for row in rows(count, source, first)]


def write(path, records, **options):
    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


def as_text(records, *fields):
    return [row | {name: json.dumps(row[name]) for name in fields} for row in records]


def test_lists_and_json_text_give_the_same_instances(tmp_path):
    plain = write(tmp_path / "train.parquet", rows())
    instances = list(published.read(plain, "train"))
    assert [i.instance_id for i in instances] == ["squad-0", "squad-1", "squad-2"]
    assert instances[1].chunks == ("chunk 1 a", "chunk 1 b")
    assert instances[1].questions == (
        Question("Which 1?", ("chunk 1", "other")),
        Question("And?", ("b",)),
    )
    assert instances[1].metadata["question_ids"] == ["train.parquet:1:0", "train.parquet:1:1"]
    for fields in (("chunks",), ("questions_and_answers",), ("chunks", "questions_and_answers")):
        path = write(tmp_path / "text.parquet", as_text(rows(), *fields))
        again = list(published.read(path, "train"))
        assert [(i.chunks, i.questions) for i in again] == [
            (i.chunks, i.questions) for i in instances
        ]


def test_an_answer_may_be_a_text_or_a_number(tmp_path):
    records = rows(1)
    records[0]["questions_and_answers"] = json.dumps(
        [{"question": "a", "answer": "x;y"}, {"question": "b", "answer": 4}]
    )
    (instance,) = published.read(write(tmp_path / "a.parquet", records), "test")
    assert [q.answers for q in instance.questions] == [("x;y",), ("4",)]


def test_sources_are_told_apart_and_ids_made_where_there_are_none(tmp_path):
    records = labelled(2, "pubmed-rct") + labelled(2, "icl_nlu_8296shot_balance", first=7)
    path = write(
        tmp_path / "test.parquet",
        [{k: v for k, v in row.items() if k != "instance_id"} for row in records],
    )
    assert published.source_names(path) == ["pubmed-rct", "icl_nlu_8296shot_balance"]
    found = list(published.read(path, "test", lambda name: name == "pubmed-rct"))
    assert [i.source for i in found] == ["pubmed-rct"] * 2
    assert len({i.instance_id for i in found}) == 2
    assert all(scoring.category(i.source) == "labels" for i in published.read(path, "test"))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"chunks": []}, r"record 1: .*chunks must hold at least one item"),
        ({"chunks": ["a", " "]}, r"record 1: .*chunks\[1\] is empty"),
        ({"questions_and_answers": []}, r"record 1: .*questions must hold at least one item"),
        ({"data_source": None}, r"record 1: field 'data_source' must be str"),
        ({"data_source": ""}, r"record 1: field 'data_source' is empty"),
        ({"instance_id": "squad-0"}, r"record 1: instance_id 'squad-0' stands already at 0"),
    ],
)
def test_rows_that_are_refused(tmp_path, change, named):
    records = rows()
    records[1] |= change
    path = write(tmp_path / "train.parquet", records)
    with pytest.raises(ValueError, match=rf"train\.parquet: {named}"):
        list(published.read(path, "train"))


@pytest.mark.parametrize("source", ["ttl_train", "pubmed-rct", "icl_banking77_5900shot_balance"])
@pytest.mark.parametrize("answer", ["alarm_set", "-1", "1.0", "٣"])
def test_a_label_that_is_no_integer_is_refused(tmp_path, source, answer):
    records = labelled(2, source)
    records[1]["questions_and_answers"] = [{"question": "Sentence: a", "answer": answer}]
    path = write(tmp_path / "train.parquet", records)
    with pytest.raises(ValueError, match=r"record 1: questions\[0\]: the label '.*' is no integer"):
        list(published.read(path, "train"))


@pytest.mark.parametrize(
    "field, content, named",
    [
        ("chunks", "no json", r"chunks: no list and no JSON"),
        ("chunks", '{"a": 1}', r"chunks: must be a list, not dict"),
        ("questions_and_answers", '[{"question": "a"}]', r"\[0\]: field 'answer' is missing"),
        (
            "questions_and_answers",
            '[{"question": "a", "answer": null}]',
            r"\[0\].answer: must be a text .*None",
        ),
        ("questions_and_answers", '[{"answer": "a"}]', r"\[0\]: field 'question' is missing"),
        ("questions_and_answers", '[{"question": "a", "answer": [1, [2]]}]', r"not \[2\]"),
        ("questions_and_answers", '[{"question": "a", "answer": []}]', "at least one answer"),
        ("questions_and_answers", '["a"]', r"\[0\]: no dict and no JSON of one"),
    ],
)
def test_json_text_that_is_refused(tmp_path, field, content, named):
    records = as_text(rows(), "chunks", "questions_and_answers")
    records[2][field] = content
    path = write(tmp_path / "train.parquet", records)
    with pytest.raises(ValueError, match=rf"train\.parquet: record 2: .*{named}"):
        list(published.read(path, "train"))


def test_files_that_are_no_parquet(tmp_path):
    path = write(tmp_path / "train.parquet", rows(50))
    whole = path.read_bytes()
    for content, named in [
        (whole[: len(whole) // 2], "no readable parquet .* cut off"),
        (whole[:-20], "no readable parquet .* cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "the file is empty"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train\.parquet: .*{named}"):
            list(published.read(path, "train"))
        with pytest.raises(ValueError, match=rf"train\.parquet: .*{named}"):
            published.source_names(path)


def test_a_damaged_page_is_found_at_its_record(tmp_path):
    path = write(tmp_path / "a.parquet", rows(50), compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.parquet: "):
        list(published.read(path, "train"))


def test_a_missing_column_is_named(tmp_path):
    records = [{k: v for k, v in row.items() if k != "data_source"} for row in rows()]
    path = write(tmp_path / "train.parquet", records)
    with pytest.raises(ValueError, match="column 'data_source' is missing .found instance_id"):
        list(published.read(path, "train"))


# MemoryAgentBench's own layout


def bench_row(source="factconsolidation_sh_6k", lines=40, **changes):
    context = "\n".join(f"{i}. The colour of thing{i} is shade{i}." for i in range(lines))
    row = {
        "context": context,
        "questions": ["What is the colour of thing7?", "And of thing9?"],
        "answers": [["shade7", "shade7"], ["shade9"]],
        "metadata": {"source": source, "keypoints": None},
    }
    return row | changes


def test_a_context_is_cut_into_chunks(tmp_path):
    path = write(tmp_path / "Conflict_Resolution.parquet", [bench_row(), bench_row(lines=41)])
    first, second = published.read(path, "test", chunk_tokens=60, count_tokens=count_words)
    assert first.source == "factconsolidation_sh_6k" and len(first.chunks) > 4
    assert max(map(count_words, first.chunks)) <= 60
    lines = [line for chunk in first.chunks for line in chunk.split("\n") if "The colour" in line]
    assert lines == bench_row()["context"].split("\n")
    assert [q.answers for q in first.questions] == [("shade7",), ("shade9",)]
    assert first.instance_id != second.instance_id
    assert scoring.score(first.source, "Shade7!", first.questions[0].answers) == 1
    with pytest.raises(ValueError, match="give count_tokens"):
        list(published.read(path, "test"))


def details(**lists):
    return {"source": "longmemeval_s*", "keypoints": None} | lists


@pytest.mark.parametrize("encode", [lambda value: value, json.dumps])
def test_type_id_and_date_of_a_question_are_carried(tmp_path, encode):
    metadata = details(
        question_ids=["q1", "q2_abs"],
        question_types=["multi-session", None],
        question_dates=["2023/05/30 (Tue) 23:40", ""],
    )
    path = write(tmp_path / "a.parquet", [bench_row(metadata=encode(metadata))])
    (instance,) = published.read(path, "test", chunk_tokens=90, count_tokens=count_words)
    assert instance.metadata["question_ids"] == ["q1", "q2_abs"]
    assert instance.metadata["question_types"] == ["multi-session", ""]
    assert [q.asked_at for q in instance.questions] == ["2023/05/30 (Tue) 23:40", ""]
    assert "2023/05/30" not in instance.questions[0].question
    # The same in the layout of Mem-alpha; a list that is empty or absent says nothing.
    records = [row | {"metadata": encode(metadata | {"question_dates": []})} for row in rows(1)]
    (instance,) = published.read(write(tmp_path / "b.parquet", records), "test")
    assert instance.metadata["question_ids"] == ["q1", "q2_abs"]
    assert [q.asked_at for q in instance.questions] == ["", ""]


@pytest.mark.parametrize("name", ["question_ids", "question_types", "question_dates"])
def test_a_list_of_another_length_than_the_questions_is_refused(tmp_path, name):
    path = write(tmp_path / "a.parquet", [bench_row(metadata=details(**{name: ["one"]}))])
    with pytest.raises(ValueError, match=rf"record 0: metadata: {name} must be a list of 2"):
        list(published.read(path, "test", count_tokens=count_words))


def test_half_a_surrogate_pair_in_json_text_is_cleaned_and_named(tmp_path):
    records = rows(2)
    records[1]["chunks"] = '["a \\ud83d", "b"]'
    records[0]["chunks"] = json.dumps(records[0]["chunks"])
    path = write(tmp_path / "a.parquet", records)
    with pytest.warns(UserWarning, match=r"a\.parquet: record 1: chunks\[0\]: half of a surrogate"):
        _, instance = published.read(path, "train")
    assert instance.chunks == ("a \ufffd", "b")


def test_bytes_that_are_no_utf_8_name_their_record(tmp_path):
    records = [row | {"data_source": "squad", "metadata": "x"} for row in rows(2)]
    table = pa.Table.from_pylist(records)
    broken = pa.array([b"fine", b"ab\xed\xa0\xbd"]).view(pa.string())
    table = table.set_column(table.schema.get_field_index("instance_id"), "instance_id", broken)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: record 1: not UTF-8"):
        list(published.read(tmp_path / "a.parquet", "train"))


def test_recommendations_are_titles_and_need_their_names(tmp_path):
    row = bench_row("recsys_redial_full", answers=[["12", "7"], ["7"]])
    path = write(tmp_path / "Test_Time_Learning.parquet", [row])
    names = tmp_path / "entity2id.json"
    names.write_text(json.dumps({"<http://dbpedia.org/resource/The_Thing_(1982)>": 12, "Jaws": 7}))
    read = published.read_entity_names(names)
    assert read == {"12": "The Thing (1982)", "7": "Jaws"}
    options = {"chunk_tokens": 90, "count_tokens": count_words}
    (instance,) = published.read(path, "test", names=read, **options)
    assert instance.questions[0].answers == ("The Thing (1982)", "Jaws")
    with pytest.raises(ValueError, match=r"answers\[0\]: '12' is an id without a title"):
        list(published.read(path, "test", **options))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"answers": [["a"]]}, "2 questions but 1 answers"),
        ({"metadata": {"source": None}}, "metadata: field 'source' must be str"),
        ({"context": " "}, "field 'context' is empty"),
    ],
)
def test_contexts_that_are_refused(tmp_path, changes, named):
    path = write(tmp_path / "a.parquet", [bench_row(**changes)])
    with pytest.raises(ValueError, match=rf"a\.parquet: record 0: {named}"):
        list(published.read(path, "test", count_tokens=count_words))


def test_a_parquet_becomes_a_folder_a_source(tmp_path):
    records = rows(3) + rows(2, "ruler_qa1_197K") + rows(1, "longmemeval_s*")
    path = write(tmp_path / "test.parquet", records)
    manifests = build.from_parquet(path, "test", tmp_path / "out", count=2)
    assert {name: m["statistics"]["instances"] for name, m in manifests.items()} == {
        "squad": 2,
        "ruler_qa1_197K": 2,
        "longmemeval_s*": 1,
    }
    assert len(built_sets.Built(tmp_path / "out" / "longmemeval_s" / "test")) == 1
    assert list(build.from_parquet(path, "test", tmp_path / "b", "ruler_qa1")) == ["ruler_qa1_197K"]
    with pytest.raises(ValueError, match="no rows of source 'nlu'; it holds squad, ruler_qa1_197K"):
        build.from_parquet(path, "test", tmp_path / "c", "nlu")
