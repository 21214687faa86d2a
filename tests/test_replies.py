"""Replies of models: thinking, JSON with mistakes, and every reader on random text."""

import json

import pytest

from benchmarks import fuzz_replies
from memalpha import replies
from memalpha.replies import breaks_off, find_items, find_objects, find_with, read_object, visible


@pytest.mark.parametrize(
    "text, aloud",
    [
        ("yes", "yes"),
        (" <think>a</think> b\n", "b"),
        ("a</think>b</think> c", "c"),
        ("b <think>a", ""),
        ("<think>a</think> b <think> c", ""),
        ("<think>", ""),
        ("", ""),
        ('x</think><tool_call>{"a": "</think> y"}', '<tool_call>{"a": "</think> y"}'),
        ('x</think><tool_call>{"a": "</think> cut', '<tool_call>{"a": "</think> cut'),
        ('x</think>✿ARGS✿: {"a": "</think> \\u00', '✿ARGS✿: {"a": "</think> \\u00'),
        ('x✿ARGS✿: {"a": "</think> \\u00q', "\\u00q"),  # broken, and not cut off
        ('x</think>✿ARGS✿: {"a": "</think>"', '✿ARGS✿: {"a": "</think>"'),
        ('x</think>✿ARGS✿: {"a": "</think>", "b": ', '✿ARGS✿: {"a": "</think>", "b":'),
        ('x</think>✿ARGS✿: {"a": "</think>", "b": tr', '✿ARGS✿: {"a": "</think>", "b": tr'),
        ('x</think>✿ARGS✿: {"a": "<think>\n"}', '✿ARGS✿: {"a": "<think>\n"}'),
        ('<tool_call>{"a": "b</think> {"c": "d"}', '{"c": "d"}'),
    ],
)
def test_what_is_said_aloud(text, aloud):
    assert visible(text) == aloud == visible(aloud)


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"a": 1, "b": [true, null, "c"], }', {"a": 1, "b": [True, None, "c"]}),
        ("{a: True, 'b': tea, \"c\": 1.50}", {"a": True, "b": "tea", "c": 1.5}),
        ('{"a": "b\nc\td", "e": "\\_f\\u00e9\\ud83d\\ude00\\n"}',
         {"a": "b\nc\td", "e": "\\_fé😀\n"}),
        ('{"a": "say "hi" and "so" on"}', {"a": 'say "hi" and "so" on'}),
        ('{"a": ""hi""}', {"a": '"hi"'}),
        ("{'a': 'it\\'s', 'b': \"it's\"}", {"a": "it's", "b": "it's"}),
        *[(text, None) for text in (
            '{"a": "x "y", "z" w"}', '{"a": "5" pipe"}', '{"a": "x": "y"}', '{"a": b c}', '{"a" 1}',
            '{"a": 1 "b": 2}', '{"a": 1, "a": 2}', '{"a": "b', '{"a": ["b"}', '{"a": 1,', "{1, 2}",
            "{", "{]", "[]", "a", "",
        )],
    ],
)  # fmt: skip
def test_an_object_is_read_whole_or_not_at_all(text, value):
    found, end, _ = read_object(text)
    assert found == value and (end == len(text) or value is None)


def test_brackets_that_are_missing_at_the_end_put_it_one_further_each():
    text = '{"a": {"b": ["c"'
    assert read_object(text) == ({"a": {"b": ["c"]}}, len(text) + 3, True)
    assert not list(find_with(text, "a"))  # in a reply: cut off, as far as anyone can tell


def test_sound_json_is_what_the_strict_decoder_reads(monkeypatch):
    monkeypatch.setattr(replies, "_read_value", lambda *_: pytest.fail("repair was called"))
    value = {"a": ['"}', -1.5e3, None, True, "\\", "é\n"], "b": {"c": {}}}
    assert read_object(json.dumps(value)) == (value, len(json.dumps(value)), False)


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ("[{'a':", "}]")])
def test_depth_has_a_limit_that_the_calling_stack_does_not_move(opening, closing):
    for depth, is_read in ((10, True), (60, False), (330, False), (5000, False)):
        text = '{"x": ' + opening * depth + "1" + closing * depth + "}"
        assert (read_object(text)[0] is not None) == is_read
        assert read_object(text[:-depth])[0] is None or is_read


def test_objects_in_a_text_are_found_in_order():
    text = 'As {} in {"a": 1} {1, 2} I say ```{"a": {"b": 2}}``` {"a": "cut'
    assert find_with(text, "a") == [{"a": 1}, {"a": {"b": 2}}]
    assert [value for value, *_ in find_objects(text)] == [
        {}, {"a": 1}, None, {"a": {"b": 2}}, None
    ]  # fmt: skip
    assert find_with("{a: 1, z: 2} {'a': 2}", "a", others=("b",)) == [{"a": 2}]
    assert sum(1 for _ in find_objects("{" * 10_000)) == replies.MAX_TRIES


@pytest.mark.parametrize(
    "text, items",
    [
        ('{"a": ["b", 2, "c', ["b", 2]),
        ('{"a": ["b", "say "no", so", "c"]', ["b"]),
        ('{"a": ["b"], "c": ', ["b"]),
        ('{"a": []} {"a": ["x", ', ["x"]),
        ('{"a": "b"', None),
        ("", None),
    ],
)
def test_the_items_of_a_list_that_breaks_off(text, items):
    assert find_items(text, "a") == items


def test_what_breaks_off():
    assert [breaks_off(t) for t in ('{"a": b}', '{"a": "}', '{"a"}}\n```', "", '{"}"')] == [
        False, True, False, True, True
    ]  # fmt: skip


def test_no_reply_is_an_exception_anywhere(monkeypatch):
    monkeypatch.setattr(fuzz_replies, "LONGEST", 3_000)  # of loops: long ones only take longer
    rows = fuzz_replies.run(2000, seed=7)
    assert len(rows) == 17
    for name, (used, _, _) in rows.items():
        assert 0 < used < 2000, name


@pytest.mark.parametrize(
    "piece",
    ['{"a":', '<tool_call>{"a":"x "b ', "<tool_call>{'a':'x", '{"facts": ["a ', '{"VALID": [']
    + ["[{}, ", "{}", "<tool_call>{}", "✿FUNCTION✿: x\n✿ARGS✿: {", '"', "9"]
    + ["</think><tool_call>{'x': '"],
)  # fmt: skip
def test_loops_are_an_exception_for_no_reader(piece):
    for read in fuzz_replies.readers().values():
        read(piece * 1000)
        read('{"VALID": true, "facts": ' + piece * 1000)
