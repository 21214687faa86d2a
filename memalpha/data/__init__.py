"""Instances: training and evaluation sources in one form (chunks, questions, answers).

`load_source` builds instances from their publishers' files; `published.read` takes them ready-made
from the published parquet; `store` keeps built ones on disk. `python -m memalpha.data` does all of
it from a terminal.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memalpha.data import (
    banking77,
    booksum,
    clinic150,
    hotpotqa,
    infbench,
    labelled,
    longmemeval,
    nlu,
    perltqa,
    pubmed_rct,
    ruler,
    squad,
    trec,
)
from memalpha.data.instance import Instance, stamp

# Sources read from their publishers' files: (read the folder, make instances of what was read).
SOURCES: dict[str, tuple[Callable, Callable]] = {
    "squad": (squad.load_folder, squad.build),
    "trec_coarse": (partial(trec.load_folder, labels="coarse"), trec.build),
    "trec_fine": (partial(trec.load_folder, labels="fine"), trec.build),
    "nlu": (nlu.load_folder, nlu.build),
    "hotpotqa": (hotpotqa.load_folder, hotpotqa.build),
    "perltqa": (perltqa.load_folder, perltqa.build),
    "lme_train": (partial(longmemeval.load_folder, source="lme_train"), longmemeval.build),
    "longmemeval_s": (partial(longmemeval.load_folder, source="longmemeval_s"), longmemeval.build),
    "pubmed_rct": (pubmed_rct.load_folder, pubmed_rct.build),
    "banking77": (banking77.load_folder, banking77.build),
    "clinic150": (clinic150.load_folder, clinic150.build),
    "booksum": (booksum.load_folder, booksum.build),
    "infbench_sum": (partial(infbench.load_folder, source="infbench_sum"), infbench.build),
    "infbench_qa": (partial(infbench.load_folder, source="infbench_qa"), infbench.build),
    "ruler_qa1": (partial(ruler.load_folder, source="ruler_qa1"), ruler.build),
    "ruler_qa2": (partial(ruler.load_folder, source="ruler_qa2"), ruler.build),
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
    **options: Any,
) -> list[Instance]:
    """`count` instances of a source, the same for the same arguments and files.

    Args:
        name: a key of SOURCES.
        data_dir: holds the published files, in a folder a source, as each loader says: e.g.
            squad/train*.json and squad/dev*.json, trec/train_5500.label and trec/TREC_10.label.
        split: train | validation | test; no article (squad), sentence (labelled sources), question
            (hotpotqa), evidence (LongMemEval), character (perltqa) or book is in two.
        count: number of instances.
        seed: of the choice of paragraphs, examples and questions; splits do not depend on it.
        chunks: chunks an instance; the most chunks, where a character or a book is an instance.
        chunk_tokens: the most tokens a chunk, with the words around its content.
        questions: the most questions an instance (the paper: 100).
        count_tokens: number of tokens of a text.
        options: further arguments of the source's own `build`, e.g. `show` of the labelled sources,
            `target_tokens` of ruler, `keywords` of booksum and infbench_sum.

    Raises:
        ValueError: an unknown source or split, a file that is absent or malformed, a split that is
            too small for the sizes or has fewer instances.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}; known: {', '.join(SOURCES)}")
    load, build = SOURCES[name]
    made = build(
        load(data_dir), count, seed, chunks, chunk_tokens, questions, count_tokens, split, **options
    )
    instances = list(map(stamp, made))
    if len(instances) < count:
        raise ValueError(
            f"{name}: the {split!r} split gives {len(instances)} instances of these sizes, not"
            f" {count}; ask for fewer"
        )
    return instances
