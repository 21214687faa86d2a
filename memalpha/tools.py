"""The tool calls of the writer: schemas, text to calls in a dialect, calls to operation arrays.

Tool and argument names are those of the released models (Mem-alpha, section 3.1). A response has
zero or more calls. Parsing returns a list of `Call`s and never raises on any text: a call that
cannot be used, or cannot be read completely, has an `error` and becomes a MALFORMED operation.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from memalpha.calls import RawCall, check_dialect, scan_calls
from memalpha.memory import CORE, MEMORY_NAMES, OpKind, Ops
from memalpha.replies import ARGS, CALL_CLOSE, CALL_OPEN, FUNCTION, clean

INSERT, UPDATE, DELETE = "new_memory_insert", "memory_update", "memory_delete"
CONTENT_KEY = {INSERT: "content", UPDATE: "new_content"}  # the argument that holds the text

_ARGUMENTS = {  # in the order of the schema
    INSERT: ("memory_type", "content"),
    UPDATE: ("memory_type", "new_content", "memory_id"),
    DELETE: ("memory_type", "memory_id"),
}
_KINDS = {INSERT: OpKind.INSERT, UPDATE: OpKind.UPDATE, DELETE: OpKind.DELETE}
_ID = re.compile(r"\s*\[?\s*([0-9]{1,9})\s*\]?\s*")  # nine digits always fit an int32


@dataclass(frozen=True)
class Call:
    """One tool call.

    error: why the call is malformed; empty: it is not. end: where the call ends in the text of its
    response, in characters; -1: unknown.
    """

    name: str
    arguments: dict
    error: str = ""
    end: int = field(default=-1, compare=False)


def parse_calls(text: str, dialect: str, bare: bool = False) -> list[Call]:
    """The calls of one response in order, malformed ones included. Never raises on any text.

    Only the text after the thinking is read (`replies.visible`). Broken JSON is repaired where the
    repair loses nothing; a repaired call with an argument that its tool does not have is malformed.
    A call that is cut off is malformed even if its JSON could be completed, because its content may
    be incomplete. `bare`: see `scan_calls`. Raises ValueError only for an unknown dialect.
    """
    return [_checked(raw) for raw in scan_calls(text, dialect, _ARGUMENTS, bare)]


def parse_prompted_calls(text: str, dialect: str) -> list[Call]:
    """`parse_calls` for prompted models that were not trained in a dialect: calls in the marks of
    another dialect and JSON objects without marks are accepted too."""
    return parse_calls(text, dialect, bare=True)


def format_call(name: str, arguments: Mapping, dialect: str) -> str:
    """The text of a call in a dialect; arguments keep their order, but for our tools in "lines",
    where place says which argument it is."""
    check_dialect(dialect)
    if dialect == "lines":
        keys = _ARGUMENTS.get(name, tuple(arguments))[: len(arguments)]
        if set(keys) != set(arguments):
            raise ValueError(f"the lines dialect has no {name!r} with {sorted(arguments)}")
        return " ".join([name, *(json.dumps(arguments[k], ensure_ascii=False) for k in keys)])
    if dialect == "qwen3":
        body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
        return f"{CALL_OPEN}\n{body}\n{CALL_CLOSE}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"tool name {name!r}: the qwen_agent dialect needs a name of one word")
    return f"{FUNCTION}: {name}\n{ARGS}: {json.dumps(dict(arguments), ensure_ascii=False)}"


def format_response(calls: Iterable[Call], dialect: str) -> str:
    """The text of a response that consists of these calls, separated by line breaks."""
    return "\n".join(format_call(call.name, call.arguments, dialect) for call in calls)


def fixed_fragments(dialect: str) -> list[str]:
    """The constant parts of every call, to be added to a tokenizer as single tokens.

    Any call from `format_call` whose arguments are strings, with memory_type first, is a
    concatenation of these and of its JSON-escaped contents and ids. A fragment joins the name of a
    memory with the key that follows it, so that a word such as "core" in a content is no fragment.
    """
    hole = "\ue000"  # a private-use character: in no fragment, and json.dumps does not escape it
    forms = [(INSERT, ("content",)), (UPDATE, ("new_content",))]
    forms += [(UPDATE, ("new_content", "memory_id")), (UPDATE, ("memory_id", "new_content"))]
    forms += [(DELETE, ()), (DELETE, ("memory_id",))]
    fragments: dict[str, None] = {}  # an ordered set
    for memory_type in (*MEMORY_NAMES, *(f"{name}_memory" for name in MEMORY_NAMES)):
        for name, keys in forms:
            arguments = {"memory_type": hole + memory_type} | dict.fromkeys(keys, hole)
            fragments |= dict.fromkeys(format_call(name, arguments, dialect).split(hole))
    return list(fragments)


def example_calls(dialect: str, enabled: Sequence[bool]) -> str:
    """A response that updates each of the enabled memories (core, semantic and episodic) and then
    inserts into each list: the form of calls, to draft from."""
    names = [name for name, on in zip(MEMORY_NAMES, enabled, strict=True) if on]
    lists, calls = [name for name in names if name != MEMORY_NAMES[CORE]], []
    for name in names:
        which = {"memory_id": "1"} if name in lists else {}
        calls.append(Call(UPDATE, {"memory_type": name, "new_content": "The user"} | which))
    calls += [Call(INSERT, {"memory_type": name, "content": "The user"}) for name in lists[::-1]]
    return format_response(calls, dialect)


def memory_type_index(name: str) -> int:
    """CORE, SEMANTIC or EPISODIC for a short or long name ("core", "core_memory"), else -1."""
    short = name.strip().lower().removesuffix("_memory")
    return MEMORY_NAMES.index(short) if short in MEMORY_NAMES else -1


def tool_schemas(enabled: Sequence[bool]) -> list[dict]:
    """Schemas in the OpenAI function format, for the enabled memories only.

    `enabled`: a bool each for core, semantic and episodic. The core has no insert and no ids.
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
    ids = {"memory_id": "Number in brackets before the entry." + note}
    ids = ids if lists else {}
    required = ["memory_type"] if has_core else ["memory_type", *ids]
    whole = {"new_content": "All of the new text."}
    new = {"content": "What to remember, clear by itself."}
    about = {(True, True): "an entry, or all of the core memory", (True, False): "an entry"}
    what = about.get((bool(lists), has_core), "all of the core memory")
    schemas = [
        _schema(UPDATE, f"Replace {what}.", types, whole | ids, [*required, "new_content"]),
        _schema(DELETE, f"Remove {what}.", types, ids, required),
    ]
    if lists:
        schemas.insert(0, _schema(INSERT, "Add an entry.", lists, new, ["memory_type", "content"]))
    return schemas


def call_kind(call: Call) -> OpKind:
    """The kind of memory operation that a call becomes."""
    return OpKind.MALFORMED if call.error else _KINDS.get(call.name, OpKind.MALFORMED)


def calls_to_ops(
    calls_per_row: Sequence[Sequence[Call]],
    encode: Callable[[str], list[int]],
    width: int,
    max_ops: int,
) -> Ops:
    """Operation arrays [R, max_ops] of one step (tokens [R, max_ops, width]), as numpy int32.

    The shape is always the same, because each new shape would be compiled. Calls of a row past
    `max_ops` are left out; the caller counts them as failed. `length` is the number of tokens of
    the whole content, `tokens` holds the first `width` of them. An unknown memory type gives target
    -1, an id that is not a number gives id -1, and padding has kind NONE.
    """
    shape = (len(calls_per_row), max_ops)
    kind, length = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    target, ids = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    tokens = np.zeros((*shape, width), np.int32)
    for r, calls in enumerate(calls_per_row):
        for o, call in enumerate(calls[:max_ops]):
            kind[r, o] = OpKind.MALFORMED
            if call.error or _argument_error(call.name, call.arguments):
                continue
            content = call.arguments.get(CONTENT_KEY.get(call.name, ""))
            encoded = [] if content is None else encode(clean(content).strip())
            if content is not None and not encoded:
                continue  # no token is left of the content, so it counts as empty
            kind[r, o] = _KINDS[call.name]
            target[r, o] = memory_type_index(call.arguments["memory_type"])
            ids[r, o] = id_number(call.arguments.get("memory_id"))
            length[r, o] = len(encoded)
            tokens[r, o, : min(len(encoded), width)] = encoded[:width]
    return Ops(kind=kind, target=target, id=ids, tokens=tokens, length=length)


def _checked(raw: RawCall) -> Call:
    """The checked call: arguments that its tool does not have are dropped (an unknown tool keeps
    all), and lone surrogates in strings are replaced."""
    name = clean(raw.name).strip() if isinstance(raw.name, str) else ""
    arguments, error = {}, raw.error
    if isinstance(raw.arguments, dict):
        arguments = clean(raw.arguments)
        if name in _ARGUMENTS:
            known = {key: _plain(arguments[key]) for key in arguments if key in _ARGUMENTS[name]}
            error = error or _argument_error(name, known) or _doubt(raw, known)
            arguments = {key: value for key, value in known.items() if value is not None}
        error = error or _argument_error(name, arguments)
    return Call(name, arguments, error, raw.end)


def _doubt(raw: RawCall, arguments: Mapping) -> str:
    """Why repaired arguments may in fact be parts of a content; empty: no doubt."""
    memory_id = arguments.get("memory_id")
    is_id = memory_id is None or id_number(memory_id) >= 0
    if raw.repaired and (memory_type_index(arguments["memory_type"]) < 0 or not is_id):
        return "broken JSON, and no memory type or id in it that there could be"
    return ""


def _argument_error(name: str, arguments: Mapping) -> str:
    """Why these arguments cannot be used; empty: they can."""
    if name not in _ARGUMENTS:
        return f"unknown tool {name[:40]!r}: the tools are {', '.join(_KINDS)}"
    memory_type = arguments.get("memory_type")
    if not isinstance(memory_type, str):
        return "memory_type is missing or not a string"
    key = CONTENT_KEY.get(name)
    if key and not (isinstance(arguments.get(key), str) and arguments[key].strip()):
        return f"{key} is missing, empty or not a string"
    needs_id = name in (UPDATE, DELETE) and memory_type_index(memory_type) > CORE
    if needs_id and _plain(arguments.get("memory_id")) is None:
        return "memory_id is missing or neither a whole number nor a string"
    return ""


def id_number(memory_id: object) -> int:
    """The id of an entry as a number: 12 for 12, 12.0, "12" and "[12]"; else -1."""
    memory_id = _plain(memory_id)
    if isinstance(memory_id, str):
        match = _ID.fullmatch(memory_id)
        return int(match[1]) if match else -1
    return memory_id if memory_id is not None and 0 <= memory_id < 10**9 else -1


def _plain(value: object) -> str | int | None:
    """The value if it is a string or a whole number (as an int); else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**9:
        return int(value)
    return value if isinstance(value, str) or type(value) is int else None  # a bool is no id


def _schema(name: str, about: str, types: list[str], texts: dict, required: list[str]) -> dict:
    properties = {"memory_type": {"type": "string", "enum": types, "description": "Which memory."}}
    properties |= {key: {"type": "string", "description": text} for key, text in texts.items()}
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}
