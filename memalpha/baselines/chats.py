"""What systems with a language model as writer share: prompts that fit, and batched scripts.

Such a system is a script: a generator that yields one chat at a time, is sent the reply of the
model, and returns the final memory. `run_scripts` advances the scripts of all instances together,
so that the model always gets one full batch.
"""

import tomllib
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
EXAMPLES = 0.5  # of the room for text is what examples may take
CATEGORIES = {"any", *scoring.CATEGORIES}  # of examples
MIN_PIECE = 32  # tokens of text in a prompt; with less, a stream would need too many turns


@dataclass(frozen=True)
class Written:
    """The final memory that a script returns.

    rejected: parts of replies that could not be used, by reason: no-ops. top_k: how many entries of
    each list the reader gets for a question; 0: as many as the environment says.
    """

    view: MemoryView
    rejected: Counter[str] = field(default_factory=Counter)
    top_k: int = 0


Example = Mapping[str, str]  # what is filled into a form, and the `reply` to it
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
    """Runs one script per instance, all in lockstep; a reply has at most
    `env.prompt.response_tokens` tokens.

    Where the model fails, the script of that instance ends and `Recall.failure` is the error
    message. At a temperature above 0 a reply depends on its instance and turn, not on the other
    instances.

    Raises:
        PromptTooLong: `env.prompt.prompt_tokens` is too small to leave room for text.
        ValueError: the number of generations differs from the number of chats.
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
    rejected = {reason: count for reason, count in written.rejected.items() if count}
    requests = find_evidence(env.replace(top_k=written.top_k or env.reading.top_k), instance, view)
    return replace(
        recall, requests=requests, memory_tokens=view.tokens, view=view, rejected=rejected
    )


def rewrite(
    name: str,
    take: Callable[[str], str],
    env: Environment,
    instances: Sequence[Instance],
    *,
    model: LanguageModel,
    wrap: Callable[[str], str] = str,
    memory_tokens: int = MEMORY,
    temperature: float = 0.0,
    seed: int = 0,
    folder: str | Path = FORMS,
) -> list[Recall]:
    """The memory is one text that is rewritten at each chunk, as in MemAgent and MEM1. Returns one
    request per question, with the final text as core.

    Args:
        name: file name of the prompt.
        take: extracts the new memory from a reply; "" keeps the old memory and counts as rejected.
        wrap: the reply that holds a memory, for the examples.
        memory_tokens: the memory is truncated to this length.
    """
    if memory_tokens < 1:
        raise ValueError(f"{name}: memory_tokens = {memory_tokens}; give at least 1")
    form = load_form(name, ("memory", "chunk"), ("task", "budget"), folder)
    budget = promised(env, memory_tokens)

    def script(instance: Instance) -> Script:
        memory, rejected, task = "", Counter(), load_task(instance, folder)

        def render(part: str) -> Chat:
            old, new = safe(env, memory), safe(env, part)
            return user(form, examples, task=task, memory=old, chunk=new, budget=budget)

        examples: Sequence[Example] = ()
        left = room_for_text(env, render(""), memory_tokens)
        examples = [
            {**example, "reply": wrap(example["reply"])}
            for example in load_examples("rewrite", instance, ("memory", "chunk"), folder)
        ]
        examples = with_room(env, form, examples, left, task=task, budget=budget)
        check_room(env, render(""), memory_tokens)
        for chunk in instance.chunks:
            for chat in feed(env, chunk, render):
                written = cut(env, take((yield chat)), memory_tokens)
                rejected["reply without a memory"] += not written
                memory = written or memory
        return Written(make_view(env, memory), rejected)

    return run_scripts(env, instances, script, model, temperature, seed)


def make_view(
    env: Environment, core: str, semantic: Sequence[Entry] = (), episodic: Sequence[Entry] = ()
) -> MemoryView:
    """A view of a whole memory, with its size in tokens."""
    texts = [core, *(entry.text for entry in [*semantic, *episodic])]
    tokens = sum(count_tokens(env, text) for text in texts if text)
    return MemoryView(core, tuple(semantic), tuple(episodic), len(semantic), len(episodic), tokens)


def load_form(
    name: str, needed: Collection[str], allowed: Collection[str], folder: str | Path
) -> str:
    """A prompt file of `folder`; ValueError where it is missing or its placeholders are wrong."""
    return prompts.read_form(user_path(folder) / f"{name}.txt", needed, allowed)


def load_task(instance: Instance, folder: str | Path) -> str:
    """The description of the task for the category of the source. It contains no question, because
    all writers of the tables write before they see one."""
    return load_form(f"task_{scoring.category(instance.source)}", (), (), folder)


def load_examples(
    name: str, instance: Instance, fields: Collection[str], folder: str | Path
) -> list[Example]:
    """Exchanges to be shown before a form, so that a small model sees what is asked of it: the
    tables `[[any]]` and those of the category of the source in the file `name`.toml of `folder`;
    none without that file. Each has the `fields` of the form, and a `reply`.

    Raises ValueError that names the file: not UTF-8, no TOML, other tables or other fields.
    """
    path, needed = user_path(folder) / f"{name}.toml", {*fields, "reply"}
    if not path.is_file():
        return []
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"template file {path}: {error}") from None
    if unknown := set(tables) - CATEGORIES:
        known = ", ".join(f"[[{category}]]" for category in sorted(CATEGORIES))
        raise ValueError(f"template file {path} has {sorted(unknown)}: it may have {known}")
    for category, examples in tables.items():
        for example in examples if isinstance(examples, list) else [examples]:
            if not isinstance(example, dict) or set(example) != needed:
                raise ValueError(f"template file {path}: [[{category}]] needs {sorted(needed)}")
            if wrong := [key for key, value in example.items() if not isinstance(value, str)]:
                raise ValueError(f"template file {path}: [[{category}]] {wrong[0]} is no text")
    return [*tables.get("any", ()), *tables.get(scoring.category(instance.source), ())]


def with_room(
    env: Environment, form: str, examples: Sequence[Example], room: int, **values: object
) -> Sequence[Example]:
    """All of the examples, or none where they take more than `EXAMPLES` of the room (tokens) that
    the chats of a form leave for text without them. values: what else is filled in."""
    values = dict.fromkeys(Template(form).get_identifiers(), "") | values
    with_all, bare = (chat_tokens(env, user(form, some, **values)) for some in (examples, ()))
    return examples if with_all - bare <= EXAMPLES * room else ()


def fill_form(form: str, **values: object) -> str:
    """The form with its placeholders filled in one pass, so that data is never read as a form."""
    return Template(form).substitute(values)


def user(form: str, examples: Sequence[Example] = (), **values: object) -> list[dict[str, str]]:
    """A chat that ends with one message: the form with its placeholders filled in. The examples
    stand before it, as exchanges in the same form."""
    turns = []
    for example in examples:
        message = fill_form(form, **values | example)
        turns += [
            {"role": "user", "content": message},
            {"role": "assistant", "content": example["reply"]},
        ]
    return [*turns, {"role": "user", "content": fill_form(form, **values)}]


def promised(env: Environment, tokens: int) -> int:
    """The length that a prompt states as limit: `tokens`, or the share of a response if smaller."""
    return min(tokens, int(prompts.RESPONSE_SHARE * env.prompt.response_tokens))


def safe(env: Environment, text: str) -> str:
    """Data escaped for a prompt, so that nothing in it is read as a tag, chat turn or call."""
    return prompts.escape(text, env.prompt.tokenizer.all_special_tokens)


def listed(env: Environment, entries: Sequence[tuple[int, str]]) -> str:
    """Numbered texts, one below the other; all lines of a text but the first are indented."""
    return "\n".join(
        f"[{number}] " + safe(env, text).replace("\n", "\n    ") for number, text in entries
    )


def chat_tokens(env: Environment, chat: Chat) -> int:
    """The number of tokens of a chat by the tokenizer of the environment."""
    return len(prompts.encode_messages(list(chat), env.prompt.tokenizer))


def cut(env: Environment, text: str, budget: int, end: bool = False) -> str:
    """The beginning (or the `end`) of a text that has at most `budget` tokens in a prompt."""
    ids = encode_text(env, text)
    length = min(budget, len(ids))
    # Encoded again or escaped, a part can have more tokens than it had within the whole text.
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
    """The text in pieces of at most `limit` tokens after escaping; one piece if it fits."""
    return list(pieces(text, limit, lambda part: count_tokens(env, safe(env, part))))


def feed(env: Environment, text: str, render: Callable[[str], Chat]) -> Iterator[Chat]:
    """Chats that together show a whole text, split so that each fits `env.prompt.prompt_tokens`.

    `render` makes the chat for a piece. It is called again for each piece, because the rest of the
    chat (the memory so far) changes with the replies.
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
    """The longest prefix of `items` whose chat, made by `render`, fits the prompt budget."""
    for count in range(len(items), -1, -1):
        room = env.prompt.prompt_tokens - chat_tokens(env, render(items[:count]))
        if room >= 0:
            return items[:count]
    raise no_room(env, room)


def check_room(env: Environment, empty: Chat, memory_tokens: int) -> None:
    """Raises PromptTooLong where a chat has no room for text beside a full memory, so that a prompt
    budget that is too small is reported before the memory has grown."""
    room = room_for_text(env, empty, memory_tokens)
    if room < MIN_PIECE:
        raise no_room(env, room)


def room_for_text(env: Environment, empty: Chat, memory_tokens: int) -> int:
    """The tokens that a chat without text leaves for it beside a full memory."""
    return env.prompt.prompt_tokens - chat_tokens(env, empty) - memory_tokens


def no_room(env: Environment, room: int) -> PromptTooLong:
    """The error for prompts without enough room for text: a wrong setting, not a model failure."""
    return PromptTooLong(
        f"a prompt of {env.prompt.prompt_tokens} tokens leaves {max(room, 0)} for the text, beside"
        f" the instructions and the memory; it takes {MIN_PIECE}: raise the prompt budget or make"
        " the memory smaller"
    )
