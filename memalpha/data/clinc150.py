"""CLINC150 (named clinic150 in the tables): requests to an assistant, in 150 classes.

The out-of-scope sentences of the published file belong to no class and are not used.
"""

from collections.abc import Iterator
from pathlib import Path

from memalpha.data import files, text
from memalpha.data.labelled import Labelled, Sentence, build, collect
from memalpha.paths import user_path

__all__ = ["build", "load_folder"]

SOURCE = "clinic150"
# In this order: a sentence that stands in training too is left out of the other two.
PARTS = {"train": "train", "val": "validation", "test": "test"}
OUT_OF_SCOPE = ("oos_train", "oos_val", "oos_test")
TWO_CLASSES = {"in", "oos"}  # of the publisher's binary_*.json


def load_folder(data_dir: str | Path) -> Labelled:
    """Read clinc150/data_*.json below `data_dir`: {train | val | test: [[text, intent], ...]}.

    Errors: ValueError naming file, field and record; for two files, and for one whose sentences are
    only said to be in scope or not.
    """
    folder = user_path(data_dir) / "clinc150"
    paths = files.find(folder, ["data_*.json"], "put the published data_full.json there")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder}: {names}; keep one (they hold the same sentences)")
    (path,) = paths
    data, digest = text.read_json(path)
    sentences: list[Sentence] = []
    for part, split in PARTS.items():
        sentences += _read_part(data, part, split, path)
    if {sentence.label for sentence in sentences} <= TWO_CLASSES:
        raise ValueError(
            f"{path}: its classes are {' and '.join(sorted(TWO_CLASSES))}, not the 150 intents; put"
            " the published data_full.json there"
        )
    outside = sum(len(data[part]) for part in OUT_OF_SCOPE if isinstance(data.get(part), list))
    return collect(
        SOURCE,
        sentences,
        {path.name: digest},
        lambda key: "train",
        classes=150,
        left_out={"sentences out of scope": outside},
    )


def _read_part(data: object, part: str, split: str, path: Path) -> Iterator[Sentence]:
    for number, pair in enumerate(text.require(data, part, list, str(path))):
        where = f"{path}: {part}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: must be [text, intent], not {str(pair)[:80]}")
        if not all(isinstance(item, str) and item.strip() for item in pair):
            raise ValueError(f"{where}: text and intent must be strings that are not blank")
        yield Sentence(f"{path.name}:{part}:{number}", pair[0].strip(), pair[1].strip(), split)
