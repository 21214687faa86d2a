"""Shared helpers of the text sources, instances, and the errors of malformed files."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.data import nlu, squad, text, trec
from memalpha.data.instance import Instance, Question, statistics, validate


def count_words(string):
    return len(string.split())


# Helpers


@pytest.mark.parametrize(
    "passage, count",
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith met J. R. Jones of the U.S. Navy. He left.", 2),
        ('She said "Go." Then she went. (He stayed.) End', 4),
        ("Version 1.2 of e.g. this and that. So", 2),
        ("They met in round 3. Then it rained.", 2),
        ("\u4e00\u53e5\u3002\u4e8c\u53e5\u3002", 2),
        ("no end", 1),
    ],
)
def test_sentences(passage, count):
    ends = text.sentence_ends(passage)
    assert len(ends) == count
    assert ends[-1] == len(passage)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab. \n", max_size=30), max_size=25), st.integers(1, 6), st.integers(1, 40))
def test_packing_keeps_order_and_limit(items, chunks, limit):
    def frame(index, content):
        return f"<{index}>{content}>"

    packed = text.pack(items, frame, chunks, limit, len)
    order = [item for _, indices in packed for item in indices]
    assert len(packed) <= chunks
    assert order == sorted(set(order))
    for index, (chunk, indices) in enumerate(packed):
        assert len(chunk) <= limit
        assert chunk == frame(index, "\n\n".join(items[i] for i in indices))
    if len(packed) < chunks:  # nothing that fits is left behind
        alone = len(frame(0, "")) + len(text.SEPARATOR)
        assert set(order) == {
            i for i, item in enumerate(items) if item and len(item) + alone <= limit
        }


def test_packing_obeys_the_exact_count_where_the_sum_of_the_items_is_too_low():
    def count(string):  # every further separator of a text costs more than the one before
        return len(string.split()) + string.count("\n\n") ** 2

    packed = text.pack(["x y"] * 10, lambda _, content: content, 9, 12, count)
    assert [len(items) for _, items in packed] == [3, 3, 3, 1]
    assert [i for _, items in packed for i in items] == list(range(10))
    assert max(count(chunk) for chunk, _ in packed) == 10


def test_statistics_by_hand():
    asked = (Question("q", ("a",)),)
    instances = [
        Instance("squad", "1", ("a b", "c d e f"), asked),
        Instance("squad", "2", ("a b c",), asked * 4),
        Instance("nlu", "3", ("a",), asked),
    ]
    assert statistics(instances, count_words) == {
        "squad": {
            "instances": 2,
            "chunks_per_instance": 1.5,
            "tokens_per_chunk": 3.0,
            "max_chunk_tokens": 4,
            "questions_per_instance": 2.5,
        },
        "nlu": {
            "instances": 1,
            "chunks_per_instance": 1.0,
            "tokens_per_chunk": 1.0,
            "max_chunk_tokens": 1,
            "questions_per_instance": 1.0,
        },
    }


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(chunks=()), "chunks must hold at least one"),
        (dict(chunks=("a", " ")), r"chunks\[1\] is empty"),
        (dict(chunks=["a"]), "chunks must be a tuple, not list"),
        (dict(questions=()), "questions must hold"),
        (dict(questions=(Question("", ("a",)),)), r"questions\[0\]\.question is empty"),
        (dict(questions=(Question("q", ()),)), r"questions\[0\]\.answers must be a tuple"),
        (
            dict(questions=(Question("q", ("a", 3)),)),
            r"questions\[0\]\.answers\[1\] must be a string",
        ),
        (dict(questions=("q",)), r"questions\[0\] must be a Question"),
        (dict(metadata=None), "metadata must be a dict"),
        (dict(instance_id=""), "instance_id must be a non-empty string"),
    ],
)
def test_validate_names_the_instance_and_the_field(changes, named):
    good = dict(source="squad", instance_id="7", chunks=("a",), questions=(Question("q", ("a",)),))
    assert validate(Instance(**good)).metadata == {}
    with pytest.raises(ValueError, match="instance 'squad'/'.*': " + named):
        validate(Instance(**{**good, **changes}))


# Bad input

GOOD_SQUAD = {
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {
                    "context": "It is red.",
                    "qas": [
                        {
                            "id": "a",
                            "question": "What?",
                            "answers": [{"answer_start": 6, "text": "red"}],
                        }
                    ],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize(
    "old, new, named",
    [
        ('"title"', '"titel"', r"data\[0\]: field 'title' is missing"),
        ('"It is red."', "7", r"data\[0\]\.paragraphs\[0\]: field 'context' must be str"),
        ('"qas"', '"q"', r"data\[0\]\.paragraphs\[0\]: field 'qas' is missing"),
        ('"id"', '"i"', r"qas\[0\]: field 'id' is missing"),
        ('"What?"', '"  "', r"qas\[0\]: field 'question' is empty"),
        ('"answer_start": 6', '"answer_start": true', r"answers\[0\]: field 'answer_start' must"),
        ('[{"answer_start": 6, "text": "red"}]', "[]", r"qas\[0\]: field 'answers' is empty"),
        ('"qas": [', '"qas": [3, ', r"qas\[0\]: must be an object, not int"),
        ("}]}]}", "}]", "not valid JSON .*truncated"),
    ],
)
def test_squad_errors_name_file_record_and_field(tmp_path, old, new, named):
    path = tmp_path / "train.json"
    good = json.dumps(GOOD_SQUAD)
    path.write_text(good)
    assert len(squad.load([path]).paragraphs) == 1
    assert old in good
    path.write_text(good.replace(old, new))
    with pytest.raises(ValueError, match=r"train\.json: .*" + named):
        squad.load([path])


def test_trec_errors_name_the_line(tmp_path):
    path = tmp_path / "train_5500.label"
    for line, named in [("HUM who ?", "'HUM' is not"), ("HUM:ind ", "no question")]:
        path.write_text("HUM:ind Who ?\n\n" + line)
        with pytest.raises(ValueError, match=r"train_5500\.label: line 3: .*" + named):
            trec.load(path)
    with pytest.raises(ValueError, match="'coarse' or 'fine', not 'middle'"):
        trec.load(path, labels="middle")


@pytest.mark.parametrize(
    "content, named",
    [
        ("text,how\na,b\n", "header must hold .* but is 'text,how'"),
        ("text,label\na,b\nc\n", "line 3: 1 fields where the header has 2"),
        ("text,label\na,b\n ,c\n", "line 3: column 'text' is empty"),
        ('text,label\na,b\n"c,d\ne,f\n', "line"),
        ('text,label\n"a,b\nc",d\n', "line 3: a field goes over lines"),
        ("scenario;intent;answer_from_anno\na;;c\n", "line 2: column 'intent' is empty"),
    ],
)
def test_nlu_errors_name_the_line_and_the_column(tmp_path, content, named):
    path = tmp_path / "nlu.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"nlu\.csv: .*" + named):
        nlu.load([path])


@given(st.integers(1, 13), st.lists(st.integers(1, 13), max_size=12))
def test_every_item_is_read_before_one_is_read_again(items, amounts):
    """Whatever number is read at a time; and the order is always one of all items."""
    names, times, unread = [str(i) for i in range(items)], Counter(), []
    for turn, amount in enumerate(amounts):
        order = text.go_on(unread, names, str, "read", turn)
        assert sorted(order) == sorted(names) and order[: len(unread)] == unread
        times.update(order[:amount])
        counts = [times[name] for name in names]
        assert max(counts) - min(counts) <= 1
        unread = text.left(order, unread, min(amount, items))
