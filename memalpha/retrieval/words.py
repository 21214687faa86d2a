r"""The words of a text, as the indexes, the offline reader and the offline content judge see them.

A word is a run of `\w` characters with the marks on them (accents, vowel signs), in Unicode's
normal form C, so that both ways to write an accent are the same word. Scripts without spaces show
no words: there every two neighbouring letters are a term (the usual bigrams), and every Chinese
character is one by itself too, since many words have one character.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

# Blocks of the scripts that put no space between words, as ranges of a regular expression.
_SCRIPTS_WITHOUT_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana, Bopomofo
    "\ua000-\ua4cf"  # Yi
)
_CHINESE = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?![\W\d])[{_SCRIPTS_WITHOUT_SPACES}{_CHINESE}]"  # digits there are words as elsewhere
_WITHOUT_SPACES = re.compile(_LETTER)
_CHINESE_CHARACTER = re.compile(f"[{_CHINESE}]")
# They choose the picture of the character before them, and nothing else.
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]+")
_NUMBER = r"\d+(?:[-/:.,]\d+)+"  # a date, a time, a number with inner marks
_PLAIN = {False: re.compile(r"\w+"), True: re.compile(rf"{_NUMBER}|\w+")}


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
    if text.isascii() or not _special_characters().search(text):
        return _PLAIN[whole_numbers].findall(text)
    words = []
    for match in _word_pattern(whole_numbers).finditer(text):
        words += _terms(match[0]) if match["run"] else [match[0]]
    return words


def has_no_spaces(text: str) -> bool:
    """Whether letters of a script without spaces stand in the text."""
    return not text.isascii() and _WITHOUT_SPACES.search(text) is not None


def split_pieces(text: str) -> list[str]:
    """The text in pieces of about the length of a word: joined, the same text with single spaces.

    A word of a script with spaces comes with a space before it. In scripts without spaces a piece
    is two letters, with the punctuation behind them.
    """
    if not has_no_spaces(text):
        return [f" {word}" for word in text.split()]
    return [
        (" " if match["space"] or match.start() == 0 else "") + match["piece"]
        for match in _piece_pattern().finditer(text)
    ]


def spread(text: str) -> str:
    """The text with spaces around every two letters of scripts without spaces; else as it is."""
    return _pair_pattern().sub(r" \g<0> ", text) if has_no_spaces(text) else text


def drop_marks(text: str) -> str:
    """The text without accents and vowel signs that are characters of their own."""
    return text if text.isascii() else re.sub(f"[{_marks()}]+", "", text)


def _terms(run: str) -> list[str]:
    """The terms of a run of letters of scripts without spaces."""
    letters = _letter_pattern().findall(run)
    if len(letters) == 1:
        return letters
    pairs = [first + second for first, second in zip(letters, letters[1:], strict=False)]
    return pairs + [letter for letter in letters if _CHINESE_CHARACTER.match(letter)]


# The patterns below hold all 2,000 marks of Unicode: they are built where a text first needs them.


@functools.cache
def _marks() -> str:
    """The marks that stand on or around a letter, as ranges of a regular expression."""
    marks = (code for code in range(0x300, 0x20000) if _is_mark(chr(code)))
    return _ranges(marks)


def _is_mark(character: str) -> bool:
    # Not the enclosing ones (category Me): they make an emoji of a digit.
    return unicodedata.category(character) in ("Mn", "Mc")


def _ranges(codes: Iterable[int]) -> str:
    """Ascending code points as the ranges of a regular expression."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


@functools.cache
def _special_characters() -> re.Pattern:
    return re.compile(f"[{_SCRIPTS_WITHOUT_SPACES}{_CHINESE}{_marks()}]")


@functools.cache
def _letter_pattern() -> re.Pattern:
    return re.compile(rf"{_LETTER}[{_marks()}]*")


@functools.cache
def _word_pattern(whole_numbers: bool) -> re.Pattern:
    number = f"|{_NUMBER}" if whole_numbers else ""
    marks = _marks()
    return re.compile(rf"(?P<run>(?:{_LETTER}[{marks}]*)+){number}|(?:(?!{_LETTER})\w[{marks}]*)+")


@functools.cache
def _pair_pattern() -> re.Pattern:
    return re.compile(rf"(?:{_letter_pattern().pattern}){{1,2}}")


@functools.cache
def _piece_pattern() -> re.Pattern:
    piece = rf"{_pair_pattern().pattern}[^\w\s]*|(?:(?!{_LETTER})\S)+"
    return re.compile(rf"(?P<space>\s*)(?P<piece>{piece})")
