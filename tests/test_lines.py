"""The dialect "lines": a call is a line, the name of the tool and JSON values in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.calls import DIALECTS
from memalpha.tools import DELETE, INSERT, UPDATE, Call, format_call, format_response, parse_calls

contents = st.text(st.characters(codec="utf-8"), max_size=20).filter(str.strip)
calls = st.one_of(
    st.builds(lambda c: Call(INSERT, {"memory_type": "semantic", "content": c}), contents),
    st.builds(lambda c: Call(UPDATE, {"memory_type": "core", "new_content": c}), contents),
    st.builds(
        lambda c, i: Call(
            UPDATE, {"memory_type": "episodic", "new_content": c, "memory_id": str(i)}
        ),
        contents,
        st.integers(0, 9999),
    ),
    st.builds(lambda i: Call(DELETE, {"memory_type": "core", "memory_id": str(i)}), st.integers(0)),
)


def lines(text):
    return parse_calls(text, "lines")


def test_the_form_is_exact():
    assert "lines" in DIALECTS
    insert = Call(INSERT, {"memory_type": "semantic", "content": 'Zoë said "hi"\n'})
    assert format_response([insert, Call(DELETE, {"memory_type": "core"})], "lines") == (
        'new_memory_insert "semantic" "Zoë said \\"hi\\"\\n"\nmemory_delete "core"'
    )
    swapped = {"memory_type": "core", "memory_id": "7", "new_content": "x"}
    assert format_call(UPDATE, swapped, "lines") == 'memory_update "core" "x" "7"'


@pytest.mark.parametrize(
    "name, arguments",
    [(INSERT, {"content": "x"}), (UPDATE, {"memory_type": "core", "memory_id": "7"})],
)
def test_what_the_form_cannot_say_is_refused(name, arguments):
    with pytest.raises(ValueError, match=f"lines dialect has no '{name}'"):
        format_call(name, arguments, "lines")


@settings(max_examples=100, deadline=None)
@given(st.lists(calls, max_size=4), st.sampled_from(["", "Well: memory\n", "\n \t"]))
def test_what_is_formatted_is_parsed_back_with_its_end(expected, before):
    text = before + format_response(expected, "lines")
    parsed = lines(text)
    assert parsed == expected
    for number, call in enumerate(parsed):
        assert lines(text[: call.end]) == expected[: number + 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([INSERT, UPDATE, ' "', '"', "\\", "\n", "a", " "]), max_size=15))
def test_no_text_raises(pieces):
    for call in lines("".join(pieces)):
        assert isinstance(call.error, str)


@pytest.mark.parametrize(
    "text, error",
    [
        (f'{INSERT} "semantic" "cut', "no end"),
        (f'{INSERT} semantic "x"', "no JSON value"),
        (f'{INSERT} "semantic" "x" and more', "no JSON value"),
        (f'{INSERT} "semantic" "x" "y"', "more arguments than 2"),
        (f'{INSERT} "semantic"', "content"),
        (INSERT, "missing"),
        (f'{INSERT} {{"memory_type": "core"}}', "memory_type"),
    ],
)
def test_half_a_call_is_malformed_and_the_next_one_is_read(text, error):
    good = format_call(DELETE, {"memory_type": "semantic", "memory_id": "3"}, "lines")
    (call,) = lines(text)
    assert error in call.error
    for break_ in ("\n", "\r\n"):
        assert [bool(c.error) for c in lines(f"{text}{break_}{good}{break_}")] == [True, False]


def test_a_string_that_is_not_closed_does_not_take_in_the_next_call():
    first, second = lines(f'{DELETE} "semantic" "open\n{DELETE} "semantic" "4"')
    assert "no end" in first.error and second.arguments["memory_id"] == "4"
    assert all(call.error for call in lines(f'{INSERT} "semantic" "abc\n{UPDATE} "'))


def test_prose_and_other_names_are_no_calls():
    assert lines(f'I use {INSERT} "a"\nsearch "b"\n{INSERT}s "c"\n') == []


def test_a_content_over_several_lines_is_one_content():
    (call,) = lines(f'{INSERT} "semantic" "first\nsecond"')
    assert call.arguments["content"] == "first\nsecond"
