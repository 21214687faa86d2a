"""The HTTP server: who may come in, what it answers, and that it is a memory behind a chat."""

import json
import re

import pytest
from fastapi.testclient import TestClient

from memalpha.agent.http import make_app, run, token_from
from memalpha.agent.memory_agent import NOTED, MemoryAgent
from memalpha.rollout import scripted_writer
from memalpha.tools import format_call

TOKEN = "a-token-of-some-length"
HOSTILE = '\'); DROP TABLE entries; -- <script>alert(1)</script> {"a": [</new_chunk>'


def keep_all(turn):
    content = {"memory_type": "semantic", "content": turn.text}
    return format_call("new_memory_insert", content, "qwen3")


@pytest.fixture
def agent(micro):
    env = micro.env.replace(entry_tokens=160, prompt_tokens=640)
    return MemoryAgent(env, scripted_writer(env, keep_all))


@pytest.fixture
def client(agent):
    app = make_app(agent, TOKEN, max_body=2000)
    with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as made:
        yield made


def say(client, text, **more):
    body = {"model": "memalpha", "messages": [{"role": "user", "content": text}]} | more
    return client.post("/v1/chat/completions", json=body)


def test_a_chat_in_the_form_of_openai_remembers(client):
    told = say(client, "The dog of Ana is called Rex.", user="ana").json()
    assert told["object"] == "chat.completion" and told["id"].startswith("chatcmpl-")
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": NOTED}
    assert choice["finish_reason"] == "stop"
    parts = [{"type": "text", "text": "What is the dog of Ana called?"}]
    asked = say(client, parts, user="ana").json()
    assert "Rex" in asked["choices"][0]["message"]["content"]
    assert "Rex" not in say(client, "What is the dog of Ana called?", user="bo").text
    assert client.get("/v1/models").json()["data"][0]["id"] == "memalpha"


def test_a_stream_holds_the_same_reply(client):
    say(client, "The dog of Ana is called Rex.")
    lines = say(client, "What is the dog of Ana called?", stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    first, last = (json.loads(line.removeprefix("data: ")) for line in lines[:2])
    assert "Rex" in first["choices"][0]["delta"]["content"]
    assert first["object"] == "chat.completion.chunk" and first["id"] == last["id"]
    assert last["choices"][0]["finish_reason"] == "stop"


NULLS = ("user", "stream", "model", "stream_options", "temperature", "max_tokens", "n", "stop")
NULLS += ("top_p", "seed", "tools", "max_completion_tokens", "presence_penalty", "response_format")


@pytest.mark.parametrize("field", [*NULLS, "all"])
def test_a_field_that_is_null_is_a_field_that_is_absent(client, field):
    nulls = dict.fromkeys(NULLS if field == "all" else [field])
    body = {"messages": [{"role": "user", "content": "The dog of Ana is called Rex."}]} | nulls
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == NOTED
    assert client.get("/v1/memory").json() == {"namespaces": ["default"]}


def test_other_fields_may_be_null_too_and_what_is_not_served_is_refused(client):
    body = {"text": "Rex is a dog.", "timestamp": None}
    assert client.post("/v1/memory/ana/observe", json=body).status_code == 200
    parts = [{"type": "text", "text": None}, {"type": "text", "text": "Rex?"}, {"type": "image"}]
    assert say(client, parts, name=None).status_code == 200
    assert say(client, None).json()["error"]["message"] == "chat: the message is empty"
    assert "n: " in say(client, "Rex?", n=2).json()["error"]["message"]
    assert say(client, "Rex?", stream=True, stream_options={"include_usage": None}).is_success


def test_a_stream_ends_with_the_usage_where_it_is_asked_for(client):
    whole = say(client, "The dog of Ana is called Rex.").json()["usage"]
    assert whole["total_tokens"] == whole["prompt_tokens"] + whole["completion_tokens"]
    assert whole["prompt_tokens"] > whole["completion_tokens"] > 0
    options = {"include_usage": True}
    lines = say(client, "The dog of Ana is called Rex.", stream=True, stream_options=options).text
    *events, done, _ = lines.split("\n\n")
    first, last, usage = (json.loads(line.removeprefix("data: ")) for line in events)
    assert done == "data: [DONE]" and first["usage"] is None and last["usage"] is None
    assert usage["choices"] == [] and usage["usage"] == whole


@pytest.mark.parametrize(
    "header",
    [f"bearer {TOKEN}", f"BEARER {TOKEN}", f"Bearer   {TOKEN} "],
)
def test_the_scheme_of_the_token_is_case_insensitive(agent, header):
    client = TestClient(make_app(agent, TOKEN))
    for name in ("authorization", "Authorization", "AUTHORIZATION"):
        assert client.get("/v1/memory", headers={name: header}).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_other_spellings_of_the_content_type(client, content_type):
    body = json.dumps({"text": "Rex is a dog."})
    headers = {"Content-Type": content_type}
    response = client.post("/v1/memory/ana/observe", content=body, headers=headers)
    assert response.status_code == 200


def test_names_with_joiners_are_names(client):
    for name in ("می\u200cخواهم", "\U0001f469\u200d\U0001f680", "ana@example.org", "a b"):
        assert say(client, "Rex is a dog.", user=name).status_code == 200
        assert client.get(f"/v1/memory/{name}").json()["namespace"] == name
    for name in ("a\u200bb", "a\u202eb", "\u200d", "a\ufeff"):
        answer = say(client, "Rex is a dog.", user=name)
        assert answer.status_code == 400 and "printable" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "method, path, status, body",
    [
        (
            "POST",
            "/v1/chat/completions",
            200,
            r'{"messages": [{"role": "user", "content": "a\ud83d"}]}',
        ),
        ("POST", "/v1/memory/ana/observe", 200, r'{"text": "a\ud83d"}'),
        ("POST", "/v1/memory/ana/observe", 200, r'{"text": "a", "timestamp": "\udc00"}'),
        ("POST", "/v1/memory/ana/ask", 200, r'{"question": "a\ud83d"}'),
        ("PUT", "/v1/memory/ana/core", 200, r'{"text": "a\ud83d"}'),
        ("POST", "/v1/memory/ana/semantic", 200, r'{"text": "a\ud83d"}'),
        ("POST", "/v1/memory/ana/semantic", 400, '{"text": "a\udcff"}'),
        (
            "POST",
            "/v1/chat/completions",
            422,
            r'{"messages": [{"role": "user", "content": "a"}], "user": "b\ud83d"}',
        ),
        ("POST", "/v1/memory/ana/ask", 400, "[" * 100_000),
    ],
)
def test_text_that_is_no_unicode_is_mended_or_refused_and_never_an_error_of_ours(
    agent, method, path, status, body
):
    agent.store.create("ana")
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    client = TestClient(make_app(agent, TOKEN), headers=headers, raise_server_exceptions=False)
    content = body.encode("utf-8", "surrogateescape")
    response = client.request(method, path, content=content)
    if status != 200:
        assert re.search("user|body", response.json()["error"]["message"])
    assert response.status_code == status, response.text
    assert client.get("/v1/memory/ana").status_code == 200
    assert client.get("/v1/memory").json()["namespaces"][0] == "ana"


def test_the_memory_is_read_edited_and_undone(client):
    base = "/v1/memory/ana"
    events = client.post(f"{base}/observe", json={"text": "Rex is a dog."}).json()["events"]
    assert events[0]["calls"][0]["outcome"] == "ok" and "Rex is a dog." in events[0]["text"]
    (entry,) = client.get(base).json()["semantic"]
    client.put(f"{base}/semantic/{entry['id']}", json={"text": "Rex is a cat."})
    client.put(f"{base}/core", json={"text": "About Rex."})
    client.post(f"{base}/episodic", json={"text": "On 2024-01-02 Rex barked."})
    memory = client.get(base).json()
    assert memory["core"] == "About Rex." and memory["semantic"][0]["text"] == "Rex is a cat."
    assert len(memory["events"]) == 4 and memory["changes"][-1]["after"].startswith("On 2024")
    answer = client.post(f"{base}/ask", json={"question": "What is Rex?"}).json()
    assert "Rex" in answer["text"] and answer["evidence"]["core"] == "About Rex."
    assert answer["sure"]
    assert client.post(f"{base}/undo").json()["event"]["undoes"] == 3
    assert not client.get(base).json()["episodic"]
    assert client.delete(f"{base}/semantic/{entry['id']}").status_code == 200
    assert client.delete(f"{base}/core").status_code == 200
    assert "Memory of ana" in client.get(base, params={"format": "markdown"}).text
    assert client.get("/v1/memory").json() == {"namespaces": ["ana"]}
    assert client.delete(base).json() == {"forgotten": "ana"}
    assert client.get("/v1/memory").json() == {"namespaces": []}


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
def test_without_the_token_there_is_nothing(agent, header):
    client = TestClient(make_app(agent, TOKEN))
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("GET", "/v1/memory"), ("POST", "/v1/chat/completions"), ("GET", "/no")):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401 and "token" in response.json()["error"]["message"]
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 401


def test_bodies_over_the_limit_are_refused_whatever_they_say_of_their_size(client, agent):
    text = {"text": "x" * 3000}
    assert client.post("/v1/memory/ana/observe", json=text).status_code == 413
    pieces = (b"x" * 500 for _ in range(6))  # chunked: no length is given
    response = client.post("/v1/memory/ana/observe", content=pieces)
    assert response.status_code == 413 and "2000 bytes" in response.json()["error"]["message"]
    assert agent.store.namespaces() == []


@pytest.mark.parametrize(
    "method, path, body, status, message",
    [
        ("GET", "/v1/memory/eve", None, 404, "no namespace 'eve'"),
        ("POST", "/v1/memory/eve/ask", {"question": "Who?"}, 404, "no namespace 'eve'"),
        ("POST", "/v1/memory/ana/observe", {"text": ""}, 422, "text"),
        ("POST", "/v1/memory/ana/observe", {"text": "   "}, 400, "empty"),
        ("POST", "/v1/memory/ana/diary", {"text": "x"}, 422, "kind"),
        ("PUT", "/v1/memory/ana/semantic/999", {"text": "x"}, 409, "no such entry"),
        ("PUT", "/v1/memory/ana/semantic/x", {"text": "x"}, 422, "entry_id"),
        ("POST", "/v1/memory/ana/core", {"text": "x"}, 409, "no such change"),
        ("POST", f"/v1/memory/{'n' * 201}/observe", {"text": "x"}, 422, "namespace"),
        ("POST", "/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("POST", "/v1/chat/completions", {"messages": [], "user": "a/b"}, 422, "user"),
        ("GET", "/v1/nothing", None, 404, "Not Found"),
        ("PATCH", "/v1/memory", None, 405, "Method Not Allowed"),
        ("POST", "/v1/chat/completions", {"messages": "hi"}, 422, "messages"),
    ],
)
def test_bad_requests_say_what_is_wrong(client, agent, method, path, body, status, message):
    agent.store.create("ana")
    response = client.request(method, path, json=body)
    assert response.status_code == status and message in response.json()["error"]["message"]


def test_broken_json_is_a_clear_error(client):
    response = client.post("/v1/chat/completions", content=b"{", headers={"content-type": "json"})
    assert response.status_code == 422
    headers = {"content-type": "application/json"}
    response = client.post("/v1/chat/completions", content=b"{", headers=headers)
    assert response.status_code == 422 and "JSON" in response.json()["error"]["message"]


def test_hostile_text_comes_back_as_it_was(client):
    client.post("/v1/memory/ana/observe", json={"text": HOSTILE})
    response = client.get("/v1/memory/ana")
    assert HOSTILE in response.json()["semantic"][0]["text"]
    assert response.headers["content-type"] == "application/json"


def test_a_reader_that_fails_is_no_answer(micro):
    env = micro.env.replace(answerer=lambda requests: [None])
    agent = MemoryAgent(env, scripted_writer(env, lambda turn: ""))
    agent.store.create("ana")
    client = TestClient(make_app(agent, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    assert client.post("/v1/memory/ana/ask", json={"question": "Who?"}).status_code == 502


def test_the_token_of_a_server():
    assert token_from({"MEMALPHA_TOKEN": TOKEN}) == (TOKEN, False)
    made, new = token_from({})
    assert new and len(made) >= 32 and made != token_from({})[0]
    with pytest.raises(ValueError, match="fewer than 16"):
        token_from({"MEMALPHA_TOKEN": "short"})


def test_it_listens_on_this_machine_alone(agent, monkeypatch):
    seen = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: seen.update(options))
    run(agent, TOKEN)
    assert seen["host"] == "127.0.0.1"
