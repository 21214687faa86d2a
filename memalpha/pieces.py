"""Chunks that are too long for the prompt of a writer, shown to it in pieces.

What fits is shown as it is. A chunk that would not fit even with nothing of the memory beside it is
replaced by its pieces, so that one odd text cannot stop a training run or an evaluation.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache, partial

from memalpha.data.cut import split_text
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Episode, count_escaped, text_room
from memalpha.memory import EMPTY_VIEW
from memalpha.prompts import PromptSpec, PromptTooLong, fit_prompt

PIECE_OF = "piece_of"  # in the metadata of an instance: the chunk that each of its pieces is of
LEAST = 16  # tokens of a piece, which may be more than its prompt has room for
BORDERS = 16  # tokens by which text and template may come to more together than apart
SAID = " said: "  # in notes of dialogues; what stands before it, date and name, is in any piece

_DATE = re.compile(r"^\[Dialogue [^\]\n]*\]$", re.MULTILINE)
_WORD = re.compile(r"\w+")
Rule = Callable[[Environment, str], bool]  # whether a chunk is shown as it is


def fits(env: Environment, chunk: str) -> bool:
    """Whether a prompt has room for a chunk with nothing of the memory shown."""
    spec = replace(env.prompt, recent=0)
    if _beside(spec) + count_escaped(env, chunk) + BORDERS <= spec.prompt_tokens:
        return True  # by far, so it need not be encoded once more
    try:
        fit_prompt(spec, EMPTY_VIEW, chunk)
    except PromptTooLong:
        return False
    return True


def within_room(env: Environment, chunk: str) -> bool:
    """Whether a chunk leaves a memory its share of the prompt, see `episode.text_room`."""
    return count_escaped(env, chunk) <= text_room(env)


def fitting(env: Environment, instance: Instance, rule: Rule = fits) -> Instance:
    """The instance as a writer in `env` can read it.

    The same object where `rule` holds of every chunk. Else each of the other chunks is replaced by
    its `pieces`, each with the notes that it holds, and metadata["piece_of"] has for each chunk of
    the new instance the number of the chunk that it is, or is a piece of.

    Raises:
        PromptTooLong: a chunk has to be cut and the template leaves no room for a piece.
    """
    whole = [rule(env, chunk) for chunk in instance.chunks]
    if all(whole):
        return instance
    parts = [
        [chunk] if as_it_is else list(pieces(env, chunk))
        for chunk, as_it_is in zip(instance.chunks, whole, strict=True)
    ]
    metadata = dict(instance.metadata)
    metadata[PIECE_OF] = [
        chunk_number(instance, number) for number, of in enumerate(parts) for _ in of
    ]
    if "notes" in metadata:
        pairs = zip(metadata["notes"], parts, strict=True)
        metadata["notes"] = [noted for notes, of in pairs for noted in _share_out(notes, of)]
    chunks = tuple(piece for of in parts for piece in of)
    return replace(instance, chunks=chunks, metadata=metadata)


def fit_all(env: Environment, instances: Sequence[Instance]) -> list[Instance]:
    """`fitting` of each. An instance that stands there several times, once for each rollout,
    stays one object."""
    ours = {id(instance): instance for instance in instances}
    ours = {key: fitting(env, instance) for key, instance in ours.items()}
    return [ours[id(instance)] for instance in instances]


def pieces(env: Environment, chunk: str) -> Iterator[str]:
    """The pieces of a chunk, of at most `text_room` tokens and of no more than the template leaves;
    a piece of a dialogue begins with the line that dates it.

    Raises:
        PromptTooLong: the template leaves less than `LEAST` tokens.
    """
    spec, count = env.prompt, partial(count_escaped, env)
    left = spec.prompt_tokens - _beside(replace(spec, recent=0))
    if left < LEAST:
        raise PromptTooLong(
            f"a chunk of {count(chunk)} tokens does not fit a prompt of {spec.prompt_tokens}, nor"
            f" does a piece of it of {LEAST}, because the template {spec.template.name!r} alone"
            f" takes {spec.prompt_tokens - left}; raise the prompt budget"
        )
    room = min(text_room(env), left - BORDERS)
    room -= max(map(count, _DATE.findall(chunk)), default=0)
    date = ""
    for part in split_text(chunk, max(room, LEAST), count):
        if part := part.strip():
            yield part if _DATE.match(part) or not date else f"{date}\n{part}"
        date = ([date] + _DATE.findall(part))[-1]


def chunk_number(instance: Instance, number: int) -> int:
    """The number that chunk `number` of an instance from `fitting`, or the chunk that it is a piece
    of, had before."""
    piece_of = instance.metadata.get(PIECE_OF)
    return number if piece_of is None else piece_of[number]


def as_given(episodes: Sequence[Episode], instances: Sequence[Instance]) -> list[Episode]:
    """The episodes with the instances as they were before `fitting`, and in each step the number of
    the chunk that it read, whole or a piece of."""

    def restore(episode: Episode, instance: Instance) -> Episode:
        numbers = [chunk_number(episode.instance, step.chunk) for step in episode.steps]
        pairs = zip(episode.steps, numbers, strict=True)
        steps = [replace(step, chunk=number) for step, number in pairs]
        return replace(episode, instance=instance, steps=steps)

    return [restore(*pair) for pair in zip(episodes, instances, strict=True)]


def cut_chunks(episodes: Sequence[Episode]) -> int:
    """How many chunks of the instances of these episodes were read in pieces."""
    of_instance = {id(episode.instance): episode for episode in episodes}
    read = [
        Counter(chunk_number(episode.instance, step.chunk) for step in episode.steps)
        for episode in of_instance.values()
    ]
    return sum(times > 1 for chunks in read for times in chunks.values())


@lru_cache(maxsize=8)
def _beside(spec: PromptSpec) -> int:
    """Tokens of a prompt without memory and without a chunk."""
    return len(fit_prompt(replace(spec, prompt_tokens=2**31), EMPTY_VIEW, ""))


def _share_out(notes: Sequence[dict], parts: Sequence[str]) -> list[list[dict]]:
    """The notes of a chunk, each with the piece that has the most of its words in a row; of several
    with the one that has the most of its words, then with the first."""
    of_piece: list[list[dict]] = [[] for _ in parts]
    words = [_words(part) for part in parts]
    for note in notes:
        text = note.get("quote") or note["content"]
        told = _words(text.partition(SAID)[2] or text)
        held = [(_longest_run(told, part), len({*told} & {*part})) for part in words]
        of_piece[held.index(max(held))].append(note)
    return of_piece


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _longest_run(told: list[str], part: list[str]) -> int:
    return SequenceMatcher(None, told, part, autojunk=False).find_longest_match().size
