"""The words of a text, as the indexes count them."""

import re

_WORDS = re.compile(r"\w+")


def tokenize(text: str) -> list[str]:
    r"""Returns the lower-cased runs of `\w` characters, in order."""
    return _WORDS.findall(text.lower())
