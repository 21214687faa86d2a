"""Sentences with classes as instances: labelled examples to read, then unseen ones to label.

Class names are replaced by integers, so that what a number means has to be learned from the chunks
(Mem-alpha, test-time learning).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from memalpha.data import text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes

LEAD_IN = "These sentences come with their labels:"
ACKNOWLEDGEMENT = "I will remember them."
TAIL = "What are the labels for the above sentence?"
EXAMPLE = "Sentence: {text}\nLabel: {label}"
# "Label:" without a space behind: " 17" is then the same token as in a note that ends in "-> 17".
PHRASES = (
    *text.dialogue_phrases(LEAD_IN, ACKNOWLEDGEMENT),
    "Sentence: ", "\nLabel:", text.SEPARATOR + TAIL,
)  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """A sentence as published; `split` is the split that owns it ("" until `collect` decides)."""

    record_id: str
    text: str
    label: str
    split: str = ""


@dataclass(frozen=True)
class Labelled:
    """All sentences of a source, each once.

    label_names[i] is the class with the integer label i; `files` the SHA-256 of each file by name;
    `left_out` the number of sentences left out, by reason.
    """

    source: str
    sentences: tuple[Sentence, ...]
    label_names: tuple[str, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)
    example: str = EXAMPLE
    tail: str = TAIL


def collect(
    source: str,
    sentences: Iterable[Sentence],
    files: dict[str, str],
    split_of: Callable[[str], str],
    classes: int | Sequence[str] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Labelled:
    """Merge sentences that read alike (but for case, spaces, punctuation) and assign the splits.

    Sentences that read alike belong to one split: that of the first with a split of its own (so
    the published test sentences come first), else `split_of(key)`. Integer labels follow the
    alphabet over the classes of all splits, or over `classes` if those are named.

    `classes`: the published ones, or their number. ValueError naming file and record for a class
    that is not among them, and for more of them than there are. `left_out`: what the loader left
    out before, by reason; what is left out here is added.
    """
    groups: dict[str, list[Sentence]] = defaultdict(list)
    fixed = set() if classes is None or isinstance(classes, int) else set(classes)
    most = classes if isinstance(classes, int) else None
    names = set(fixed)
    for sentence in sentences:
        groups[text.plain_key(sentence.text)].append(sentence)
        names.add(sentence.label)
        if (fixed and sentence.label not in fixed) or (most and len(names) > most):
            raise ValueError(
                f"{source}: {sentence.record_id}: label {sentence.label!r} is none of the"
                f" {len(fixed) or most} published ones"
            )
    unique: list[Sentence] = []
    counts = Counter(left_out or {})
    for key, group in groups.items():
        if len({sentence.label for sentence in group}) > 1:
            counts["sentences with two classes"] += len(group)
            continue
        owned = [sentence for sentence in group if sentence.split]
        split = owned[0].split if owned else split_of(key)
        chosen = min((s for s in owned or group if s.split in ("", split)), key=_key)
        unique.append(Sentence(chosen.record_id, chosen.text, chosen.label, split))
        twins = Counter(sentence.split for sentence in group)
        counts["sentences that stand twice"] += twins.pop(chosen.split) - 1
        for other, count in twins.items():
            counts[f"{other or 'train'} sentences that stand in {split} too"] += count
    return Labelled(source, tuple(unique), tuple(sorted(names)), files, dict(+counts))


def build(
    records: Labelled,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    show: str = "",
) -> Iterator[Draft]:
    """Yield `sizes.count` instances of `split`, with classes as balanced as its sentences allow.

    Chunks hold `Sentence: ...` / `Label: 17` pairs in a random order. Asked are sentences that no
    chunk shows, of classes that some chunk shows. A part of every class is reserved for questions;
    there are fewer than `sizes.questions` only if the split has no more. Errors: ValueError if the
    split is empty or too small for the chunks.

    `show` names another split to show examples of (MemoryAgentBench shows the training examples and
    asks the test sentences); no part of it is then reserved.
    """
    ask_from = _by_class(records, split)
    show_from = _by_class(records, show or split)
    numbers = {name: str(number) for number, name in enumerate(records.label_names)}
    frame = partial(text.dialogue_chunk, LEAD_IN, ACKNOWLEDGEMENT)
    room = sizes.chunks * (sizes.chunk_tokens - count_tokens(frame(0, "")))

    def example(sentence: Sentence) -> str:
        return records.example.format(text=sentence.text, label=numbers[sentence.label])

    def size(sentence: Sentence) -> int | None:
        if count_tokens(frame(0, example(sentence))) > sizes.chunk_tokens:
            return None
        return count_tokens(text.SEPARATOR + example(sentence))

    for index in range(sizes.count):
        queues = _draw(show_from, seed, index)
        chosen = _choose_shown(queues, size, room, keep=show in ("", split))
        chosen = text.shuffled(chosen, _key, "show", seed, index)
        packed = text.pack(
            map(example, chosen), frame, sizes.chunks, sizes.chunk_tokens, count_tokens
        )
        pool = f"{sum(map(len, queues))} sentences in {len(queues)} classes"
        if len(packed) < sizes.chunks:
            raise ValueError(
                f"{records.source}: the {show or split!r} split has {pool}, which fill"
                f" {len(packed)} of {sizes.chunks} chunks of {sizes.chunk_tokens} tokens (of which"
                f" {count_tokens(frame(0, ''))} are the text around the sentences); ask for fewer"
                " chunks or other sizes"
            )
        read = [[chosen[item] for item in items] for _, items in packed]
        asked = _choose_asked(_draw(ask_from, seed, index), read, sizes.questions)
        asked = text.shuffled(asked, _key, "ask", seed, index)
        if not asked:
            raise ValueError(
                f"{records.source}: no sentence of the {split!r} split is left to ask about; its"
                f" {pool} are too few"
            )
        questions = (_question(sentence, numbers, records.tail) for sentence in asked)
        facts = {
            "label_names": {str(number): name for number, name in enumerate(records.label_names)},
            "chunk_ids": [[s.record_id for s in chunk] for chunk in read],
            "question_ids": [s.record_id for s in asked],
        }
        yield Draft(tuple(chunk for chunk, _ in packed), tuple(questions), facts)


def _question(sentence: Sentence, numbers: dict[str, str], tail: str) -> Question:
    return Question(f"Sentence: {sentence.text}\n\n{tail}", (numbers[sentence.label],))


def _by_class(records: Labelled, split: str) -> dict[str, list[Sentence]]:
    classes: dict[str, list[Sentence]] = defaultdict(list)
    for sentence in text.select_split(
        records.sentences, split, records.source, "sentence", records.files
    ):
        classes[sentence.label].append(sentence)
    return classes


def _draw(classes: dict[str, list[Sentence]], seed: int, index: int) -> list[list[Sentence]]:
    return [
        text.shuffled(classes[name], _key, "draw", seed, index)
        for name in text.shuffled(classes, str, "class", seed, index)
    ]


def _key(sentence: Sentence) -> str:
    return sentence.text


def _choose_shown(
    queues: list[list[Sentence]], size: Callable[[Sentence], int | None], tokens: int, keep: bool
) -> list[Sentence]:
    """Sentences to show, one of every class in turn, until they fill so many tokens; those without
    a size, which no chunk has room for, are passed over.

    With `keep`, a third of every class stays for the questions; a class with one sentence is only
    shown.
    """
    usable = [queue[: max(1, len(queue) - max(1, len(queue) // 3))] for queue in queues]
    usable = usable if keep else queues
    chosen, used = [], 0
    for sentence in text.in_turn(usable):
        if used >= tokens:
            break
        if (needed := size(sentence)) is not None:
            chosen.append(sentence)
            used += needed
    return chosen


def _choose_asked(
    queues: list[list[Sentence]], examples: list[list[Sentence]], limit: int
) -> list[Sentence]:
    """At most `limit` sentences that are not examples, one of every examples class in turn."""
    seen = {sentence.text for chunk in examples for sentence in chunk}
    labels = {sentence.label for chunk in examples for sentence in chunk}
    unseen = [[s for s in queue if s.text not in seen and s.label in labels] for queue in queues]
    return list(islice(text.in_turn(unseen), limit))
