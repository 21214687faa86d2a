"""Streams of a few lengths, built from the published files at hand."""

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.lib.progress import console
from experiments.lib.workdir import differences, write_json
from memalpha.data import SESSIONS, SOURCES, build
from memalpha.data.sizes import PUBLISHED, Sizes, default_sizes
from memalpha.data.text import approximate_tokens

# The columns of the paper's tables; LoCoMo and the sessions that answer LongMemEval's questions.
SOURCES_OF = {
    "validation": tuple(PUBLISHED["validation"]),
    "test": (*PUBLISHED["test"], "lme_train", "locomo"),
}
# Of these a person, a book or a history is an instance: as long as it is.
OWN_LENGTH = frozenset(
    ("perltqa", "booksum", "infbench_sum", "longmemeval_s", "lme_train", "locomo")
)
ABOUT = (0.5, 1.5)  # of the size asked for: shorter and longer streams are left out
FILE = "streams.json"
SHRINK = build.Options(approximate_tokens, "approximate", shrink=True, overwrite=True)


@dataclass(frozen=True)
class Asked:
    """What all streams are built to. instances: of a source; questions: of an instance, at most."""

    instances: int
    questions: int
    chunk_tokens: int
    seed: int = 0


def size_name(tokens: int) -> str:
    """32000 -> "32k"."""
    return f"{tokens // 1000}k" if tokens % 1000 == 0 else str(tokens)


def read_size(text: str) -> int:
    """The tokens of a size such as 2k or 2000; ValueError for anything else."""
    number = text.lower().removesuffix("k")
    if not number.isdigit() or not int(number):
        raise ValueError(f"--sizes: {text!r} is no number of tokens, such as 2k or 8000")
    return int(number) * (1000 if text.lower().endswith("k") else 1)


def build_streams(
    raw_dir: str | Path, folder: Path, sizes: Sequence[int], asked: Asked, wanted: Collection[str]
) -> dict[str, str]:
    """Builds every source at every size into folder/SIZE/SOURCE/SPLIT, where it is not there yet.

    wanted: the sources; empty: all of `SOURCES_OF`. Returns why something is left out: "SOURCE",
    whose files are not at hand, or "SOURCE SPLIT SIZE", of which the files make no such stream.

    Raises ValueError for an unknown source, or a folder of other settings.
    """
    known = {name for names in SOURCES_OF.values() for name in names}
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"unknown source {unknown[0]!r}; known: {', '.join(sorted(known))}")
    _claim(folder, asdict(asked))
    refused, absent = {}, {}
    for split, source in ((split, name) for split, names in SOURCES_OF.items() for name in names):
        places = {f"{source} {split} {size_name(size)}": size for size in sizes}
        missing = {
            place: size
            for place, size in places.items()
            if not _place(folder, size, source, split).exists()
        }
        if (wanted and source not in wanted) or not missing:
            continue
        try:
            records = SOURCES[source][0](raw_dir)
        except ValueError as error:
            absent[source] = str(error)
            continue
        for place, size in missing.items():
            console.print(f"building {place}", markup=False)
            try:
                _build(source, split, records, folder, size, asked)
            except ValueError as error:
                refused[place] = str(error)
    return absent | refused


def _place(folder: Path, size: int, source: str, split: str) -> Path:
    return folder / size_name(size) / source / split


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings of a folder before anything is built in it; ValueError where those of an
    earlier call were others."""
    path = folder / FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": dict(settings)})
        return
    before = json.loads(path.read_text(encoding="utf-8"))["asked"]
    if differ := differences(before, settings):
        lines = "; ".join(f"{name} was {old}, is {new}" for name, old, new in sorted(differ))
        raise ValueError(f"{folder} has streams of other settings ({lines}): give another --out")


def _build(source: str, split: str, records: Any, folder: Path, size: int, asked: Asked) -> None:
    """Builds aside and takes the place, so that a process that is killed leaves nothing there."""
    aside, most = folder / "aside", asked.questions
    while True:
        tokens = _write(source, split, records, aside, size, replace(asked, questions=most))
        if source not in SESSIONS or tokens <= ABOUT[1] * size or most == 1:
            break
        most = max(1, int(most * size / tokens))  # each question brings its sessions
    if not ABOUT[0] * size <= tokens <= ABOUT[1] * size:
        raise ValueError(f"its streams have {tokens:,.0f} tokens")
    place = _place(folder, size, source, split)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    (aside / source / split).rename(place)


def _write(source: str, split: str, records: Any, folder: Path, size: int, asked: Asked) -> float:
    """Writes the set with the most instances that the files fill; returns the tokens of one."""
    defaults, chunks = default_sizes(source, split), math.ceil(size / asked.chunk_tokens)
    options = dict(defaults.options)
    if "target_tokens" in options:
        options["target_tokens"] = size
    chunks *= 2 if source in OWN_LENGTH else 1  # their chunks are rarely full
    most = asked.questions if source in SESSIONS else defaults.questions
    questions = min(most, asked.questions)
    for count in range(asked.instances, 0, -1):
        sizes = Sizes(count, chunks, asked.chunk_tokens, questions, options)
        try:
            of = build.from_originals(source, split, records, folder, sizes, asked.seed, SHRINK)
            break
        except ValueError:
            if count == 1:
                raise
    return of["statistics"]["chunks_per_instance"] * of["statistics"]["tokens_per_chunk"]
