"""Language models as readers, judges and baselines see them: chats go in, texts come out.

An engine is anything with `generate`. A model that fails to answer says so in `error`: a failure is
never an empty or a wrong answer.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Chat = Sequence[Message]


@dataclass(frozen=True)
class Generation:
    """What came back for one chat. Sizes are in the model's tokens.

    `text` is what the model said, thinking included; `error` (empty: none) is the engine's own
    account of why there is no text. `cached`: nothing was generated for it now.
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
        seed: int = 0,
    ) -> list[Generation]:
        """One generation a chat, in order; greedy at temperature 0. Does not raise for a chat that
        could not be answered (see `Generation.error`)."""
        ...


@dataclass
class Usage:
    """What an engine gave in all. Tokens are those generated and read now; `cached_tokens` are
    those (of prompts and completions) of the chats that a cache answered."""

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
    """An engine that keeps account in `usage`; of use in several threads."""

    engine: LanguageModel
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self):
        self.name, self._lock = self.engine.name, threading.Lock()

    def generate(
        self,
        prompts: Sequence[Chat],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        generations = self.engine.generate(prompts, max_new_tokens, temperature, seed)
        with self._lock:
            self.usage.add(generations)
        return generations
