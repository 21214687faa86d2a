"""Language models as readers, judges and baselines see them: chats go in, texts come out.

An engine is anything with `generate`. A model that fails to answer says so in `error`: a failure is
never an empty or a wrong answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Chat = Sequence[Message]


@dataclass(frozen=True)
class Generation:
    """What came back for one chat. Sizes are in the model's tokens.

    `text` is what the model said, thinking included; `error` (empty: none) is the engine's own
    account of why there is no text.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


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
