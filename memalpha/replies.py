"""What a model says: thinking apart from speech, and JSON as language models write it.

Every reader of replies (tool calls, verdicts, Mem0, MemGPT) goes through here. No function raises
on any text, and each takes time linear in its length.

A strict decoder comes first. What it refuses is read by a lenient one, which loses nothing: every
character of an object is either structure or part of a string. It forgives

- line breaks and wrong escapes inside strings, single quotes, bare words as keys and values,
- commas too many, and closing brackets at the end that are too many or missing,
- quotes inside a string that are not escaped, where they cannot end it: in pairs, none of them
  followed by one of `, : } ]`. Otherwise it is unknown where the string ends, and the object is
  refused.
"""

import json
import math
import re
from collections.abc import Collection, Iterator

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, ARGS = "✿FUNCTION✿", "✿ARGS✿"
RESULTS = ("✿RESULT✿", "✿RETURN✿")
# A text that lacks one of these means something else: no decoder of tokens may drop them.
MARKS = (THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE, FUNCTION, ARGS, *RESULTS)
MAX_DEPTH = 32  # of objects and lists in each other; a call has two
MAX_QUOTES = 100  # unescaped in one string: a bound for the time of texts that are all quotes
MAX_TRIES = 256  # brackets of a text where an object is looked for: a bound of the same kind

_MARK = re.compile(rf"{THINK_OPEN}|{THINK_CLOSE}|{CALL_OPEN}|{ARGS}[ \t]*:?")
_SPACE = re.compile(r"\s*")
_NEXT = {quote: re.compile(rf"[\\{quote}]") for quote in "\"'"}
_WORD = re.compile(r"[\w.+-]+")
_KEY = re.compile(r"[A-Za-z_]\w*(?=\s*:)")
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\.", re.DOTALL)
_CUT_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,4}\Z")  # the decoder calls a whole one cut too
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_LEAD = re.compile(r"\s*(?:```\w*\s*)?(?:\[\s*)?")  # a code fence, a list
_BETWEEN = re.compile(r"[\s,;}\]`]*")
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": math.nan}


class _UnreadableError(ValueError):
    """The lenient decoder cannot tell what was meant."""


def visible(text: str) -> str:
    """What a model says aloud: the text after its thinking, without space around it."""
    return text[thinking_length(text) :].strip()


def thinking_length(text: str) -> int:
    """Characters up to and with the last `</think>`; all of them if a `<think>` is not closed.

    A mark in the JSON of a call that can be read, or in a string of it that the end of the text
    cuts off, is part of its content and does not end the thinking.
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
    """JSON without lone surrogates, which escapes can make and no tokenizer takes."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def read_strict(text: str, start: int) -> tuple[dict | None, int]:
    """The JSON object at `start` (after white space) and its end, or (None, start).

    A key that stands there twice is an error: one of its values would be lost. A string that no
    quote closes holds the rest of the text, with all in it that looks like a call: then the end is
    that of the text.
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
    """Whether the decoder failed at a string that the end of the text cuts off, be it inside of an
    escape."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    in_escape = error.msg.startswith("Invalid \\u") and len(text) - error.pos <= len("\\u0000")
    return error.msg.startswith("Unterminated") or (in_escape and bool(_CUT_ESCAPE.search(text)))


def read_object(text: str, start: int = 0) -> tuple[dict | None, int, bool]:
    """The object at `start` (after white space), its end, and whether it had to be repaired; (None,
    start, False) if there is none that can be read whole.

    Every closing bracket that is missing at the end of the text puts the end one further.
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
    """All objects of a text that holds nothing else: one, several or a list of them, in a code
    fence or not. Each with its end, and whether it had to be repaired.

    None if there is no object, or anything that belongs to none; `needs_end`: or if closing
    brackets are missing.
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
    """Objects in a text, one after the other, with start, end and whether repaired; None and the
    start for a bracket that begins none. At most MAX_TRIES brackets are tried."""
    at = text.find("{")
    for _ in range(MAX_TRIES):
        if at < 0:
            return
        value, end, repaired = read_object(text, at)
        if value is None or end > len(text):  # cut off, as far as anyone can tell
            value, end, repaired = None, at + 1, False
        yield value, at, end, repaired
        at = text.find("{", end)


def find_with(text: str, key: str, others: Collection[str] | None = None) -> list[dict]:
    """The objects in a text that have this key, in order. One that had to be repaired may have no
    keys but `others` beside it (None: any), as these can be parts of a string."""
    return [
        value
        for value, _, _, repaired in find_objects(text)
        if value
        and key in value
        and not (repaired and others is not None and value.keys() - {key, *others})
    ]


def find_items(text: str, key: str) -> list | None:
    """The items of the last list under this key, as far as they can be read; None without such a
    list. For lists that are broken or cut off: an item that is not complete is left out."""
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
    """Whether broken JSON does not end with its last bracket."""
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
    """Whether a value, read from this text, is no deeper than MAX_DEPTH."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return True
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [v for v in level if isinstance(v, list | dict)]
        level = [item for v in nested for item in (v.values() if isinstance(v, dict) else v)]
    return not any(isinstance(v, list | dict) for v in level)


def _read_value(text: str, at: int, depth: int) -> tuple[object, int]:
    """The value at `at`, no white space before it, and its end."""
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
        colon = _SPACE.match(text, at).end()  # `_read_key` has seen it
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
    """Where the next member begins, or the closing bracket stands; past the end of the text if the
    bracket is missing there."""
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
    """The string whose opening quote stands at `at`, and its end. What follows the closing quote is
    one of `closers`, or for a value the end of the text."""
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
    """The next character that is no white space; empty at the end."""
    at = _SPACE.match(text, at).end()
    return text[at : at + 1]


def _unescape(match: re.Match) -> str:
    try:
        return json.loads(f'"{match.group()}"')
    except ValueError:  # no escape of JSON: a quote needs none there, else it was meant as it is
        return "'" if match.group() == "\\'" else match.group()


def _read_word(word: str) -> object:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if re.fullmatch(r"-?[0-9]{1,18}", word):
        return int(word)
    if re.fullmatch(r"-?[0-9]+\.[0-9]+", word):
        return float(word)
    return word
