"""The engine on a server: every way in which a server fails, and what the caller gets then."""

import json
import sqlite3
import threading
import time
from email.utils import formatdate

import pytest
from chat_server import cuts, fails, raw, reply, sleeps

from memalpha.lm.cache import DiskCache
from memalpha.lm.completion import retry_after
from memalpha.lm.interface import Counted, Generation
from memalpha.lm.server import ServerModel, ServerRefusedError
from memalpha.tools import format_call, parse_calls, tool_schemas

SECRET = "sk-a-key-of-the-tests"


def ask(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def engine(chat_server):
    """Makes engines that hardly wait."""
    engines = []

    def make(**options):
        options = {"timeout": 5.0, "retries": 3} | options
        first_wait = options.pop("first_wait", 0.01)
        engines.append(ServerModel(chat_server.url, "small", **options))
        engines[-1].first_wait = first_wait
        return engines[-1]

    yield make
    for one in engines:
        one.close()


def test_replies_come_in_order_with_their_sizes(chat_server, engine):
    def behave(body, number):
        time.sleep(0.03 if number % 2 else 0)
        return f"re: {body['messages'][-1]['content']}"

    chat_server.behave = behave
    given = engine().generate([ask(str(n)) for n in range(9)], 5, seed=3)
    assert given == [Generation(f"re: {n}", 7, 3) for n in range(9)]
    assert chat_server.bodies[0].keys() == {"model", "messages", "max_tokens", "temperature"}
    assert {b["max_tokens"] for b in chat_server.bodies} == {5}
    assert {b["temperature"] for b in chat_server.bodies} == {0}
    assert engine().generate([], 5) == []


def test_stops_are_sent_where_they_are_given_and_part_of_the_key(chat_server, engine, tmp_path):
    model = Counted(engine(cache=tmp_path / "kept"))
    model.generate([ask("x")], 5)
    model.generate([ask("x")], 5, stop=("\n",))
    assert "stop" not in chat_server.bodies[0] and chat_server.bodies[1]["stop"] == ["\n"]
    assert model.usage.cached == 0


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_than_so_many_stand_open_also_for_several_callers(chat_server, engine, concurrency):
    def behave(body, number):
        time.sleep(0.03)
        return "x"

    chat_server.behave = behave
    shared = engine(concurrency=concurrency)
    callers = [
        threading.Thread(target=shared.generate, args=([ask(f"{c} {n}") for n in range(6)], 5))
        for c in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(chat_server.bodies) == 12
    assert chat_server.most_open == concurrency


BROKEN = {
    "429": fails(429, "slow down"),
    "500": fails(500, "it burns"),
    "503 without words": raw(503, "", kind="text/plain"),
    "cut": cuts,
    "half a JSON": raw(200, '{"choices": [{"message"'),
    "a page": raw(200, "<html>busy</html>", kind="text/html"),
    "an error with 200": raw(200, '{"error": {"message": "it burns"}}'),
    "no choices": raw(200, '{"choices": [], "model": "m"}'),
    "no text": raw(200, '{"choices": [{"message": {"content": 5}}], "model": "m"}'),
    "late": sleeps(0.6),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_may_pass_is_tried_again(chat_server, engine, broken):
    chat_server.behave = lambda body, number: broken if number < 2 else "there"
    (given,) = engine(timeout=0.25 if broken is BROKEN["late"] else 5.0).generate([ask("q")], 5)
    assert given == Generation("there", 7, 3)
    assert len(chat_server.bodies) == 3


def test_what_does_not_pass_is_an_error_in_the_words_of_the_server(chat_server, engine):
    chat_server.behave = lambda body, number: fails(500, "the GPU is on fire")
    (given,) = engine(retries=2).generate([ask("q")], 5)
    assert given.text == "" and "500: the GPU is on fire (after 3 attempts)" == given.error
    assert len(chat_server.bodies) == 3


def test_a_context_that_is_too_long_is_one_error_and_the_others_go_on(chat_server, engine):
    words = "This model's maximum context length is 8 tokens"

    def behave(body, number):
        return fails(400, words) if body["messages"][-1]["content"] == "long" else "short"

    chat_server.behave = behave
    long, short = engine().generate([ask("long"), ask("brief")], 5)
    assert long == Generation("", error=f"400: {words}")
    assert short.text == "short" and len(chat_server.bodies) == 2


@pytest.mark.parametrize(
    "refusal, todo",
    [
        (fails(401, f"Incorrect API key: {SECRET}"), "LM_TEST_KEY is set, but refused"),
        (fails(403, "not for you"), "LM_TEST_KEY is set, but refused"),
        (fails(404, "The model small does not exist"), "does the server have 'small'"),
        (
            raw(429, '{"error": {"message": "out", "code": "insufficient_quota"}}'),
            "the account has nothing left",
        ),
    ],
    ids=["401", "403", "404", "quota"],
)
def test_a_refusal_raises_at_once_and_says_what_to_do(
    chat_server, engine, monkeypatch, refusal, todo
):
    monkeypatch.setenv("LM_TEST_KEY", SECRET)
    chat_server.behave = lambda body, number: refusal
    with pytest.raises(ServerRefusedError, match=todo) as caught:
        engine(key_variable="LM_TEST_KEY", concurrency=1).generate(
            [ask(str(n)) for n in range(20)], 5
        )
    assert SECRET not in str(caught.value) and chat_server.url in str(caught.value)
    assert len(chat_server.bodies) < 5
    assert chat_server.keys[0] == f"Bearer {SECRET}"


def test_the_key_is_named_where_it_is_missing(chat_server, engine, monkeypatch):
    monkeypatch.delenv("LM_TEST_KEY", raising=False)
    chat_server.behave = lambda body, number: fails(401, "who are you?")
    with pytest.raises(ServerRefusedError, match="who are you.*LM_TEST_KEY is not set"):
        engine(key_variable="LM_TEST_KEY").generate([ask("q")], 5)


def test_the_server_says_when_to_come_back(chat_server, engine):
    times = []

    def behave(body, number):
        times.append(time.monotonic())
        return fails(429, "later", retry_after="0.4") if number == 0 else "x"

    chat_server.behave = behave
    assert engine().generate([ask("q")], 5)[0].text == "x"
    assert times[1] - times[0] >= 0.4


def test_a_server_that_asks_for_an_hour_is_not_waited_for(chat_server, engine):
    chat_server.behave = lambda body, number: fails(429, "tomorrow", retry_after="3600")
    (given,) = engine().generate([ask("q")], 5)
    assert "tomorrow" in given.error and "3600 s" in given.error
    assert len(chat_server.bodies) == 1


def test_retry_after_in_seconds_as_a_date_or_as_nonsense():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert 50 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after({"retry-after": formatdate(time.time() - 60)}) == 0
    assert [retry_after(h) for h in ({}, {"retry-after": "soon"}, {"retry-after": "-1"})] == [0] * 3


def test_a_server_that_dies_and_comes_back(chat_server, engine):
    chat_server.stop()
    back = threading.Timer(0.3, chat_server.start)
    back.start()
    given = engine(retries=8, first_wait=0.05).generate([ask(str(n)) for n in range(5)], 5)
    back.join()
    assert [g.text for g in given] == [f"re: {n}" for n in range(5)]


def test_a_server_that_is_gone_is_not_waited_for_by_every_chat(chat_server, engine):
    chat_server.behave = lambda body, number: fails(503, "gone for good")
    given = engine(concurrency=2, retries=1).generate([ask(str(n)) for n in range(50)], 5)
    assert all("gone for good" in g.error for g in given)
    assert len(chat_server.bodies) <= 2 * (2 + 2)
    chat_server.behave = lambda body, number: "here again"
    assert engine(concurrency=2).generate([ask("q")], 5)[0].text == "here again"


def test_a_cached_answer_outlives_the_program_and_the_server(chat_server, engine, tmp_path):
    path = tmp_path / "deep" / "cache.sqlite"
    before = engine(cache=path).generate([ask("a"), ask("é")], 5)
    asked = len(chat_server.bodies)
    chat_server.stop()
    again = engine(cache=path, retries=0)
    after = again.generate([ask("a"), ask("é"), ask("new")], 5)
    assert [g.text for g in after[:2]] == [g.text for g in before] == ["re: a", "re: é"]
    assert [g.cached for g in before + after] == [False, False, True, True, False]
    assert after[2].error and len(chat_server.bodies) == asked
    chat_server.start()
    assert again.generate([ask("new")], 5)[0].text == "re: new"  # a failure is not kept
    for other in ({"max_new_tokens": 6}, {"max_new_tokens": 5, "temperature": 0.5}):
        assert not again.generate([ask("a")], **other)[0].cached
    assert not engine(cache=path, extra={"top_k": 1}).generate([ask("a")], 5)[0].cached
    assert SECRET.encode() not in path.read_bytes()


def test_equal_chats_are_asked_once_when_greedy_and_sampled_apart_else(chat_server, engine):
    usual = Counted(engine())
    texts = [g.text for g in usual.generate([ask("q"), ask("p"), ask("q")], 5)]
    assert texts == ["re: q", "re: p", "re: q"] and len(chat_server.bodies) == 2
    assert usual.usage.chats == 3 and usual.usage.cached == 1
    assert (usual.usage.prompt_tokens, usual.usage.completion_tokens) == (14, 6)
    assert usual.usage.cached_tokens == 10 and usual.usage.failed == 0
    usual.generate([ask("q")] * 3, 5, temperature=1.0, seed=11)
    seeds = [body["seed"] for body in chat_server.bodies[2:]]
    assert len(set(seeds)) == 3 and 11 in seeds


def test_failures_are_counted(chat_server, engine):
    chat_server.behave = lambda body, number: fails(400, "no")
    counted = Counted(engine())
    counted.generate([ask("q")], 5)
    assert counted.usage.failed == 1 and counted.name == "small"


def test_further_fields_replace_ours(chat_server, engine):
    extra = {"max_tokens": None, "max_completion_tokens": 9, "chat_template_kwargs": {"a": False}}
    engine(extra=extra).generate([ask("q")], 5)
    (body,) = chat_server.bodies
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body
    assert body["chat_template_kwargs"] == {"a": False}


NO_CALLS = "no text (finish_reason 'tool_calls')"
ONLY_THOUGHT = "reasoning but no text (finish_reason 'stop')"


@pytest.mark.parametrize(
    "said, expected",
    [
        (reply("<think>a</think>b"), Generation("<think>a</think>b", 7, 3)),
        (reply(None, "length"), Generation("", 7, 3)),  # cut while thinking: an empty answer
        (reply(None, refusal="I will not"), Generation("I will not", 7, 3)),
        (
            reply("", "content_filter"),
            Generation("", 7, 3, "no text (finish_reason 'content_filter')"),
        ),
        (reply("", "length", reasoning="so"), Generation("", 7, 3)),
        (reply(""), Generation("", 7, 3)),  # the end of sequence at once
        (reply("yes", reasoning_content="so"), Generation("yes", 7, 3)),
        (
            reply(
                [{"type": "text", "text": "ye"}, {"type": "image"}, {"type": "text", "text": "s"}]
            ),
            Generation("yes", 7, 3),
        ),
        (reply([{"type": "refusal", "refusal": "no"}]), Generation("no", 7, 3)),
        (reply(None), Generation("", 7, 3, "no text (finish_reason 'stop')")),
        (reply([]), Generation("", 7, 3)),
        (reply(None, "tool_calls", tool_calls=[]), Generation("", 7, 3, NO_CALLS)),
        (reply(None, None), Generation("", 7, 3, "no text (finish_reason None)")),
        (reply(None, reasoning_content="so"), Generation("", 7, 3, ONLY_THOUGHT)),
        (reply("\n\n", reasoning="so"), Generation("", 7, 3, ONLY_THOUGHT)),
    ],
)
def test_unusual_replies(chat_server, engine, said, expected, tmp_path):
    chat_server.behave = lambda body, number: said
    assert engine(cache=tmp_path / "c").generate([ask("q")], 5) == [expected]
    assert len(chat_server.bodies) == 1
    engine(cache=tmp_path / "c").generate([ask("q")], 5)
    assert len(chat_server.bodies) == (2 if expected.error else 1)  # no failure is cached


INSERT = {"memory_type": "semantic", "content": "Rex <b>é</b>\nis a dog."}


def function(name, arguments):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("content", [None, "", "I note that."])
@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_calls_beside_the_text_are_part_of_it(chat_server, engine, content, finish):
    calls = [function("new_memory_insert", json.dumps(INSERT))]
    calls += [function("new_memory_insert", INSERT | {"content": "b"})]  # an object, as Ollama's
    chat_server.behave = lambda body, number: reply(content, finish, tool_calls=calls)
    (given,) = engine().generate([ask("q")], 5)
    assert given.text.startswith(content or "<tool_call>") and not given.error
    first, second = parse_calls(given.text, "qwen3")
    assert first.arguments == INSERT and second.arguments["content"] == "b"
    assert not first.error and not second.error


def test_the_older_form_of_a_single_call_is_read_too(chat_server, engine):
    call = {"name": "memory_delete", "arguments": '{"memory_type": "core"}'}
    chat_server.behave = lambda body, number: reply(None, "function_call", function_call=call)
    (given,) = engine().generate([ask("q")], 5)
    assert given.text == format_call("memory_delete", {"memory_type": "core"}, "qwen3")


@pytest.mark.parametrize("arguments", ['{"memory_type": "sem', "[1]", "", None, 5, "[" * 99_999])
@pytest.mark.parametrize("name", ["new_memory_insert", None])
def test_a_broken_call_is_a_malformed_one_and_never_none(chat_server, engine, name, arguments):
    calls = [function(name, arguments)]
    chat_server.behave = lambda body, number: reply(None, "tool_calls", tool_calls=calls)
    (given,) = engine().generate([ask("q")], 5)
    (call,) = parse_calls(given.text, "qwen3")
    assert call.error and not given.error


REFUSALS = {
    "vLLM": fails(400, '"auto" tool choice requires --enable-auto-tool-choice'),
    "without words": fails(400, ""),
    "Ollama": fails(400, "registry/gemma does not support tools"),
    "llama.cpp": fails(500, "tools param requires --jinja flag"),
    "a router": fails(404, "No endpoints found that support tool use"),
    "strict": fails(422, "Extra inputs are not permitted"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_server_that_refuses_tools_is_asked_without_and_it_is_said_once(
    chat_server, engine, refusal, caplog
):
    caplog.set_level("WARNING", "absl")
    chat_server.behave = lambda body, number: refusal if "tools" in body else "here"
    tools = tool_schemas((True, True, True))
    asked = engine(concurrency=1)
    given = asked.generate([ask(str(n)) for n in range(3)], 5, tools=tools)
    assert [g.text for g in given] == ["here"] * 3
    assert ["tools" in body for body in chat_server.bodies] == [True, False, False, False]
    assert chat_server.bodies[0]["tools"] == tools
    (message,) = [r.getMessage() for r in caplog.records if "without" in r.getMessage()]
    assert message.startswith("small is asked without tools: ")


def test_an_error_that_is_not_about_tools_is_not_remembered_as_one(chat_server, engine):
    chat_server.behave = lambda body, number: fails(400, "too long") if number < 2 else "here"
    asked, tools = engine(concurrency=1), tool_schemas((True, True, True))
    long, short = asked.generate([ask("long"), ask("short")], 5, tools=tools)
    assert long.error == "400: too long" and short.text == "here"
    assert "tools" in chat_server.bodies[2]


def test_a_server_that_refuses_the_system_role_gets_its_text_before_the_users(chat_server, engine):
    def behave(body, number):
        system = body["messages"][0]["role"] == "system"
        return fails(400, "System role not supported") if system else body["messages"][0]["content"]

    chat_server.behave = behave
    chat = [{"role": "system", "content": "Be brief."}, *ask("q")]
    asked = engine(concurrency=1)
    assert [g.text for g in asked.generate([chat, chat], 5)] == ["Be brief.\n\nq"] * 2
    assert asked.generate([chat], 6)[0].text == "Be brief.\n\nq"
    assert len(chat_server.bodies) == 3


def test_an_empty_answer_cached_under_older_rules_is_asked_again(chat_server, engine, tmp_path):
    chat_server.behave = lambda body, number: ""
    engine(cache=tmp_path / "c").generate([ask("q")], 5)
    with sqlite3.connect(tmp_path / "c") as db:  # as written before replies had rules
        ((key, value),) = db.execute("SELECT key, value FROM kept").fetchall()
        value = {name: v for name, v in json.loads(value).items() if name != "rules"}
        db.execute("UPDATE kept SET value = ?", (json.dumps(value),))
    chat_server.behave = lambda body, number: "here"
    assert engine(cache=tmp_path / "c").generate([ask("q")], 5)[0].text == "here"
    assert engine(cache=tmp_path / "c").generate([ask("q")], 5)[0].cached


def test_a_chat_that_is_no_unicode_is_its_own_failure(chat_server, engine):
    bad, good = engine().generate([ask("\ud800"), ask("q")], 5)
    assert "no Unicode text" in bad.error and good.text == "re: q"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"url": "127.0.0.1:8000"}, "give an address such as"),
        ({"url": "http://me:pass@host/v1"}, "a secret has no place"),
        ({"url": "http://host/v1?api_key=x"}, "a secret has no place"),
        ({"model": ""}, "name the model"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": 0.0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        ServerModel(**{"url": "http://127.0.0.1:1/v1", "model": "m"} | arguments)
    assert "pass@" not in str(caught.value)


def test_no_new_tokens_are_refused(engine):
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        engine().generate([ask("q")], 0)


def test_a_cache_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "no.sqlite"
    path.write_bytes(b"this is no database, but long enough to be read as the head of one" * 20)
    with pytest.raises(OSError, match=r"no.sqlite.*remove the file or choose another"):
        DiskCache(path)
    with pytest.raises(OSError, match="choose another"):
        DiskCache(path / "inside")


def test_two_users_of_one_cache(tmp_path):
    one, two = DiskCache(tmp_path / "c"), DiskCache(tmp_path / "c")
    one.put("k", {"text": "\ud800 é"})
    assert two.get("k") == {"text": "\ud800 é"} and two.get("other") is None
    two.put("k", json.loads("[1]"))
    assert one.get("k") == [1]
