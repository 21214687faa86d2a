"""Language models as readers, judges and baselines see them: chats go in, texts come out.

An engine is anything with `generate`. A model that fails to answer says so in `error`: a failure is
never an empty or a wrong answer.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Chat = Sequence[Message]
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """The reply to one chat. Sizes are in the model's tokens.

    `text` is all that the model generated, thinking included, and tool calls in the dialect
    `qwen3`. `error` is the engine's message where there is no reply, else empty. `cached`: the
    reply is a stored one, nothing was generated.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    cached: bool = False


class LanguageModel(Protocol):
    """An engine. `name` identifies model and revision, for caches and result files."""

    name: str

    def generate(
        self,
        prompts: Sequence[Chat],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: Seed = 0,
        tools: Sequence[dict] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """One generation per chat, in order; greedy at temperature 0. Does not raise for a chat
        without a reply (see `Generation.error`).

        `seed`: one for all chats, whose samples then depend on their places too; or one a chat, on
        which alone its sample depends, whatever its company.

        `tools`: schemas in the OpenAI format, for engines that have a channel of their own for tool
        calls. The chats describe the tools as well, so that an engine may ignore them.

        `stop`: a reply ends before the first of these texts, such as a line end. Only where it is
        given need an engine take it.
        """
        ...


@dataclass
class Usage:
    """Totals of an engine. `prompt_tokens` and `completion_tokens` were processed now,
    `cached_tokens` (both together) belong to chats that a cache answered."""

    chats: int = 0
    failed: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, generations: Sequence[Generation]) -> None:
        self.chats += len(generations)
        for generation in generations:
            self.failed += bool(generation.error)
            if generation.cached:
                self.cached += 1
                self.cached_tokens += generation.prompt_tokens + generation.completion_tokens
            else:
                self.prompt_tokens += generation.prompt_tokens
                self.completion_tokens += generation.completion_tokens


@dataclass
class Counted:
    """An engine that adds up its `usage`. Safe to use from threads."""

    engine: LanguageModel
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self):
        self.name, self._lock = self.engine.name, threading.Lock()

    def generate(
        self,
        prompts: Sequence[Chat],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: Seed = 0,
        tools: Sequence[dict] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        # These are passed on only where they are given: engines of others may not take them.
        more = ({"tools": tools} if tools else {}) | ({"stop": stop} if stop else {})
        generations = self.engine.generate(prompts, max_new_tokens, temperature, seed, **more)
        with self._lock:
            self.usage.add(generations)
        return generations


def own_seed(seed: int, *numbers: int) -> int:
    """A seed in [0, 2^31) for one chat, from the seed of a run and the numbers that belong to the
    chat itself, such as episode and chunk; not its place among others."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0] >> 1)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((i for i in map(text.find, stop) if i >= 0), default=len(text))]


def check_seeds(seed: Seed, chats: int) -> None:
    """Raises ValueError where seeds are given a chat, and not one for each of them."""
    if not isinstance(seed, int) and len(seed) != chats:
        raise ValueError(f"generate: {chats} chats but {len(seed)} seeds; give one, or one a chat")
