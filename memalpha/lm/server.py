"""A server that speaks the OpenAI chat API (vLLM, SGLang, hosted ones) as a language model of `lm`.

Chats go out side by side, at most `concurrency` at once. What may pass (no answer in time, 429,
5xx, a cut connection, a broken reply) is tried again after growing, jittered waits, or after the
wait that the server asks for. What will not pass for this chat (a context that is too long) is an
error in its generation; what will not pass for any (a wrong key, an unknown model) raises.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai

from memalpha.lm.cache import DiskCache
from memalpha.lm.interface import Chat, Generation

LONGEST_WAIT = 60.0  # seconds between two attempts
LONGEST_ASKED = 300.0  # seconds that a server may ask us to wait
PASSING = (408, 409, 425, 429)  # statuses below 500 that are worth another attempt
REFUSING = (401, 403, 404)
WORDS = 500  # characters of an account of a failure


class ServerRefusedError(RuntimeError):
    """The server will not answer any of our chats; the message says what to do."""


class ServerModel:
    """A model on a server as an engine. Safe to use from threads, which share its concurrency."""

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
        first_wait: float = 1.0,
    ):
        """
        Args:
            url: where /chat/completions is found; usually ends in /v1.
            timeout: seconds without a sign of life after which an attempt is given up.
            retries: attempts after the first; the waits between them double from `first_wait`
                seconds.
            cache: file of answers (`DiskCache`), by model, messages and settings but not by url.
            key_variable: environment variable that holds the key; unset: none is needed.
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
        self.concurrency, self.retries, self.first_wait = concurrency, retries, first_wait
        self.extra = dict(extra or {})
        # What is asked for beside the settings of a role changes the answers too.
        also = f", extra {json.dumps(self.extra, sort_keys=True)}" if self.extra else ""
        self.name = model + also
        self._key = os.environ.get(key_variable, "")
        # Retries are ours: the client's own know nothing of broken replies, and cannot be stopped.
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
        seed: int = 0,
    ) -> list[Generation]:
        """See `lm.LanguageModel`. A chat that stands there several times is asked once when greedy,
        else with a seed of its own each time.

        Raises ServerRefusedError where the server refuses us, or the model is not there.
        """
        if max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens={max_new_tokens}; give at least 1")
        bodies, seen = [], Counter()
        for chat in prompts:
            body = {"model": self.model, "messages": list(chat), "max_tokens": max_new_tokens}
            body["temperature"] = temperature
            if temperature > 0:
                chat_key = _digest(body)
                body["seed"] = _own_seed(seed, seen[chat_key])
                seen[chat_key] += 1
            bodies.append({k: v for k, v in (body | self.extra).items() if v is not None})
        keys = [_digest(body) for body in bodies]
        open_ = dict(zip(keys, bodies, strict=True))
        attempt = _Attempt()
        futures = {
            self._pool.submit(self._answer, key, body, attempt): key for key, body in open_.items()
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
        results, given = [], set()
        for key in keys:
            results.append(replace(answers[key], cached=True) if key in given else answers[key])
            given.add(key)
        return results

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()
        if self._cache:
            self._cache.close()

    def _answer(self, key: str, body: dict, attempt: "_Attempt") -> Generation:
        if self._cache and (kept := self._cache.get(key)) is not None:
            return Generation(**kept, cached=True)
        if attempt.given_up:
            return Generation("", error=f"not asked, others failed before it: {attempt.given_up}")
        generation = self._ask(body, attempt)
        if self._cache and not generation.error:
            kept = ("text", "prompt_tokens", "completion_tokens")
            self._cache.put(key, {name: getattr(generation, name) for name in kept})
        return generation

    def _ask(self, body: dict, attempt: "_Attempt") -> Generation:
        """Asks until there is an answer, or none is to be expected."""
        for number in range(self.retries + 1):
            asked_wait = 0.0
            try:
                settings = {k: v for k, v in body.items() if k not in ("model", "messages")}
                completion = self._client.chat.completions.create(
                    model=body["model"], messages=body["messages"], extra_body=settings
                )
                generation = read_completion(completion)
                attempt.count(lost=False, most=self.concurrency)
                return generation
            except openai.APIStatusError as error:
                words = self._words(f"{error.status_code}: {_said(error)}")
                if error.status_code in REFUSING or error.code == "insufficient_quota":
                    raise ServerRefusedError(self._advice(error.status_code, words)) from None
                if error.status_code not in PASSING and error.status_code < 500:
                    return Generation("", error=words)
                asked_wait = retry_after(error.response.headers)
            except openai.APIConnectionError as error:  # no answer in time is one of these
                words = self._words(f"{error} {error.__cause__ or ''}".strip())
            except UnicodeEncodeError as error:
                return Generation("", error=f"the chat is no Unicode text: {error}")
            except ValueError as error:
                words = self._words(f"a broken reply: {error}")
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, self.first_wait * 2**number)
            if asked_wait > LONGEST_ASKED:
                words += f" (asks for a wait of {asked_wait:.0f} s)"
                break
            if asked_wait:
                wait += asked_wait
            if number < self.retries and attempt.stop.wait(wait):
                return Generation("", error=f"stopped after: {words}")
        attempt.count(lost=True, most=self.concurrency, words=words)
        return Generation("", error=f"{words} (after {number + 1} attempts)")

    def _words(self, text: str) -> str:
        """One line of bounded length, in which the key does not stand."""
        text = text.replace(self._key, "***") if self._key else text
        text = " ".join(text.split())
        return text if len(text) <= WORDS else text[:WORDS] + "…"

    def _advice(self, status: int, words: str) -> str:
        todo = f"is the url right (most end in /v1), and does the server have {self.model!r}?"
        if status != 404:
            state = "set, but refused" if self._key else "not set"
            todo = f"the environment variable {self.key_variable} is {state}: put the key there"
        if status == 429:
            todo = "the account has nothing left"
        return f"server {self.url}: {words}; {todo}"


@dataclass
class _Attempt:
    """What the chats of one `generate` share: whether to stop, and whether the server is gone."""

    stop: threading.Event = field(default_factory=threading.Event)
    lost: int = 0  # chats in a row without an answer, after all their attempts
    given_up: str = ""  # the words that the last of them ended with

    def count(self, lost: bool, most: int, words: str = "") -> None:
        """After `most` lost chats in a row the rest is not asked: hours of waiting for a server
        that is gone would end in the same failure."""
        self.lost = self.lost + 1 if lost else 0
        if self.lost >= most:
            self.given_up = words


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


def read_completion(completion: Any) -> Generation:
    """The generation in a reply of the API; ValueError where it is none."""
    try:
        choice = completion.choices[0]
        text = choice.message.content or getattr(choice.message, "refusal", None) or ""
    except (AttributeError, TypeError, IndexError):
        shown = completion if isinstance(completion, str) else completion.model_dump_json()
        raise ValueError(f"no choices in {shown[:WORDS]!r}") from None
    if not isinstance(text, str):
        raise ValueError(f"the content is {type(text).__name__}, not text")
    usage = completion.usage
    sizes = [getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if not text and choice.finish_reason not in ("stop", "length"):
        return Generation("", *sizes, error=f"no text (finish_reason {choice.finish_reason!r})")
    return Generation(text, *sizes)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a reply asks to wait, as a number or a date; 0 where it says nothing."""
    asked = headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _said(error: openai.APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else body
    return str(said or error.response.text or error.message)


def _own_seed(seed: int, number: int) -> int:
    """The seed of the number-th of equal chats; the first has the one that was asked for."""
    return seed if not number else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _digest(body: dict) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
