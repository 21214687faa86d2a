"""Replies of language models: separates thinking from the visible text, and reads their JSON.

All code that reads replies (tool calls, verdicts, Mem0, MemGPT) uses this module. No function
raises on any text, and each takes time linear in its length.

A strict decoder is tried first, then a lenient one. The lenient decoder drops nothing: it accounts
for every character of an object, as structure or as part of a string. It accepts

- line breaks and wrong escapes inside strings, single quotes, bare words as keys and values,
- extra commas, and closing brackets at the end that are missing or too many,
- unescaped quotes inside a string where they cannot end it: in pairs, none of them followed by one
  of `, : } ]`. Otherwise the end of the string is ambiguous, and the object is rejected.
"""

import json
import math
import re
from collections.abc import Collection, Iterator

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, ARGS = "✿FUNCTION✿", "✿ARGS✿"
RESULTS = ("✿RESULT✿", "✿RETURN✿")
# Marks that carry meaning: decoding tokens must not drop them, even where they are special tokens.
MARKS = (THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE, FUNCTION, ARGS, *RESULTS)
MAX_DEPTH = 32  # levels of nested objects and lists; a call has two
MAX_QUOTES = 100  # unescaped quotes in one string; bounds the time for texts full of quotes
MAX_TRIES = 256  # opening brackets tried per text; bounds the time for texts full of brackets

_MARK = re.compile(rf"{THINK_OPEN}|{THINK_CLOSE}|{CALL_OPEN}|{ARGS}[ \t]*:?")
_SPACE = re.compile(r"\s*")
_NEXT = {quote: re.compile(rf"[\\{quote}]") for quote in "\"'"}
_WORD = re.compile(r"[\w.+-]+")
_KEY = re.compile(r"[A-Za-z_]\w*(?=\s*:)")
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\.", re.DOTALL)
_CUT_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,4}\Z")  # the decoder calls a whole one cut too
_LITERALS = ("true", "false", "null", "-0")  # what the decoder reads whole or not at all
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_LEAD = re.compile(r"\s*(?:```\w*\s*)?(?:\[\s*)?")  # a code fence, a list
_BETWEEN = re.compile(r"[\s,;}\]`]*")
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": math.nan}


class _UnreadableError(ValueError):
    """The lenient decoder cannot read the text without guessing."""


def visible(text: str) -> str:
    """The text of a reply after its thinking, stripped."""
    return text[thinking_length(text) :].strip()


def thinking_length(text: str) -> int:
    """Number of characters up to the end of the last `</think>`; all if a `<think>` is not closed.

    A mark inside the readable JSON of a call, or inside JSON that the end of the text cuts off, is
    part of a content and does not end the thinking.
    """
    if "think>" not in text:
        return 0
    length, is_open, content_end = 0, False, 0
    for mark in _MARK.finditer(text):
        if mark.start() < content_end:
            continue
        if mark.group() == THINK_CLOSE:
            length, is_open = mark.end(), False
        elif mark.group() == THINK_OPEN:
            is_open = True
        else:
            ends = (read_strict(text, mark.end())[1], read_object(text, mark.end())[1])
            content_end = max(content_end, *ends)
    return len(text) if is_open else length


def clean(value: object) -> object:
    """The JSON value with lone surrogates replaced: JSON escapes allow them, tokenizers do not."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def read_strict(text: str, start: int) -> tuple[dict | None, int]:
    """The JSON object at `start` (after white space) and its end, or (None, start).

    A duplicate key is an error, because one of its values would be lost. If the text ends before
    the object does, the end of the text is returned: a string that is never closed contains the
    rest of the text, calls included.
    """
    brace = _SPACE.match(text, start).end()
    if not text.startswith("{", brace):
        return None, start
    try:
        value, end = _DECODER.raw_decode(text, brace)
    except (ValueError, RecursionError) as error:
        return None, len(text) if _is_unclosed(text, error) else start
    return (value, end) if _is_flat(text[brace:end], value) else (None, start)


def _is_unclosed(text: str, error: Exception) -> bool:
    """Whether the decoder failed because the text ends: in a string, in an escape, or between the
    members of an object."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    in_escape = error.msg.startswith("Invalid \\u") and len(text) - error.pos <= len("\\u0000")
    if error.msg.startswith("Unterminated") or (in_escape and _CUT_ESCAPE.search(text)):
        return True
    rest = text[error.pos :].strip()
    return any(literal.startswith(rest) for literal in _LITERALS)


def read_object(text: str, start: int = 0) -> tuple[dict | None, int, bool]:
    """The object at `start` (after white space), its end, and whether it had to be repaired; (None,
    start, False) if there is none that can be read completely.

    Each closing bracket that is missing at the end of the text adds one to the returned end, which
    is then larger than the length of the text.
    """
    value, end = read_strict(text, start)
    if value is not None:
        return value, end, False
    brace = _SPACE.match(text, start).end()
    if not text.startswith("{", brace):
        return None, start, False
    try:
        return *_read_value(text, brace, 0), True
    except _UnreadableError:
        return None, start, False


def read_objects(text: str, needs_end: bool = False) -> list[tuple[dict, int, bool]] | None:
    """All objects of a text that consists of objects: one, several or a list, with or without a
    code fence. Each comes with its end and whether it had to be repaired.

    None if there is no object or any other text; with `needs_end` also if closing brackets are
    missing.
    """
    at, objects = _LEAD.match(text).end(), []
    while at < len(text):
        value, end, repaired = read_object(text, at)
        if value is None or (needs_end and end > len(text)):
            return None
        objects.append((value, min(end, len(text)), repaired))
        at = _BETWEEN.match(text, end).end()
    return objects or None


def find_objects(text: str) -> Iterator[tuple[dict | None, int, int, bool]]:
    """Yields (object, start, end, repaired) for the objects in a text, in order; the object is None
    for a bracket that does not begin one. At most MAX_TRIES brackets are tried."""
    at = text.find("{")
    for _ in range(MAX_TRIES):
        if at < 0:
            return
        value, end, repaired = read_object(text, at)
        if value is None or end > len(text):  # no object, or one that is cut off
            value, end, repaired = None, at + 1, False
        yield value, at, end, repaired
        at = text.find("{", end)


def find_with(text: str, key: str, others: Collection[str] | None = None) -> list[dict]:
    """The objects in a text that have this key, in order. A repaired object with keys other than
    `key` and `others` is left out, because they may be parts of a string; None: any keys."""
    return [
        value
        for value, _, _, repaired in find_objects(text)
        if value
        and key in value
        and not (repaired and others is not None and value.keys() - {key, *others})
    ]


def find_items(text: str, key: str) -> list | None:
    """The complete items of the last list under this key, for lists that are broken or cut off;
    None if there is no such list."""
    heads = list(re.finditer(rf'["\']{re.escape(key)}["\']\s*:\s*\[', text))
    if not heads:
        return None
    items, at = [], heads[-1].end()
    while True:
        try:
            item, end = _read_value(text, _SPACE.match(text, at).end(), 2)
        except _UnreadableError:
            return items
        end = _SPACE.match(text, end).end()
        if text[end : end + 1] not in (",", "]"):
            return items
        items, at = [*items, item], end + 1
        if text[end] == "]":
            return items


def breaks_off(text: str) -> bool:
    """Whether broken JSON is cut off: it does not end with the bracket that closes it."""
    without_strings = _STRING.sub("", text)
    balanced = 0 < without_strings.count("{") <= without_strings.count("}")
    return not (balanced and without_strings.rstrip("` \r\n\t").endswith("}"))


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands there twice")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)


def _is_flat(text: str, value: object) -> bool:
    """Whether a value read from this text is nested at most MAX_DEPTH levels deep."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return True
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [v for v in level if isinstance(v, list | dict)]
        level = [item for v in nested for item in (v.values() if isinstance(v, dict) else v)]
    return not any(isinstance(v, list | dict) for v in level)


def _read_value(text: str, at: int, depth: int) -> tuple[object, int]:
    """The value that begins exactly at `at`, and its end."""
    first = text[at : at + 1]
    if first and first in "{[":
        if depth >= MAX_DEPTH:
            raise _UnreadableError("too deep")
        return _read_members(text, at, depth) if first == "{" else _read_list(text, at, depth)
    if first and first in "\"'":
        return _read_string(text, at, ",}]")
    word = _WORD.match(text, at)
    if not word:
        raise _UnreadableError("no value")
    return _read_word(word.group()), word.end()


def _read_members(text: str, at: int, depth: int) -> tuple[dict, int]:
    members: dict[str, object] = {}
    at = _SPACE.match(text, at + 1).end()
    while text[at : at + 1] != "}":
        key, at = _read_key(text, at)
        if key in members:
            raise _UnreadableError("a key stands there twice")
        colon = _SPACE.match(text, at).end()  # `_read_key` has checked that a colon follows
        start = _SPACE.match(text, colon + 1).end()
        members[key], at = _read_value(text, start, depth + 1)
        at = _skip_comma(text, at, "}")
        if at >= len(text):
            return members, at + 1
    return members, at + 1


def _read_key(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] in ('"', "'"):
        return _read_string(text, at, ":")
    word = _KEY.match(text, at)
    if not word:
        raise _UnreadableError("no key")
    return word.group(), word.end()


def _read_list(text: str, at: int, depth: int) -> tuple[list, int]:
    items: list[object] = []
    at = _SPACE.match(text, at + 1).end()
    while text[at : at + 1] != "]":
        item, at = _read_value(text, at, depth + 1)
        items.append(item)
        at = _skip_comma(text, at, "]")
        if at >= len(text):
            return items, at + 1
    return items, at + 1


def _skip_comma(text: str, at: int, closing: str) -> int:
    """Where the next member or the closing bracket is; the end of the text or later if the bracket
    is missing."""
    at = _SPACE.match(text, at).end() if at < len(text) else at
    following = text[at : at + 1]
    if following == ",":
        at = _SPACE.match(text, at + 1).end()
        if at >= len(text):
            raise _UnreadableError("breaks off after a comma")
    elif following not in ("", closing):
        raise _UnreadableError("text between members")
    return at


def _read_string(text: str, at: int, closers: str) -> tuple[str, int]:
    """The string whose opening quote is at `at`, and its end. The closing quote is followed by one
    of `closers` or, for a value, by the end of the text."""
    quote, start, inner = text[at], at + 1, 0
    is_key, at = closers == ":", at + 1
    while True:
        stop = _NEXT[quote].search(text, at)
        if not stop:
            raise _UnreadableError("a string has no end")
        if stop.group() == "\\":
            at = stop.end() + 1
            continue
        at = stop.end()
        following = _following(text, at)
        if following in closers and (following or not is_key):
            break
        inner += 1
        if is_key or following in ",:}]" or inner > MAX_QUOTES:
            raise _UnreadableError("a quote that may or may not end a string")
    if inner % 2:
        raise _UnreadableError("quotes that are not in pairs")
    return _ESCAPE.sub(_unescape, text[start : stop.start()]), at


def _following(text: str, at: int) -> str:
    """The next character that is not white space; empty at the end of the text."""
    at = _SPACE.match(text, at).end()
    return text[at : at + 1]


def _unescape(match: re.Match) -> str:
    try:
        return json.loads(f'"{match.group()}"')
    except ValueError:  # not a JSON escape: drop the backslash of a quote, else keep it
        return "'" if match.group() == "\\'" else match.group()


def _read_word(word: str) -> object:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if re.fullmatch(r"-?[0-9]{1,18}", word):
        return int(word)
    if re.fullmatch(r"-?[0-9]+\.[0-9]+", word):
        return float(word)
    return word
