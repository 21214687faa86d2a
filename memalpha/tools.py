"""The tool calls of the writer: schemas, text to calls in two dialects, calls to operation arrays.

Tool and argument names are those of the released models (Mem-alpha, section 3.1). A response holds
zero or more calls; whatever the text, parsing gives a list of `Call`s and never raises: a call that
cannot be used carries an `error` and becomes a MALFORMED operation.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import json_repair
import numpy as np

from memalpha.memory import CORE, MEMORY_NAMES, OpKind, Ops

DIALECTS = ("qwen3", "qwen_agent")
INSERT, UPDATE, DELETE = "new_memory_insert", "memory_update", "memory_delete"
SEARCH = "search_memory"  # reads: for chat use, never a writing call
CONTENT_KEY = {INSERT: "content", UPDATE: "new_content"}  # the argument that holds the text
SEARCH_METHODS = ("bm25", "text-embedding")

_ARGUMENTS = {  # in the order of the schema
    INSERT: ("memory_type", "content"),
    UPDATE: ("memory_type", "new_content", "memory_id"),
    DELETE: ("memory_type", "memory_id"),
    SEARCH: ("memory_type", "query", "search_method"),
}
_KINDS = {INSERT: OpKind.INSERT, UPDATE: OpKind.UPDATE, DELETE: OpKind.DELETE}
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE, _SPACE_CLOSE = re.compile(r"\s*"), re.compile(r"\s*</tool_call>")
_FUNCTION, _ARGS = "✿FUNCTION✿", "✿ARGS✿"
_FLOWER = re.compile("✿(?:FUNCTION|RESULT|RETURN)✿")
_ID = re.compile(r"\s*\[?\s*([0-9]{1,9})\s*\]?\s*")  # nine digits always fit an int32
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_REPAIR = 4_000  # characters: above a full core; on some texts repair is quadratic, 1 s here
_CUT_OFF = "the call has no end: the response was cut off or another call began inside it"
_NO_JSON = "no JSON object, even after repair"
_COLON = re.compile(r"[ \t]*:?")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One tool call; `error` is empty, or says why the call is malformed; `end` is where it ends
    in the text of its response, in characters (-1: not known)."""

    name: str
    arguments: dict
    error: str = ""
    end: int = field(default=-1, compare=False)


def parse_calls(text: str, dialect: str, search: bool = False) -> list[Call]:
    """The calls of one response in order, malformed ones included. Never raises on any text.

    JSON that a strict decoder refuses goes through `json_repair` once. A call without its end is
    malformed even where repair could complete it: its content is only part of what was meant.
    A leading <think> block does not count (an unclosed one hides the whole response).
    `search` allows the reading tool, for chat use; as a writing call it is malformed.
    Raises ValueError only for a dialect that is not in DIALECTS.
    """
    return [_checked(*found, search) for found in scan_calls(text, dialect)]


def scan_calls(text: str, dialect: str) -> Iterator[tuple[object, object, str, int]]:
    """Name, arguments, error and end of every call as it stands in a response, for tools of any
    name.

    Parsed as by `parse_calls`, but not checked: name and arguments can be of any JSON type.
    """
    _check_dialect(dialect)
    parse = _parse_qwen3 if dialect == "qwen3" else _parse_qwen_agent
    seen = _without_thinking(text)
    hidden = len(text) - len(seen)
    return ((*call, hidden + end) for *call, end in parse(seen))


def read_object(text: str) -> dict | None:
    """The first JSON object in a response, repaired if slightly broken; None if there is none.

    An object of more than MAX_REPAIR characters is not repaired. Never raises on any text.
    """
    start = text.find("{")
    return None if start < 0 else _strict(text, start)[0] or _repair(text[start:])


def format_call(name: str, arguments: Mapping, dialect: str) -> str:
    """The text that a model emits for this call: deterministic, arguments in the order given."""
    _check_dialect(dialect)
    if dialect == "qwen3":
        body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
        return f"{_OPEN}\n{body}\n{_CLOSE}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"tool name {name!r}: the qwen_agent dialect needs a name of one word")
    return f"{_FUNCTION}: {name}\n{_ARGS}: {json.dumps(dict(arguments), ensure_ascii=False)}"


def format_response(calls: Iterable[Call], dialect: str) -> str:
    """One response: the calls, one after the other, separated by a line break."""
    return "\n".join(format_call(call.name, call.arguments, dialect) for call in calls)


def fixed_fragments(dialect: str) -> list[str]:
    """The fixed strings of every writing call, for a tokenizer to hold as single tokens.

    Any call from `format_call` whose arguments are strings, with memory_type first, is a
    concatenation of these and of its (JSON-escaped) contents and ids. A memory name comes together
    with the key that follows it, so that no bare word such as "core" is split off inside a text.
    """
    hole = "\ue000"  # private use: in no fragment, and json.dumps leaves it as it is
    forms = [(INSERT, ("content",)), (UPDATE, ("new_content",))]
    forms += [(UPDATE, ("new_content", "memory_id")), (UPDATE, ("memory_id", "new_content"))]
    forms += [(DELETE, ()), (DELETE, ("memory_id",))]
    fragments: dict[str, None] = {}  # an ordered set
    for memory_type in (*MEMORY_NAMES, *(f"{name}_memory" for name in MEMORY_NAMES)):
        for name, keys in forms:
            arguments = {"memory_type": hole + memory_type} | dict.fromkeys(keys, hole)
            fragments |= dict.fromkeys(format_call(name, arguments, dialect).split(hole))
    return list(fragments)


def memory_type_index(name: str) -> int:
    """CORE, SEMANTIC or EPISODIC for a short or long name ("core", "core_memory"), else -1."""
    short = name.strip().lower().removesuffix("_memory")
    return MEMORY_NAMES.index(short) if short in MEMORY_NAMES else -1


def tool_schemas(enabled: Sequence[bool], search: bool = False) -> list[dict]:
    """Schemas in the OpenAI function format, of the enabled memories alone.

    `enabled` holds one bool for core, semantic and episodic. The core takes no insert and no id.
    `search` adds the reading tool, for chat use.
    """
    if len(enabled) != len(MEMORY_NAMES) or not any(enabled):
        raise ValueError(
            f"tool_schemas: enabled is {enabled!r}; give a bool for each of {MEMORY_NAMES}, "
            "at least one of them true"
        )
    types = [f"{name}_memory" for name, on in zip(MEMORY_NAMES, enabled, strict=True) if on]
    lists = [name for name in types if name != "core_memory"]
    has_core = len(lists) < len(types)
    note = " Leave it out for core_memory." if has_core else ""
    ids = {"memory_id": "Number in brackets in front of the entry, such as 12." + note}
    ids = ids if lists else {}
    required = ["memory_type"] if has_core else ["memory_type", *ids]
    whole = {"new_content": "All of the new text: nothing of the old one is kept."}
    new = {"content": "What to remember, complete enough to be understood alone."}
    about = {(True, True): "an entry, or all of the core memory", (True, False): "an entry"}
    what = about.get((bool(lists), has_core), "all of the core memory")
    schemas = [
        _schema(UPDATE, f"Replace {what}.", types, whole | ids, [*required, "new_content"]),
        _schema(DELETE, f"Remove {what}.", types, ids, required),
    ]
    if lists:
        schemas.insert(0, _schema(INSERT, "Add an entry.", lists, new, ["memory_type", "content"]))
    if lists and search:
        query = {"query": "What to look for.", "search_method": "How texts are compared."}
        schemas.append(_schema(SEARCH, "Find entries.", lists, query, ["memory_type", "query"]))
    return schemas


def call_kind(call: Call) -> OpKind:
    """What a call asks of the memory."""
    return OpKind.MALFORMED if call.error else _KINDS.get(call.name, OpKind.MALFORMED)


def calls_to_ops(
    calls_per_row: Sequence[Sequence[Call]],
    encode: Callable[[str], list[int]],
    width: int,
    max_ops: int,
) -> Ops:
    """Operation arrays [R, max_ops] of one step (tokens [R, max_ops, width]), as numpy int32.

    One shape whatever was called: another would cost a compilation. Calls of a row past `max_ops`
    are left out: the caller, who holds them, counts them as failed.
    `length` is the true number of tokens of a content, of which `tokens` holds the first `width`.
    An unknown memory type gives target -1, an id that is no number id -1; padding is kind NONE.
    """
    shape = (len(calls_per_row), max_ops)
    kind, length = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    target, ids = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    tokens = np.zeros((*shape, width), np.int32)
    for r, calls in enumerate(calls_per_row):
        for o, call in enumerate(calls[:max_ops]):
            kind[r, o] = OpKind.MALFORMED
            if call.error or _argument_error(call.name, call.arguments) or call.name == SEARCH:
                continue
            content = call.arguments.get(CONTENT_KEY.get(call.name, ""))
            encoded = [] if content is None else encode(clean(content).strip())
            if content is not None and not encoded:
                continue  # nothing that the tokenizer can hold: as good as empty
            kind[r, o] = _KINDS[call.name]
            target[r, o] = memory_type_index(call.arguments["memory_type"])
            ids[r, o] = _id_number(call.arguments.get("memory_id"))
            length[r, o] = len(encoded)
            tokens[r, o, : min(len(encoded), width)] = encoded[:width]
    return Ops(kind=kind, target=target, id=ids, tokens=tokens, length=length)


def _parse_qwen3(text: str) -> Iterator[tuple[object, object, str, int]]:
    at = text.find(_OPEN)
    while at >= 0:
        at += len(_OPEN)
        value, end = _strict(text, at)
        if value is not None and (closed := _SPACE_CLOSE.match(text, end)):
            yield value.get("name"), value.get("arguments"), "", closed.end()
            at = text.find(_OPEN, closed.end())
            continue
        following = text.find(_OPEN, end)
        close = text.find(_CLOSE, end, following if following >= 0 else len(text))
        if close >= 0:
            value = _repair(text[at:close])
        error = _CUT_OFF if close < 0 else "" if value else _NO_JSON
        value = value or {}
        stop = following if following >= 0 else len(text)
        ended = stop if close < 0 else close + len(_CLOSE)
        yield value.get("name"), value.get("arguments"), error, ended
        at = following


def _parse_qwen_agent(text: str) -> Iterator[tuple[object, object, str, int]]:
    mark = _FLOWER.search(text)
    while mark and mark.group() == _FUNCTION:
        following = _FLOWER.search(text, mark.end())
        stop = following.start() if following else len(text)
        args = text.find(_ARGS, mark.end(), stop)
        name = text[mark.end() : args if args >= 0 else stop].lstrip(": \t\n").partition("\n")[0]
        if args < 0:
            yield name, None, "" if following else _CUT_OFF, stop
            mark = following
            continue
        start = _COLON.match(text, args + len(_ARGS)).end()
        value, end = _strict(text, start)
        following = _FLOWER.search(text, end)  # marks inside the strings of the JSON do not count
        error = ""
        if value is None:
            body = text[start:stop]
            value = _repair(body) if _ends(body) else None
            error = "" if value else _NO_JSON if _ends(body) else _CUT_OFF
        yield name, value, error, following.start() if following else len(text)
        mark = following


def _strict(text: str, start: int) -> tuple[dict | None, int]:
    """The JSON object at `start` (after white space) and its end, or (None, start).

    A string that no quote closes holds the rest of the text, with all in it that looks like a
    call: then the end is that of the text.
    """
    brace = _SPACE.match(text, start).end()
    if not text.startswith("{", brace):
        return None, start
    try:
        return _DECODER.raw_decode(text, brace)
    except (ValueError, RecursionError) as error:
        unclosed = getattr(error, "msg", "").startswith("Unterminated string")
        return None, len(text) if unclosed else start


def _repair(body: str) -> dict | None:
    if len(body) > MAX_REPAIR or "{" not in body:
        return None
    try:
        value = json_repair.loads(body, skip_json_loads=True)
    except Exception:  # another library on broken text: no error of its own may stop a batch
        return None
    return value if isinstance(value, dict) and value else None


def _ends(body: str) -> bool:
    """Whether broken JSON ends with its last brace and does not just break off."""
    without_strings = re.sub(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', "", body, flags=re.DOTALL)
    balanced = 0 < without_strings.count("{") <= without_strings.count("}")
    return balanced and without_strings.rstrip("` \r\n\t").endswith("}")


def _checked(name: object, arguments: object, error: str, end: int, search: bool) -> Call:
    """A Call with the arguments that its tool knows (of an unknown tool all), strings free of lone
    surrogates."""
    name = clean(name).strip() if isinstance(name, str) else ""
    kept = {}
    if isinstance(arguments, dict):
        known = _ARGUMENTS.get(name, arguments)
        kept = {k: clean(v) for k, v in arguments.items() if k in known and _plain(v)}
        error = error or _argument_error(name, arguments)
    error = error or ("" if isinstance(arguments, dict) else "arguments are missing")
    if name == SEARCH and not search:
        error = error or f"{SEARCH} reads the memory: it is no writing call"
    return Call(name, kept, error, end)


def _argument_error(name: str, arguments: Mapping) -> str:
    """Why these arguments cannot be used, or an empty string."""
    if name not in _ARGUMENTS:
        return f"unknown tool {name[:40]!r}: the tools are {', '.join(_KINDS)}"
    memory_type = arguments.get("memory_type")
    if not isinstance(memory_type, str):
        return "memory_type is missing or not a string"
    key = "query" if name == SEARCH else CONTENT_KEY.get(name)
    if key and not (isinstance(arguments.get(key), str) and arguments[key].strip()):
        return f"{key} is missing, empty or not a string"
    needs_id = name in (UPDATE, DELETE) and memory_type_index(memory_type) > CORE
    if needs_id and not _plain(arguments.get("memory_id")):
        return "memory_id is missing or neither a number nor a string"
    return ""


def _id_number(memory_id: object) -> int:
    if isinstance(memory_id, str):
        match = _ID.fullmatch(memory_id)
        return int(match[1]) if match else -1
    return memory_id if _plain(memory_id) and 0 <= memory_id < 10**9 else -1


def _plain(value: object) -> bool:
    return isinstance(value, str) or type(value) is int  # a bool is no id


def clean(value: Any) -> Any:
    """Strings without lone surrogates, which JSON escapes can make and no tokenizer takes."""
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _without_thinking(text: str) -> str:
    if not text.lstrip().startswith("<think>"):
        return text
    return text.partition("</think>")[2]


def _check_dialect(dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is unknown: choose one of {', '.join(DIALECTS)}")


def _schema(name: str, about: str, types: list[str], texts: dict, required: list[str]) -> dict:
    properties = {"memory_type": {"type": "string", "enum": types, "description": "Which memory."}}
    properties |= {key: {"type": "string", "description": text} for key, text in texts.items()}
    if "search_method" in properties:
        properties["search_method"]["enum"] = list(SEARCH_METHODS)
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}
