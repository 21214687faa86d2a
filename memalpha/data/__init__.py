"""Instances: training and evaluation sources in one form (chunks, questions, answers)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from memalpha.data import labelled, nlu, squad, trec
from memalpha.data.instance import Instance

# Sources read from their publishers' files: (read the folder, make instances of what was read).
SOURCES: dict[str, tuple[Callable, Callable]] = {
    "squad": (squad.load_folder, squad.build),
    "trec_coarse": (partial(trec.load_folder, labels="coarse"), trec.build),
    "trec_fine": (partial(trec.load_folder, labels="fine"), trec.build),
    "nlu": (nlu.load_folder, nlu.build),
}
# Fixed strings of the chunks and questions of all of them, for a tokenizer trained on them.
PHRASES = (*squad.PHRASES, *labelled.PHRASES)


def load_source(
    name: str,
    data_dir: str | Path,
    split: str,
    count: int,
    seed: int,
    chunks: int,
    chunk_tokens: int,
    questions: int,
    count_tokens: Callable[[str], int],
) -> list[Instance]:
    """`count` instances of a source, the same for the same arguments and files.

    Args:
        name: squad | trec_coarse | trec_fine | nlu.
        data_dir: holds the published files as squad/train*.json, squad/dev*.json,
            trec/train_5500.label, trec/TREC_10.label, nlu/*.csv.
        split: train | validation | test; no article (squad) or sentence (others) is in two.
        count: number of instances.
        seed: of the choice of paragraphs, examples and questions; splits do not depend on it.
        chunks: chunks an instance (the paper: about 10).
        chunk_tokens: the most tokens a chunk, with the words around its content.
        questions: the most questions an instance (the paper: 100).
        count_tokens: number of tokens of a text.

    Raises:
        ValueError: an unknown source or split, a file that is absent or malformed, a split that is
            too small for the sizes.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}; known: {', '.join(SOURCES)}")
    load, build = SOURCES[name]
    records = load(data_dir)
    return list(build(records, count, seed, chunks, chunk_tokens, questions, count_tokens, split))
