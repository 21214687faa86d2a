"""Tool calls in the text of a response: three dialects, and bare JSON.

Returns names and arguments of any JSON type, for tools of any name: `tools` and the baselines check
them against the tools that they have. A call that cannot be read completely becomes a call with an
error; a part of its arguments is never used.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from memalpha.replies import (
    ARGS,
    CALL_CLOSE,
    CALL_OPEN,
    FUNCTION,
    RESULTS,
    breaks_off,
    find_objects,
    read_objects,
    read_strict,
    thinking_length,
)

DIALECTS = ("qwen3", "qwen_agent", "lines")
_BLANKS = re.compile(r"[ \t\r]*")
_VALUE = json.JSONDecoder(strict=False)
_SPACE_CLOSE = re.compile(rf"\s*{CALL_CLOSE}")
_FLOWER = re.compile("|".join((FUNCTION, *RESULTS)))
_COLON = re.compile(r"[ \t]*:?")
_NEXT_OBJECT = re.compile(r"[\s,]*(?=\{)")
# The end of a string that went on past the JSON read so far: before a bracket or another key.
_STRING_ENDS = re.compile(r"[\"']\s*(?:,?\s*[}\]]|,\s*[\"']\w+[\"']\s*:)")
_BEGIN = re.compile(rf"{FUNCTION}:?\s*[\w.-]+\s*{ARGS}|{'|'.join(RESULTS)}")
_BARE_CALL = re.compile(r"\{\s*[\"']?name[\"']?\s*:")
_CUT_OFF = "the call has no end: the response was cut off or another call began inside it"
_NO_JSON = "no JSON object that can be read whole, even after repair"
_NESTED = "another call stands inside the broken JSON of this one: neither is run"


class RawCall(NamedTuple):
    """A call before its tool is checked: name and arguments can be of any JSON type.

    error: why the call cannot be read; empty: it can. end: as in `tools.Call`. repaired: its JSON
    was broken.
    """

    name: object
    arguments: object
    error: str
    end: int
    repaired: bool = False


def scan_calls(
    text: str,
    dialect: str,
    known: Mapping[str, Sequence[str]],
    bare: bool = False,
) -> list[RawCall]:
    """The calls of a response in order, before their tools are checked.

    Args:
        known: the arguments of each tool, in order. A repaired call with any others is an error.
        bare: text without calls of this dialect is searched for calls in the other dialects with
            marks, and then for JSON objects with a name and arguments.
    """
    check_dialect(dialect)
    start = thinking_length(text)
    rest, raws = text[start:], []
    for parse in _parsers(dialect, bare, known):
        parsed = list(parse(rest))
        raws += [raw for raw, _ in parsed]
        rest = _blank(rest, _spans(parsed, len(rest)))
    return [_understood(raw, known, start) for raw in sorted(raws, key=lambda raw: raw.end)]


def check_dialect(dialect: str) -> None:
    """Raises ValueError for a dialect that is not in DIALECTS."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is unknown: choose one of {', '.join(DIALECTS)}")


Parsed = Iterator[tuple[RawCall, int]]  # (call, where it begins)


def _parsers(
    dialect: str, bare: bool, known: Mapping[str, Sequence[str]]
) -> list[Callable[[str], Parsed]]:
    marked = {"qwen3": _parse_qwen3, "qwen_agent": _parse_qwen_agent}
    own = marked.pop(dialect, None) or partial(_parse_lines, known=known)
    return [own, *marked.values(), _parse_bare] if bare else [own]


def _spans(parsed: list[tuple[RawCall, int]], length: int) -> list[tuple[int, int]]:
    """Start and end of every call. The text between a broken call and the next one may be part of
    its content, so it is counted as part of the broken call."""
    spans, following = [], length
    for raw, begin in reversed(parsed):
        spans.append((begin, following if raw.error else raw.end))
        following = begin
    return spans[::-1]


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with the spans, which are in order, replaced by spaces."""
    parts, at = [], 0
    for begin, end in spans:
        parts += [text[at:begin], " " * (end - begin)]
        at = end
    return "".join([*parts, text[at:]])


def _parse_qwen3(text: str) -> Parsed:
    begin, matching = text.find(CALL_OPEN), None
    while begin >= 0:
        start = begin + len(CALL_OPEN)
        value, end = read_strict(text, start)
        if value is not None and (closed := _SPACE_CLOSE.match(text, end)):
            yield _raw(value, closed.end()), begin
            begin = text.find(CALL_OPEN, closed.end())
            continue
        objects, end = _objects_in_marks(text, start, end)
        if objects:
            for place, (value, stop, repaired) in enumerate(objects, start=1):
                own_end = end if place == len(objects) else start + stop
                yield _raw(value, own_end, repaired), begin
                begin = own_end
        else:
            matching = _matching_marks(text) if matching is None else matching
            following = text.find(CALL_OPEN, end)
            following = len(text) if following < 0 else following
            close = text.find(CALL_CLOSE, end, following)
            if close >= 0:
                raw = RawCall(None, None, _NO_JSON, close + len(CALL_CLOSE))
            elif begin in matching and following < len(text):
                raw = RawCall(None, None, _NESTED, matching[begin])
            else:
                raw = RawCall(None, None, _CUT_OFF, following)
            yield raw, begin
            end = raw.end
        begin = text.find(CALL_OPEN, end)


def _objects_in_marks(text: str, start: int, after: int) -> tuple[list | None, int]:
    """The objects between an opening mark that ends at `start` and its closing mark, and where the
    closing mark ends; (None, `after`) if they cannot be read.

    The closing mark is the last one before the next opening mark, because earlier ones may be part
    of a content. If a JSON string ends after that mark, it is part of a content too.
    """
    following = text.find(CALL_OPEN, after)
    limit = following if following >= 0 else len(text)
    close = text.rfind(CALL_CLOSE, after, limit)
    if close < 0 or _STRING_ENDS.search(text, close, limit):
        return None, after
    objects = read_objects(text[start:close])
    return objects, close + len(CALL_CLOSE) if objects else after


def _matching_marks(text: str) -> dict[int, int]:
    """Opening mark -> end of its closing mark, where marks nest like brackets."""
    waiting, matching = [], {}
    for mark in re.finditer(f"{CALL_OPEN}|{CALL_CLOSE}", text):
        if mark.group() == CALL_OPEN:
            waiting.append(mark.start())
        elif waiting:
            matching[waiting.pop()] = mark.end()
    return matching


def _parse_qwen_agent(text: str) -> Parsed:
    mark = _FLOWER.search(text)
    while mark and mark.group() == FUNCTION:
        begin, following = mark.start(), _FLOWER.search(text, mark.end())
        stop = following.start() if following else len(text)
        args = text.find(ARGS, mark.end(), stop)
        name = text[mark.end() : args if args >= 0 else stop].lstrip(": \t\n").partition("\n")[0]
        if args < 0:
            yield RawCall(name, None, "" if following else _CUT_OFF, stop), begin
            mark = following
            continue
        start = _COLON.match(text, args + len(ARGS)).end()
        value, end = read_strict(text, start)
        following = _FLOWER.search(text, end)  # marks inside the strings of the JSON do not count
        stop = following.start() if following else len(text)
        if value is not None:
            yield from _further_arguments(text, name, value, (begin, end, stop))
        elif objects := read_objects(text[start:stop], needs_end=True):
            for place, (value, own_end, repaired) in enumerate(objects, start=1):
                own_end = stop if place == len(objects) else start + own_end
                yield RawCall(name, value, "", own_end, repaired), begin
                begin = own_end
        elif following and breaks_off(text[start:stop]) and (end := _quoted_end(text, following)):
            yield RawCall(name, None, _NESTED, end), begin
            following = _FLOWER.search(text, end)
        else:
            error = _CUT_OFF if breaks_off(text[start:stop]) else _NO_JSON
            yield RawCall(name, None, error, stop), begin
        mark = following


def _further_arguments(text: str, name: str, value: dict, places: tuple[int, int, int]) -> Parsed:
    """The call with arguments `value`, and a further call for each object before the next mark.

    `places`: where the call begins, where its arguments end, and where the next mark is."""
    begin, end, stop = places
    calls = [(value, end, False)]
    if further := _NEXT_OBJECT.match(text, end, stop):
        start = further.end()
        objects = read_objects(text[start:stop], needs_end=True) or [(None, stop - start, False)]
        calls += [(value, start + own_end, repaired) for value, own_end, repaired in objects]
    elif _STRING_ENDS.search(text, end, _next_begin(text, end)):
        calls = [(None, end, False)]
    for place, (value, own_end, repaired) in enumerate(calls, start=1):
        own_end = stop if place == len(calls) else own_end
        yield RawCall(name, value, "" if value is not None else _NO_JSON, own_end, repaired), begin
        begin = own_end


def _next_begin(text: str, at: int) -> int:
    """Where the next whole call header or result begins; a lone mark in a text is skipped."""
    following = _BEGIN.search(text, at)
    return following.start() if following else len(text)


def _quoted_end(text: str, mark: re.Match | None) -> int:
    """The end of a string that quotes calls, the first of them at `mark`; 0 if no string ends after
    these calls."""
    while mark and mark.group() == FUNCTION:
        args = text.find(ARGS, mark.end())
        start = _COLON.match(text, args + len(ARGS)).end() if args >= 0 else len(text)
        value, end = read_strict(text, start)
        if value is None:
            return 0
        mark = _FLOWER.search(text, end)
        closing = _STRING_ENDS.search(text, end, mark.start() if mark else len(text))
        if closing:
            return closing.end()
    return 0


def _parse_lines(text: str, known: Mapping[str, Sequence[str]]) -> Parsed:
    """Calls of the form `tool "first argument" "second argument"`, each from the start of a line:
    JSON values in the order of the tool's arguments. Other lines are no calls."""
    names = "|".join(re.escape(name) for name in known)
    begins = re.compile(rf"^[ \t]*({names})(?![\w.-])", re.MULTILINE)
    call = begins.search(text)
    while call:
        following = begins.search(text, call.end())
        rest = text[call.end() : following.start() if following else len(text)]
        values, length, error = _values(rest)
        arguments = None if error or not values else _named(values, known[call.group(1)])
        if arguments is None and values:
            error = error or f"{call.group(1)} has more arguments than {len(known[call.group(1)])}"
        yield RawCall(call.group(1), arguments, error, call.end() + length), call.start()
        call = following


def _values(text: str) -> tuple[list, int, str]:
    """The JSON values on the first line of a text, their length in it, and what is wrong with them.
    A string may hold line breaks as they are."""
    values, at = [], 0
    while True:
        at = _BLANKS.match(text, at).end()
        if at == len(text) or text[at] == "\n":
            return values, at, ""
        try:
            value, at = _VALUE.raw_decode(text, at)
        except (ValueError, RecursionError):
            if text[at] == '"':
                return values, len(text), _CUT_OFF
            end = text.find("\n", at)
            return values, len(text) if end < 0 else end, "no JSON value behind the name of a call"
        values.append(value)


def _named(values: Sequence, names: Sequence[str]) -> dict | None:
    """Values by the names of their places; None if there are more of them."""
    return dict(zip(names, values, strict=False)) if len(values) <= len(names) else None


def _parse_bare(text: str) -> Parsed:
    """JSON objects that are calls, nested ones too. Text after a broken object is not read, because
    it may be part of its content."""
    for value, begin, end, repaired in find_objects(text):
        if value is None and _BARE_CALL.match(text, begin):
            error = _CUT_OFF if breaks_off(text[begin:]) else _NO_JSON
            yield RawCall(None, None, error, len(text)), begin
            return
        for call in _calls_in(value):
            yield _raw(call, end, repaired), begin
            begin = end


def _calls_in(value: object) -> list[dict]:
    if isinstance(value, list):
        return [call for item in value for call in _calls_in(item)]
    if not isinstance(value, dict):
        return []
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(value.get("name"), str) and isinstance(arguments, dict | str):
        return [{"name": value["name"], "arguments": arguments}]
    return [call for item in value.values() for call in _calls_in(item)]


def _raw(value: dict, end: int, repaired: bool = False) -> RawCall:
    """The call of a JSON object with the keys name and arguments."""
    error = ""
    if repaired and (others := value.keys() - {"name", "arguments"}):
        error = f"broken JSON with a key that no call has: {sorted(others)[0][:40]!r}"
    return RawCall(value.get("name"), value.get("arguments"), error, end, repaired)


def _understood(raw: RawCall, known: Mapping[str, Sequence[str]], start: int) -> RawCall:
    """The call with `end` counted from the start of the response and with arguments decoded if they
    are a JSON string; an error if they are no object, or if a repair split a content."""
    name, arguments, error, end, repaired = raw
    if isinstance(arguments, str) and (objects := read_objects(arguments, needs_end=True)):
        arguments, _, broken = objects[0] if len(objects) == 1 else (arguments, 0, False)
        repaired |= broken
    if not isinstance(arguments, dict):
        what = "" if arguments is None else ": they are no JSON object"
        error = error or f"arguments are missing{what}"
    elif repaired and isinstance(name, str) and name.strip() in known:
        others = arguments.keys() - set(known[name.strip()])
        if others and not error:
            error = f"broken JSON: {name.strip()} has no argument {sorted(others)[0][:40]!r}"
    return RawCall(name, arguments, error, start + end, repaired)
