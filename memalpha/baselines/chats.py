"""What the systems share that have a language model write: prompts that fit, and lockstep.

Such a system is a script: a generator that yields one chat at a time, is sent what the model said,
and returns the final memory. `run_scripts` advances the scripts of all instances together, so that
the model always gets one full batch.
"""

import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import TypeVar

from memalpha import prompts, scoring
from memalpha.data.cut import pieces
from memalpha.data.instance import Instance, validate
from memalpha.episode import Environment, Recall, count_tokens, encode_text
from memalpha.lm.interface import Chat, LanguageModel, own_seed
from memalpha.memory import Entry, MemoryView
from memalpha.paths import user_path
from memalpha.prompts import BUILT_IN, PromptTooLong
from memalpha.reading import find_evidence
from memalpha.replies import clean
from memalpha.tokenizer import decode

FORMS = BUILT_IN / "baselines"  # the folder of the prompts
MEMORY = 1024  # tokens of a rewritten memory (MemAgent)
MIN_PIECE = 32  # tokens of text in a prompt; with less room a stream would take endless turns


@dataclass(frozen=True)
class Written:
    """A final memory.

    `rejected`: things the model said that could not be used, and changed nothing. `top_k`: entries
    of each list that the reader gets for a question, 0 for the environment's number.
    """

    view: MemoryView
    rejected: int = 0
    top_k: int = 0


Script = Generator[Chat, str, Written]
Item = TypeVar("Item")


def run_scripts(
    env: Environment,
    instances: Sequence[Instance],
    script: Callable[[Instance], Script],
    model: LanguageModel,
    temperature: float,
    seed: int,
) -> list[Recall]:
    """Runs one script an instance, all in lockstep, with replies of at most
    `env.prompt.response_tokens`.

    An instance whose model fails to answer ends there, with the model's own words in `failure`. At
    a temperature above 0 a reply depends on its instance and turn, not on the other instances.

    Raises:
        PromptTooLong: `env.prompt.prompt_tokens` leaves no room for the text: a wrong setting.
        ValueError: the model gives another number of generations than there are chats.
    """
    scripts = [script(validate(instance)) for instance in instances]
    numbers = [zlib.crc32(f"{i.source}/{i.instance_id}".encode()) for i in instances]
    recalls = [Recall([], 0) for _ in instances]
    replies: dict[int, str | None] = dict.fromkeys(range(len(scripts)))  # None starts a script
    while replies:
        asked: dict[int, Chat] = {}
        for i, text in replies.items():
            try:
                asked[i] = scripts[i].send(text)
            except StopIteration as end:
                recalls[i] = _finished(env, instances[i], recalls[i], end.value)
        replies = {}
        if not asked:
            break
        own = [own_seed(seed, numbers[i], recalls[i].generations) for i in asked]
        answers = model.generate(
            list(asked.values()),
            env.prompt.response_tokens,
            temperature,
            own if temperature else seed,
        )
        if len(answers) != len(asked):
            raise ValueError(f"{model.name}: {len(asked)} chats but {len(answers)} generations")
        for i, answer in zip(asked, answers, strict=True):
            recalls[i] = replace(
                recalls[i],
                failure=answer.error,
                generations=recalls[i].generations + 1,
                prompt_tokens=recalls[i].prompt_tokens + answer.prompt_tokens,
                completion_tokens=recalls[i].completion_tokens + answer.completion_tokens,
            )
            if answer.error:
                scripts[i].close()
            else:
                replies[i] = clean(answer.text)
    return recalls


def _finished(env: Environment, instance: Instance, recall: Recall, written: Written) -> Recall:
    view = written.view
    requests = find_evidence(env.replace(top_k=written.top_k or env.reading.top_k), instance, view)
    return replace(
        recall, requests=requests, memory_tokens=view.tokens, view=view, rejected=written.rejected
    )


def rewrite(
    name: str,
    take: Callable[[str], str],
    env: Environment,
    instances: Sequence[Instance],
    *,
    model: LanguageModel,
    memory_tokens: int = MEMORY,
    temperature: float = 0.0,
    seed: int = 0,
    folder: str | Path = FORMS,
) -> list[Recall]:
    """One text as memory, rewritten at each chunk: what MemAgent and MEM1 share. One request a
    question, with the final text as core.

    `name` is that of the form; `take` gets the new memory out of a reply, "" where there is none,
    which keeps the old one and counts as rejected. Past the budget it is cut off.
    """
    if memory_tokens < 1:
        raise ValueError(f"{name}: memory_tokens = {memory_tokens}; give at least 1")
    form = load_form(name, ("memory", "chunk"), ("task", "budget"), folder)
    budget = promised(env, memory_tokens)

    def script(instance: Instance) -> Script:
        memory, rejected, task = "", 0, load_task(instance, folder)

        def render(part: str) -> Chat:
            old, new = safe(env, memory), safe(env, part)
            return user(form, task=task, memory=old, chunk=new, budget=budget)

        check_room(env, render(""), memory_tokens)
        for chunk in instance.chunks:
            for chat in feed(env, chunk, render):
                written = cut(env, take((yield chat)), memory_tokens)
                rejected += not written
                memory = written or memory
        return Written(make_view(env, memory), rejected)

    return run_scripts(env, instances, script, model, temperature, seed)


def make_view(
    env: Environment, core: str, semantic: Sequence[Entry] = (), episodic: Sequence[Entry] = ()
) -> MemoryView:
    """A whole memory as a view, with its size."""
    texts = [core, *(entry.text for entry in [*semantic, *episodic])]
    tokens = sum(count_tokens(env, text) for text in texts if text)
    return MemoryView(core, tuple(semantic), tuple(episodic), len(semantic), len(episodic), tokens)


def load_form(
    name: str, needed: Collection[str], allowed: Collection[str], folder: str | Path
) -> str:
    """A prompt of `folder` with its placeholders; ValueError where it is missing or has others."""
    return prompts.read_form(user_path(folder) / f"{name}.txt", needed, allowed)


def load_task(instance: Instance, folder: str | Path) -> str:
    """What the memory is for, by the kind of answer that the source wants. No question is shown:
    all writers of the tables write before they are asked."""
    return load_form(f"task_{scoring.category(instance.source)}", (), (), folder)


def fill_form(form: str, **values: object) -> str:
    """The form with its placeholders filled in, once: data is never read as a form."""
    return Template(form).substitute(values)


def user(form: str, **values: object) -> list[dict[str, str]]:
    """A chat of one message: the form with its placeholders filled in."""
    return [{"role": "user", "content": fill_form(form, **values)}]


def promised(env: Environment, tokens: int) -> int:
    """Tokens that a prompt allows a text: `tokens`, but no more than is promised of a response."""
    return min(tokens, int(prompts.RESPONSE_SHARE * env.prompt.response_tokens))


def safe(env: Environment, text: str) -> str:
    """Data for a prompt, in which nothing passes for a tag, a chat turn or a call."""
    return prompts.escape(text, env.prompt.tokenizer.all_special_tokens)


def listed(env: Environment, entries: Sequence[tuple[int, str]]) -> str:
    """Numbered texts, one below the other; their further lines are indented."""
    return "\n".join(
        f"[{number}] " + safe(env, text).replace("\n", "\n    ") for number, text in entries
    )


def chat_tokens(env: Environment, chat: Chat) -> int:
    """Tokens of a chat as the model gets it, by the tokenizer of the environment."""
    return len(prompts.encode_messages(list(chat), env.prompt.tokenizer))


def cut(env: Environment, text: str, budget: int, end: bool = False) -> str:
    """The beginning (or the `end`) of a text that has at most `budget` tokens in a prompt."""
    ids = encode_text(env, text)
    length = min(budget, len(ids))
    # Encoded anew, or escaped, a part can have more tokens than it had inside of the whole.
    while length > 0:
        part = text if length == len(ids) else _part(env, ids[-length:] if end else ids[:length])
        over = max(count_tokens(env, part), count_tokens(env, safe(env, part))) - budget
        if over <= 0:
            return part
        length -= over
    return ""


def _part(env: Environment, ids: list[int]) -> str:
    return (
        decode(env.prompt.tokenizer, ids).strip("\ufffd").strip()
    )  # a character may be cut in two


def split(env: Environment, text: str, limit: int) -> list[str]:
    """The text in pieces of at most `limit` tokens in a prompt; whole if it fits."""
    return list(pieces(text, limit, lambda part: count_tokens(env, safe(env, part))))


def feed(env: Environment, text: str, render: Callable[[str], Chat]) -> Iterator[Chat]:
    """Chats that show all of a text, each with as much of it as fits `env.prompt.prompt_tokens`.

    `render` makes the chat around a piece; it is asked anew each time, since what else a chat shows
    changes with the replies.
    """
    waiting = [text]
    while waiting:
        part = waiting.pop(0)
        chat = render(part)
        over = chat_tokens(env, chat) - env.prompt.prompt_tokens
        if over <= 0:
            yield chat
            continue
        room = count_tokens(env, safe(env, part)) - over
        if room < MIN_PIECE:
            raise no_room(env, room)
        waiting = [*split(env, part, room), *waiting]


def fitting(
    env: Environment, items: Sequence[Item], render: Callable[[Sequence[Item]], Chat]
) -> Sequence[Item]:
    """As many of the first items as fit the prompt that `render` makes of them."""
    for count in range(len(items), -1, -1):
        room = env.prompt.prompt_tokens - chat_tokens(env, render(items[:count]))
        if room >= 0:
            return items[:count]
    raise no_room(env, room)


def check_room(env: Environment, empty: Chat, memory_tokens: int) -> None:
    """Raises PromptTooLong where a chat has no room for text beside `held` tokens of memory, so
    that a window too small is found before the memory has grown."""
    room = env.prompt.prompt_tokens - chat_tokens(env, empty) - memory_tokens
    if room < MIN_PIECE:
        raise no_room(env, room)


def no_room(env: Environment, room: int) -> PromptTooLong:
    """The error for prompts that have no room to speak of for text: a setting, not a failure."""
    return PromptTooLong(
        f"a prompt of {env.prompt.prompt_tokens} tokens leaves {max(room, 0)} for the text, beside"
        f" the instructions and the memory; it takes {MIN_PIECE}: raise the prompt budget or make"
        " the memory smaller"
    )
