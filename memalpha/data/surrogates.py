"""Halves of surrogate pairs: characters cut in two, which JSON can hold and UTF-8 cannot."""

import re
import warnings
from typing import Any

# No character; `files.json_records` puts it for a half, which ijson does not let through.
LOST_HALF = "\ufdd0"
_SURROGATE = re.compile(f"[\ud800-\udfff{LOST_HALF}]")


def clean_surrogates(value: Any, where: str) -> Any:
    """Parsed JSON with U+FFFD for every half of a surrogate pair whose other half is lost.

    JSON can hold such a half (a text that was cut inside an emoji), but UTF-8 cannot, so that it
    would stop whatever encodes the text later. Lengths stay the same, and with them the offsets of
    answers. A warning names the first place.
    """
    place = _find_surrogate(value)
    if place is None:
        return value
    warnings.warn(
        f"{where}{place}: half of a surrogate pair (a character cut in two) is read as U+FFFD",
        stacklevel=2,
    )
    return _replace_surrogates(value)


def _find_surrogate(value: Any) -> str | None:
    """Where the first half stands below the value, e.g. "[3]['context']"; None for nowhere."""
    if isinstance(value, str):
        return "" if _SURROGATE.search(value) else None
    if not isinstance(value, list | dict):
        return None
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and _SURROGATE.search(key):
            return f"[{ascii(key)}]"
        if (place := _find_surrogate(item)) is not None:
            return f"[{key!r}]{place}"
    return None


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    return value
