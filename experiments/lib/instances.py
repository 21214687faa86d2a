"""Instances of the sources of a config, and which of them a training step reads."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from ml_collections import ConfigDict

from memalpha.data import load_source, store, synthetic
from memalpha.data.batches import batch_indices
from memalpha.data.instance import Instance
from memalpha.data.notes import add_notes

PREFIX = "synthetic_"


CORPUS_INSTANCES = 200  # of each source, for a tokenizer trained on the spot


def is_synthetic(source: str) -> bool:
    return source.startswith(PREFIX)


def build_instances(
    config: ConfigDict, source: str, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """Instances of one source. `chunks` 0: as long as in training. Real ones come from the folder
    `config.data.built`, where it is given: as they are there, and at most `count`."""
    data = config.data
    chunks = chunks or data.chunks
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
                max_questions=data.max_questions,
            )
            for index in range(count)
        ]
    if built := data.get("built", ""):
        return _read_built(source, built, split, data.max_questions)[first : first + count]
    sizes = (chunks, data.chunk_tokens, data.max_questions)
    return _load(source, data.dir, split, first + count, config.seed, *sizes)[first:]


def build_every(
    config: ConfigDict, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """`build_instances` of every source of the config, source by source."""
    return [
        instance
        for source in config.data.sources
        for instance in build_instances(config, source, split, count, first, chunks)
    ]


@lru_cache(maxsize=32)  # read by the tokenizer, by both stages of training and at every evaluation
def _load(source: str, folder: str, split: str, count: int, seed: int, *sizes: int):
    made = load_source(source, folder, split, count, seed, *sizes, count_tokens=rough_tokens)
    return _with_notes(made)


@lru_cache(maxsize=32)
def _read_built(source: str, folder: str, split: str, questions: int) -> list[Instance]:
    built = store.open_set(folder, source, split)
    return _with_notes([replace(i, questions=i.questions[:questions]) for i in built])


def _with_notes(instances: list[Instance]) -> list[Instance]:
    try:
        return [add_notes(instance) for instance in instances]
    except ValueError:  # chunks of another form; a scripted writer says that there are no notes
        return instances


def rough_tokens(text: str) -> int:
    """Words between white space, and bytes past ASCII: scripts without spaces count by those. No
    tokenizer can count yet: it is trained on the instances."""
    ascii_letters = sum(map(str.isascii, text))
    return len(text.split()) + len(text.encode()) - ascii_letters


def training_batches(config: ConfigDict) -> Callable[[int, int], list[Instance]]:
    """A function (step, size) -> instances, the same for the same step in any process.

    Sources take turns; synthetic instances are never repeated, real ones come in epochs.
    """
    sources = config.data.sources
    fixed = {
        source: build_instances(config, source, "train", config.data.instances)
        for source in sources
        if not is_synthetic(source)
    }
    longest = max((len(i.chunks) for pool in fixed.values() for i in pool), default=0)
    if longest > config.data.chunks:
        raise ValueError(
            f"config.data.chunks={config.data.chunks}, but there are instances of {longest} chunks"
        )

    def pick(step: int, size: int) -> Iterator[Instance]:
        for slot in range(step * size, (step + 1) * size):
            source, turn = sources[slot % len(sources)], slot // len(sources)
            if source in fixed:
                pool = fixed[source]
                yield pool[batch_indices(len(pool), 1, config.seed, turn)[0]]
            else:
                yield build_instances(config, source, "train", 1, first=turn)[0]

    return lambda step, size: list(pick(step, size))


def corpus_texts(config: ConfigDict) -> Iterator[str]:
    """Texts of the training split, for a tokenizer that is trained on the spot."""
    for source in config.data.sources:
        count = CORPUS_INSTANCES if is_synthetic(source) else config.data.instances
        for instance in build_instances(config, source, "train", count):
            yield from instance.chunks
            yield from (question.question for question in instance.questions)
            for notes in instance.metadata.get("notes", ()):
                yield from (note["content"] for note in notes)
