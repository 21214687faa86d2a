"""HTTP server of the agent: OpenAI-compatible chat with a memory, and plain memory endpoints.

    MEMALPHA_TOKEN=... python -m memalpha.agent serve --checkpoint=runs/tiny --store=me.db

Every request but /health needs the header `Authorization: Bearer TOKEN`; one token gives access to
all namespaces. The server listens on loopback by default and has no TLS: to serve other machines,
put a proxy with TLS in front of it. A chat uses the memory of the namespace in its `user` field.
"""

import hmac
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, Field
from starlette.exceptions import HTTPException

from memalpha.agent.contents import EditRefusedError
from memalpha.agent.events import ConflictError, StoreError, StoreLockedError, UnknownNamespaceError
from memalpha.agent.memory_agent import MemoryAgent
from memalpha.episode import count_tokens
from memalpha.tools import clean

MAX_BODY = 1 << 20  # bytes
MODEL = "memalpha"
DEFAULT_NAMESPACE = "default"
Name = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^/]*$")]  # part of a path
# Lone surrogates in a text are replaced; in a name they are refused (`store.check_namespace`).
Text = Annotated[str, BeforeValidator(clean), Field(min_length=1, max_length=MAX_BODY)]
Kind = Literal["core", "semantic", "episodic"]
_STATUS = (  # HTTP status by the class of the error; the first match counts
    (UnknownNamespaceError, 404),
    (ConflictError, 409),
    (StoreLockedError, 503),
    (StoreError, 400),
    (EditRefusedError, 409),
    (ValueError, 400),
    (RuntimeError, 502),
)


class Part(BaseModel):
    type: str
    text: str | None = None


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The fields that matter here; others, such as temperature and stop, are ignored. Clients send
    null for a field that is not set."""

    messages: list[Message]
    user: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    model: str | None = None
    n: Literal[1] | None = None  # this server has one reply


class Observation(BaseModel):
    text: Text
    timestamp: Annotated[str, BeforeValidator(clean), Field(max_length=100)] | None = None


class Asked(BaseModel):
    question: Text


class NewText(BaseModel):
    text: Text


def token_from(environment: Mapping[str, str]) -> tuple[str, bool]:
    """The token in MEMALPHA_TOKEN, or a new one, and whether it is new.

    Raises ValueError for a short token: it could be guessed, although tokens are compared in
    constant time.
    """
    token = environment.get("MEMALPHA_TOKEN", "")
    if token and len(token) < 16:
        raise ValueError("MEMALPHA_TOKEN has fewer than 16 characters: choose a longer one")
    return (token, False) if token else (secrets.token_urlsafe(32), True)


def run(agent: MemoryAgent, token: str, host: str = "127.0.0.1", port: int = 8383) -> None:
    """Serves until it is interrupted."""
    uvicorn.run(make_app(agent, token), host=host, port=port, server_header=False)


def make_app(agent: MemoryAgent, token: str, max_body: int = MAX_BODY) -> FastAPI:
    """The application; writer and store are those of `agent`, each request names its namespace."""
    # No pages of documentation: FastAPI's load scripts from other servers.
    app = FastAPI(title="memalpha", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Gate, token=token, max_body=max_body)
    for kind, status in _STATUS:
        app.add_exception_handler(kind, _answer(status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)  # no such path, method or JSON
    _add_chat(app, agent)
    _add_memory(app, agent)
    return app


class _Gate:
    """Checks the token and limits the body to `max_body` bytes before anything is parsed."""

    def __init__(self, app, token: str, max_body: int):
        self.app, self.max_body = app, max_body
        self.token = token.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or scope.get("path") == "/health":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"this server does not speak {scope['type']}, only http")
        headers = dict(scope["headers"])
        # The scheme is case-insensitive (RFC 9110, 11.1).
        scheme, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
            refusal = _error(401, "missing or wrong token: send Authorization: Bearer TOKEN")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return await refusal(scope, receive, send)
        too_large = _error(413, f"the body has more than {self.max_body} bytes")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return await too_large(scope, receive, send)
        body, more = bytearray(), True
        while more:  # count the bytes: the header may be missing or wrong
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                return await too_large(scope, receive, send)
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay():
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status)


def _answer(status: int):
    def handle(request: Request, error: Exception) -> JSONResponse:
        return _error(status, str(error))

    return handle


def _refused(request: Request, error: HTTPException) -> JSONResponse:
    return _error(error.status_code, str(error.detail))


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Which field is wrong and why; the input itself is not sent back."""
    problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _error(422, problems)


def _add_chat(app: FastAPI, agent: MemoryAgent) -> None:
    @app.get("/health")
    def health():
        return {"status": "ok"}

    @app.get("/v1/models")
    def models():
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": agent.author}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    def chat(request: ChatRequest):
        """Answers the last message, of the user; earlier ones are not read, the memory has them."""
        if not request.messages or request.messages[-1].role != "user":
            raise ValueError("messages: the last one must be of role user")
        text = _text(request.messages[-1])
        reply = agent.of(request.user or DEFAULT_NAMESPACE).chat(text).text
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        head["model"] = MODEL
        usage = _usage(agent, text, reply)
        if request.stream:
            wants_usage = request.stream_options and request.stream_options.include_usage
            events = _events(head, reply, usage if wants_usage else None)
            return StreamingResponse(events, media_type="text/event-stream")
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return head | {"object": "chat.completion", "choices": [choice], "usage": usage}


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text or "" for part in message.content or () if part.type == "text")


def _usage(agent: MemoryAgent, message: str, reply: str) -> dict[str, int]:
    """Sizes of message and reply in tokens of the writer; what it read of the memory is not in."""
    prompt, completion = count_tokens(agent.env, clean(message)), count_tokens(agent.env, reply)
    sizes = {"prompt_tokens": prompt, "completion_tokens": completion}
    return sizes | {"total_tokens": prompt + completion}


def _events(head: dict, reply: str, usage: dict | None) -> Iterator[str]:
    """Server-sent events of a reply: the whole text, the end of the choice, then `usage` if given,
    in an event without choices."""
    head = head | {"object": "chat.completion.chunk"}
    head |= {} if usage is None else {"usage": None}
    for delta, end in (({"role": "assistant", "content": reply}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        yield f"data: {json.dumps(head | {'choices': [choice]})}\n\n"
    if usage is not None:
        yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def _add_memory(app: FastAPI, agent: MemoryAgent) -> None:
    @app.get("/v1/memory")
    def namespaces():
        return {"namespaces": agent.store.namespaces()}

    @app.get("/v1/memory/{namespace}")
    def read(namespace: Name, format: Literal["json", "markdown"] = "json"):
        memory = agent.of(namespace).memory
        if format == "markdown":
            return PlainTextResponse(memory.to_markdown(), media_type="text/markdown")
        return memory.to_dict()

    @app.delete("/v1/memory/{namespace}")
    def forget(namespace: Name):
        agent.store.forget(namespace)
        return {"forgotten": namespace}

    @app.post("/v1/memory/{namespace}/observe")
    def observe(namespace: Name, body: Observation):
        return {"events": agent.of(namespace).observe(body.text, body.timestamp)}

    @app.post("/v1/memory/{namespace}/ask")
    def ask(namespace: Name, body: Asked):
        reply = agent.of(namespace).ask(body.question)
        return {"text": reply.text, "sure": reply.sure, "evidence": reply.evidence}

    @app.post("/v1/memory/{namespace}/undo")
    def undo(namespace: Name):
        return {"event": agent.of(namespace).memory.undo()}

    @app.post("/v1/memory/{namespace}/{kind}")
    def insert(namespace: Name, kind: Kind, body: NewText):
        return {"event": agent.of(namespace).memory.insert(kind, body.text)}

    @app.put("/v1/memory/{namespace}/core")
    def update_core(namespace: Name, body: NewText):
        return {"event": agent.of(namespace).memory.update("core", body.text)}

    @app.delete("/v1/memory/{namespace}/core")
    def delete_core(namespace: Name):
        return {"event": agent.of(namespace).memory.delete("core")}

    @app.put("/v1/memory/{namespace}/{kind}/{entry_id}")
    def update(namespace: Name, kind: Kind, entry_id: int, body: NewText):
        return {"event": agent.of(namespace).memory.update(kind, body.text, entry_id)}

    @app.delete("/v1/memory/{namespace}/{kind}/{entry_id}")
    def delete(namespace: Name, kind: Kind, entry_id: int):
        return {"event": agent.of(namespace).memory.delete(kind, entry_id)}
