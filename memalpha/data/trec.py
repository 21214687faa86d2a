"""The TREC question classification set, in its 6 coarse or its 50 fine classes."""

import re
from collections.abc import Iterator
from pathlib import Path

from memalpha.data import text
from memalpha.data.labelled import Labelled, Sentence, build, collect
from memalpha.paths import user_path

__all__ = ["build", "load", "load_folder"]

VALIDATION_SHARE = 0.1  # of the published training questions, by the hash of the question
_LABEL = re.compile(r"[A-Za-z]+:[A-Za-z]+")
FINE = {
    "ABBR": "abb exp",
    "DESC": "def desc manner reason",
    "ENTY": "animal body color cremat currency dismed event food instru lang letter other plant"
    " product religion sport substance symbol techmeth termeq veh word",
    "HUM": "desc gr ind title",
    "LOC": "city country mount other state",
    "NUM": "code count date dist money ord other perc period speed temp volsize weight",
}
CLASSES = frozenset(f"{coarse}:{fine}" for coarse, all_ in FINE.items() for fine in all_.split())
MAX_LINE = 10_000  # characters of a question; the longest published one has fewer than 250


def load(train: str | Path, test: str | Path | None = None, labels: str = "coarse") -> Labelled:
    """Read the published files; `labels` is "coarse" (HUM) or "fine" (HUM:ind, always the pair).

    Questions of `test` are the test split, and those of `train` that read the same are left out of
    training. Errors: ValueError naming file and line.
    """
    if labels not in ("coarse", "fine"):
        raise ValueError(f"trec: labels must be 'coarse' or 'fine', not {labels!r}")
    files: dict[str, str] = {}
    sentences: list[Sentence] = []
    for path, split in ((test, "test"), (train, "")):
        if path is not None:
            content, files[Path(path).name] = text.read_text(path, fallback="latin-1")
            sentences += _read_lines(content, str(path), split, labels)
    return collect(f"trec_{labels}", sentences, files, _split_of)


def load_folder(data_dir: str | Path, labels: str = "coarse") -> Labelled:
    """Read trec/train_5500.label and trec/TREC_10.label below `data_dir`.

    Both are needed, for training as well: some test questions also stand in the training file.
    """
    folder = user_path(data_dir) / "trec"
    for name in ("train_5500.label", "TREC_10.label"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file; put the published {name} there")
    return load(folder / "train_5500.label", folder / "TREC_10.label", labels)


def _split_of(key: str) -> str:
    return "validation" if text.share("trec sentence", key) < VALIDATION_SHARE else "train"


def _read_lines(content: str, path: str, split: str, labels: str) -> Iterator[Sentence]:
    # Not splitlines: it also splits at control characters that stand inside a question.
    for number, line in enumerate(content.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        label, _, question = line.partition(" ")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{where}: the label {label[:80]!r} is not of the form COARSE:fine")
        if label not in CLASSES:
            raise ValueError(f"{where}: the label {label!r} is none of the 50 published ones")
        if len(question) > MAX_LINE:
            raise ValueError(f"{where}: {len(question):,} characters; are its line ends lost?")
        if not question.strip():
            raise ValueError(f"{where}: no question after the label {label!r}")
        name = label.split(":")[0] if labels == "coarse" else label
        yield Sentence(f"{Path(path).name}:{number}", question.strip(), name, split)
