"""Built instances on disk: written whole or not at all, the same bytes for the same input.

A folder holds `instances.jsonl` (one instance a line) and `manifest.json` (what it was built from,
statistics, and the byte range of every line, so that one instance is read without the others).
The source files of an instance, its metadata["files"], stand once in the manifest (`file_sets`),
and in its line as a number: there may be hundreds of them.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memalpha.data.checks import answerable
from memalpha.data.files import sha256
from memalpha.data.instance import BUILDER, Instance, Question, Totals, stamp, validate
from memalpha.paths import user_path

ROWS, MANIFEST = "instances.jsonl", "manifest.json"
ASIDE, OLD = ".unfinished", ".old"  # behind the name of a folder while it is written or replaced


def write(
    folder: str | Path,
    instances: Iterable[Instance],
    description: dict[str, Any],
    count_tokens: Callable[[str], int],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write instances one after the other, and return the manifest.

    Everything is written to a folder aside, which takes its name when it is complete; a process
    that is killed leaves at most that folder behind, and the next build clears it. The manifest
    holds `description` (what was asked for), the hashes of the source files and of the rows,
    statistics as `instance.statistics` gives them, and the share of answerable questions; no time,
    no path.

    Raises:
        ValueError: no instance at all, an instance id that stands twice, or a folder that is there
            already and `overwrite` is not set.
    """
    folder = user_path(folder)
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder}: is there already; remove it, or overwrite it (--overwrite)")
    aside = folder.with_name(folder.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        manifest = _write_rows(aside, instances, count_tokens) | {"description": description}
        (aside / MANIFEST).write_text(json.dumps(manifest, sort_keys=True) + "\n")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _take_the_name(aside, folder)
    return manifest


def _write_rows(
    folder: Path, instances: Iterable[Instance], count_tokens: Callable[[str], int]
) -> dict[str, Any]:
    """Write the rows and return what the manifest says of them."""
    digest, offsets, totals = hashlib.sha256(), [0], Totals(count_tokens)
    file_sets: list[dict[str, str]] = []
    verdicts: Counter[bool | None] = Counter()
    names: set[str] = set()
    with (folder / ROWS).open("wb") as file:
        for instance in instances:
            if instance.instance_id in names:
                raise ValueError(f"instance_id {instance.instance_id!r} stands twice")
            names.add(instance.instance_id)
            line = to_json(stamp(instance))
            if "files" in line["metadata"]:
                own = line["metadata"]["files"]
                if own not in file_sets:
                    file_sets.append(own)
                line["metadata"]["files"] = file_sets.index(own)
            text = json.dumps(line, ensure_ascii=False, sort_keys=True)
            row = f"{text}\n".encode("utf-8", "surrogatepass")
            file.write(row)
            digest.update(row)
            offsets.append(offsets[-1] + len(row))
            totals.add(instance)
            verdicts.update(answerable(instance))
        file.flush()
        os.fsync(file.fileno())
    if not names:
        raise ValueError("nothing to write: no instance came out of these files and sizes")
    return {
        "builder": BUILDER,
        "files": {name: sha for own in file_sets for name, sha in own.items()},
        "file_sets": file_sets,
        "sha256": digest.hexdigest(),
        "statistics": totals.result() | _answered(verdicts),
        "offsets": offsets,
    }


def _answered(verdicts: Counter[bool | None]) -> dict[str, float | None]:
    """How many questions could be checked, and the share of them that the chunks answer."""
    checked = verdicts[True] + verdicts[False]
    share = verdicts[True] / checked if checked else None
    return {"checked_questions": checked, "answerable_share": share}


def _take_the_name(aside: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class Built:
    """The instances of a built folder as a sequence; each is read when it is asked for."""

    def __init__(self, folder: str | Path):
        """ValueError if the folder is no finished build, or was changed since."""
        self.folder = user_path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise ValueError(f"{folder}: no {MANIFEST}; not a finished build (build it again)")
        try:
            self.manifest = json.loads((self.folder / MANIFEST).read_text())
            self.offsets: list[int] = self.manifest["offsets"]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{self.folder / MANIFEST}: damaged ({error!r})") from error
        self.rows = self.folder / ROWS
        size = self.rows.stat().st_size if self.rows.is_file() else -1
        if size != self.offsets[-1]:
            raise ValueError(f"{self.rows}: {size} bytes where {self.offsets[-1]} were written")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Instance:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.folder}: instance {index} of {len(self)}")
        index %= len(self)
        with self.rows.open("rb") as file:
            file.seek(self.offsets[index])
            row = file.read(self.offsets[index + 1] - self.offsets[index])
        try:
            line = json.loads(row.decode("utf-8", "surrogatepass"))
            number = line["metadata"].get("files")
            if isinstance(number, int):  # written out in the lines of older builds
                line["metadata"]["files"] = self.manifest["file_sets"][number]
            return from_json(line)
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError) as error:
            raise ValueError(f"{self.rows}: instance {index} is damaged ({error!r})") from error

    def __iter__(self) -> Iterator[Instance]:
        return (self[index] for index in range(len(self)))

    def check(self) -> None:
        """ValueError unless the rows have the hash they were written with."""
        if sha256(self.rows) != self.manifest["sha256"]:
            raise ValueError(f"{self.rows}: not the bytes that were written; build it again")


def list_sets(folder: str | Path) -> dict[str, dict[str, Path]]:
    """Every built set below a folder: {split: {source: its folder}}; `folder` itself counts too.

    Raises ValueError where there is none.
    """
    folder = user_path(folder)
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted({*folder.glob(MANIFEST), *folder.glob(f"*/*/{MANIFEST}")}):
        if path.parent.name.endswith((ASIDE, OLD)):  # of a build that was killed
            continue
        description = Built(path.parent).manifest["description"]
        sets.setdefault(description["split"], {})[description["source"]] = path.parent
    if not sets:
        raise ValueError(
            f"{folder}: no built set in it or in SOURCE/SPLIT below it; make one with"
            " python -m memalpha.data build"
        )
    return sets


def find_split(folder: str | Path, split: str) -> dict[str, Path]:
    """The built sets of one split by source; ValueError where there is none, naming the others."""
    sets = list_sets(folder)
    if split not in sets:
        known = ", ".join(sets)
        raise ValueError(f"{folder}: no built set of split {split!r}; it has {known}")
    return sets[split]


def open_source(folder: str | Path, source: str, split: str) -> Built:
    """The built set of one source and split; ValueError where there is none, naming the others."""
    sets = find_split(folder, split)
    if source not in sets:
        known = ", ".join(sets)
        raise ValueError(f"{folder}: no source {source!r} of split {split!r}; it has {known}")
    return Built(sets[source])


def to_json(instance: Instance) -> dict[str, Any]:
    """A plain object of an instance, for JSON."""
    row = asdict(instance)
    for question in row["questions"]:
        if not question["asked_at"]:
            del question["asked_at"]
    return row


def from_json(row: dict[str, Any]) -> Instance:
    """The instance of an object that `to_json` made, validated."""
    questions = tuple(
        Question(q["question"], tuple(q["answers"]), q.get("asked_at", ""))
        for q in row["questions"]
    )
    chunks = tuple(row["chunks"])
    return validate(Instance(row["source"], row["instance_id"], chunks, questions, row["metadata"]))
