"""Instances: training and evaluation sources in one form (chunks, questions, answers).

`load_source` builds instances from their publishers' files; `published.read` takes them ready-made
from the published parquet; `built_sets` keeps built ones on disk. `python -m memalpha.data` does
all of it from a terminal.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha.data import (
    banking77,
    booksum,
    clinc150,
    files,
    hotpotqa,
    infbench,
    labelled,
    locomo,
    longmemeval,
    nlu,
    perltqa,
    pubmed_rct,
    ruler,
    squad,
    text,
    trec,
)
from memalpha.data.instance import Instance, stamp, validate
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

# Sources read from their publishers' files: (load the folder, build drafts of what was read).
# build(records, split, sizes, seed, count_tokens, **options) -> Iterator[Draft]
SOURCES: dict[str, tuple[Callable, Callable]] = {
    "squad": (squad.load_folder, squad.build),
    "trec_coarse": (partial(trec.load_folder, labels="coarse"), trec.build),
    "trec_fine": (partial(trec.load_folder, labels="fine"), trec.build),
    "nlu": (nlu.load_folder, nlu.build),
    "hotpotqa": (hotpotqa.load_folder, hotpotqa.build),
    "perltqa": (perltqa.load_folder, perltqa.build),
    "lme_train": (partial(longmemeval.load_folder, source="lme_train"), longmemeval.build),
    "longmemeval_s": (partial(longmemeval.load_folder, source="longmemeval_s"), longmemeval.build),
    "locomo": (locomo.load_folder, locomo.build),
    "pubmed_rct": (pubmed_rct.load_folder, pubmed_rct.build),
    "banking77": (banking77.load_folder, banking77.build),
    "clinic150": (clinc150.load_folder, clinc150.build),
    "booksum": (booksum.load_folder, booksum.build),
    "infbench_sum": (partial(infbench.load_folder, source="infbench_sum"), infbench.build),
    "infbench_qa": (partial(infbench.load_folder, source="infbench_qa"), infbench.build),
    "ruler_qa1": (partial(ruler.load_folder, source="ruler_qa1"), ruler.build),
    "ruler_qa2": (partial(ruler.load_folder, source="ruler_qa2"), ruler.build),
}
# The folder of each source below the data folder.
FOLDERS = {
    "trec_coarse": "trec",
    "trec_fine": "trec",
    "lme_train": "longmemeval",
    "longmemeval_s": "longmemeval",
    "clinic150": "clinc150",
    "infbench_sum": "infinitebench",
    "infbench_qa": "infinitebench",
    "ruler_qa1": "squad_v2",
    "ruler_qa2": "hotpotqa",
}  # the others: as the source is called
# Files of another source that lie in the same folder.
SHARED = [pattern for patterns in longmemeval.FILES.values() for pattern in patterns]
SHARED += infbench.FILES.values()
SESSIONS = frozenset(longmemeval.FILES)  # each question brings sessions of its own; no validation
# Fixed strings of the chunks and questions of all of them, for a tokenizer trained on them.
PHRASES = (*squad.PHRASES, *labelled.PHRASES)


def load_source(
    name: str,
    data_dir: str | Path,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
    fewer: bool = False,
) -> list[Instance]:
    """`sizes.count` instances of a source, the same for the same arguments and files.

    Args:
        name: a key of SOURCES.
        data_dir: holds the published files, in a folder a source, as each loader says: e.g.
            squad/train*.json and squad/dev*.json, trec/train_5500.label and trec/TREC_10.label.
        split: train | validation | test; no article (squad), sentence (labelled sources), question
            (hotpotqa), evidence (LongMemEval), character (perltqa) or book is in two.
        sizes: instances, chunks, tokens and questions, and the options of the source's own `build`,
            e.g. `show` of the labelled sources.
        seed: of the choice of paragraphs, examples and questions; splits do not depend on it.
        count_tokens: number of tokens of a text.
        fewer: a split with fewer instances gives those that it has.

    Raises:
        ValueError: an unknown source or split, a file that is absent or malformed, a split that is
            too small for the sizes or has fewer instances.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}; known: {', '.join(SOURCES)}")
    load, _ = SOURCES[name]
    instances = list(
        map(stamp, make_instances(name, load(data_dir), split, sizes, seed, count_tokens))
    )
    if len(instances) < (1 if fewer else sizes.count):
        raise ValueError(
            f"{name}: the {split!r} split gives {len(instances)} instances of these sizes, not"
            f" {sizes.count}; ask for fewer"
        )
    return instances


def unread_files(source: str, data_dir: str | Path, records: Any) -> list[str]:
    """Names of the files in the folder of a source that its loader passed over, sorted.

    A file of another name, or of another layout than the one that was read, is no error, but the
    user may have meant it to be read. Left out: hidden files, READMEs and licences, what `download`
    keeps beside the data, and files of the other source of the folder.
    """
    folder = user_path(data_dir) / FOLDERS.get(source, source)
    shared = {path.name for pattern in SHARED for path in folder.glob(pattern)}
    names = {path.name for path in folder.iterdir() if path.is_file()}
    ours = {*records.files, files.DOWNLOADS, *shared}
    return sorted(
        name
        for name in names - ours
        if not name.lower().startswith((".", "readme", "license", "licence"))
        and not name.endswith(".part")
    )


def make_instances(
    source: str,
    records: Any,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
) -> Iterator[Instance]:
    """At most `sizes.count` instances of a source, from what its loader gave; see `load_source`.

    Each is named by where it comes from and a hash of its chunks.
    """
    text.check_request(split, sizes)
    _, build = SOURCES[source]
    counter = lru_cache(maxsize=2**18)(count_tokens)
    drafts = build(records, split, sizes, seed, counter, **sizes.options)
    for index, draft in enumerate(islice(drafts, sizes.count)):
        name = f"{source}-{split}-{seed}-{index}-{text.rank(*draft.chunks).hex()[:8]}"
        metadata = {"split": split, "seed": seed, "files": records.files} | draft.facts
        yield validate(Instance(source, name, draft.chunks, draft.questions, metadata))
