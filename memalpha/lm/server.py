"""A server that speaks the OpenAI chat API (vLLM, SGLang, hosted ones) as a language model of `lm`.

At most `concurrency` chats are in flight. Transient errors (a timeout, 429, 5xx, a cut connection,
a broken reply) are retried after growing, jittered waits, or after the wait that the server asks
for. An error of one chat, such as a context that is too long, is returned in its generation. An
error that every chat would meet, such as a wrong key or an unknown model, raises. A part of the
request that a server refuses (`tools`, the system role) is left out from then on.
"""

import hashlib
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
from absl import logging

from memalpha.lm.cache import DiskCache
from memalpha.lm.completion import EXCERPT, error_message, read_completion, retry_after
from memalpha.lm.interface import Chat, Generation, Seed, check_seeds
from memalpha.tokenizer import merge_system

LONGEST_WAIT = 60.0  # seconds between two attempts
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask us to wait
TRANSIENT = (408, 409, 425, 429)  # statuses below 500 that are worth another attempt
FATAL = (401, 403, 404)
# Of the rules that read a reply, stored with every answer. Under the rules before, the reply of a
# server that gave no text could be an empty answer.
RULES = 2
CACHED = ("text", "prompt_tokens", "completion_tokens")  # fields of a generation


class ServerRefusedError(RuntimeError):
    """The server will not answer any of our chats; the message says what to do."""


class ServerModel:
    """A model on a server as an engine. Safe to use from threads, which share its concurrency."""

    first_wait = 1.0  # seconds before the first retry; doubled for each further one

    def __init__(
        self,
        url: str,
        model: str,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
        cache: str | Path | None = None,
        key_variable: str = "OPENAI_API_KEY",
        extra: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            url: where /chat/completions is found; usually ends in /v1.
            timeout: seconds without a byte from the server after which an attempt ends.
            retries: attempts after the first.
            cache: file of answers (`DiskCache`); the key is model, messages and settings, not url.
            key_variable: environment variable with the key; unset where the server needs none.
            extra: fields of the request that replace ours, None to leave one out, such as
                {"chat_template_kwargs": {"enable_thinking": False}} for Qwen3 on vLLM.

        Raises:
            ValueError: an unusable argument. OSError: an unusable cache.
        """
        check_url(url)
        if not model:
            raise ValueError(f"server {url}: name the model to ask")
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("timeout", timeout, 1e-3),
            ("retries", retries, 0),
        ):
            if not value >= least:
                raise ValueError(f"server {url}: {name}={value}: give at least {least}")
        self.url, self.model, self.key_variable = url, model, key_variable
        self.concurrency, self.retries = concurrency, retries
        self.extra = dict(extra or {})
        # The name identifies answers in caches and result files, and extra fields change answers.
        fields = f", extra {json.dumps(self.extra, sort_keys=True)}" if self.extra else ""
        self.name = model + fields
        self._refused: set[str] = set()  # keys of _WITHOUT: parts that this server refuses
        self._refusing = threading.Lock()
        self._key = os.environ.get(key_variable, "")
        # We retry ourselves: the client would not retry broken replies, and cannot be stopped.
        self._client = openai.OpenAI(
            base_url=url, api_key=self._key or "none", timeout=timeout, max_retries=0
        )
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="lm")
        self._cache = DiskCache(cache) if cache else None

    def generate(
        self,
        prompts: Sequence[Chat],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: Seed = 0,
        tools: Sequence[dict] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """See `lm.LanguageModel`. Equal chats are asked once at temperature 0; at others each has
        a seed of its own, also of one seed for all.

        Raises ServerRefusedError where the server refuses the key or does not have the model.
        """
        if max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens={max_new_tokens}; give at least 1")
        check_seeds(seed, len(prompts))
        bodies, seen = [], Counter()
        for number, chat in enumerate(prompts):
            body = {"model": self.model, "messages": list(chat), "max_tokens": max_new_tokens}
            body |= {"temperature": temperature, "tools": list(tools or ()) or None}
            body["stop"] = list(stop) or None
            if temperature > 0:
                if isinstance(seed, int):
                    chat_key = _digest(body)
                    body["seed"] = _own_seed(seed, seen[chat_key])
                    seen[chat_key] += 1
                else:
                    body["seed"] = int(seed[number])
            bodies.append({k: v for k, v in (body | self.extra).items() if v is not None})
        keys = [_digest(body) for body in bodies]
        different = dict(zip(keys, bodies, strict=True))
        attempt = _Attempt()
        futures = {
            self._pool.submit(self._answer, key, body, attempt): key
            for key, body in different.items()
        }
        answers = {}
        try:
            for future in as_completed(futures):
                answers[futures[future]] = future.result()
        except BaseException:
            attempt.stop.set()
            for future in futures:
                future.cancel()
            raise
        results, counted = [], set()
        for key in keys:
            results.append(replace(answers[key], cached=True) if key in counted else answers[key])
            counted.add(key)
        return results

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()
        if self._cache:
            self._cache.close()

    def _answer(self, key: str, body: dict, attempt: "_Attempt") -> Generation:
        known = self._cache and self._cache.get(key)
        if known and (known["text"] or known.get("rules") == RULES):
            return Generation(**{name: known[name] for name in CACHED}, cached=True)
        if attempt.given_up:
            return Generation("", error=f"not asked, others failed before it: {attempt.given_up}")
        generation = self._ask(body, attempt)
        if self._cache and not generation.error:
            answer = {name: getattr(generation, name) for name in CACHED}
            self._cache.put(key, answer | {"rules": RULES})
        return generation

    def _ask(self, body: dict, attempt: "_Attempt") -> Generation:
        """Asks until there is an answer, a fatal error, or no attempt left."""
        for number in range(self.retries + 1):
            server_wait = 0.0
            try:
                generation = self._send(body)
                attempt.count(lost=False, most=self.concurrency)
                return generation
            except openai.APIStatusError as error:
                message = self._message(error)
                if error.status_code in FATAL or error.code == "insufficient_quota":
                    raise ServerRefusedError(self._advice(error.status_code, message)) from None
                if error.status_code not in TRANSIENT and error.status_code < 500:
                    return Generation("", error=message)
                server_wait = retry_after(error.response.headers)
            except openai.APIConnectionError as error:  # timeouts are a subclass
                message = self._one_line(f"{error} {error.__cause__ or ''}".strip())
            except UnicodeEncodeError as error:
                return Generation("", error=f"the chat is no Unicode text: {error}")
            except ValueError as error:
                message = self._one_line(f"a broken reply: {error}")
            if server_wait > LONGEST_RETRY_AFTER:
                message += f" (asks for a wait of {server_wait:.0f} s)"
                break
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, self.first_wait * 2**number)
            if number < self.retries and attempt.stop.wait(wait + server_wait):
                return Generation("", error=f"stopped after: {message}")
        attempt.count(lost=True, most=self.concurrency, message=message)
        return Generation("", error=f"{message} (after {number + 1} attempts)")

    def _send(self, body: dict) -> Generation:
        """One request; again without a part that the server refuses."""
        for part in self._refused:
            body = _WITHOUT[part](body)
        refusals = {}  # part: the error that it met
        while True:
            settings = {k: v for k, v in body.items() if k not in ("model", "messages")}
            try:
                completion = self._client.chat.completions.create(
                    model=body["model"], messages=body["messages"], extra_body=settings
                )
            except openai.APIStatusError as error:
                part = _refused_part(body, error)
                if part is None:
                    raise
                refusals[part], body = self._message(error), _WITHOUT[part](body)
                continue
            for part, message in refusals.items():
                self._remember_refusal(part, message)
            return read_completion(completion)

    def _remember_refusal(self, part: str, message: str) -> None:
        with self._refusing:
            if part not in self._refused:
                logging.warning("%s is asked without %s: %s", self.name, part, message)
            self._refused = self._refused | {part}  # a new set: others may read the old one

    def _message(self, error: openai.APIStatusError) -> str:
        return self._one_line(f"{error.status_code}: {error_message(error)}")

    def _one_line(self, text: str) -> str:
        """One line of bounded length, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        text = " ".join(text.split())
        return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"

    def _advice(self, status: int, message: str) -> str:
        todo = f"is the url right (most end in /v1), and does the server have {self.model!r}?"
        if status != 404:
            state = "set, but refused" if self._key else "not set"
            todo = f"the environment variable {self.key_variable} is {state}: put the key there"
        if status == 429:
            todo = "the account has nothing left"
        return f"server {self.url}: {message}; {todo}"


@dataclass
class _Attempt:
    """What the chats of one `generate` share: whether to stop, and whether the server is down."""

    stop: threading.Event = field(default_factory=threading.Event)
    lost: int = 0  # chats in a row without an answer, after all their attempts
    given_up: str = ""  # error message of the last of them

    def count(self, lost: bool, most: int, message: str = "") -> None:
        """After `most` lost chats in a row the others are not asked: with a server that is down,
        hours of waiting would end in the same error."""
        self.lost = self.lost + 1 if lost else 0
        if self.lost >= most:
            self.given_up = message


def check_url(url: str) -> None:
    """Raises ValueError unless it is an http(s) address without a user or password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"server url {url!r}: give an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"server url {parts.scheme}://…@{parts.hostname}: a secret has no place in it; put the"
            " key into an environment variable"
        )


def _without_tools(body: dict) -> dict:
    return {name: value for name, value in body.items() if name not in ("tools", "tool_choice")}


# Parts of a request that some servers refuse, and the request without them.
_WITHOUT = {
    "tools": _without_tools,
    "the system role": lambda body: body | {"messages": merge_system(body["messages"])},
}


def _refused_part(body: dict, error: openai.APIStatusError) -> str | None:
    """The part of a request that an error is about, if the chat can be asked without it.

    A 400 or 422 may be about `tools` whatever its message: not every server names the field. With
    other statuses, and for the system role, the message must name it.
    """
    status, message = error.status_code, error_message(error).lower()
    named = status in (400, 404, 422, 500, 501)
    if "tools" in body and (status in (400, 422) or named and "tool" in message):
        return "tools"
    system = any(one.get("role") == "system" for one in body["messages"])
    return "the system role" if system and named and "system" in message else None


def _own_seed(seed: int, number: int) -> int:
    """The seed of the number-th of equal chats; the first has the one that was asked for."""
    return seed if not number else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _digest(body: dict) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
