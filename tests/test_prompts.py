import json
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memalpha.memory import MEMORY_NAMES, Entry, MemoryView
from memalpha.prompts import (
    BUILT_IN,
    CUT_MARK,
    EXAMPLE_PIECE,
    READER_KINDS,
    PromptSpec,
    PromptTooLong,
    encode_messages,
    escape,
    fit_prompt,
    load_template,
    render_judge,
    render_memorise,
    render_reader,
    template_fragments,
)
from memalpha.tokenizer import train_tokenizer
from memalpha.tools import fixed_fragments, parse_calls

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
FULL, COMPACT = load_template("full"), load_template("compact")
CANARIES = ["</new_chunk>", "<new_chunk>", "< / CORE_MEMORY >", "<semantic_memory x='1'>"]
CANARIES += ["</episodic_memory>", "<tool_call>", "</tool_call>", "<tool_response>", "</think>"]
CANARIES += ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "✿FUNCTION✿: memory_delete", "✿RESULT✿"]
CANARIES += ["$chunk", "${core}", "{chunk}", "{}", "%s", "$", "$$", "\x00", "\r", "\ud800", "<"]
CANARIES += ["question>", "</question>", "<memory_entry>", "\n[1] ", "\u2028", "</tool\x00_call>"]
data_texts = st.lists(st.sampled_from(CANARIES) | st.text(max_size=4), max_size=8).map("".join)
CHAT = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>{% endif %}"
)


def memory(core="", semantic=(), episodic=(), **totals):
    def entries(items):
        return tuple(Entry(id=i, text=text, written_at=0) for i, text in items)

    return MemoryView(
        core=core,
        semantic=entries(semantic),
        episodic=entries(episodic),
        semantic_total=totals.get("semantic_total", len(semantic)),
        episodic_total=totals.get("episodic_total", len(episodic)),
        tokens=0,
    )


def user_text(template, view, chunk, **more):
    return render_memorise(spec(template, **more), view, chunk)[-1]["content"]


def spec(template, tokenizer=None, **more):
    options = dict(recent=5, response_tokens=100, dialect="qwen3") | more
    return PromptSpec(tokenizer, template, **options)


def fit(chunk, view, budget, tokenizer, template=COMPACT, **more):
    options = dict(prompt_tokens=budget, response_tokens=9) | more
    return fit_prompt(spec(template, tokenizer, **options), view, chunk)


@pytest.fixture(scope="module")
def tokenizer():
    phrases = [*template_fragments(COMPACT), *fixed_fragments("qwen3"), "<|im_start|>"]
    return train_tokenizer(["a cat and a dog"] * 3, 400, phrases)


@pytest.fixture
def chat(tokenizer):
    tokenizer.chat_template = CHAT
    yield tokenizer
    tokenizer.chat_template = None


def test_compact_is_tags_and_content_only():
    view = memory("Ann is a vet.", [(3, "cats purr"), (5, "dogs bark")], [(4, "noon: rain")])
    assert user_text(COMPACT, view, "a chunk") == (
        "<core_memory>Ann is a vet.</core_memory>"
        "<semantic_memory>[3] cats purr\n[5] dogs bark</semantic_memory>"
        "<episodic_memory>[4] noon: rain</episodic_memory>"
        "<new_chunk>a chunk</new_chunk>"
    )
    assert user_text(COMPACT, view, "x", enabled=(False, True, False)) == (
        "<semantic_memory>[3] cats purr\n[5] dogs bark</semantic_memory><new_chunk>x</new_chunk>"
    )
    assert len(render_memorise(spec(COMPACT), view, "x")) == 1  # no system message


def test_full_shows_counts_and_the_response_budget():
    view = memory("c", [(i, f"fact {i}") for i in range(4, 10)], [(2, "event")], semantic_total=31)
    system, user = render_memorise(spec(FULL, recent=2, response_tokens=256), view, "the chunk")
    assert (system["role"], user["role"]) == ("system", "user")
    text = user["content"]
    assert "the latest 2 of 31" in text and "the latest 1 of 1" in text
    assert "<semantic_memory>\n[8] fact 8\n[9] fact 9\n</semantic_memory>" in text
    assert "<core_memory>\nc\n</core_memory>" in text
    assert "<new_chunk>\nthe chunk\n</new_chunk>" in text
    assert "204 tokens" in text  # 0.8 of 256
    assert text.index("</episodic_memory>") < text.index("<new_chunk>")


def test_no_entries_are_shown_for_recent_0():
    text = user_text(FULL, memory("c", [(1, "secret")]), "x", recent=0)
    assert "secret" not in text and "the latest 0 of 1" in text


@pytest.mark.parametrize("dialect", ["qwen3", "qwen_agent"])
@pytest.mark.parametrize("only", range(3))
def test_only_enabled_memories_are_mentioned(dialect, only):
    enabled = tuple(i == only for i in range(3))
    view = memory("c", [(1, "a")], [(2, "b")])
    text = json.dumps(
        render_memorise(spec(FULL, dialect=dialect, enabled=enabled), view, "x")
    ).lower()
    text += json.dumps(render_reader(FULL, "q", "c", ["a"], ["b"], enabled=enabled)).lower()
    for name, on in zip(MEMORY_NAMES, enabled, strict=True):
        assert (f"{name}_memory" in text) == on and (f"{name} memory" in text) == on
    assert "\\n\\n\\n" not in text


def test_tools_are_listed_in_the_form_of_the_dialect():
    for dialect, mark in (
        ("qwen3", "<tool_call>\n{"),
        ("qwen_agent", "✿FUNCTION✿: new_memory_ins"),
    ):
        system = render_memorise(spec(FULL, dialect=dialect), memory(), "x")[0]["content"]
        assert mark in system and '\nmemory_delete {"memory_type": "core_memory | sem' in system
    bare = render_memorise(spec(FULL), memory(), "x", list_tools=False)[0]["content"]
    assert "memory_delete" not in bare


@pytest.mark.parametrize("dialect", ["qwen3", "qwen_agent"])
@pytest.mark.parametrize(
    "enabled, calls",
    [
        (
            (True, True, True),
            [("new_memory_insert", "semantic"), ("new_memory_insert", "episodic")],
        ),
        ((False, False, True), [("new_memory_insert", "episodic")]),
        ((True, False, False), [("memory_update", "core")]),
    ],
)
def test_the_example_is_a_whole_response_that_can_be_carried_out(dialect, enabled, calls):
    shown = spec(FULL, dialect=dialect, enabled=enabled)
    system = render_memorise(shown, memory(), "x")[0]["content"]
    parsed = parse_calls(system.partition(EXAMPLE_PIECE)[2], dialect)
    assert [call.error for call in parsed] == [""] * len(calls)
    types = [(call.name, call.arguments["memory_type"]) for call in parsed]
    assert types == [(name, f"{kind}_memory") for name, kind in calls]


@pytest.mark.parametrize("template", [FULL, COMPACT], ids=["full", "compact"])
@quick
@given(data_texts, data_texts, data_texts, data_texts)
def test_no_data_changes_the_structure(template, core, fact, event, chunk):
    view = memory(core, [(1, fact)], [(2, event)])
    text = user_text(template, view, chunk)
    for name in ("core_memory", "semantic_memory", "episodic_memory", "new_chunk"):
        assert text.count(f"<{name}>") == text.count(f"</{name}>") == 1
        assert len(re.findall(rf"<\s*/?\s*{name}\b", text, re.I)) == 2
    assert not re.search(r"</?(tool_|think)|<\|\w+\|>|✿[A-Z]+✿|[\x00\r\u2028\ud800]", text)
    text.encode()
    # the only unindented entry lines are the real ones
    for name, id_ in (("semantic", 1), ("episodic", 2)):
        block = text.split(f"<{name}_memory>")[1].split(f"</{name}_memory>")[0].strip("\n")
        lines = re.findall(r"^\[\d+\]", block, re.MULTILINE)
        assert lines == [f"[{id_}]"]


@pytest.mark.parametrize("template", [FULL, COMPACT], ids=["full", "compact"])
@quick
@given(data_texts, data_texts)
def test_reader_and_judge_hold_each_tag_once(template, one, two):
    for kind in READER_KINDS:
        text = render_reader(template, one, two, [one, two], [two], kind)[0]["content"]
        for name in ("core_memory", "semantic_memory", "episodic_memory", "question"):
            assert text.count(f"<{name}>") == text.count(f"</{name}>") == 1
    text = render_judge(template, "core", one)[0]["content"]
    assert text.count("<memory_entry>") == text.count("</memory_entry>") == 1


@pytest.mark.parametrize("data", ["$chunk ${core} $$ $", "{chunk} {} {0} %s", "\\1 \\g<0>"])
def test_data_is_never_read_as_a_template(data):
    view = memory(data, [(1, data)], [(2, data)])
    assert user_text(COMPACT, view, data).count(data) == 4
    assert user_text(FULL, view, data).count(data) == 4


def test_escape_by_hand():
    assert escape("<User> a < b, <tool_calls> 2 <| 3") == "<User> a < b, <tool_calls> 2 <| 3"
    assert escape("</new_chunk><|im_end|>") == "‹/new_chunk>‹|im_end|>"
    assert escape("< / Core_Memory >") == "‹ / Core_Memory >"
    assert escape("✿ARGS✿RESULT✿ ✿") == "❀ARGS❀RESULT✿ ✿"
    assert escape("a\tb\nc\r\nd\x1b[0m\x85\u2028\ud800") == "a\tb\nc\nd\\x1b[0m\\x85\\u2028\\ud800"
    assert escape("[CLS] <s> aaa", also=["[CLS]", "<s>", "aa", "a"]) == "[·CLS] ‹s> a·a·a"


@quick
@given(data_texts)
def test_escape_changes_nothing_twice(text):
    also = ["<s>", "[CLS]", "aa"]
    assert escape(escape(text, also), also) == escape(text, also)


@quick
@given(
    st.text(
        st.characters(codec="utf-8", categories=["L", "N", "Zs"]) | st.sampled_from("\n\t.,&|{}$")
    )
)
def test_escape_leaves_ordinary_text_alone(text):
    assert escape(text) == text


def test_further_lines_of_an_entry_are_indented():
    text = user_text(COMPACT, memory("", [(1, "a\n[2] b")]), "x")
    assert "<semantic_memory>[1] a\n    [2] b</semantic_memory>" in text


def test_special_tokens_of_the_tokenizer_cannot_come_from_data(tokenizer):
    bad = "".join(tokenizer.all_special_tokens) + "<|im_start|>"
    ids = fit(bad, memory(bad, [(1, bad)]), 999, tokenizer)
    assert not set(tokenizer.all_special_ids) & set(ids)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids


def test_fragments_make_each_tag_one_token(tokenizer):
    fragments = template_fragments(COMPACT)
    assert len(set(fragments)) == len(fragments)
    for name in ("core_memory", "semantic_memory", "episodic_memory", "new_chunk", "question"):
        assert {f"<{name}>", f"</{name}>"} <= set(fragments)
    ids = fit("", memory(), 8, tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        f"<{slash}{name}>"
        for name in ("core_memory", "semantic_memory", "episodic_memory", "new_chunk")
        for slash in ("", "/")
    ]


def test_recent_is_halved_until_the_prompt_fits(tokenizer):
    view = memory("c", [(i, f"fact{i} {'x ' * 20}") for i in range(9)])

    def shown(budget):
        ids = fit("chunk", view, budget, tokenizer)
        assert len(ids) <= budget
        return tokenizer.decode(ids).count("fact")

    def size(recent):
        text = user_text(COMPACT, view, "chunk", recent=recent)
        return len(tokenizer.encode(text, add_special_tokens=False))

    sizes = {k: size(k) for k in (5, 2, 1, 0)}
    for k, smaller in ((5, 2), (2, 1), (1, 0)):
        assert shown(sizes[k]) == k and shown(sizes[k] - 1) == smaller
    assert shown(sizes[0]) == 0
    bare = len(tokenizer.encode(user_text(COMPACT, memory(), "chunk"), add_special_tokens=False))
    assert shown(bare) == 0
    with pytest.raises(PromptTooLong):
        shown(bare - 1)


def test_a_core_too_long_for_the_prompt_is_shown_cut_and_marked(tokenizer):
    view = memory("word " * 200, [(1, "a fact")])
    budget = 80
    ids = fit("chunk", view, budget, tokenizer)
    text = tokenizer.decode(ids)
    assert len(ids) <= budget
    assert CUT_MARK + "</core_memory>" in text.replace(" </", "</")
    assert "word word" in text and "a fact" not in text


def test_a_prompt_that_cannot_fit_names_what_takes_the_room(tokenizer):
    view = memory("five " * 5, [(1, "a fact")])
    chunk = len(tokenizer.encode("z " * 40, add_special_tokens=False))
    with pytest.raises(PromptTooLong) as error:
        fit("z " * 40, view, 30, tokenizer)
    for part in ("budget is 30", f"chunk has {chunk},", "shorter chunks"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="recent is -1"):
        fit("z", view, 30, tokenizer, recent=-1)


def test_chat_templates_get_both_turns_the_tools_and_no_thinking(chat):
    def text(template, dialect):
        ids = fit("chunk", memory("core text"), 9999, chat, template, dialect=dialect)
        assert type(ids) is list and type(ids[0]) is int
        return chat.decode(ids)

    native = text(FULL, "qwen3")
    assert native.startswith("<|im_start|>tools\n{") and native.count("memory_delete") == 1
    assert native.endswith("<|im_start|>assistant\n<think></think>")
    assert "<|im_start|>system\nYou look after" in native and "<|im_start|>user\n" in native
    ours = text(FULL, "qwen_agent")
    assert not ours.startswith("<|im_start|>tools") and ours.count("memory_delete {") == 1
    assert text(COMPACT, "qwen3").startswith("<|im_start|>user\n<core_memory>core text")


def test_without_a_chat_template_the_prompt_is_plain_text(tokenizer):
    messages = render_memorise(spec(FULL, response_tokens=9), memory(), "chunk")
    text = tokenizer.decode(encode_messages(messages, tokenizer))
    assert text == messages[0]["content"] + "\n\n" + messages[1]["content"]


def test_reader_and_judge_texts():
    text = render_reader(FULL, "Who?", "c", ["a"], ["b"], "reader_classification")[0]["content"]
    assert 'behind its "Label:"' in text and "<question>\nWho?\n</question>" in text
    assert render_reader(COMPACT, "Who?", "c", ["a", "b"], [])[0]["content"] == (
        "<core_memory>c</core_memory><semantic_memory>a\nb</semantic_memory>"
        "<episodic_memory></episodic_memory><question>Who?</question>"
    )
    texts = {name: render_judge(FULL, name, "x")[0]["content"] for name in MEMORY_NAMES}
    assert len(set(texts.values())) == 3
    for name, text in texts.items():
        assert f"the {name} memory" in text
        assert '"VALID": true}' in text and '"VALID": false}' in text
    with pytest.raises(ValueError, match="'diary'"):
        render_judge(FULL, "diary", "x")
    with pytest.raises(ValueError, match="'poet'"):
        render_reader(FULL, "q", "", [], [], "poet")


def test_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(BUILT_IN / "compact", folder)
    (folder / "memorise.txt").write_text("$core$semantic$episodic<history>$chunk</history> $$1\n")
    template = load_template(str(folder))
    text = user_text(template, memory(), "a</history>b")
    assert text.endswith("<history>a‹/history>b</history> $1")
    assert "<history>" in template_fragments(template)


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("judge_core", None, "judge_core.txt is missing"),
        ("memorise", "$core $semantic $episodic", "memorise.txt lacks \\$chunk"),
        ("block", "$name $content $color", "block.txt.*unknown.*color"),
        ("system", "costs 5 $ a day", "system.txt has a stray"),
        ("tools", b"\xff", "tools.txt is not UTF-8"),
    ],
)
def test_a_wrong_template_file_is_named(tmp_path, file, text, message):
    folder = tmp_path / "mine"
    shutil.copytree(BUILT_IN / "compact", folder)
    path = folder / f"{file}.txt"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_template(str(folder))


def test_an_unknown_template_is_named():
    with pytest.raises(ValueError, match="'fulll' is neither built in"):
        load_template("fulll")
