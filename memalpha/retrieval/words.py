r"""The words of a text, as the indexes, the offline reader and the offline content judge see them.

A word is a run of `\w` characters with the marks on them (accents, vowel signs), in Unicode's
normal form C, so that both ways to write an accent are the same word. Scripts without spaces show
no words: there every two neighbouring letters are a term (the usual bigrams), and every Chinese
character is one by itself too, since many words have one character.
"""

import functools
import re
import unicodedata

# Blocks of the scripts that put no space between words, as ranges of a regular expression.
_WITHOUT_SPACES = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana, Bopomofo
    "\ua000-\ua4cf"  # Yi
    "]"
)
_CHINESE = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# They choose the picture of the character before them, and nothing else.
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]+")

# A date, a time, a number with inner marks is one word where whole numbers are asked for.
_PLAIN = {False: re.compile(r"\w+"), True: re.compile(r"\d+(?:[-/:.,]\d+)+|\w+")}
# Patterns over the classes of the characters, see `_class_of`.
_RUN = r"(?P<run>(?:[SC]M*)+)"
_WORDS = {
    False: re.compile(rf"{_RUN}|[W0][W0M]*"),
    True: re.compile(rf"{_RUN}|0+(?:[-/:.,]0+)+|[W0][W0M]*"),
}
_LETTERS = re.compile("[SC]M*")
_PAIRS = re.compile("(?P<pair>(?:[SC]M*){1,2})|[^SC]+")
_PIECES = re.compile("(?P<space> *)(?P<piece>(?:[SC]M*){1,2}[^WSC0 ]*|[^SC ]+)")


def tokenize(text: str) -> list[str]:
    """The lower-cased words of a text in order: the terms of BM25."""
    return split_words(normalize(text).lower())


def normalize(text: str) -> str:
    """The text in normal form C, without variation selectors."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _VARIATION_SELECTORS.sub("", text))


def split_words(text: str, whole_numbers: bool = False) -> list[str]:
    r"""The words of a text in order, as written: `\w+` where no marks or such scripts stand in it.

    `whole_numbers`: a date, a time or a number with inner marks is one word.
    """
    text = normalize(text)
    if not _has_class(text, "MSC"):
        return _PLAIN[whole_numbers].findall(text)
    words = []
    classes = _classes(text)
    for match in _WORDS[whole_numbers].finditer(classes):
        if match["run"]:
            words += _terms(text, classes, *match.span())
        else:
            words.append(text[match.start() : match.end()])
    return words


def _terms(text: str, classes: str, start: int, end: int) -> list[str]:
    """The terms of text[start:end], a run of letters of scripts without spaces."""
    letters = [text[m.start() : m.end()] for m in _LETTERS.finditer(classes, start, end)]
    if len(letters) == 1:
        return letters
    pairs = [first + second for first, second in zip(letters, letters[1:], strict=False)]
    return pairs + [letter for letter in letters if _class_of(letter[0]) == "C"]


def has_no_spaces(text: str) -> bool:
    """Whether letters of a script without spaces stand in the text."""
    return _has_class(text, "SC")


def split_pieces(text: str) -> list[str]:
    """The text in pieces of about the length of a word: joined, the same text with single spaces.

    A word of a script with spaces comes with a space before it. In scripts without spaces a piece
    is two letters, with the punctuation behind them.
    """
    if not has_no_spaces(text):
        return [f" {word}" for word in text.split()]
    return [
        (" " if match["space"] or match.start() == 0 else "")
        + text[match.start("piece") : match.end()]
        for match in _PIECES.finditer(_classes(text))
    ]


def spread(text: str) -> str:
    """The text with spaces around every two letters of scripts without spaces; else as it is."""
    if not has_no_spaces(text):
        return text
    parts = []
    for match in _PAIRS.finditer(_classes(text)):
        part = text[match.start() : match.end()]
        parts.append(f" {part} " if match["pair"] else part)
    return "".join(parts)


def drop_marks(text: str) -> str:
    """The text without accents and vowel signs that are characters of their own."""
    return text if text.isascii() else "".join(c for c in text if _class_of(c) != "M")


def _has_class(text: str, classes: str) -> bool:
    return not text.isascii() and any(_class_of(character) in classes for character in set(text))


def _classes(text: str) -> str:
    """The class of every character, as a string of the same length."""
    return text.translate({ord(character): _class_of(character) for character in set(text)})


@functools.lru_cache(maxsize=1 << 16)
def _class_of(character: str) -> str:
    r"""One ASCII character that says what kind a character is of.

    0 a digit; C a Chinese character; S a letter of another script without spaces; W any other `\w`;
    M a mark; a space for white space; ASCII punctuation as it is; ? for anything else.
    """
    if character.isdecimal():
        return "0"
    if character.isalnum() or character == "_":
        if _CHINESE.match(character):
            return "C"
        return "S" if _WITHOUT_SPACES.match(character) else "W"
    if character.isspace():
        return " "
    # Enclosing marks (category Me) are none here: they make an emoji of a digit.
    if unicodedata.category(character) in ("Mn", "Mc"):
        return "M"
    return character if character.isascii() else "?"
