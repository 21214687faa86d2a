import json
import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memalpha.calls import DIALECTS
from memalpha.memory import CORE, EPISODIC, SEMANTIC, OpKind
from memalpha.tools import (
    CONTENT_KEY,
    DELETE,
    INSERT,
    UPDATE,
    Call,
    calls_to_ops,
    example_calls,
    fixed_fragments,
    format_call,
    format_response,
    memory_type_index,
    parse_calls,
    parse_prompted_calls,
    tool_schemas,
)

MARKED = ("qwen3", "qwen_agent")  # tests/test_lines.py has the dialect without marks
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
TRAPS = ["</tool_call>", "<tool_call>", "✿FUNCTION✿: ", "✿ARGS✿", "✿RESULT✿", "</think>", "```"]
TRAPS += ['"}}\n', "\\", '"', "{", "}", "[", "\n", "\u2028", "\ue000", "\ud800", "\x00", "NaN", "é"]
texts = st.text(st.characters(codec="utf-8"))
trap_texts = st.lists(st.sampled_from(TRAPS) | texts, max_size=8).map("".join)
contents = trap_texts.map(lambda t: t.replace("\ud800", "")).filter(lambda t: t.strip())
types = st.sampled_from(["core", "semantic", "episodic", "core_memory", "semantic_memory"])
ids = st.integers(0, 10**9 - 1).map(str)


def insert(content="a fact", memory_type="semantic"):
    return Call(INSERT, {"memory_type": memory_type, "content": content})


calls = st.one_of(
    st.builds(insert, contents, types),
    st.builds(
        lambda t, c, i: Call(UPDATE, {"memory_type": t, "new_content": c, "memory_id": i}),
        types,
        contents,
        ids,
    ),
    st.builds(lambda t, i: Call(DELETE, {"memory_type": t, "memory_id": i}), types, ids),
)


def encode(text):
    return list(text.encode())


def one(text, dialect="qwen3", **more):
    (call,) = parse_calls(text, dialect, **more)
    return call


def wrapped(body):
    return f"<tool_call>{body}</tool_call>"


def test_format_is_exact():
    arguments = {"memory_type": "semantic", "content": 'Zoë said "hi"\n'}
    assert format_call(INSERT, arguments, "qwen3") == (
        '<tool_call>\n{"name": "new_memory_insert", "arguments": {"memory_type": "semantic", '
        '"content": "Zoë said \\"hi\\"\\n"}}\n</tool_call>'
    )
    assert format_call(INSERT, arguments, "qwen_agent") == (
        '✿FUNCTION✿: new_memory_insert\n✿ARGS✿: {"memory_type": "semantic", '
        '"content": "Zoë said \\"hi\\"\\n"}'
    )


@pytest.mark.parametrize("dialect", MARKED)
@quick
@given(st.lists(calls, max_size=4), st.sampled_from(["\n", "", " then\n\n", "```\n"]))
def test_what_is_formatted_is_parsed_back(dialect, expected, separator):
    assert parse_calls(format_response(expected, dialect), dialect) == expected
    separated = separator.join(format_call(c.name, c.arguments, dialect) for c in expected)
    assert parse_calls(separated, dialect) == expected


@pytest.mark.parametrize("dialect", MARKED)
@quick
@given(st.data())
def test_parsing_never_raises_and_its_calls_become_operations(dialect, data):
    pieces = [
        *TRAPS,
        INSERT,
        UPDATE,
        ": ",
        '{"name": ',
        '"arguments": {',
        "1e999",
        "[[",
        ",",
    ]
    pieces += ['"memory_type": "core"', '"memory_id": ', "9" * 50, "Infinity", "null", '"\\ud800"']
    text = "".join(data.draw(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=25)))
    parsed = parse_calls(text, dialect)
    assert all(isinstance(c.name, str) and isinstance(c.error, str) for c in parsed)
    json.dumps([c.arguments for c in parsed]).encode()
    ops = calls_to_ops([parsed], encode, 5, len(parsed))
    kinds = ops.kind[0, : len(parsed)]
    assert [k == OpKind.MALFORMED for k in kinds] == [bool(c.error) for c in parsed]


@pytest.mark.parametrize("dialect", MARKED)
@quick
@given(st.lists(calls, min_size=1, max_size=3), st.integers(0, 2**32))
def test_mutated_responses_never_raise(dialect, wanted, seed):
    rng = random.Random(seed)
    text = list(format_response(wanted, dialect))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        text[at : at + rng.randint(0, 3)] = rng.choice(TRAPS)
    for call in parse_calls("".join(text), dialect):
        assert call.error or "memory_type" in call.arguments


@pytest.mark.parametrize("dialect", MARKED)
@quick
@given(calls, calls, st.data())
def test_a_response_cut_anywhere_keeps_whole_calls_and_refuses_the_broken_one(
    dialect, first, second, data
):
    whole = format_call(first.name, first.arguments, dialect) + "\n"
    last = format_call(second.name, second.arguments, dialect)
    cut = data.draw(
        st.integers(len("✿FUNCTION✿" if dialect != "qwen3" else "<tool_call>"), len(last))
    )
    parsed = parse_calls(whole + last[:cut], dialect)
    assert parsed[0] == first and len(parsed) >= 2
    assert parsed[1:] == [second] if cut == len(last) else all(c.error for c in parsed[1:])


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "new_memory_insert", "arguments": {"memory_type": "semantic", "content": "a",},}',
        '{"name": new_memory_insert, "arguments": {"memory_type": semantic, "content": "a"}}',
        "{'name': 'new_memory_insert', 'arguments': {'memory_type': 'semantic', 'content': 'a'}}",
        '```json\n{"name": "new_memory_insert", "arguments": '
        '{"memory_type": "semantic", "content": "a"}}\n```',
        '{"name": "new_memory_insert", "arguments": {"memory_type": "semantic", "content": "a"}}}',
        '{"name": "new_memory_insert", "arguments": {"memory_type": "semantic", "content": "a"}',
    ],
)
def test_broken_json_is_repaired(body):
    assert one(wrapped(body)) == insert("a")


@pytest.mark.parametrize("end", ["", "\n", "\n✿RESULT✿: saved", "\n✿FUNCTION✿: memory_delete"])
@pytest.mark.parametrize(
    "body",
    [
        '{"memory_type": "semantic", "content": "a",}',
        '```json\n{"memory_type": "semantic", "content": "a"}\n```',
        '{"memory_type": semantic, "content": "a"}',
    ],
)
def test_broken_arguments_are_repaired(body, end):
    call = parse_calls(f"✿FUNCTION✿: new_memory_insert\n✿ARGS✿: {body}{end}", "qwen_agent")[0]
    assert call == insert("a")


def test_sound_json_is_not_repaired(monkeypatch):
    monkeypatch.setattr(
        "memalpha.replies._read_value", lambda *a, **k: pytest.fail("repair was called")
    )
    for dialect in MARKED:
        assert one(format_call(INSERT, insert().arguments, dialect), dialect) == insert()


def test_a_line_break_inside_a_string_survives_repair():
    text = format_call(INSERT, insert("a|b").arguments, "qwen3").replace("|", "\n")
    assert one(text) == insert("a\nb")


def test_an_open_call_at_the_end_is_malformed_even_if_its_json_is_sound():
    whole = format_call(INSERT, insert().arguments, "qwen3")
    for text in (whole.removesuffix("\n</tool_call>"), whole[:-25], "<tool_call>", whole[:-1]):
        assert "no end" in one(text).error
    first, second = parse_calls(whole.removesuffix("</tool_call>") + whole, "qwen3")
    assert "no end" in first.error and second == insert()


@pytest.mark.parametrize(
    "tail",
    [
        '{"memory_type": "core", "content": "he said "no" {and} left',
        '{"memory_type": "core",}}, "x": "y',
    ]
    + ['{"memory_type": "semantic", "content": "a {b}', '{"memory_type": core, "content": "}}\\'],
)
def test_broken_arguments_that_break_off_are_not_repaired(tail):
    assert "no end" in one(f"✿FUNCTION✿: {INSERT}\n✿ARGS✿: {tail}", "qwen_agent").error


@pytest.mark.parametrize("dialect", MARKED)
def test_a_call_quoted_in_a_broken_off_text_is_not_run(dialect):
    quoted = format_call(INSERT, insert().arguments, dialect)
    outer = format_call(INSERT, insert(f"they wrote {quoted} and").arguments, dialect)
    assert "no end" in one(outer[: outer.index(" and")], dialect).error


# ---------------------------------------------------- nothing is lost, and nothing done unmeant

WORDS = ("Ida", "boat", "said", "no", "3 km", "Zoë", "it's", " ", " ", " ")
MARKS = ('"', '"', '"', "'", ", ", ": ", "{", "}", "[", "]", "\n", "</tool_call>", "<tool_call>")
MARKS += ("✿FUNCTION✿: ", "✿ARGS✿: ", "</think>", "<think>", '",', '"}', '"}}', "```", "\\", "null")
MARKS += ('"x"', '"memory_id": ', '{"name": "memory_delete", "arguments": {"memory_type": "core"}}')
# After this, sound JSON has ended: nobody can know that the content was to go on.
ENDS_BY_ITSELF = re.compile(r'"\s*(?:,\s*"\w+"\s*:|\}+\s*</tool_call>)')


def spell(text, how):
    """The text as a JSON string, with the mistake that a model makes."""
    if how == "sound":
        return json.dumps(text, ensure_ascii=False)
    text = text.replace("\\", "\\\\")
    text = text if how == "raw line breaks" else text.replace("\n", "\\n")
    if how == "single quotes":
        return "'" + text.replace("'", "\\'") + "'"
    return f'"{text}"' if how == "bare quotes" else '"' + text.replace('"', '\\"') + '"'


def written(rng, dialect, number):
    """A call, the text in which a careless model writes it, and whether quotes stand bare."""
    how = rng.choice(["sound", "bare quotes", "bare quotes", "raw line breaks", "single quotes"])
    words = [rng.choice(rng.choice([WORDS, MARKS])) for _ in range(rng.randrange(1, 12))]
    content = "".join(words) + f" {number}."
    if how != "sound":  # else the mark ends the thinking, with all that was before it
        content = content.replace("<think>", "").replace("</think>", "")
    if how == "bare quotes" and ENDS_BY_ITSELF.search(content):
        return written(rng, dialect, number)
    key, name = rng.choice([("content", INSERT), ("new_content", UPDATE)])
    arguments = {"memory_type": rng.choice(["core", "semantic"]), key: content, "memory_id": 7}
    arguments = arguments if name == UPDATE else insert(content, arguments["memory_type"]).arguments
    spelled = [
        f'"{k}": {spell(v, how) if k == key else json.dumps(v)}' for k, v in arguments.items()
    ]
    rng.shuffle(spelled)
    body = "{" + ", ".join(spelled) + rng.choice(["", "", ","]) + "}"
    if dialect == "qwen_agent":
        text = f"✿FUNCTION✿: {name}\n✿ARGS✿: {body}"
    else:
        body = f'{{"name": "{name}", "arguments": {body}}}'
        body = rng.choice([body, body, body[:-1], body[:-2], body + "}"])
        text = wrapped(rng.choice(["\n%s\n", "%s", "```json\n%s\n```"]) % body)
    return Call(name, arguments), text, how == "bare quotes"


@pytest.mark.parametrize("parse", [parse_calls, parse_prompted_calls])
@pytest.mark.parametrize("dialect", MARKED)
def test_a_content_is_stored_as_it_was_meant_or_its_call_is_malformed(dialect, parse):
    whole = 0
    for seed in range(1500):
        rng = random.Random(seed)
        calls = [written(rng, dialect, number) for number in range(rng.randint(1, 3))]
        meant, text = [call for call, _, _ in calls], "\n".join(text for _, text, _ in calls)
        cut = rng.random() < 0.3 and not any(bare for _, _, bare in calls)
        parsed = parse(text[: rng.randrange(len(text) + 1)] if cut else text, dialect)
        sound = [call for call in parsed if not call.error]
        assert all(call in meant for call in sound) and len(sound) <= len(meant), text
        nested = any("inside the broken JSON" in call.error for call in parsed)
        assert cut or nested or "think>" in text or len(parsed) >= len(meant), text
        whole += len(sound)
    assert whole > 1000


def insert_text(content):
    arguments = f'{{"memory_type": "semantic", "content": "{content}"}}'
    return f'{{"name": "{INSERT}", "arguments": {arguments}}}'


DROP = format_call(DELETE, {"memory_type": "semantic", "memory_id": 1}, "qwen3")


@pytest.mark.parametrize("dialect", MARKED)
@pytest.mark.parametrize(
    "content, is_whole",
    [
        ('Mira said "no", Ana said "yes": they split.', False),
        ('Label map: "music": 3, "travel": 5', False),
        ('"Ida", "Isa", "Ina" are boats.', False),
        ('He said "hi" to "us".', True),
        ('5" pipes', False),
        ("a\n</tool_call> b", True),
        ('a\n"</tool_call>" b', True),
        ("it's \\_so\\_", True),
        ('said "a", "memory_type": "core", "content": "b', False),
        (f"they wrote {DROP} here", False),
        (f"{DROP} and\n{DROP}.", False),
    ],
)
def test_quotes_and_marks_in_a_content_by_hand(dialect, content, is_whole):
    text = wrapped(insert_text(content))
    if dialect == "qwen_agent":
        text = (
            f"✿FUNCTION✿: {INSERT}\n✿ARGS✿: "
            + insert_text(content).partition('"arguments": ')[2][:-1]
        )
    call = one(text, dialect)
    assert call == insert(content) if is_whole else call.error


def test_a_quoted_call_of_the_other_dialect_is_not_run():
    quoted = format_call(DELETE, {"memory_type": "core"}, "qwen_agent")
    text = f'✿FUNCTION✿: {INSERT}\n✿ARGS✿: {{"memory_type": "core", "content": "say {quoted} now"}}'
    for parse in (parse_calls, parse_prompted_calls):
        (call,) = parse(text, "qwen_agent")
        assert "neither is run" in call.error


@pytest.mark.parametrize("joint", ["\n", "", ", "])
def test_several_objects_in_one_call_are_several_calls(joint):
    objects = [insert_text("A"), insert_text("B"), DROP[11:-12].strip()]
    expected = [insert("A"), insert("B"), Call(DELETE, {"memory_type": "semantic", "memory_id": 1})]
    for body in (
        joint.join(objects),
        f"[{joint.join(objects)}]",
        f"```json\n[{joint.join(objects)}",
    ):
        parsed = parse_calls(wrapped(body) + "\n" + DROP, "qwen3")
        assert parsed == [*expected, expected[-1]]
        assert [c.end for c in parsed] == sorted({c.end for c in parsed})
    both = (
        '{"memory_type": "semantic", "content": "A"}%s{"memory_type": "semantic", "content": "B"}'
    )
    text = f"✿FUNCTION✿: {INSERT}\n✿ARGS✿: " + both % joint
    assert parse_calls(text, "qwen_agent") == expected[:2]
    broken = parse_calls(text[:-1], "qwen_agent")
    assert broken[0] == insert("A") and "no JSON object" in broken[1].error
    assert "no JSON object" in one(wrapped(insert_text("A") + " and so on")).error


def test_a_key_that_stands_twice_is_malformed():
    body = '{"memory_type": "core", "content": "a", "content": "b"}'
    assert one(wrapped(f'{{"name": "{INSERT}", "arguments": {body}}}')).error
    assert one(f"✿FUNCTION✿: {INSERT}\n✿ARGS✿: {body}", "qwen_agent").error


def test_a_repaired_call_has_no_argument_of_another_tool():
    text = f'{{"name": "{INSERT}", "arguments": {{"memory_type": "core", "content": "a", %s,}}}}'
    assert "no argument 'mood'" in one(wrapped(text % '"mood": "x"')).error
    assert "no argument 'content2'" in one(wrapped(text % '"content2": {"x": "y"}')).error
    body = f'{{"name": "{DELETE}", "arguments": {{"memory_type": "core", "memory_id": "1 or 2",}}}}'
    assert "no memory type or id" in one(wrapped(body)).error


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ('"{\\"memory_type\\": \\"semantic\\", \\"memory_id\\": 12}"', 12),
        ('{"memory_type": "semantic", "memory_id": 12.0}', 12),
        ('{"memory_type": "semantic", "memory_id": 12.5}', "neither a whole number nor a string"),
        ('{"memory_type": "semantic", "memory_id": 1e999}', "neither a whole number nor a string"),
        ('"semantic"', "arguments are missing: they are no JSON object"),
        ('["semantic"]', "arguments are missing: they are no JSON object"),
    ],
)
def test_arguments_as_a_string_and_ids_with_a_point(arguments, expected):
    call = one(wrapped(f'{{"name": "{DELETE}", "arguments": {arguments}}}'))
    if isinstance(expected, str):
        assert expected in call.error
    else:
        assert call == Call(DELETE, {"memory_type": "semantic", "memory_id": expected})


@pytest.mark.parametrize("dialect", MARKED)
def test_only_what_follows_the_last_thinking_counts_and_ends_count_from_the_start(dialect):
    drop = format_call(DELETE, {"memory_type": "core"}, dialect)
    add = format_call(INSERT, insert("a </think> b").arguments, dialect)
    for before in ("<think>", "", "Well. <think>", f"{drop}<think>x</think>{drop}<think>"):
        text = f"{before}I could {drop} … so no.</think>\n{add}"
        call = one(text, dialect)
        assert call == insert("a </think> b") and call.end == len(text)
    assert parse_calls(f"{drop} <think> {add}", dialect) == []
    assert parse_calls(f"{drop}</think> So, nothing.", dialect) == []


def test_bare_calls_count_for_prompted_writers_alone():
    drop = Call(DELETE, {"memory_type": "semantic", "memory_id": 1})
    bare = DROP[11:-12].strip()
    for text, expected in [
        (f"Sure:\n```json\n{insert_text('A')}\n```\nand {bare}", [insert("A"), drop]),
        (f"[{insert_text('A')}, {bare}]", [insert("A"), drop]),
        (f"{DROP} {insert_text('B')}", [drop, insert("B")]),
        (insert_text("A").replace("arguments", "parameters"), [insert("A")]),
        (f'{{"tool_calls": [{{"function": {bare}}}]}}', [drop]),
        ("{name: 'memory_delete', arguments: {memory_type: 'semantic', memory_id: 1}}", [drop]),
        ('{"facts": [], "name": "Ida"} {1, 2}', []),
    ]:
        assert parse_prompted_calls(text, "qwen3") == expected
        assert parse_prompted_calls(text, "qwen_agent") == expected
        assert parse_calls(text, "qwen3") == [drop] * text.count("<tool_call>")
    (cut,) = parse_prompted_calls(insert_text("A")[:-9] + bare, "qwen3")
    assert cut.error
    assert parse_prompted_calls(f"{DROP[:-15]} {insert_text('B')}", "qwen3")[0].error
    assert len(parse_prompted_calls(f"{DROP[:-15]} {insert_text('B')}", "qwen3")) == 1


def test_arguments_of_a_tool_of_ones_own_are_all_there():
    arguments = {"tags": ["a\ud800", {"b": [1.5, None]}], "memory_type": True}
    call = one(format_call("note", arguments, "qwen3"))
    assert call.arguments == {"tags": ["a\ufffd", {"b": [1.5, None]}], "memory_type": True}
    assert "unknown tool 'note'" in call.error


def test_text_after_a_result_is_ignored():
    call = format_call(INSERT, insert().arguments, "qwen_agent")
    for mark in ("✿RESULT✿", "✿RETURN✿"):
        assert parse_calls(f"{call}\n{mark}: done\n{call}", "qwen_agent") == [insert()]
        assert parse_calls(f"{mark}\n{call}", "qwen_agent") == []


def test_a_function_without_arguments_is_malformed():
    first, second, third = parse_calls(
        "✿FUNCTION✿: memory_delete\n✿FUNCTION✿: memory_delete\n✿ARGS✿: {}\n✿FUNCTION✿: memory_del",
        "qwen_agent",
    )
    assert (first.name, second.name, third.name) == ("memory_delete", "memory_delete", "memory_del")
    assert "missing" in first.error and "memory_type" in second.error and "no end" in third.error


def test_calls_inside_thinking_do_not_count():
    call = format_call(INSERT, insert().arguments, "qwen3")
    assert parse_calls(f"<think>maybe {call}</think>\n{call}", "qwen3") == [insert()]
    assert parse_calls(f"<think>maybe {call}", "qwen3") == []


@pytest.mark.parametrize("value", ["NaN", "null", "3", "true", "[]", '""', '" \\n"'])
def test_content_that_is_no_text_is_malformed(value):
    body = f'{{"name": "{INSERT}", "arguments": {{"memory_type": "semantic", "content": {value}}}}}'
    assert "content" in one(wrapped(body)).error


@pytest.mark.parametrize(
    "value, error",
    [
        ({"name": "forget_all", "arguments": {}}, "unknown tool 'forget_all'"),
        ({"name": INSERT}, "arguments are missing"),
        ({"name": INSERT, "arguments": "semantic"}, "arguments are missing"),
        ({"name": 3, "arguments": {}}, "unknown tool ''"),
        ({"name": INSERT, "arguments": {"content": "a"}}, "memory_type"),
        ({"name": UPDATE, "arguments": {"memory_type": "core"}}, "new_content"),
        ({"name": DELETE, "arguments": {"memory_type": "semantic"}}, "memory_id"),
        (
            {"name": DELETE, "arguments": {"memory_type": "episodic", "memory_id": True}},
            "memory_id",
        ),
        ([], "no JSON object"),
    ],
)
def test_a_call_that_cannot_be_used_says_why_and_is_malformed(value, error):
    call = one(wrapped(json.dumps(value)))
    assert error in call.error
    assert calls_to_ops([[call]], encode, 4, 1).kind[0, 0] == OpKind.MALFORMED


@pytest.mark.parametrize("dialect", MARKED)
@pytest.mark.parametrize(
    "body",
    ['{"a":' * 100_000, "[" * 100_000, '{"name": "' + "x" * 300_000, "{" * 3_000, '{"a" ' * 100_000]
    + ['{"a": ' + "9" * 9_000 + "}", "<tool_call>" * 5_000, "✿FUNCTION✿" * 5_000, '"' * 9_999],
)
def test_huge_and_deep_text_is_refused(dialect, body):
    opened = "<tool_call>" if dialect == "qwen3" else f"✿FUNCTION✿: {INSERT}\n✿ARGS✿: "
    for text in (opened + body, opened + body + "</tool_call>"):
        assert all(call.error for call in parse_calls(text, dialect))
        assert parse_calls(text, dialect)


def test_lone_surrogates_become_replacement_characters():
    body = f'{{"name": "{INSERT}", "arguments": {{"memory_type": "core", "content": "a\\ud800b"}}}}'
    assert one(wrapped(body)).arguments["content"] == "a\ufffdb"
    assert calls_to_ops([[insert("a\udfff")]], encode, 9, 1).length[0, 0] == 1 + len(
        "\ufffd".encode()
    )


def test_arguments_that_a_tool_does_not_know_are_dropped():
    arguments = insert().arguments | {"mood": [float("nan")]}
    assert one(format_call(INSERT, arguments, "qwen3")) == insert()


def test_memory_types_short_and_long():
    assert [memory_type_index(n) for n in ("core", "semantic_memory", " Episodic ")] == [0, 1, 2]
    assert [memory_type_index(n) for n in ("", "_memory", "core_memory_memory", "x")] == [-1] * 4


def test_operations_by_hand():
    rows = [
        [
            insert("ab"),
            Call(
                UPDATE,
                {"memory_type": "episodic_memory", "new_content": " abcdef ", "memory_id": 7},
            ),
            Call(DELETE, {"memory_type": "semantic", "memory_id": "[3]"}),
            Call(UPDATE, {"memory_type": "core", "new_content": "c"}),
            Call(INSERT, {}, "broken"),
        ],
        [],
        [Call(DELETE, {"memory_type": "core_memory"}), Call(DELETE, {"memory_type": "diary"})],
    ]
    ops = calls_to_ops(rows, encode, width=4, max_ops=8)
    assert ops.kind.shape == (3, 8) and ops.tokens.shape == (3, 8, 4)
    assert all(leaf.dtype == np.int32 for leaf in (ops.kind, ops.target, ops.id, ops.tokens))
    assert ops.kind[0].tolist() == [1, 2, 3, 2, 4, 0, 0, 0]
    assert ops.target[0, :4].tolist() == [SEMANTIC, EPISODIC, SEMANTIC, CORE]
    assert ops.id[0, :4].tolist() == [-1, 7, 3, -1]
    assert ops.length[0].tolist() == [2, 6, 0, 1, 0, 0, 0, 0]
    assert ops.tokens[0, 0].tolist() == [97, 98, 0, 0]
    assert bytes(ops.tokens[0, 1].astype(np.uint8)) == b"abcd"
    assert not ops.kind[1].any()
    assert ops.kind[2, :3].tolist() == [3, 3, 0] and ops.target[2, :2].tolist() == [CORE, -1]


@pytest.mark.parametrize(
    "memory_id, number",
    [(3, 3), ("3", 3), ("[3]", 3), (" 12 ", 12), ("x", -1), ("", -1), (-4, -1), ("-4", -1)]
    + [(10**30, -1), ("9" * 5000, -1), ("٣", -1), ("2.0", -1)],
)
def test_memory_ids(memory_id, number):
    call = Call(DELETE, {"memory_type": "semantic", "memory_id": memory_id})
    ops = calls_to_ops([[call]], encode, 4, 1)
    assert (ops.kind[0, 0], ops.id[0, 0]) == (OpKind.DELETE, number)


def test_calls_past_the_most_are_left_out():
    ops = calls_to_ops([[insert(str(i)) for i in range(9)]], encode, 4, max_ops=6)
    assert ops.kind.tolist() == [[1] * 6] and ops.tokens[0, 5, 0] == ord("5")
    assert calls_to_ops([], encode, 4, 3).kind.shape == (0, 3)


def test_content_without_tokens_is_malformed():
    assert calls_to_ops([[insert("☃")]], lambda text: [], 4, 1).kind[0, 0] == OpKind.MALFORMED


def test_schemas_offer_enabled_memories_only():
    schemas = {s["function"]["name"]: s["function"] for s in tool_schemas((True, True, True))}
    assert list(schemas) == [INSERT, UPDATE, DELETE]

    def enum(function):
        return function["parameters"]["properties"]["memory_type"]["enum"]

    assert enum(schemas[INSERT]) == ["semantic_memory", "episodic_memory"]
    assert enum(schemas[UPDATE]) == ["core_memory", "semantic_memory", "episodic_memory"]
    assert schemas[UPDATE]["parameters"]["required"] == ["memory_type", "new_content"]
    for name, key in CONTENT_KEY.items():
        assert key in schemas[name]["parameters"]["properties"]
    core_only = tool_schemas((True, False, False))
    assert [s["function"]["name"] for s in core_only] == [UPDATE, DELETE]
    assert "memory_id" not in json.dumps(core_only) and "semantic" not in json.dumps(core_only)
    lists_only = tool_schemas(np.array([False, True, False]))
    assert [s["function"]["name"] for s in lists_only] == [INSERT, UPDATE, DELETE]
    assert "core" not in json.dumps(lists_only) and "episodic" not in json.dumps(lists_only)
    assert "memory_id" in lists_only[2]["function"]["parameters"]["required"]


def test_boundaries_name_what_is_wrong():
    with pytest.raises(ValueError, match="'xml'.*qwen3, qwen_agent"):
        parse_calls("", "xml")
    with pytest.raises(ValueError, match="one word"):
        format_call("two words", {}, "qwen_agent")
    with pytest.raises(ValueError, match="at least one"):
        tool_schemas((False, False, False))


@pytest.mark.parametrize("dialect", MARKED)
@quick
@given(calls)
def test_a_formatted_call_is_made_of_fragments_and_texts(dialect, call):
    rest = format_call(call.name, call.arguments, dialect)
    fragments = sorted(fixed_fragments(dialect), key=len, reverse=True)
    values = [json.dumps(v, ensure_ascii=False)[1:-1] for v in list(call.arguments.values())[1:]]
    parts = 0
    while rest:
        fragment = next((f for f in fragments if rest.startswith(f)), "")
        assert fragment, rest
        rest = rest.removeprefix(fragment)
        parts += 1
        if values and rest.startswith(values[0]) and parts >= 2:
            rest = rest.removeprefix(values.pop(0))
    assert not values and parts == len(call.arguments) + 1


@pytest.mark.parametrize("dialect", MARKED)
def test_fragments_hold_no_bare_word(dialect):
    fragments = fixed_fragments(dialect)
    assert len(set(fragments)) == len(fragments) and all('"' in f for f in fragments)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_examples_are_calls_on_each_enabled_memory(dialect):
    for enabled, updates, inserts in (
        ((True, True, True), ["core", "semantic", "episodic"], ["episodic", "semantic"]),
        ((True, False, False), ["core"], []),
        ((False, False, True), ["episodic"], ["episodic"]),
    ):
        calls = parse_calls(example_calls(dialect, enabled), dialect)
        assert not any(call.error for call in calls)
        names = [(call.name, call.arguments["memory_type"]) for call in calls]
        assert names == [(UPDATE, m) for m in updates] + [(INSERT, m) for m in inserts]
