"""Keywords of a reference summary, which the summary metric looks for in a prediction.

The paper lets a language model extract them, once. `lm_keywords` does that through any function
from prompts to replies, and keeps them in a file; `offline_keywords` is a rule that stands in
for it where there is no model: its figures are not comparable with published ones.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from memalpha.data.files import jsonl_records, write_text
from memalpha.data.surrogates import clean_surrogates
from memalpha.paths import user_path

Generate = Callable[[list[str]], list[str | None]]

PROMPT = """\
Below is the summary of a text. List the keywords that a good summary of the same text would have \
to mention: names of people and places, events, times, objects, actions, relations between \
characters, and themes.

Rules: copy each keyword from the summary as it is written; at most four words each; no \
explanations, numbers or headings; one line, separated by commas.

<summary>
{summary}
</summary>
"""
MAX_WORDS = 8  # of a keyword; a longer "keyword" is a sentence
OFFLINE_RARE = 12  # rare terms of the offline extractor
# A comma separates, but not that of "10,000 francs".
_SEPARATOR = re.compile(r";|,(?!\d{3}(?!\d))|(?<!\d),|(?<=\d{4}),")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_NAME = r"[A-ZÀ-Þ][\w-]*(?:['’](?!s\b)\w+)?"
_CAPITALISED = re.compile(rf"\b{_NAME}(?:(?: of the| of| de| von| the)? {_NAME})*")
_SENTENCE_START = re.compile(r"(?:\A|[.!?…:;\n])[\s\"'“‘(]*\Z")
_COMMON = frozenset(
    """a about after again against all also although always am an and another any are around as at
    back be became because become been before begin begins being between both but by came can could
    day did do does during each eventually ever every face finally find finds first for from gave
    get gets give gives go goes had has have he her here him himself his how however i if in into is
    it its itself just last later leave leaves left life like long made make makes man many may me
    meanwhile men might more most much must my never new next no nor not nothing now of off old on
    once one only or other others our out over own people return returns said same saw say says see
    sees she should since so some soon still such take takes tell tells than that the their them
    themselves then there these they thing this those though three through time to too two under
    until up upon us very was way we well went were what when where which while who whom whose why
    will with within without woman women would years yet you young your""".split()
)


def offline_keywords(summaries: Sequence[str]) -> list[list[str]]:
    """Keywords of each summary by rule: names and capitalised phrases, then its rarest long words.

    A single capitalised word is a name if it stands so inside a sentence somewhere. Rare: long and
    few times in the summary. Names come in the order of the text. No model, no corpus: the same
    summary always gives the same keywords.
    """
    return [_offline(summary) for summary in summaries]


def _offline(summary: str) -> list[str]:
    small = Counter(word for word in _WORD.findall(summary) if word[0].islower())
    names: dict[str, str] = {}
    for match in _CAPITALISED.finditer(summary):
        words = match[0].split()
        starts = _SENTENCE_START.search(summary, 0, match.start()) is not None
        while words and (words[0].lower() in _COMMON or words[0].lower() in small):
            words, starts = words[1:], False  # "When Mina": what follows is inside the sentence
        phrase = " ".join(words).strip("-")
        alone = starts and len(words) == 1
        if not alone and len(phrase) > 2 and phrase.lower() not in _COMMON:
            names.setdefault(phrase.lower(), phrase)
    covered = {word for name in names for word in name.split()}
    rare = [
        word
        for word in small
        if len(word) > 5 and word not in _COMMON | covered and not {"'", "’"} & set(word)
    ]
    # Rare words are long and stand once or twice; of equals the first.
    rare.sort(key=lambda word: (-len(word) / math.sqrt(small[word]), word))
    return [*names.values(), *rare[:OFFLINE_RARE]]


def parse_keywords(reply: str, summary: str) -> list[str]:
    """The keywords of a model's reply, each once; those that are not in the summary are left out.

    Text up to `</think>` and a heading before a colon do not count; bullets and quotes go.
    """
    keywords: dict[str, str] = {}
    for line in reply.rpartition("</think>")[2].splitlines():
        head, colon, rest = line.partition(":")
        line = rest if colon and len(head.split()) <= 3 else line
        for part in _SEPARATOR.split(line):
            word = " ".join(part.strip(" \t*•-.\"'`").split())
            if word and len(word.split()) <= MAX_WORDS and word.lower() in summary.lower():
                keywords.setdefault(word.lower(), word)
    return list(keywords.values())


def lm_keywords(
    summaries: Sequence[str], generate: Generate, cache: str | Path, prompt: str = PROMPT
) -> list[list[str]]:
    """Keywords of each summary by a language model; what the cache file knows is not asked again.

    Args:
        generate: prompts -> replies, one each; None for one that failed.
        cache: a JSON Lines file of {key, summary, keywords}; made if it is not there, and replaced
            as a whole after new replies. `key` is a hash of prompt and summary.

    Raises:
        ValueError: a damaged cache, a wrong number of replies, a reply that failed, or one without
            any keyword of the summary. Replies that were good are in the cache by then.
    """
    cache = user_path(cache)
    known = _read_cache(cache)
    keys = {summary: _key(prompt, summary) for summary in summaries}
    missing = [summary for summary, key in keys.items() if key not in known]
    if missing:
        replies = generate([prompt.replace("{summary}", summary) for summary in missing])
        if len(replies) != len(missing):
            raise ValueError(f"keywords: {len(missing)} prompts but {len(replies)} replies")
        failed = []
        for summary, reply in zip(missing, replies, strict=True):
            words = clean_surrogates(parse_keywords(reply or "", summary), "a keyword")
            if words:
                clean = clean_surrogates(summary, "a summary")
                row = {"key": keys[summary], "summary": clean, "keywords": words}
                known[keys[summary]] = row
            else:
                failed.append(summary)
        _write_cache(cache, known)
        if failed:
            raise ValueError(
                f"keywords: no keyword in the replies to {len(failed)} of {len(missing)} summaries,"
                f" first {failed[0][:80]!r}; run again to ask for these alone"
            )
    return [known[keys[summary]]["keywords"] for summary in summaries]


def _key(prompt: str, summary: str) -> str:
    return hashlib.sha256(f"{prompt}\x1f{summary}".encode("utf-8", "surrogatepass")).hexdigest()


def _read_cache(path: Path) -> dict[str, dict]:
    known: dict[str, dict] = {}
    if not path.exists():
        return known
    # Lines end at \n alone: a summary may hold other marks that `splitlines` would split at.
    for where, row in jsonl_records(path):
        try:
            known[row["key"]] = {name: row[name] for name in ("key", "summary", "keywords")}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{where} is no keyword row; remove it to have it asked again"
            ) from error
    return known


def _write_cache(path: Path, known: dict[str, dict]) -> None:
    rows = (json.dumps(known[key], ensure_ascii=False, sort_keys=True) for key in sorted(known))
    write_text(path, "".join(f"{row}\n" for row in rows))
