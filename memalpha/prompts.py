"""Prompt texts and their rendering: memory and chunk to token ids (Mem-alpha, section 3.2).

A template is a folder of text files, one per field of `Template`, with `$name` placeholders (`$$`
for a dollar sign). Placeholders are filled in one pass, so data is never read as a template.
Memory, chunks and questions are untrusted data: they go into the user turn, between tags, through
`escape`, so that no data can open or close a tag, a chat turn or a tool call.
"""

import dataclasses
import json
import re
import string
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from memalpha.memory import CORE, MEMORY_NAMES, MemoryView
from memalpha.paths import user_path
from memalpha.tokenizer import merge_system, takes_system
from memalpha.tools import (
    CONTENT_KEY,
    INSERT,
    UPDATE,
    Call,
    format_response,
    parse_calls,
    tool_schemas,
)

ALL_ENABLED = (True, True, True)
READER_KINDS = ("reader", "reader_classification", "reader_summary")
CUT_MARK = " [cut]"  # ends a core that was truncated
RESPONSE_SHARE = 0.8  # of the token limit is what the prompt states (Mem-alpha, section 3.2)
BUILT_IN = Path(__file__).parent / "templates"
BUILT_IN_NAMES = ("full", "compact", "brief")
# A piece of text, and what a response to it may put in each memory.
EXAMPLE_PIECE = "On 4 May 1998 Idris Oder opened a bakery in Hobart. He bakes rye bread."
EXAMPLE_CONTENTS = {
    "core": "About Idris Oder, a baker in Hobart.",
    "semantic": "Idris Oder has a bakery in Hobart and bakes rye bread.",
    "episodic": "4 May 1998: Idris Oder opened a bakery in Hobart.",
}

_TAGS = "core_memory|semantic_memory|episodic_memory|new_chunk|question|memory_entry"
_TAGS += "|tools?|tool_call|tool_response|think"
_TAG = re.compile(rf"<(?=\s*(?:/\s*)?(?:{_TAGS})\b)", re.IGNORECASE)
_SPECIAL = re.compile(r"<(?=[|｜][^<>\n]{0,64}[|｜]>)")  # such as <|im_start|>
_FLOWER = re.compile(r"✿(?=\s*\w+\s*✿)")
# Control characters, the two separators that count as line ends, and lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_MEMORY = {*MEMORY_NAMES}
_PLACEHOLDERS: dict[str, tuple[set[str], set[str]]] = {  # file -> (required, optional)
    "system": (set(), {"tools"}),
    "tools": (set(), {"schemas", "piece", "example"}),
    "memorise": (_MEMORY | {"chunk"}, {"budget"}),
    "block": ({"name", "content"}, set()),
    "core": ({"block"}, set()),
    "semantic": ({"block"}, {"shown", "total"}),
    "episodic": ({"block"}, {"shown", "total"}),
    "reader": (_MEMORY | {"question"}, set()),
    "reader_classification": (_MEMORY | {"question"}, set()),
    "reader_summary": (_MEMORY | {"question"}, set()),
    "judge": ({"content"}, {"memory_type", "criteria"}),
    "judge_core": (set(), set()),
    "judge_semantic": (set(), set()),
    "judge_episodic": (set(), set()),
}


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts of one template folder, one field per file; `name`: of BUILT_IN_NAMES, or a path.

    `memorise` and the reader texts place `$core`, `$semantic` and `$episodic`. In `memorise` each
    of these is the file of that name, which wraps a `block` with the content; in a reader text it
    is the block alone. The placeholder of a disabled memory becomes empty, and a line with nothing
    else on it is removed.
    """

    name: str
    system: str
    tools: str
    memorise: str
    block: str
    core: str
    semantic: str
    episodic: str
    reader: str
    reader_classification: str
    reader_summary: str
    judge: str
    judge_core: str
    judge_semantic: str
    judge_episodic: str


class PromptTooLong(ValueError):  # noqa: N818 (the name says it all)
    """A prompt that is over its token budget even without any content of the memory."""


@dataclasses.dataclass(frozen=True)
class PromptSpec:
    """What a writer is shown, and how its response is read. Sizes are in tokens.

    enabled: whether there is a core, a semantic and an episodic memory. recent: how many of the
    latest entries of each list are shown. parse: (response text, dialect) -> calls. stops: token
    ids that end a response beside those that the tokenizer names, as the model states them.
    """

    tokenizer: Any
    template: Template
    dialect: str = "qwen3"
    enabled: tuple[bool, bool, bool] = ALL_ENABLED
    recent: int = 5
    prompt_tokens: int = 6144
    response_tokens: int = 2048
    parse: Callable[[str, str], list[Call]] = parse_calls
    stops: tuple[int, ...] = ()


def load_template(name_or_folder: str) -> Template:
    """The built-in template of that name, or the one in a folder with the same file names.

    Raises ValueError that names the file: missing, not UTF-8, or with wrong placeholders.
    """
    is_built_in = name_or_folder in BUILT_IN_NAMES
    folder = BUILT_IN / name_or_folder if is_built_in else user_path(name_or_folder)
    if is_built_in and not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: memalpha is installed without its templates, install it again"
        )
    if not folder.is_dir():
        raise ValueError(
            f"template {name_or_folder!r} is neither built in ({', '.join(BUILT_IN_NAMES)}) nor a"
            " folder"
        )
    texts = {
        field: read_form(folder / f"{field}.txt", needed, allowed)
        for field, (needed, allowed) in _PLACEHOLDERS.items()
    }
    return Template(name=name_or_folder, **texts)


def read_form(path: Path, needed: Collection[str], allowed: Collection[str] = ()) -> str:
    """The text of one file, which has `$name` for each of `needed` and may have those of `allowed`.

    Raises ValueError that names the file: missing, not UTF-8, or with wrong placeholders.
    """
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except FileNotFoundError:
        raise ValueError(f"template file {path} is missing: add it, it may be empty") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"template file {path} is not UTF-8: {error}") from None
    form = string.Template(text)
    if not form.is_valid():
        raise ValueError(f"template file {path} has a stray $: write $$ for a dollar sign")
    needed, allowed = set(needed), set(allowed)
    present = set(form.get_identifiers())
    if missing := needed - present:
        raise ValueError(f"template file {path} lacks ${', $'.join(sorted(missing))}: place it")
    if unknown := present - needed - allowed:
        raise ValueError(
            f"template file {path} has the unknown placeholders {sorted(unknown)}: "
            f"it may use {sorted(needed | allowed)}"
        )
    return text


def template_fragments(template: Template) -> list[str]:
    """The tags of a template in order of appearance, to be added to a tokenizer as tokens."""
    texts = [getattr(template, field) for field in _PLACEHOLDERS]
    texts += [_fill(template.block, name=f"{name}_memory", content="") for name in MEMORY_NAMES]
    return list(dict.fromkeys(re.findall(r"</?[A-Za-z_]\w*>", "\n".join(texts))))


def escape(text: str, also: Sequence[str] = ()) -> str:
    """Escapes everything in a text that could be taken for structure; the text stays readable.

    "<" becomes "‹" in our tags and in special tokens such as <|im_end|>; "✿" becomes "❀" in the
    marks of Qwen-Agent; control characters other than line break and tab become escapes such as
    \\x1b. `also`: further strings to break up, such as the special tokens of a tokenizer.
    """
    text = _CONTROL.sub(_visible, text.replace("\r\n", "\n"))
    text = _FLOWER.sub("❀", _SPECIAL.sub("‹", _TAG.sub("‹", text)))
    for literal in also:
        if len(literal) > 1 and literal in text:
            first = "‹" if literal[0] == "<" else literal[0] + "·"
            pattern = f"{re.escape(literal[0])}(?={re.escape(literal[1:])})"  # overlaps included
            text = re.sub(pattern, first, text)
    return text


def render_memorise(
    spec: PromptSpec,
    view: MemoryView,
    chunk: str,
    special: Sequence[str] = (),
    list_tools: bool = True,
) -> list[dict[str, str]]:
    """The messages (system, user) of one memorising step.

    They show the whole core and the `spec.recent` latest entries of each list, and state 0.8 of
    `spec.response_tokens` as the limit of the response. `special`: strings to escape in data.
    `list_tools` False leaves `$tools` empty, for a chat template that lists the tools itself.
    """
    template = spec.template
    also = [*template_fragments(template), *special]
    parts = dict.fromkeys(MEMORY_NAMES, "")
    if spec.enabled[0]:
        block = _block(template, "core", escape(view.core, also))
        parts["core"] = _fill(template.core, block=block)
    for name, on in zip(MEMORY_NAMES[1:], spec.enabled[1:], strict=True):
        if on:
            entries = getattr(view, name)
            entries = entries[max(0, len(entries) - spec.recent) :]
            lines = [f"[{entry.id}] {_entry(entry.text, also)}" for entry in entries]
            block = _block(template, name, "\n".join(lines))
            total = getattr(view, f"{name}_total")
            text = getattr(template, name)
            parts[name] = _fill(text, block=block, shown=len(entries), total=total)
    user = _fill(
        _without_disabled(template.memorise, spec.enabled),
        **parts,
        chunk=escape(chunk, also),
        budget=int(RESPONSE_SHARE * spec.response_tokens),
    )
    tools = _tools_text(template, spec.dialect, spec.enabled) if list_tools else ""
    return _messages(user, _fill(template.system, tools=tools))


def render_reader(
    template: Template,
    question: str,
    core: str,
    semantic: Sequence[str],
    episodic: Sequence[str],
    kind: str = "reader",
    enabled: Sequence[bool] = ALL_ENABLED,
    special: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The messages that ask a question about a memory; `kind` is one of READER_KINDS."""
    if kind not in READER_KINDS:
        raise ValueError(f"reader kind {kind!r} is unknown: choose one of {READER_KINDS}")
    also = [*template_fragments(template), *special]
    contents = {"core": escape(core, also)}
    contents["semantic"] = "\n".join(_entry(text, also) for text in semantic)
    contents["episodic"] = "\n".join(_entry(text, also) for text in episodic)
    parts = {
        name: _block(template, name, contents[name]) if on else ""
        for name, on in zip(MEMORY_NAMES, enabled, strict=True)
    }
    text = _without_disabled(getattr(template, kind), enabled)
    return _messages(_fill(text, **parts, question=escape(question, also)))


def render_judge(
    template: Template, memory_type: str, content: str, special: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The messages that ask whether `content` fits the memory `memory_type` (a short name).

    The answer asked for is JSON: {"KIND": "what kind of text it is", "VALID": bool}. The kind comes
    first: small models that began with the verdict always said true.
    """
    if memory_type not in MEMORY_NAMES:
        raise ValueError(f"memory type {memory_type!r} is unknown: choose one of {MEMORY_NAMES}")
    content = escape(content, [*template_fragments(template), *special])
    criteria = getattr(template, f"judge_{memory_type}")
    return _messages(
        _fill(template.judge, memory_type=memory_type, criteria=criteria, content=content)
    )


def encode_messages(
    messages: list[dict[str, str]], tokenizer: Any, tools: list[dict] | None = None
) -> list[int]:
    """Token ids of messages, up to where the response begins.

    Uses the chat template of the tokenizer with thinking switched off; a tokenizer without one gets
    plain text with a blank line between messages. Where the template rejects or drops the system
    role, as Gemma's does, the system text is put at the start of the first user turn.
    """
    if tokenizer.chat_template:
        has_system = any(message["role"] == "system" for message in messages)
        if has_system and not takes_system(tokenizer, str(tokenizer.chat_template)):
            messages = merge_system(messages)
        return tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=False,
        )
    text = "\n\n".join(message["content"] for message in messages)
    return tokenizer.encode(text, add_special_tokens=False)


def fit_prompt(spec: PromptSpec, view: MemoryView, chunk: str) -> list[int]:
    """Token ids of a memorising prompt of at most `spec.prompt_tokens`; see `fit_messages`."""
    return fit_messages(spec, view, chunk, native_tools=lists_tools(spec))[1]


def lists_tools(spec: PromptSpec) -> bool:
    """Whether the chat template of the tokenizer lists the tools instead of our prompt."""
    placed = "tools" in string.Template(spec.template.system).get_identifiers()
    return placed and spec.dialect == "qwen3" and "tools" in str(spec.tokenizer.chat_template or "")


def fit_messages(
    spec: PromptSpec,
    view: MemoryView,
    chunk: str,
    special: Sequence[str] = (),
    native_tools: bool = False,
) -> tuple[list[dict[str, str]], list[int]]:
    """The messages of a memorising step and their token ids, at most `spec.prompt_tokens` of them.

    `spec.recent` entries of each list are shown. While the prompt is too long, that number is
    halved (…, 1, 0); then the core is truncated to half its length repeatedly, with `CUT_MARK` at
    its end. So a memory that the policy has let grow too large cannot stop its training.

    Args:
        special: further strings to escape in data.
        native_tools: the chat template lists the tools.

    Raises:
        PromptTooLong: template and chunk alone do not fit.
        ValueError: `spec.recent` is negative.
    """
    if spec.recent < 0:
        raise ValueError(f"recent is {spec.recent}: give the number of entries to show, 0 or more")
    tools = tool_schemas(spec.enabled) if native_tools else None
    special = (*spec.tokenizer.all_special_tokens, *special)
    recent, characters = spec.recent, len(view.core) if spec.enabled[0] else 0
    while True:
        showing = dataclasses.replace(spec, recent=recent)
        messages = render_memorise(showing, view, chunk, special, not native_tools)
        ids = encode_messages(messages, spec.tokenizer, tools)
        if len(ids) <= spec.prompt_tokens:
            return messages, ids
        if recent == 0 and not characters:
            break
        if recent == 0:
            characters //= 2
            core = view.core[:characters] + CUT_MARK if characters else ""
            view = dataclasses.replace(view, core=core)
        recent //= 2
    chunk_tokens = len(spec.tokenizer.encode(escape(chunk, special), add_special_tokens=False))
    raise PromptTooLong(
        f"the prompt has {len(ids)} tokens with nothing of the memory shown, its budget is"
        f" {spec.prompt_tokens}: the chunk has {chunk_tokens}, the rest is the template"
        f" {spec.template.name!r}; raise the prompt budget or use shorter chunks"
    )


def _fill(text: str, **values: object) -> str:
    return string.Template(text).substitute(values)


def _without_disabled(text: str, enabled: Sequence[bool]) -> str:
    for name, on in zip(MEMORY_NAMES, enabled, strict=True):
        if not on:
            text = re.sub(rf"^\$(?:{name}|{{{name}}})\n", "", text, flags=re.MULTILINE)
    return text


def _block(template: Template, name: str, content: str) -> str:
    return _fill(template.block, name=f"{name}_memory", content=content)


def _entry(text: str, also: Sequence[str]) -> str:
    """An escaped entry; its later lines are indented, so that none looks like another entry."""
    return escape(text, also).replace("\n", "\n    ")


def _visible(match: re.Match) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _tools_text(template: Template, dialect: str, enabled: Sequence[bool]) -> str:
    lines = "\n".join(map(_one_line, tool_schemas(enabled)))
    example = _example(dialect, enabled)
    return _fill(template.tools, schemas=lines, piece=EXAMPLE_PIECE, example=example)


def _one_line(schema: dict) -> str:
    """Name, arguments and purpose of a tool, in less than half the tokens of its schema."""
    function = schema["function"]
    arguments = {
        name: " | ".join(about.get("enum", ())) or about["description"]
        for name, about in function["parameters"]["properties"].items()
    }
    return f"{function['name']} {json.dumps(arguments)} {function['description']}"


def _example(dialect: str, enabled: Sequence[bool]) -> str:
    """One whole response to EXAMPLE_PIECE: small models follow what they see."""
    lists = any(enabled[1:])
    name = INSERT if lists else UPDATE
    texts = [
        (f"{memory}_memory", EXAMPLE_CONTENTS[memory])
        for memory, on in zip(MEMORY_NAMES, enabled, strict=True)
        if on and (memory != MEMORY_NAMES[CORE] or not lists)
    ]
    return format_response(
        [Call(name, {"memory_type": memory, CONTENT_KEY[name]: text}) for memory, text in texts],
        dialect,
    )


def _messages(user: str, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": "user", "content": user}]
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages
