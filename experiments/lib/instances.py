"""Instances of the sources of a config, and which of them a training step reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ml_collections import ConfigDict

from memalpha.data import SESSIONS, built_sets, load_source, synthetic
from memalpha.data.batches import batch_indices
from memalpha.data.instance import Instance
from memalpha.data.notes import add_notes
from memalpha.data.single import single_messages
from memalpha.data.sizes import Sizes

PREFIX = "synthetic_"
SINGLE = "single_"  # before the name of a source: its statements as single messages, to train on
# Statements that make sense alone, and whose questions have answers in their words.
SINGLES = ("synthetic_facts", "synthetic_updates", "squad", "hotpotqa", "lme_train")


CORPUS_INSTANCES = 200  # of each synthetic source, for training a tokenizer


def is_synthetic(source: str) -> bool:
    return source.removeprefix(SINGLE).startswith(PREFIX)


def empty_share(data: Mapping[str, Any]) -> float:
    """`data.empty_share`; of the config of a run that is older than this field, what held then."""
    return data.get("empty_share", data["filler_share"] / 2)


def build_instances(
    config: ConfigDict, source: str, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """Instances of one source; `chunks` 0: as long as in training. There may be fewer than `count`
    of a real source where the training split has no more, or where they are read from the folder
    `config.data.built`; then `chunks` is ignored."""
    data = config.data
    chunks = chunks or data.chunks
    if source.startswith(SINGLE):
        told = build_instances(config, source.removeprefix(SINGLE), split, count, first, chunks)
        made = [single_messages(instance, config.seed, split) for instance in told]
        return [instance for instance in made if instance is not None]
    if is_synthetic(source):
        return [
            synthetic.generate(
                source.removeprefix(PREFIX),
                split,
                first + index,
                seed=config.seed,
                chunks=chunks,
                facts_per_chunk=data.facts_per_chunk,
                filler_share=data.filler_share,
                empty_share=empty_share(data),
                max_questions=data.max_questions,
            )
            for index in range(count)
        ]
    if built := data.get("built", ""):
        return _read_built(source, built, split, data.max_questions)[first : first + count]
    questions = (source in SESSIONS and data.get("session_questions")) or data.max_questions
    sizes, fewer = (chunks, data.chunk_tokens, questions), split == "train"
    return _load(source, data.dir, split, first + count, config.seed, fewer, *sizes)[first:]


def build_every(
    config: ConfigDict, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """`build_instances` of every source of the config that has this split, source by source, but
    for single messages, which are for training."""
    # A source that stands there twice is trained on more often, and measured once.
    sources = [s for s in dict.fromkeys(config.data.sources) if not s.startswith(SINGLE)]
    return [
        instance
        for source in sources
        if not (split == "validation" and source in SESSIONS)
        for instance in build_instances(config, source, split, count, first, chunks)
    ]


@lru_cache(maxsize=32)  # used by tokenizer training, both stages and every evaluation
def _load(source: str, folder: str, split: str, count: int, seed: int, fewer: bool, *sizes: int):
    asked = Sizes(count, *sizes)
    return _with_notes(load_source(source, folder, split, asked, seed, rough_tokens, fewer))


@lru_cache(maxsize=32)
def _read_built(source: str, folder: str, split: str, questions: int) -> list[Instance]:
    built = built_sets.open_source(folder, source, split)
    return _with_notes([_first_questions(instance, questions) for instance in built])


def _first_questions(instance: Instance, count: int) -> Instance:
    """The instance with its first `count` questions; the others join its dropped ones."""
    if len(instance.questions) <= count:
        return instance
    dropped = instance.metadata.get("dropped_questions", 0) + len(instance.questions) - count
    metadata = instance.metadata | {"dropped_questions": dropped}
    return replace(instance, questions=instance.questions[:count], metadata=metadata)


def _with_notes(instances: list[Instance]) -> list[Instance]:
    try:
        return [add_notes(instance) for instance in instances]
    except (
        ValueError
    ):  # no notes for chunks of another format; scripted writers then report an error
        return instances


def rough_tokens(text: str) -> int:
    """An estimate of the number of tokens: words, plus bytes outside of ASCII for scripts without
    spaces. The tokenizer cannot count yet, because it is trained on these instances."""
    ascii_letters = sum(map(str.isascii, text))
    return len(text.split()) + len(text.encode()) - ascii_letters


def training_batches(
    config: ConfigDict, lengths: Sequence[int] = ()
) -> Callable[[int, int], list[Instance]]:
    """A function (step, size) -> the `size` instances of a training step.

    `step` is the number of the step, counted from 0: the number of updates done before it. A
    checkpoint carries this number as its name, so a run resumed from checkpoint n asks for step n
    next and gets what the uninterrupted run got; no position is stored beside it. The same
    (step, size) gives the same instances in any process, but every call of a run has to pass the
    same size: the step begins at instance step * size of an endless order.

    In that order the sources take turns. With S sources instance number n is number n // S of its
    own source, called its turn: synthetic instances are generated by that number and never
    repeated; real ones come in epochs, and their turn is the `step` that `batch_indices` gets, with
    a batch of one. Streams of `lengths` chunks take turns; empty: as `config.data.lengths` says.
    """
    sources = config.data.sources
    lengths = lengths or config.data.lengths or (config.data.chunks,)
    fixed = {
        source: _training_pool(config, source, lengths)
        for source in sources
        if not is_synthetic(source)
    }

    def pick(step: int, size: int) -> Iterator[Instance]:
        for slot in range(step * size, (step + 1) * size):
            source, turn = sources[slot % len(sources)], slot // len(sources)
            if source in fixed:
                pool = fixed[source]
                yield pool[batch_indices(len(pool), 1, config.seed, turn)[0]]
            else:
                chunks = lengths[turn % len(lengths)]
                made = build_instances(config, source, "train", 1, first=turn, chunks=chunks)
                if not made:
                    raise ValueError(f"{source}: no statement of stream {turn} answers a question")
                yield made[0]

    return lambda step, size: list(pick(step, size))


def rollout_batches(config: ConfigDict) -> Callable[[int, int], list[Instance]]:
    """`training_batches` of reinforcement learning, of streams of `config.rl.lengths`: in turn, or
    with `config.rl.curriculum` one length after the other, each for an equal part of the steps."""
    lengths, steps = config.rl.lengths, config.rl.steps
    if not config.rl.curriculum:
        return training_batches(config, lengths)
    stages = [training_batches(config, (length,)) for length in lengths]
    return lambda step, size: stages[step * len(stages) // steps](step, size)


def _training_pool(config: ConfigDict, source: str, lengths: Sequence[int]) -> list[Instance]:
    """The instances of a real source, about `config.data.instances` in all, as many of each length.

    Built ones have the lengths they were built with. Raises ValueError where one has more chunks
    than the longest length; of several lengths, where all have, else longer ones are left out.
    """
    lengths = lengths[:1] if config.data.get("built", "") else lengths
    count, most = -(-config.data.instances // len(lengths)), max(lengths)
    pool = [
        instance
        for chunks in lengths
        for instance in build_instances(config, source, "train", count, chunks=chunks)
    ]
    fitting = [instance for instance in pool if len(instance.chunks) <= most]
    if not fitting or (len(lengths) == 1 and len(fitting) < len(pool)):
        longest = max((len(instance.chunks) for instance in pool), default=0)
        raise ValueError(
            f"{source}: {config.data.instances} instances (config.data.instances) of at most {most}"
            f" chunks are wanted; there are {len(pool)}, the longest of {longest} chunks"
        )
    return fitting


def corpus_texts(config: ConfigDict) -> Iterator[str]:
    """Texts of the training split, for training a tokenizer."""
    for source in config.data.sources:
        count = CORPUS_INSTANCES if is_synthetic(source) else config.data.instances
        for instance in build_instances(config, source, "train", count):
            yield from instance.chunks
            yield from (question.question for question in instance.questions)
            for notes in instance.metadata.get("notes", ()):
                yield from (note["content"] for note in notes)
